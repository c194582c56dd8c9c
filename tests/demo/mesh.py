"""The mesh under demonstration: a control plane, seven workloads with their sidecars, and the
command line. Only what a user has: settings files, tokens, `heddle`, and the HTTP ports."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app import Journal, Json, Ledger, command
from lab import APP_UID, PROXY_UID, Lab, LabError, Pod, run

HERE = Path(__file__).resolve().parent

PORT = 8080
GRPC_PORT = 15012
HTTP_PORT = 15014
HEALTH_PORT = 15020
ADMIN_PORT = 15000
OUTBOUND_PORT = 15001
INBOUND_PORT = 18080

CATALOG = "10.96.0.20"

READY_S = 20.0

# Lifetimes of certificates: to see them change, and to live without a control plane.
BRIEF = "20s"
LASTING = "1h"


@dataclass(frozen=True)
class Workload:
    """One instance of a service."""

    name: str
    service: str
    version: str = "v1"
    # The service it calls, and how it is dialled under interception.
    next: str | None = None
    dials: str | None = None


WORKLOADS = [
    Workload("client", "client", next="web", dials=f"web:{PORT}"),
    Workload("web", "web", next="user-service", dials=f"user-service:{PORT}"),
    *(
        Workload(name, "user-service", version, next="catalog", dials=f"{CATALOG}:{PORT}")
        for name, version in [("user-v1-a", "v1"), ("user-v1-b", "v1"), ("user-v2", "v2")]
    ),
    Workload("catalog-a", "catalog"),
    Workload("catalog-b", "catalog"),
]


@dataclass(frozen=True)
class Binaries:
    """The programs, built and where everybody may run them."""

    directory: Path

    @property
    def proxy(self) -> Path:
        return self.directory / "heddle-proxy"

    @property
    def control_plane(self) -> Path:
        return self.directory / "heddle-control-plane"

    @property
    def heddle(self) -> Path:
        return self.directory / "heddle"

    @property
    def app(self) -> Path:
        return self.directory / "heddle-demo-app"


@dataclass
class Mesh:
    """The running parts."""

    lab: Lab
    binaries: Binaries
    leaf_lifetime: str = BRIEF
    pods: dict[str, Pod] = field(default_factory=dict)

    # -- starting -----------------------------------------------------------------------------

    def start(self) -> None:
        self.pods["control-plane"] = self.lab.add_pod("control-plane")
        for workload in WORKLOADS:
            self.pods[workload.name] = self.lab.add_pod(workload.name)
        self.pods["stranger"] = self.lab.add_pod("stranger")
        self.start_control_plane()
        self.apply("shop.yaml", "split.yaml")
        for workload in WORKLOADS:
            self.add_workload(workload)
        for workload in WORKLOADS:
            self.wait_until_serving(workload)

    def start_control_plane(self) -> None:
        pod = self.pods["control-plane"]
        folder = self.lab.folder("control-plane")
        settings = {
            "data_directory": str(folder / "data"),
            "listen": {"grpc": f"{pod.address}:{GRPC_PORT}", "http": f"{pod.address}:{HTTP_PORT}"},
            # The pace is per identity, and three workloads share one.
            "authority": {"leaf_lifetime": self.leaf_lifetime, "issue_interval": "1s", "issue_burst": 20},
        }
        # JSON is YAML.
        config = self.lab.file(folder / "control-plane.yaml", json.dumps(settings, indent=1))
        self.lab.start("control-plane", pod.enter([self.binaries.control_plane, "--config", config]))
        self.wait("the control plane is healthy", lambda: self.is_healthy("control-plane", HTTP_PORT))

    def add_workload(self, workload: Workload) -> None:
        sidecar = self.lab.folder(workload.name, "sidecar", uid=PROXY_UID)
        self.lab.folder(workload.name, "app", uid=APP_UID)
        (self.lab.directory / workload.name).chmod(0o711)
        token = self.token(workload.service, {"app": workload.service, "version": workload.version}, workload.name)
        self.lab.file(sidecar / "token", token["token"], uid=PROXY_UID)
        settings = self.sidecar_settings(workload, token["rootSha256"])
        self.lab.file(sidecar / "proxy.yaml", json.dumps(settings, indent=1), uid=PROXY_UID)
        if self.lab.is_namespaced:
            run(self.pods[workload.name].enter([self.binaries.proxy, "init", "--capture-dns"]))
        self.start_sidecar(workload.name)
        self.start_app(workload)

    def sidecar_settings(self, workload: Workload, root_sha256: str) -> Json:
        pod, control_plane = self.pods[workload.name], self.pods["control-plane"]
        sidecar = self.lab.directory / workload.name / "sidecar"
        settings: Json = {
            "control_plane": {
                "addresses": [f"{control_plane.address}:{GRPC_PORT}"],
                "trust_anchor": f"sha256:{root_sha256}",
                "token_file": str(sidecar / "token"),
            },
            "workload": {"service_account": workload.service, "name": workload.name},
            "state": {"directory": str(sidecar / "state")},
            "runtime": {"workers": 1},
        }
        if self.lab.is_namespaced:
            settings["traffic"] = {"outbound": f"[::]:{OUTBOUND_PORT}", "inbound": "[::]:15006"}
            return settings
        settings["workload"]["address"] = pod.address
        settings["traffic"] = {"mode": "ports"}
        settings["ports"] = {
            "http": f"{pod.address}:{OUTBOUND_PORT}",
            "inbound": [
                {"listen": f"{pod.address}:{INBOUND_PORT}", "forward": f"{pod.address}:{PORT}", "protocol": "grpc"}
            ],
        }
        settings["telemetry"] = {"listen": f"{pod.address}:{HEALTH_PORT}"}
        settings["admin"] = {"listen": f"{pod.address}:{ADMIN_PORT}"}
        return settings

    def start_sidecar(self, name: str) -> None:
        config = self.lab.directory / name / "sidecar" / "proxy.yaml"
        program: list[str | Path] = [self.binaries.proxy, "--config", config]
        self.lab.start(f"{name}.sidecar", self.pods[name].enter(program, PROXY_UID))

    def start_app(self, workload: Workload) -> None:
        pod = self.pods[workload.name]
        folder = self.lab.directory / workload.name / "app"
        listen = f"[::]:{PORT}" if self.lab.is_namespaced else f"{pod.address}:{PORT}"
        program: list[str | Path] = [self.binaries.app, "serve", "--service", workload.service]
        program += ["--instance", workload.name, "--version", workload.version, "--listen", listen]
        program += ["--journal", folder / "journal", "--control", folder / "control"]
        if workload.next and self.lab.is_namespaced:
            program += ["--next", str(workload.dials)]
        elif workload.next:
            program += ["--next", f"{workload.next}:{PORT}", "--via", f"{pod.address}:{OUTBOUND_PORT}"]
        self.lab.start(f"{workload.name}.app", pod.enter(program, APP_UID))

    def wait_until_serving(self, workload: Workload) -> None:
        name = workload.name
        self.wait(f"{name}'s sidecar is ready", lambda: self.is_healthy(name, HEALTH_PORT))
        self.wait(f"{name}'s application answers", lambda: self.app(name, "stats") is not None)

    # -- using ----------------------------------------------------------------------------------

    def app(self, name: str, text: str) -> Json:
        return command(self.lab.directory / name / "app" / "control", text)

    def ledger(self) -> Ledger:
        """The journals of everybody who serves."""
        return Ledger(
            {
                workload.name: (workload.service, Journal(self.lab.directory / workload.name / "app" / "journal"))
                for workload in WORKLOADS
                if workload.name != "client"
            }
        )

    def heddle_command(self, *arguments: str) -> list[str]:
        """`heddle` as administrator, from the control plane's pod."""
        pod = self.pods["control-plane"]
        credentials = self.lab.directory / "control-plane" / "data" / "administrator"
        target = ["--server", f"{pod.address}:{GRPC_PORT}", "--credentials", str(credentials)]
        return pod.enter([self.binaries.heddle, *target, *arguments])

    def heddle(self, *arguments: str) -> str:
        return run(self.heddle_command(*arguments))

    def heddle_json(self, *arguments: str) -> Any:
        return json.loads(self.heddle(*arguments, "-o", "json"))

    def apply(self, *files: str) -> None:
        arguments = [argument for file in files for argument in ("-f", str(HERE / file))]
        self.heddle("apply", *arguments)

    def token(self, service_account: str, labels: dict[str, str], name: str | None = None) -> Json:
        arguments = [part for key, value in labels.items() for part in ("--label", f"{key}={value}")]
        if name is not None:
            arguments += ["--address", self.pods[name].address]
        token: Json = self.heddle_json("token", service_account, *arguments)
        return token

    def split(self, **percents: int) -> None:
        """Sets the weights of both routes and waits until every sidecar has them."""
        weights = [f"{subset}={percent}" for subset, percent in percents.items()]
        for route in ("lookups", "orders"):
            self.heddle("traffic", "set", "user-service", "--route", route, *weights, "--wait")

    def wait_until_active(self) -> None:
        """Waits until every sidecar runs the newest version of everything it uses."""

        def is_active() -> bool:
            proxies = self.heddle_json("proxies")
            counts = [(proxy["resourcesSubscribed"], proxy["resourcesActive"]) for proxy in proxies]
            return len(counts) == len(WORKLOADS) and all(wanted == active for wanted, active in counts)

        self.wait("the configuration is active everywhere", is_active)

    def are_connected(self) -> bool:
        """Whether every sidecar has a stream to the control plane."""
        proxies = self.heddle_json("proxies")
        return len([proxy for proxy in proxies if proxy["connectedAtMs"] > 0]) == len(WORKLOADS)

    def issue(self, service_account: str) -> Path:
        """A certificate on disk for somebody without a sidecar."""
        token = self.token(service_account, {})
        folder = self.lab.folder("stranger", service_account)
        self.lab.file(folder / "token", token["token"])
        arguments = ["--out", str(folder / "out"), "--token", str(folder / "token")]
        self.heddle("certs", "issue", *arguments, "--trust-anchor", f"sha256:{token['rootSha256']}")
        return folder / "out"

    def call(self, *arguments: str) -> Json:
        """One call from the stranger's pod, which has no sidecar."""
        program: list[str | Path] = [self.binaries.app, "call", *arguments]
        answer: Json = json.loads(run(self.pods["stranger"].enter(program)))
        return answer

    def root(self) -> Path:
        """The mesh's root certificate, as a user has it."""
        return self.lab.directory / "control-plane" / "data" / "administrator" / "root.pem"

    def identity(self, service_account: str) -> str:
        return f"spiffe://cluster.local/ns/default/sa/{service_account}"

    def lengthen_leaves(self) -> None:
        """Restarts the control plane, in order, with settings that make certificates last."""
        if self.leaf_lifetime != LASTING:
            self.leaf_lifetime = LASTING
            self.lab.terminate("control-plane")
            self.start_control_plane()

    def wait_for_lasting_leaves(self) -> None:
        """Waits until every sidecar has renewed since."""

        def are_lasting() -> bool:
            soon = (time.time() + 60) * 1000
            proxies = self.heddle_json("proxies")
            return len(proxies) == len(WORKLOADS) and all(proxy["certificateNotAfterMs"] > soon for proxy in proxies)

        self.wait("every certificate lasts", are_lasting, 30)

    def is_ejected(self, caller: str, endpoint: str) -> bool:
        """Whether the caller's sidecar has set the endpoint aside."""
        status, text = self.fetch(caller, ADMIN_PORT, "/clusters")
        if status != 200:
            raise LabError(f"{caller}'s sidecar does not tell its clusters: {status}")
        address = self.inbound(endpoint)
        endpoints = [found for cluster in json.loads(text).values() for found in cluster["endpoints"]]
        return any(found["address"] == address and found["is_ejected"] for found in endpoints)

    def inbound(self, name: str) -> str:
        """Where a peer meets a workload's sidecar."""
        port = PORT if self.lab.is_namespaced else INBOUND_PORT
        return f"{self.pods[name].address}:{port}"

    def fetch(self, name: str, port: int, path: str) -> tuple[int, str]:
        """An HTTP GET, from inside the pod."""
        pod = self.pods[name]
        host = "127.0.0.1" if port == ADMIN_PORT and pod.namespace else pod.address
        return pod.inside(lambda: get(host, port, path))

    def is_healthy(self, name: str, port: int) -> bool:
        return self.fetch(name, port, "/health/ready")[0] == 200

    def wait(self, what: str, holds: Callable[[], bool], seconds: float = READY_S) -> float:
        """Waits until it holds. Returns how long that took, in seconds."""
        began = time.monotonic()
        last: Exception | None = None
        while time.monotonic() < began + seconds:
            self.lab.check_alive()
            try:
                if holds():
                    return time.monotonic() - began
            except Exception as error:  # what is not there yet fails in many ways
                last = error
            time.sleep(0.1)
        raise LabError(f"not within {seconds:.0f} s: {what}" + (f" ({last})" if last else ""))


def get(host: str, port: int, path: str) -> tuple[int, str]:
    """Status and body of an HTTP GET; status 0 when there is no answer."""
    connection = http.client.HTTPConnection(host, port, timeout=2)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    except (OSError, http.client.HTTPException):
        return 0, ""
    finally:
        connection.close()
