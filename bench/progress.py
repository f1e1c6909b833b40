"""What is being measured, for those who wait."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TextIO

WIDTH = 100  # of a line on a terminal
EVERY = 10.0  # seconds from one line to the next, where lines cannot be written over


class Progress:
    """One line that is written over on a terminal; elsewhere a line now and then."""

    def __init__(self, out: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self.out, self.clock = out, clock
        self.started = clock()
        self.last = -EVERY  # of the line that was written last, since the start

    def of(self, total: int, what: str = "") -> Callable[[str], None]:
        """A function that is told when the next one of a total begins."""
        number = 0

        def begins(name: str) -> None:
            nonlocal number
            number += 1
            self.say(f"{number}/{total} {what}{name}", number in (1, total))

        return begins

    def say(self, text: str, always: bool = False) -> None:
        seconds = self.clock() - self.started
        if self.out.isatty():
            print(f"\r\033[K{text[:WIDTH]}", end="", file=self.out, flush=True)
        elif always or seconds - self.last >= EVERY:
            self.last = seconds
            print(f"[{seconds:5.0f} s] {text}", file=self.out, flush=True)

    def end(self) -> None:
        """Clear the line of a terminal."""
        if self.out.isatty():
            print("\r\033[K", end="", file=self.out, flush=True)
