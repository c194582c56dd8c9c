"""The acts: each makes a promise, does something to the mesh under load, and measures."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from account import Account, answered, share
from mesh import WORKLOADS, Mesh
from probe import Probe

# The share that chance alone moves by two points is 1 in 10,000 at this many requests.
SPLIT_REQUESTS = 8_000
SPLIT_POINTS = 2.0


@dataclass
class Measured:
    """What an act found: lines to show, and what did not hold."""

    lines: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def check(self, holds: bool, what: str) -> None:
        """A measurement, and whether it is as promised."""
        self.lines.append(what)
        if not holds:
            self.faults.append(what)


@dataclass(frozen=True)
class Act:
    name: str
    promise: str
    play: Callable[[Mesh, Account], Measured]


def canary(mesh: Mesh, account: Account) -> Measured:
    measured = Measured()
    for v1, v2 in [(90, 10), (50, 50), (0, 100)]:
        mesh.split(v1=v1, v2=v2)
        report = account.wait_for(account.window(), SPLIT_REQUESTS)
        versions = report["versions"]["user-service"]
        found = share(versions, "v2")
        text = f"v2 at {v2} %: {found:.1f} % of {sum(versions.values())} requests"
        measured.check(abs(found - v2) <= SPLIT_POINTS, text)
    return measured


def certificates(mesh: Mesh, _: Account) -> Measured:
    measured = Measured()
    root = mesh.root()
    outside = mesh.pods["stranger"]
    targets = {w.name: (mesh.inbound(w.name), mesh.identity(w.service)) for w in WORKLOADS}
    with Probe(root, outside, targets) as probe:
        took = mesh.wait("every certificate has changed twice", lambda: min(probe.changes().values()) >= 2, 60)
    changes = probe.changes()
    text = f"each of {len(changes)} certificates changed {min(changes.values())} times or more in {took:.0f} s"
    measured.check(min(changes.values()) >= 2, f"{text}, seen in {probe.handshakes} handshakes from outside")
    measured.check(not probe.faults, f"handshakes that failed: {probe.faults or 'none'}")
    # A later act takes the control plane away for longer than these live.
    mesh.lengthen_leaves()
    return measured


def ejection(mesh: Mesh, account: Account) -> Measured:
    measured = Measured()
    victim = next(workload for workload in WORKLOADS if workload.version == "v1" and workload.next == "catalog")
    mesh.split(v1=50, v2=50)
    account.kill_app(victim.name)
    killed = time.monotonic()
    mesh.wait("the killed application is ejected", lambda: mesh.is_ejected("web", victim.name), 5)
    ejected = time.monotonic() - killed
    measured.check(ejected <= 2.0, f"{victim.name} killed: ejected after {ejected:.2f} s")
    mesh.start_app(victim)
    mesh.wait_until_serving(victim)
    window = account.window()

    def is_back() -> bool:
        served = account.report(window)["served"].get("user-service", {})
        return served.get(victim.name, 0) > 0 and not mesh.is_ejected("web", victim.name)

    mesh.wait("the returned application serves", is_back, 15)
    readmitted = time.monotonic() - killed
    measured.check(readmitted >= 3.0, f"returned, readmitted and serving {readmitted:.1f} s after the kill (base ejection time 3 s)")
    return measured


def least_conn(mesh: Mesh, account: Account) -> Measured:
    measured = Measured()
    mesh.apply("whole.yaml")
    mesh.wait_until_active()
    endpoints = [workload.name for workload in WORKLOADS if workload.service == "user-service"]
    slow = endpoints[0]
    for name in endpoints:
        # Long beside what else a request takes, or the slow one is not ten times slower.
        mesh.app(name, f"delay {400 if name == slow else 40}")
    try:
        # Requests of the old delays have to leave first.
        time.sleep(1)
        report = account.wait_for(account.window(), 5_000)
        served = report["served"]["user-service"]
        found = share(served, slow)
        measured.check(found < 10, f"{slow} at 400 ms, the others at 40 ms: {found:.1f} % of {sum(served.values())} requests")
    finally:
        for name in endpoints:
            mesh.app(name, "delay 1")
        mesh.apply("split.yaml")
        mesh.wait_until_active()
    return measured


def control_plane(mesh: Mesh, account: Account) -> Measured:
    measured = Measured()
    # One without an application that calls on: a sidecar waits for those.
    restarted = "catalog-a"
    mesh.lengthen_leaves()
    mesh.wait_for_lasting_leaves()
    mesh.split(v1=50, v2=50)
    mesh.lab.kill("control-plane")
    window = account.window()
    report = account.wait_for(window, 1_000)
    measured.check(True, f"control plane killed: {answered(report)} requests answered without it")

    drained = mesh.lab.terminate(f"{restarted}.sidecar")
    mesh.start_sidecar(restarted)
    window = account.window()

    def serves() -> bool:
        served: dict[str, int] = account.report(window)["served"].get("catalog", {})
        return served.get(restarted, 0) >= 50

    took = mesh.wait("the restarted sidecar serves", serves)
    measured.check(True, f"{restarted}'s sidecar: drained in {drained:.1f} s, served from its state {took:.1f} s after its start")

    mesh.start_control_plane()
    took = mesh.wait("every sidecar has come back", mesh.are_connected)
    mesh.split(v1=0, v2=100)
    report = account.wait_for(account.window(), 1_000)
    versions = report["versions"]["user-service"]
    stray, total = versions.get("v1", 0), sum(versions.values())
    text = f"control plane back, every sidecar with it after {took:.1f} s: a split of 0/100 sent {stray} of {total} requests to v1"
    measured.check(stray == 0, text)
    return measured


def strangers(mesh: Mesh, _: Account) -> Measured:
    measured = Measured()
    web = ["--authority", "web:8080", mesh.inbound("web")]
    own, other = mesh.issue("client"), mesh.issue("stranger")

    def check(who: str, answer: dict[str, object], wanted: dict[str, str]) -> None:
        told = f"{answer.get('reason') or answer['outcome']}: {answer.get('message') or answer.get('hops')}"
        holds = all(text in str(answer.get(name)) for name, text in wanted.items())
        measured.check(holds, f"{who}: {told}")

    # The refusals below mean something only if the right caller is let in.
    check("web's caller by its certificate", mesh.call(*web, "--credentials", str(own)), {"outcome": "answered"})
    check(
        "in plaintext",
        mesh.call(*web),
        {"outcome": "refused", "code": "PermissionDenied", "reason": "plaintext_refused"},
    )
    check(
        "by another CA",
        mesh.call(*web, "--credentials", str(own), "--forge", mesh.identity("client")),
        {"outcome": "cut", "message": "UnknownCA"},
    )
    check(
        "with the wrong account",
        mesh.call(*web, "--credentials", str(other)),
        {"outcome": "refused", "code": "PermissionDenied", "reason": "denied"},
    )
    return measured


ACTS = [
    Act("canary", "90/10, 50/50, 0/100 through the control plane's API, each within 2 points", canary),
    Act("certificates", "every certificate changes twice, seen from outside (20 s leaves)", certificates),
    Act("ejection", "a killed application is ejected within 2 s, and back after its return", ejection),
    Act("least-conn", "an endpoint 10x slower gets less than 10 % of the requests", least_conn),
    Act("control plane", "killed: traffic flows, a sidecar restarts from its state; back: a new split applies", control_plane),
    Act("strangers", "plaintext, another CA and the wrong account are refused, and told why", strangers),
]
