"""``pin_items``: places named items at a position of the answer, if they are candidates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from ..columns import Column
from ..kinds import Settings
from ..native.order import put_pinned
from ..problems import COUNT, Problem, out_of_range
from ..ranked.order import Rows, Scores, pick
from ..spec import Arrays
from .boost_items import having, unfit_values
from .placing import Line, in_order, unsorted
from .plain import line_of, scores_in_order


class PinItems(Settings, frozen=True, tag="pin_items"):
    """Place the items with these values from ``place`` on, in the order of the values.

    An item that was not retrieved, was filtered out, or has no score is not pinned: pinning neither adds
    candidates nor overrides rules. Among items with one value, the better one comes first.

    Parameters
    ----------
    column
        A raw item column, usually that of the item ids.
    values
        Values to pin, in order.
    place
        Place of the first item; 1 is the top.
    """

    column: str
    values: tuple[str | int, ...]
    place: int = 1

    of_ranker: ClassVar[bool] = False
    reasons: ClassVar[tuple[str, ...]] = ("pinned",)

    def problems(self) -> list[Problem]:
        """Return missing or repeated values, and an invalid place."""
        wrong = list(out_of_range(self, {"place": COUNT}))
        if not self.values or len(set(self.values)) < len(self.values):
            problem = f"expected values, each once, got {self.values!r}"
            wrong.append(Problem("values", problem, "name what shall be pinned"))
        return wrong

    def columns(self) -> tuple[str, ...]:
        """Return the column."""
        return (self.column,)

    def misfits(self, tasks: int) -> list[Problem]:
        """Return nothing: the step fits any ranker."""
        return []

    def unfit(self, columns: Mapping[str, Column]) -> list[Problem]:
        """Return a column of lists, values whose type differs from the column's, and values no item has."""
        if columns[self.column].is_list:
            problem = f"{self.column!r} holds lists"
            return [Problem("column", problem, "name a column with one value an item")]
        return unfit_values(columns, self.column, self.values)

    def open(self, columns: Mapping[str, Column]) -> Pinned:
        """Return the step."""
        number = np.full(len(columns[self.column]), len(self.values) + 1, np.int32)
        for at, value in enumerate(self.values, 1):
            number[having(columns, self.column, (value,))] = at
        return Pinned(number, len(self.values), self.place - 1)

    def reference(
        self, scores: Sequence[float], candidates: Sequence[Mapping[str, Any]], user: Mapping[str, Any]
    ) -> list[float]:
        """Return the scores, reassigned to the candidates in the new order."""
        line = line_of(scores, candidates)
        values = [candidate[self.column] for candidate in candidates]
        real = [at for at in line if scores[at] != float("-inf")]
        pinned = [at for value in self.values for at in real if values[at] == value]
        others = [at for at in real if at not in pinned]
        order = others[: self.place - 1] + pinned + others[self.place - 1 :]
        return scores_in_order(order + [at for at in line if at not in real], scores)


class Pinned:
    """The opened step.

    ``number [I + 1]`` int32 is each item's position among the values, from 1 to ``count``; ``count`` + 1 for
    items that are not pinned. ``before`` is the number of places above the pinned ones.
    """

    def __init__(self, number: npt.NDArray[np.int32], count: int, before: int) -> None:
        self._number, self._count, self._before = number, count, before

    def apply(self, scores: Scores, arrays: Arrays) -> tuple[Scores, npt.NDArray[np.int32]]:
        """Place the pinned items after the first ``before`` others."""
        found = put_pinned(scores, arrays["kept_row"], self._number, self._count, self._before)
        return self._sorted(Line.of(scores, arrays)) if found is None else found

    def _sorted(self, line: Line) -> tuple[Scores, npt.NDArray[np.int32]]:
        """Sort in NumPy: items above the place (part 0), pinned ones, all others, those without a score."""
        part = self._number.take(line.rows)
        pinned = (part <= self._count) & line.real
        part[(np.cumsum(~pinned, axis=1) <= self._before) & ~pinned] = 0
        part[~line.real] = self._count + 2
        # The stable sort keeps the order within each part.
        order: Rows = pick(line.order, part.argsort(axis=1, kind="stable"))
        return in_order(line.scores, order), unsorted(pinned.astype(np.int32), line.order)
