"""``freshness``: raises new items; the gain halves with each half-life of their age."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from ..columns import Column
from ..kinds import Settings
from ..problems import AT_LEAST_0, POSITIVE, Problem, Range, out_of_range
from ..ranked.order import Scores
from ..spec import Arrays
from .numbers import holds_no_numbers, numbers_of, plain_number
from .per_request import Amount, PerRequest, amount_problems, batch_amount, user_amount

_ANY = Range(float("-inf"))


class Freshness(Settings, frozen=True, tag="freshness"):
    r"""Score by :math:`s + w \cdot 2^{-a/h}`: exponential decay of an item's age a, by its half-life h.

    The age is ``now`` minus the item's time, at least 0; an item without a time gains nothing. The gain is
    added rather than multiplied, since scores may be negative. Ding and Li 2005, "Time weight collaborative
    filtering", decay by half-lives in the same way.

    Parameters
    ----------
    column
        A raw item column of times: numbers in any unit, such as seconds since 1970.
    half_life
        In the column's unit.
    strength
        w, the gain of an item of age 0.
    now
        In the column's unit; by default the request's ``now``, or else the time of the newest item.
    """

    column: str
    half_life: float
    strength: Amount = 1.0
    now: Amount = PerRequest("now", None, -1e18, 1e18)

    of_ranker: ClassVar[bool] = False
    reasons: ClassVar[tuple[str, ...]] = ()

    def problems(self) -> list[Problem]:
        """Return an invalid half-life, strength or ``now``."""
        amounts = amount_problems(self, {"strength": AT_LEAST_0, "now": _ANY}, optional=("now",))
        return [*out_of_range(self, {"half_life": POSITIVE}), *amounts]

    def columns(self) -> tuple[str, ...]:
        """Return the column of times."""
        return (self.column,)

    def misfits(self, tasks: int) -> list[Problem]:
        """Return nothing: the step fits any ranker."""
        return []

    def unfit(self, columns: Mapping[str, Column]) -> list[Problem]:
        """Return a column that does not hold one number per item."""
        return holds_no_numbers(columns[self.column], self.column)

    def open(self, columns: Mapping[str, Column]) -> Decay:
        """Return the step."""
        return Decay(numbers_of(columns[self.column]), self)

    def reference(
        self, scores: Sequence[float], candidates: Sequence[Mapping[str, Any]], user: Mapping[str, Any]
    ) -> list[float]:
        """Return the scores with each item's gain added."""
        now, strength = user_amount(self.now, user), user_amount(self.strength, user)
        if now != now:
            now = user["greatest"](self.column)
        new = []
        for score, candidate in zip(scores, candidates, strict=True):
            time = plain_number(candidate[self.column])
            share = 0.0 if time is None else 2.0 ** (-max(now - time, 0.0) / self.half_life)
            new.append(float(np.float32(np.float64(score) + strength * share)))
        return new


class Decay:
    """The items' times ``[I + 1]`` float64, NaN where unknown."""

    def __init__(self, times: npt.NDArray[np.float64], kind: Freshness) -> None:
        self.times, self.kind = times, kind
        known = times[~np.isnan(times)]
        self.newest = known.max() if len(known) else 0.0
        # An item without a time is infinitely old.
        self._times = np.where(np.isnan(times), -np.inf, times)

    def apply(self, scores: Scores, arrays: Arrays) -> tuple[Scores, None]:
        """Add each item's gain."""
        now = batch_amount(self.kind.now, arrays)
        now = np.where(np.isnan(now), self.newest, now)
        ages = np.maximum(now - self._times.take(arrays["kept_row"]), 0)
        ages /= -self.kind.half_life
        gains = np.exp2(ages, ages)
        gains *= batch_amount(self.kind.strength, arrays)
        return (scores + gains).astype(np.float32), None
