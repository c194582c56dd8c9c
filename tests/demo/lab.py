"""Where the demonstration lives: a directory on tmpfs, its processes, and one network namespace
for each pod (as root) or one loopback address for each pod (otherwise).

Nothing is left behind. The directory lists what to end and to remove, so that the next run can
do it for a run that was killed.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

PREFIX = "heddle-demo-"
NETNS_FILES = Path("/etc/netns")

APP_UID = 65534
PROXY_UID = 1337

STOP_PATIENCE_S = 10.0

LIBC = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNET = 0x40000000


class LabError(Exception):
    """The demonstration cannot run here."""


@dataclass(frozen=True)
class Pod:
    """A place with its own addresses."""

    name: str
    address: str
    namespace: str | None

    def enter(self, command: Sequence[str | Path], uid: int | None = None) -> list[str]:
        """The command as it runs in this pod, as `uid` without any capability."""
        arguments = [str(part) for part in command]
        if self.namespace is None:
            return arguments
        if uid is not None:
            drop = [f"--reuid={uid}", f"--regid={uid}", "--clear-groups"]
            drop += ["--bounding-set=-all", "--no-new-privs"]
            arguments = ["setpriv", *drop, *arguments]
        return ["ip", "netns", "exec", self.namespace, *arguments]

    def inside(self, action: Callable[[], T]) -> T:
        """What the action returns when its sockets are made in this pod."""
        if self.namespace is None:
            return action()
        return in_namespace(self.namespace, action)


@dataclass
class Lab:
    """Everything one run made."""

    directory: Path
    is_namespaced: bool
    pods: dict[str, Pod] = field(default_factory=dict)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    started: list[tuple[int, int]] = field(default_factory=list)
    namespaces: list[str] = field(default_factory=list)
    # Directories elsewhere.
    extra: list[Path] = field(default_factory=list)
    is_kept: bool = False

    @classmethod
    def create(cls, is_namespaced: bool) -> Lab:
        directory = tmpfs() / f"{PREFIX}{os.getpid()}"
        directory.mkdir(mode=0o711)
        lab = cls(directory, is_namespaced)
        try:
            lab._record()
            if is_namespaced:
                lab._add_node()
        except BaseException:
            lab.destroy()
            raise
        return lab

    def add_pod(self, name: str) -> Pod:
        """A pod with an address of its own."""
        number = len(self.pods) + 2
        if self.is_namespaced:
            pod = Pod(name, f"10.77.0.{number}", f"{self.directory.name}-{name}")
            self._add_namespace(pod, number)
        else:
            # Every address of 127.0.0.0/8 is ours to bind; the run's own network keeps two runs apart.
            pod = Pod(name, f"127.{64 + os.getpid() % 128}.{os.getpid() // 128 % 256}.{number}", None)
        self.pods[name] = pod
        return pod

    def aside(self, parent: Path) -> Path:
        """A directory outside, for what may not be on tmpfs (it is often mounted noexec)."""
        directory = parent / self.directory.name
        directory.mkdir(mode=0o755)
        self.extra.append(directory)
        self._record()
        return directory

    def folder(self, *parts: str, uid: int | None = None) -> Path:
        """A directory of the run that only `uid` can look into."""
        folder = self.directory.joinpath(*parts)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self.is_namespaced and uid is not None:
            os.chown(folder, uid, uid)
        return folder

    def file(self, path: Path, text: str, uid: int | None = None) -> Path:
        """A file that only `uid` can read."""
        path.touch(mode=0o600)
        path.write_text(text)
        if self.is_namespaced and uid is not None:
            os.chown(path, uid, uid)
        return path

    def start(self, name: str, command: Sequence[str], environment: dict[str, str] | None = None) -> int:
        """Starts a process whose output goes to `<directory>/<name>.log`. Returns its id."""
        with self.log(name).open("ab") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # A Ctrl-C at the terminal is ours to handle, in order.
                start_new_session=True,
                env={**os.environ, **(environment or {})},
            )
        self.processes[name] = process
        born = birth(process.pid)
        if born is not None:
            self.started.append((process.pid, born))
            self._record()
        return process.pid

    def log(self, name: str) -> Path:
        return self.directory / f"{name}.log"

    def kill(self, name: str) -> None:
        """SIGKILL, and waits for the end."""
        process = self.processes.pop(name)
        process.kill()
        process.wait()

    def terminate(self, name: str) -> float:
        """SIGTERM, and waits for the end. Returns how long that took, in seconds."""
        process = self.processes.pop(name)
        began = time.monotonic()
        process.terminate()
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            raise LabError(f"{name} did not end within 60 s of SIGTERM") from None
        return time.monotonic() - began

    def check_alive(self) -> None:
        """Raises when a process has ended by itself."""
        for name, process in self.processes.items():
            if process.poll() is not None:
                tail = "\n".join(self.log(name).read_text(errors="replace").splitlines()[-15:])
                raise LabError(f"{name} ended with code {process.returncode}; its last words:\n{tail}")

    def destroy(self) -> None:
        """Ends every process, the last started first, and removes what was made."""
        # Half an end would be worse than a late one.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        end(self.started)
        for process in self.processes.values():
            process.wait()
        remove([*self.extra, self.directory], self.namespaces)

    def _record(self) -> None:
        """What to end and to remove, for a later run in case this one cannot."""
        record = {
            "owner": [os.getpid(), birth(os.getpid())],
            "kept": self.is_kept,
            "processes": self.started,
            "namespaces": self.namespaces,
            "directories": [str(directory) for directory in self.extra],
        }
        aside = self.directory / "run.json.new"
        aside.write_text(json.dumps(record))
        aside.rename(self.directory / "run.json")

    def keep(self) -> None:
        """Leaves everything running when this process ends."""
        self.is_kept = True
        self._record()

    def _add_node(self) -> None:
        """The node's namespace with its bridge. The root namespace gets nothing but names."""
        node = f"{self.directory.name}-node"
        self._namespace(node)
        ip_batch(
            node,
            "link set lo up",
            "link add br0 type bridge",
            "addr add 10.77.0.1/16 dev br0",
            "addr add fd77::1/64 dev br0 nodad",
            "link set br0 up",
        )
        self.pods["node"] = Pod("node", "10.77.0.1", node)

    def _add_namespace(self, pod: Pod, number: int) -> None:
        assert pod.namespace is not None
        self._namespace(pod.namespace)
        node = self.pods["node"].namespace
        assert node is not None
        ip_batch(node, f"link add v{number} type veth peer name eth0 netns {pod.namespace}")
        ip_batch(node, f"link set v{number} master br0 up")
        ip_batch(
            pod.namespace,
            "link set lo up",
            f"addr add {pod.address}/16 dev eth0",
            f"addr add fd77::{number:x}/64 dev eth0 nodad",
            "link set eth0 up",
            # A service's address needs a route, or connect() fails before the rules see it.
            "route add default via 10.77.0.1",
            "route add default via fd77::1",
        )

    def _namespace(self, name: str) -> None:
        self.namespaces.append(name)
        self._record()
        # Nobody answers there but the sidecar, which gets every query by redirection.
        files = NETNS_FILES / name
        files.mkdir(parents=True)
        (files / "resolv.conf").write_text(
            "nameserver 10.77.0.1\nsearch default.svc.cluster.local svc.cluster.local cluster.local\n"
        )
        run(["ip", "netns", "add", name])


