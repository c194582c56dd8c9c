"""What came of the requests of one act, and whether the promises that hold in every act did."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from app import Json, Ledger
from lab import LabError
from mesh import Mesh

HALVES = ("lookups", "orders")

SECONDS_MIN = 10.0
RATE_MIN = 500.0
SETTLE_S = 20.0


@dataclass(frozen=True)
class Mark:
    """What the load had begun at one moment, and what of it was in flight."""

    now_us: int
    begun: dict[str, int]
    in_flight: dict[str, int]

    @classmethod
    def of(cls, answer: Json) -> Mark:
        return cls(
            answer["now_us"],
            {half: answer[half]["begun"] for half in HALVES},
            {half: answer[half]["in_flight"] for half in HALVES},
        )


@dataclass(frozen=True)
class Kill:
    """An application's SIGKILL, between two marks."""

    instance: str
    before: Mark
    after: Mark

    def in_flight(self, half: str) -> int:
        """At most this many requests were in flight at the moment of the kill."""
        return self.before.in_flight[half] + self.after.begun[half] - self.before.begun[half]

    def explains(self, failure: Json, ledger: Ledger) -> bool:
        """Whether the request was in flight at the killed process: it spans the moment of the
        kill, and no other instance of the service ever saw it."""
        spans = failure["begun_us"] <= self.after.now_us and failure["ended_us"] >= self.before.now_us
        service = ledger.journals[self.instance][0]
        others = (name for name, (other, _) in ledger.journals.items() if other == service and name != self.instance)
        return spans and failure["half"] == "orders" and not any(failure["id"] in ledger.by_instance[name] for name in others)


@dataclass
class Account:
    """The requests that began during one act, in windows that the act opens as it likes."""

    mesh: Mesh
    ledger: Ledger
    windows: list[int] = field(default_factory=list)
    kills: list[Kill] = field(default_factory=list)
    # Filled in when the act has ended.
    seconds: float = 0.0
    sent: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    ok: int = 0
    failures: list[Json] = field(default_factory=list)
    lost: list[Json] = field(default_factory=list)
    duplicates: int = 0

    def window(self) -> int:
        """Opens a window: requests that begin from now on are counted apart."""
        number: int = self.mesh.app("client", "window")["window"]
        self.windows.append(number)
        return number

    def report(self, window: int) -> Json:
        return self.mesh.app("client", f"report {window}")

    def mark(self) -> Mark:
        return Mark.of(self.mesh.app("client", "mark"))

    def kill_app(self, instance: str) -> Kill:
        before = self.mark()
        self.mesh.lab.kill(f"{instance}.app")
        kill = Kill(instance, before, self.mark())
        self.kills.append(kill)
        return kill

    def wait_for(self, window: int, requests: int) -> Json:
        """Waits until so many requests of the window have been answered."""
        self.mesh.wait(f"{requests} requests", lambda: answered(self.report(window)) >= requests, 60)
        return self.report(window)

    @contextmanager
    def act(self) -> Iterator[None]:
        """The act's stretch of time: at least 10 s, and to the last answer."""
        self.window()
        began = time.monotonic()
        yield
        while time.monotonic() - began < SECONDS_MIN:
            self.mesh.lab.check_alive()
            time.sleep(0.1)
        self.seconds = time.monotonic() - began
        # What begins from here on belongs to nobody's act.
        self.mesh.app("client", "window")
        self.mesh.wait("every request has ended", self._is_settled, SETTLE_S)
        self._settle()

    def _is_settled(self) -> bool:
        reports = [self.report(window) for window in self.windows]
        return all(sent(report) == ended(report) for report in reports)

    def _settle(self) -> None:
        reports = [self.report(window) for window in self.windows]
        self.ledger.update()
        self.sent = Counter({half: sum(report["halves"][half]["sent"] for report in reports) for half in HALVES})
        self.ok = sum(answered(report) for report in reports)
        for report in reports:
            self.kinds.update(report["kinds"])
            failures = report["failures"]
            if sum(report["halves"][half]["failed"] for half in HALVES) != len(failures):
                raise LabError(f"more failures than the load keeps; the first: {failures[0]}")
            for failure in failures:
                is_lost = any(kill.explains(failure, self.ledger) for kill in self.kills)
                (self.lost if is_lost else self.failures).append(failure)
        self.duplicates = sum(len(orders) for orders in self.ledger.new_duplicates().values())

    # -- the promises of every act ---------------------------------------------------------------

    def broken(self) -> list[str]:
        """The promises that did not hold."""
        total = sum(self.sent.values())
        rate = total / self.seconds
        streams = self.kinds["List"] + self.kinds["Chat"]
        promises = [
            (rate >= RATE_MIN, f"only {rate:.0f} requests/s"),
            (abs(self.sent["orders"] - total / 2) <= 1, "the halves are not equal"),
            (0.49 <= streams / total <= 0.51, f"{streams} of {total} requests were streams"),
            (not self.failures, f"{len(self.failures)} failures of the mesh's making"),
            (self.duplicates == 0, f"{self.duplicates} orders served twice"),
        ]
        bound = sum(kill.in_flight("orders") for kill in self.kills)
        promises.append((len(self.lost) <= bound, f"{len(self.lost)} orders lost, {bound} were in flight"))
        return [fault for holds, fault in promises if not holds]

    def summary(self) -> str:
        total = sum(self.sent.values())
        text = f"{total} requests in {self.seconds:.0f} s ({total / self.seconds:.0f}/s), {len(self.failures)} failed by the mesh"
        if self.kills:
            bound = sum(kill.in_flight("orders") for kill in self.kills)
            text += f", {len(self.lost)} orders lost of {bound} in flight at the kill"
        return text + f", {self.duplicates} orders served twice"


def sent(report: Json) -> int:
    return sum(half["sent"] for half in report["halves"].values())


def answered(report: Json) -> int:
    return sum(half["ok"] for half in report["halves"].values())


def ended(report: Json) -> int:
    return sum(half["ok"] + half["failed"] for half in report["halves"].values())


def share(counts: dict[str, int], name: str) -> float:
    """Percent."""
    total = sum(counts.values())
    return 100 * counts.get(name, 0) / total if total else 0.0
