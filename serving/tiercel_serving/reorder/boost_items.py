"""``boost_items``: items with certain values of a column gain a fixed number of points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from ..columns import Column
from ..kinds import Settings
from ..problems import Problem, Range
from ..ranked.order import Scores
from ..rules.compare import Compare
from ..spec import Arrays
from .per_request import Amount, amount_problems, batch_amount, user_amount

_ANY = Range(float("-inf"), open_low=True, high=float("inf"), open_high=True)


class BoostItems(Settings, frozen=True, tag="boost_items"):
    """Add ``by`` to the score of items whose raw ``column`` holds one of ``values``.

    In a list column, one matching element is enough.

    Parameters
    ----------
    column
        A raw item column; use the item id column to boost single items.
    values
        The values to boost.
    by
        Points to add; negative points demote.
    """

    column: str
    values: tuple[str | int, ...]
    by: Amount = 1.0

    of_ranker: ClassVar[bool] = False
    reasons: ClassVar[tuple[str, ...]] = ("boosted",)

    def problems(self) -> list[Problem]:
        """Return missing values, and points that are not a finite number."""
        wrong = list(amount_problems(self, {"by": _ANY}))
        if not self.values:
            wrong.append(Problem("values", "expected at least one, got none", "name what shall be boosted"))
        return wrong

    def columns(self) -> tuple[str, ...]:
        """Return the column."""
        return (self.column,)

    def misfits(self, tasks: int) -> list[Problem]:
        """Return nothing: the step fits any ranker."""
        return []

    def unfit(self, columns: Mapping[str, Column]) -> list[Problem]:
        """Return values whose type differs from the column's, or that no item has."""
        return unfit_values(columns, self.column, self.values)

    def open(self, columns: Mapping[str, Column]) -> Boosted:
        """Return the step."""
        return Boosted(having(columns, self.column, self.values), self.by)

    def reference(
        self, scores: Sequence[float], candidates: Sequence[Mapping[str, Any]], user: Mapping[str, Any]
    ) -> list[float]:
        """Return the scores, with ``by`` added for boosted items."""
        by, new = user_amount(self.by, user), []
        for score, candidate in zip(scores, candidates, strict=True):
            value = candidate[self.column]
            values = value if isinstance(value, list) else [value]
            boosted = any(one in self.values for one in values if one is not None)
            new.append(float(np.float32(np.float64(score) + by)) if boosted else score)
        return new


def having(columns: Mapping[str, Column], column: str, values: Sequence[Any]) -> npt.NDArray[np.bool_]:
    """Return booleans ``[I + 1]``: which items have one of the values."""
    return Compare("", column, "in", tuple(values)).passes(columns)


def unfit_values(columns: Mapping[str, Column], column: str, values: Sequence[Any]) -> list[Problem]:
    """Return values whose type differs from the column's, or that no item has."""
    wrong = [
        Problem("values", f"{column!r} does not hold what {values!r} asks for", "give values of its type")
        for _ in Compare("", column, "in", tuple(values)).misfits(columns)
    ]
    missing = [value for value in values if not wrong and not having(columns, column, (value,)).any()]
    return wrong + [
        Problem("values", f"no item has {value!r} in {column!r}", "correct it, or leave it out")
        for value in missing
    ]


class Boosted:
    """The opened step: which items ``[I + 1]`` are boosted, and by how much."""

    def __init__(self, boosted: npt.NDArray[np.bool_], by: Amount) -> None:
        self.boosted, self.by = boosted, by

    def apply(self, scores: Scores, arrays: Arrays) -> tuple[Scores, npt.NDArray[np.int32]]:
        """Add the points."""
        boosted = self.boosted.take(arrays["kept_row"]) & (scores > -np.inf)
        points = np.where(boosted, batch_amount(self.by, arrays), 0)
        return (scores + points).astype(np.float32), boosted.astype(np.int32)