def in_namespace(name: str, action: Callable[[], T]) -> T:
    """Runs the action on a thread that has entered the network namespace; only the thread has."""
    results: list[T] = []
    failures: list[BaseException] = []

    def enter() -> None:
        try:
            with open(f"/run/netns/{name}") as namespace:
                if LIBC.setns(namespace.fileno(), CLONE_NEWNET) != 0:
                    raise OSError(ctypes.get_errno(), f"entering network namespace {name}")
            results.append(action())
        except BaseException as error:  # it belongs to the caller's thread
            failures.append(error)

    thread = threading.Thread(target=enter, daemon=True)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
    return results[0]


def namespaces_refused() -> str | None:
    """Why pods cannot have network namespaces here; nothing when they can."""
    if os.geteuid() != 0:
        return "not root"
    for program in ("ip", "setpriv"):
        if shutil.which(program) is None:
            return f"{program} is missing (Debian: apt-get install iproute2 util-linux)"
    name = f"{PREFIX}{os.getpid()}-trial"
    try:
        run(["ip", "netns", "add", name])
    except LabError as error:
        return str(error)
    run(["ip", "netns", "delete", name])
    return None


def sweep() -> list[str]:
    """Ends and removes what earlier runs left: kept ones, and those that were killed."""
    swept = []
    for directory in tmpfs().glob(f"{PREFIX}*"):
        if directory.stat().st_uid != os.geteuid():
            continue
        try:
            record = json.loads((directory / "run.json").read_text())
            pid, born = record["owner"]
        except (OSError, ValueError, KeyError):
            continue
        if birth(pid) == born and not record["kept"]:
            continue
        end([(pid, born) for pid, born in record["processes"]])
        remove([*map(Path, record["directories"]), directory], record["namespaces"])
        swept.append(directory.name)
    return swept


def tmpfs() -> Path:
    """A directory of ours in memory: sidecars keep private keys nowhere else."""
    mounts = {}
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, place, kind, *_ = line.split()
        mounts[place] = kind
    for place in ("/dev/shm", "/run", os.environ.get("XDG_RUNTIME_DIR", "")):
        if mounts.get(place) == "tmpfs" and os.access(place, os.W_OK):
            return Path(place)
    raise LabError("no writable tmpfs at /dev/shm, /run or $XDG_RUNTIME_DIR; private keys are kept nowhere else")


def birth(pid: int) -> int | None:
    """When a process started, in clock ticks since boot: tells it from a later one of its id."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The second field, the program's name, may hold spaces and brackets.
    fields = stat.rpartition(")")[2].split()
    state, started = fields[0], int(fields[19])
    return None if state == "Z" else started


def end(processes: list[tuple[int, int]]) -> None:
    """SIGTERM, then SIGKILL for those still there. Only processes that are still the same."""
    patience = {signal.SIGTERM: 1.0, signal.SIGKILL: STOP_PATIENCE_S}
    for which, seconds in patience.items():
        left = [pid for pid, born in reversed(processes) if birth(pid) == born]
        for pid in left:
            try:
                os.kill(pid, which)
            except ProcessLookupError:
                pass
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and any(birth(pid) == born for pid, born in processes):
            time.sleep(0.02)


def remove(directories: list[Path], namespaces: list[str]) -> None:
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout if namespaces else ""
    existing = set(re.findall(r"^\S+", listed, re.MULTILINE))
    for name in namespaces:
        if name in existing:
            run(["ip", "netns", "delete", name])
        shutil.rmtree(NETNS_FILES / name, ignore_errors=True)
    for directory in directories:
        shutil.rmtree(directory, ignore_errors=True)


def ip_batch(namespace: str, *lines: str) -> None:
    run(["ip", "-n", namespace, "-batch", "-"], "\n".join(lines) + "\n")


def run(command: Sequence[str], text: str = "") -> str:
    """Runs a command to its end and returns what it printed."""
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=120)
    if done.returncode != 0:
        raise LabError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout
