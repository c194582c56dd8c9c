#!/usr/bin/env python3
"""`make demo`: builds Heddle, runs a mesh of seven workloads, and plays acts that each promise
something and measure whether it held.

    tests/demo/demo.py [--keep] [--ports] [--stop] [--only ACT]

Needs python3 (3.11, standard library only), cargo and a C compiler. As root every pod is a network namespace
with real redirect rules; otherwise every pod is a loopback address and ports are settings.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from account import Account
from acts import ACTS, Act
from app import AppError
from lab import PROXY_UID, Lab, LabError, namespaces_refused, sweep
from mesh import WORKLOADS, Binaries, Mesh
from screen import Screen

ROOT = Path(__file__).resolve().parents[2]


def main() -> int:
    arguments = parse()
    screen = Screen()
    # Both end the run in order, as Ctrl-C does.
    for which in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(which, interrupt)
    try:
        for name in sweep():
            screen.step(f"removed what an earlier run left: {name}")
        if arguments.stop:
            return 0
        return Demo(screen, arguments).run()
    except KeyboardInterrupt:
        screen.close()
        print("demo: interrupted; everything it started has been ended")
        return 130
    except (LabError, AppError) as error:
        screen.close()
        print(f"demo: {error}", file=sys.stderr)
        return 1
    finally:
        screen.close()


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Runs Heddle's demonstration mesh.")
    parser.add_argument("--keep", action="store_true", help="leave the mesh running at the end")
    parser.add_argument("--stop", action="store_true", help="end a mesh that was left running")
    parser.add_argument("--ports", action="store_true", help="use ports also where namespaces would work")
    parser.add_argument("--profile", default="quick", help="how cargo builds (default: quick)")
    parser.add_argument("--rate", type=int, default=700, help="requests per second (default: 700)")
    parser.add_argument("--only", metavar="ACT", action="append", choices=[act.name for act in ACTS], help="play only this act")
    return parser.parse_args()


class Demo:
    """One run."""

    def __init__(self, screen: Screen, arguments: argparse.Namespace) -> None:
        self.screen = screen
        self.arguments = arguments
        self.acts = [act for act in ACTS if not arguments.only or act.name in arguments.only]
        self.verdicts: dict[str, str] = {}
        self.mesh: Mesh | None = None

    def run(self) -> int:
        built = build(self.screen, self.arguments.profile)
        refused = "asked for" if self.arguments.ports else namespaces_refused()
        if refused is None:
            self.screen.step("every pod is a network namespace with real redirect rules")
        else:
            self.screen.step(f"every pod is a loopback address and ports are settings ({refused})")
        lab = Lab.create(is_namespaced=refused is None)
        try:
            binaries = reachable(built, lab)
            return self.play(Mesh(lab, binaries))
        finally:
            if not lab.is_kept:
                lab.destroy()

    def play(self, mesh: Mesh) -> int:
        mesh.start()
        self.mesh = mesh
        self.screen.step(f"{len(WORKLOADS)} workloads with their sidecars are ready")
        mesh.app("client", f"rate {self.arguments.rate}")
        ledger = mesh.ledger()
        self.screen.watch(self.table)
        held = 0
        for number, act in enumerate(self.acts, 1):
            held += self.play_act(number, act, Account(mesh, ledger))
        self.screen.close()
        if self.arguments.keep:
            mesh.lab.keep()
            self.print_how_to_call(mesh)
        print(f"demo: {held} of {len(self.acts)} acts held", flush=True)
        return 0 if held == len(self.acts) else 1

    def play_act(self, number: int, act: Act, account: Account) -> bool:
        self.verdicts[act.name] = "playing"
        self.screen.step(f"act {number} {act.name}: {act.promise}")
        faults: list[str] = []
        try:
            with account.act():
                measured = act.play(account.mesh, account)
            faults = measured.faults + account.broken()
            for line in [*measured.lines, account.summary()]:
                self.screen.line(f"          {line}")
            for failure in account.failures[:5]:
                self.screen.line(f"          ! {failure}")
        except (LabError, AppError) as error:
            faults.append(str(error))
        for fault in faults:
            self.screen.line(f"          DID NOT HOLD: {fault}")
        self.verdicts[act.name] = "did not hold" if faults else "held"
        self.screen.step(f"act {number} {act.name}: {self.verdicts[act.name]}")
        return not faults

    def table(self) -> list[str]:
        """The live part of the screen."""
        assert self.mesh is not None
        lines = [f"  {act.name:15} {self.verdicts.get(act.name, '')}" for act in self.acts]
        try:
            report = self.mesh.app("client", "report")
            mark = self.mesh.app("client", "mark")
        except AppError:
            return lines
        seconds = max(report["now_us"] - report["begun_us"], 1) / 1e6
        lines.append(f"  {'':15} {'sent':>8} {'/s':>6} {'ok':>8} {'failed':>7} {'in flight':>10}")
        for half, tally in report["halves"].items():
            rate, flying = tally["sent"] / seconds, mark[half]["in_flight"]
            lines.append(f"  {half:15} {tally['sent']:8} {rate:6.0f} {tally['ok']:8} {tally['failed']:7} {flying:10}")
        for service, instances in sorted(report["served"].items()):
            shares = "  ".join(f"{name} {count}" for name, count in sorted(instances.items()))
            lines.append(f"  {service:15} {shares}")
        lines.append(f"  {'latency':15} p50 {report['p50_ms']} ms  p99 {report['p99_ms']} ms")
        return lines

    def print_how_to_call(self, mesh: Mesh) -> None:
        """For the person who keeps it."""
        web = mesh.pods["client"]
        dial = ["web:8080"] if mesh.lab.is_namespaced else [f"{web.address}:15001", "--authority", "web:8080"]
        print("\nThe mesh is left running, under load. Look around with:")
        print(f"  {' '.join(mesh.heddle_command('proxies'))}")
        print(f"  {' '.join(mesh.heddle_command('traffic', 'set', 'user-service', '--route', 'lookups', 'v1=50', 'v2=50', '--wait'))}")
        print("Call it as the client application does:")
        print(f"  {' '.join(web.enter([mesh.binaries.app, 'call', *dial], 65534))}")
        print(f"Logs and settings are in {mesh.lab.directory}. End it with:")
        print(f"  {Path(__file__).resolve()} --stop\n")


def build(screen: Screen, profile: str) -> Path:
    """Builds the programs; returns the directory they are in."""
    if shutil.which("cargo") is None:
        raise LabError("heddle is built with cargo, which is missing: install Rust with rustup (Debian: apt-get install rustup)")
    if shutil.which("cc") is None:
        raise LabError("heddle needs a C compiler, which links it and builds its cryptography (Debian: apt-get install gcc libc6-dev)")
    began = time.monotonic()
    programs = ["heddle-proxy", "heddle-control-plane", "heddle", "heddle-demo-app"]
    command = ["cargo", "build", "--locked", "--profile", profile]
    for program in programs:
        command += ["--bin", program]
    screen.step(f"building ({' '.join(command)})")
    if subprocess.run(command, cwd=ROOT).returncode != 0:
        raise LabError("the build failed")
    screen.step(f"built in {time.monotonic() - began:.0f} s")
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    return ROOT / target / ("debug" if profile == "dev" else profile)


def reachable(built: Path, lab: Lab) -> Binaries:
    """The programs where the sidecars' user can run them: a checkout below a closed home
    directory cannot be."""
    binaries = Binaries(built)
    if not lab.is_namespaced:
        return binaries
    run_as = ["setpriv", f"--reuid={PROXY_UID}", f"--regid={PROXY_UID}", "--clear-groups"]
    if subprocess.run([*run_as, str(binaries.proxy), "--version"], capture_output=True).returncode == 0:
        return binaries
    aside = lab.aside(Path(tempfile.gettempdir()))
    for program in (binaries.proxy, binaries.control_plane, binaries.heddle, binaries.app):
        shutil.copy2(program, aside)
    return Binaries(aside)


if __name__ == "__main__":
    sys.exit(main())
