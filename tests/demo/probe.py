"""An outside TLS client that shakes hands with every sidecar again and again and notes which
certificates it is shown. It knows nothing of Heddle but its root certificate."""

from __future__ import annotations

import socket
import ssl
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab import Pod

PAUSE_S = 0.5
PATIENCE_S = 2.0


@dataclass
class Probe:
    """The serial numbers seen, by name."""

    root: Path
    # Where it looks from.
    pod: Pod
    # Name -> address and port, and the SPIFFE id that must be there.
    targets: dict[str, tuple[str, str]]
    serials: dict[str, list[str]] = field(default_factory=dict)
    # Handshakes that failed, or that showed another identity.
    faults: list[str] = field(default_factory=list)
    handshakes: int = 0
    _stopped: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Probe:
        self._thread = threading.Thread(target=lambda: self.pod.inside(self._look), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def changes(self) -> dict[str, int]:
        """How often each name's certificate has changed."""
        return {name: len(self.serials.get(name, [])) - 1 for name in self.targets}

    def _look(self) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_verify_locations(self.root)
        # Identity is a URI here, not a host name; it is compared below.
        context.check_hostname = False
        while not self._stopped.wait(PAUSE_S):
            for name, (address, identity) in self.targets.items():
                try:
                    serial = shake(context, address, identity)
                except (OSError, ValueError) as error:
                    self.faults.append(f"{name}: {error}")
                    continue
                self.handshakes += 1
                seen = self.serials.setdefault(name, [])
                if serial not in seen:
                    seen.append(serial)


def shake(context: ssl.SSLContext, address: str, identity: str) -> str:
    """Serial number of the certificate presented in a new handshake."""
    host, port = address.rsplit(":", 1)
    with socket.create_connection((host, int(port)), PATIENCE_S) as plain:
        # The sidecar's certificate is there and verified before it asks for ours, which we lack.
        with context.wrap_socket(plain) as tls:
            certificate: dict[str, Any] = dict(tls.getpeercert() or {})
    uris = [value for kind, value in certificate.get("subjectAltName", ()) if kind == "URI"]
    if uris != [identity]:
        raise ValueError(f"presents {uris}, not {identity}")
    return str(certificate["serialNumber"])
