"""Problems of settings in one form: settings report them, recipes and exports only pass them on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from math import inf
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with settings.

    ``field`` says where, as written in the settings (``rules[0].column``), ``problem`` what was expected and
    what was found, and ``remedy`` what to do about it.
    """

    field: str
    problem: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.field}: {self.problem}; {self.remedy}"

    def within(self, place: str) -> Problem:
        """Return the problem with its field inside ``place``, as in ``column`` within ``rules[0]``."""
        joined = f"{place}.{self.field}" if self.field and place else place or self.field
        return Problem(joined, self.problem, self.remedy)


#: The largest count of anything: users, dimensions, layers.
MOST = 2**31 - 1


@dataclass(frozen=True)
class Range:
    """The valid range of a finite number.

    ``whole`` requires an integer, at most :data:`MOST` if ``high`` is infinite. ``open_low`` and
    ``open_high`` exclude the ends.
    """

    low: float
    high: float = float("inf")
    whole: bool = False
    open_low: bool = False
    open_high: bool = False

    def holds(self, value: Any) -> bool:
        """Whether a value lies in the range."""
        if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
            return False
        if self.whole and (not isinstance(value, int | np.integer) or self.uncounted(value)):
            return False
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return bool(above and below and abs(value) != inf)

    def uncounted(self, value: Any) -> bool:
        """Whether a number is above :data:`MOST`, in a range of integers without an upper end."""
        return bool(self.whole and self.high == inf and value > MOST)

    def __str__(self) -> str:
        what = "a whole number" if self.whole else "a number"
        words = f"{what} {'above' if self.open_low else 'of at least'} {self.low:.10g}"
        if self.high != float("inf"):
            words += f" and {'below' if self.open_high else 'at most'} {self.high:.10g}"
        return words


COUNT = Range(1, whole=True)
COUNT_OR_0 = Range(0, whole=True)
#: Length of a learned vector. The limit is above all practical ones, and keeps a typo from taking all memory.
WIDTH = Range(1, 8192, whole=True)
#: Seeds that every random number generator accepts.
SEED = Range(0, 2**32 - 1, whole=True)
POSITIVE = Range(0, open_low=True)
AT_LEAST_0 = Range(0)
SHARE = Range(0, 1)
BELOW_1 = Range(0, 1, open_high=True)


def out_of_range(
    settings: object, ranges: Mapping[str, Range], *, none: Mapping[str, str] | None = None
) -> Iterator[Problem]:
    """Yield a problem for each of the settings' numbers that is not in its range.

    ``none`` maps fields that may be None to what that means, such as "all".
    """
    meaning = none or {}
    for name, wanted in ranges.items():
        value = getattr(settings, name)
        if wanted.holds(value) or (value is None and name in meaning):
            continue
        large = isinstance(value, int | np.integer) and wanted.uncounted(value)
        remedy = f"give such a number, at most {MOST}" if large else "give such a number"
        expected = f"{wanted}, or None for {meaning[name]}" if name in meaning else str(wanted)
        yield Problem(name, f"expected {expected}, got {value!r}", remedy)


def named_twice(names: Iterable[str], field: str, what: str) -> Iterator[Problem]:
    """Yield a problem for each name that occurs more than once."""
    listed = list(names)
    for name in dict.fromkeys(listed):
        if listed.count(name) > 1:
            yield Problem(field, f"{listed.count(name)} {what} are called {name!r}", "give each its own name")


def choose(came: Any, known: Iterable[str]) -> str:
    """Return a remedy that lists the known names, or suggests the one that was meant."""
    names = list(dict.fromkeys(known))
    close = get_close_matches(str(came), names, n=1)
    if close and len(names) > 8:
        return f"did you mean {close[0]!r}?"
    return f"use {', '.join(map(repr, names))}" if names else "there is none to choose from"
