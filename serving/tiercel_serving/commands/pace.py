"""Decide when a log reports the progress of long work, and estimate the remaining time."""

from __future__ import annotations

import time
from collections.abc import Callable

#: Seconds after which progress of at least a percent is reported before the next tenth.
MINUTE_S = 60.0
#: Seconds of work after which the remaining time is estimated.
LONG_S = 10.0


class Pace:
    """The progress of one piece of work in a log."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._told: int | None = None
        self._begun = self._first = self._at = 0.0

    def says(self, done: int, total: int | None) -> str | None:
        """Return the text to print after the work's name, or None if nothing is to be printed.

        Without a total there are no percentages, and the count is printed whenever it has doubled.
        """
        if not total:
            if self._told is not None and done < max(2 * self._told, 1):
                return None
            self._told = done
            return f" {done:,}" if done else ""
        percent, now = min(100 * done // total, 100), self._clock()
        if self._told is None or percent < self._told:
            self._begun, self._first = now, done / total
        elif percent // 10 == self._told // 10 and (percent == self._told or now - self._at < MINUTE_S):
            return None
        self._told, self._at = percent, now
        return f" {percent}%{self._left(done / total, now - self._begun)}"

    def _left(self, share: float, spent: float) -> str:
        if spent < LONG_S or not self._first < share < 1:
            return ""
        return f", {duration(spent * (1 - share) / (share - self._first))} left"


def duration(seconds: float) -> str:
    """Return a readable duration in seconds, minutes or hours."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
