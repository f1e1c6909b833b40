"""Lines that say what a set-up is doing, with the seconds since its start."""

from __future__ import annotations

import sys
import time
from typing import TextIO

LINES = 12  # of progress in a whole build, where lines cannot be written over
PATIENCE = 20.0  # seconds without a line after which there is one


class Steps:
    """Writer of lines ``[ 12 s] text``; counts are written over each other on a terminal."""

    def __init__(self, out: TextIO | None = None) -> None:
        self.out = sys.stdout if out is None else out
        self.started = time.monotonic()
        self.last = self.started
        self.number = self.total = self.last_count = 0
        self.is_open = False  # the line of a count stands without its end

    def say(self, text: str) -> None:
        """A line of its own."""
        self.close()
        print(self.stamped(text), file=self.out, flush=True)
        self.last = time.monotonic()

    def count(self, number: int, total: int, text: str) -> None:
        """One more of a total is done."""
        self.number, self.total = number, total
        line = f"{number:4d} of {total}: {text}"
        if self.out.isatty():
            print(f"\r\033[K{self.stamped(line)[:78]}", end="", file=self.out, flush=True)
            self.is_open = True
            return
        every = -(-total // LINES)
        if number < self.last_count:  # another build
            self.last_count = 0
        late = time.monotonic() - self.last > PATIENCE
        if number == total or late or number >= self.last_count + every:
            self.last_count = number
            self.say(line)

    def wait(self) -> None:
        """A sign of life, if the last line is old."""
        if self.total and time.monotonic() - self.last > PATIENCE and not self.out.isatty():
            self.say(f"{self.number:4d} of {self.total}, still at it")

    def close(self) -> None:
        """End the line of a count."""
        if self.is_open:
            print(file=self.out, flush=True)
            self.is_open = False

    def stamped(self, text: str) -> str:
        """The text behind the seconds."""
        return f"[{time.monotonic() - self.started:4.0f} s] {text}"
