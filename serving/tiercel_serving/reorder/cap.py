"""``cap``: at most a given number of items with one value in the answer, such as a genre or a provider."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from ..columns import Column
from ..kinds import Settings
from ..native import placing as native
from ..problems import COUNT, Problem
from ..ranked.order import Rows, Scores
from ..spec import Arrays
from .per_request import PerRequest, amount_problems, batch_amount, user_amount
from .placing import Flags, Line, fill, places_to_fill, unsorted
from .plain import line_of
from .vectors import codes_of


class Cap(Settings, frozen=True, tag="cap"):
    """Keep the best ``most`` items of each value of a column, and drop the others.

    An item with several values (a list column) is dropped as soon as one of them is full. Dropped items do
    not count towards any value, and items without a value are always kept. Put this step last, or at least
    after steps that diversify: an earlier cap would take candidates away from those.

    Parameters
    ----------
    column
        A raw item column, of single values or of lists.
    most
        Largest number of items with one value, at least 1.
    """

    column: str
    most: int | PerRequest = 3

    of_ranker: ClassVar[bool] = False
    reasons: ClassVar[tuple[str, ...]] = ("too many of its kind before it",)

    def problems(self) -> list[Problem]:
        """Return a cap below 1."""
        return list(amount_problems(self, {"most": COUNT}))

    def columns(self) -> tuple[str, ...]:
        """Return the column."""
        return (self.column,)

    def misfits(self, tasks: int) -> list[Problem]:
        """Return nothing: the step fits any ranker."""
        return []

    def unfit(self, columns: Mapping[str, Column]) -> list[Problem]:
        """Return a column of floating-point numbers: hardly any two are equal."""
        if columns[self.column].values.dtype.kind != "f":
            return []
        problem = f"{self.column!r} holds floating-point numbers"
        return [Problem("column", problem, "name a column of text or whole numbers")]

    def open(self, columns: Mapping[str, Column]) -> Capped:
        """Return the step."""
        return Capped(*codes_of(columns[self.column]), self.most)

    def reference(
        self, scores: Sequence[float], candidates: Sequence[Mapping[str, Any]], user: Mapping[str, Any]
    ) -> list[float]:
        """Return the scores; -inf for dropped items."""
        most, counts, new = user_amount(self.most, user), Counter[Any](), list(scores)
        for at in line_of(scores, candidates):
            value = candidates[at][self.column]
            values = {one for one in (value if isinstance(value, list) else [value]) if one is not None}
            if any(counts[one] >= most for one in values):
                new[at] = float("-inf")
            elif scores[at] != float("-inf"):
                counts.update(values)
        return new


class Capped:
    """The items' values as codes ``[I + 1, L]``, the code ``none`` of no value, and the cap."""

    def __init__(self, codes: Rows, none: int, most: int | PerRequest) -> None:
        self._codes, self._none, self._most = codes, none, most

    def apply(self, scores: Scores, arrays: Arrays) -> tuple[Scores, npt.NDArray[np.int32]]:
        """Go through the candidates, best first; once a value is full, drop all others that have it."""
        line, places = Line.of(scores, arrays), places_to_fill(arrays, scores.shape[1])
        codes, most = self._codes.take(line.rows, axis=0), batch_amount(self._most, arrays)
        found = native.place_under_caps(codes, self._none, line.real, most, places)
        if found is None:
            found = self._picks(codes, line.real, most, places)
        dropped = unsorted(found[1], line.order)
        return np.where(dropped, np.float32(-np.inf), scores), dropped.astype(np.int32)

    def _picks(
        self, codes: Rows, real: Flags, most: npt.NDArray[np.float64], places: int
    ) -> tuple[Rows, Flags]:
        """Compute picks and dropped candidates in NumPy."""
        users, width = real.shape
        flat, by_value = codes.reshape(-1, codes.shape[2]), codes.transpose(2, 0, 1).copy()
        gains = np.where(real, -np.arange(width, dtype=np.float32), -np.float32(np.inf))
        full = np.zeros(real.shape, np.bool_)
        # Large, but zeros take no memory until they are written to, and few are.
        counts, at = np.zeros(users * (self._none + 1), np.int32), np.arange(users)[:, None]
        base = at * (self._none + 1)

        def choose(chosen: Rows) -> None:
            mine = flat.take(chosen, axis=0)
            cells = mine + base
            now = counts.take(cells) + 1
            counts[cells] = now
            reached = (now >= most) & (mine != self._none)
            if not reached.any():
                return
            for place in np.flatnonzero(reached.any(axis=0)).tolist():
                shut = np.where(reached[:, place], mine[:, place], -1)[:, None]
                for values in by_value:
                    np.logical_or(full, values == shut, full)
            gains[full] = -np.inf

        picks = fill(gains, places, choose)
        stays = np.zeros((users, width + 1), np.bool_)
        stays[at, picks] = True
        return picks, full & ~stays[:, :width] & real
