"""What the person at the terminal sees: a table that redraws itself, or plain lines where the
output goes elsewhere."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable

CLEAR_LINE = "\x1b[2K"
REDRAW_S = 0.5


class Screen:
    """Lines scroll; the live part below them is drawn again and again.

    Everything written goes through one lock: the live part must be wiped before a line is
    printed and drawn again after it.
    """

    def __init__(self) -> None:
        self.is_terminal = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
        self._live: Callable[[], list[str]] = list
        self._drawn = 0
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._began = time.monotonic()

    def line(self, text: str = "") -> None:
        with self._lock:
            self._wipe()
            print(text, flush=True)

    def step(self, text: str) -> None:
        """A line with the time since the start."""
        self.line(f"{time.monotonic() - self._began:6.1f} s  {text}")

    def watch(self, live: Callable[[], list[str]]) -> None:
        """Shows what `live` returns until the screen is closed; only on a terminal."""
        self._live = live
        if self.is_terminal and self._thread is None:
            self._thread = threading.Thread(target=self._redraw, daemon=True)
            self._thread.start()

    def close(self) -> None:
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()
        with self._lock:
            self._wipe()

    def _redraw(self) -> None:
        while not self._stopped.wait(REDRAW_S):
            lines = self._live()
            with self._lock:
                self._wipe()
                width = os.get_terminal_size().columns or 80
                for text in lines:
                    print(text[: width - 1])
                sys.stdout.flush()
                self._drawn = len(lines)

    def _wipe(self) -> None:
        if self._drawn:
            sys.stdout.write(f"\x1b[{self._drawn}A" + f"{CLEAR_LINE}\n" * self._drawn)
            sys.stdout.write(f"\x1b[{self._drawn}A")
            self._drawn = 0
