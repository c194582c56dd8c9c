"""The demonstration's applications, seen from outside: commands over a Unix socket, and the
journals that their requests leave behind."""

from __future__ import annotations

import json
import socket
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Json = dict[str, Any]

PATIENCE_S = 5.0


class AppError(Exception):
    """An application did not do as it was told."""


def command(control: Path, text: str) -> Json:
    """Sends one command and returns its answer."""
    try:
        with socket.socket(socket.AF_UNIX) as conversation:
            conversation.settimeout(PATIENCE_S)
            conversation.connect(str(control))
            conversation.sendall(f"{text}\n".encode())
            with conversation.makefile() as lines:
                answer: Json = json.loads(lines.readline())
    except (OSError, ValueError) as error:
        raise AppError(f"{control.parent.name}: {text}: {error}") from error
    if "error" in answer:
        raise AppError(f"{control.parent.name}: {answer['error']}")
    return answer


@dataclass
class Journal:
    """Reads on where it stopped the last time. The file outlives its application."""

    file: Path
    position: int = 0
    rest: str = ""

    def begun_orders(self) -> list[int]:
        """Ids of the orders that have begun since the last call."""
        if not self.file.exists():
            return []
        with self.file.open() as journal:
            journal.seek(self.position)
            text = self.rest + journal.read()
            self.position = journal.tell()
        lines = text.split("\n")
        self.rest = lines.pop()
        return [int(line[9:]) for line in lines if line.startswith("+ orders ")]


@dataclass
class Ledger:
    """Which order was begun how often, by service and by instance."""

    journals: dict[str, tuple[str, Journal]]
    begun: dict[str, Counter[int]] = field(default_factory=dict)
    by_instance: dict[str, set[int]] = field(default_factory=dict)
    _told: set[tuple[str, int]] = field(default_factory=set)

    def update(self) -> None:
        for instance, (service, journal) in self.journals.items():
            orders = journal.begun_orders()
            self.begun.setdefault(service, Counter()).update(orders)
            self.by_instance.setdefault(instance, set()).update(orders)

    def new_duplicates(self) -> dict[str, list[int]]:
        """Orders that a service began more than once, each told once. There must be none."""
        found = {
            service: [order for order, times in orders.items() if times > 1 and (service, order) not in self._told]
            for service, orders in self.begun.items()
        }
        self._told.update((service, order) for service, orders in found.items() for order in orders)
        return {service: orders for service, orders in found.items() if orders}
