"""``fair_shares``: every part of the answer shows groups of items in given shares.

DetGreedy of Geyik, Ambler and Kenthapadi 2019, "Fairness-aware ranking in search and recommendation systems
with application to LinkedIn talent search".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil, floor
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from ..columns import Column
from ..kinds import Settings, mistyped
from ..problems import SHARE, Problem
from ..ranked import Rows, Scores, pick
from ..spec import Arrays
from .boost_items import having, unfit_values
from .placing import Line, fill, places_to_fill
from .plain import choose_all, line_of, scores_in_order


class FairShares(Settings, frozen=True, tag="fair_shares"):
    r"""Show each group of items in its share, at every place of the answer.

    Of the first j places group g gets between :math:`\lfloor p_g j \rfloor` and :math:`\lceil p_g j \rceil`:
    each goes to the best item of a group that would else fall below its share, or else of one that is not yet
    above it, as far as there are such candidates. Groups that are not named share what is left together.

    Parameters
    ----------
    column
        A raw item column with one value an item: the group, such as a provider.
    shares
        Pairs of a value and its share p of the exposure, together at most 1.
    """

    column: str
    shares: tuple[tuple[str | int, float], ...]

    of_ranker: ClassVar[bool] = False
    reasons: ClassVar[tuple[str, ...]] = ()
    places: ClassVar[bool] = True

    def problems(self) -> list[Problem]:
        """Return shares that make no sense."""
        if wrong := list(mistyped(self)):
            return wrong
        values = [value for value, _ in self.shares]
        if not values or len(set(values)) < len(values):
            return [Problem("shares", f"expected values, each once, got {values!r}", "name the groups")]
        odd = [share for _, share in self.shares if not SHARE.holds(share)]
        if odd:
            return [Problem("shares", f"expected {SHARE}, got {odd[0]!r}", "give such shares")]
        total = sum(share for _, share in self.shares)
        if total > 1 + 1e-9:
            return [Problem("shares", f"they add up to {total:g}", "lower them to 1 together, or less")]
        return []

    def columns(self) -> tuple[str, ...]:
        """Return the column."""
        return (self.column,)

    def misfits(self, tasks: int) -> list[Problem]:
        """Return nothing: any ranker will do."""
        return []

    def unfit(self, columns: Mapping[str, Column]) -> list[Problem]:
        """Return a column of lists, values of another type than its, and groups without items."""
        if columns[self.column].is_list:
            return [Problem("column", f"{self.column!r} holds lists", "name a column with one value an item")]
        wrong = unfit_values(columns, self.column, [value for value, _ in self.shares])
        return [Problem("shares", problem.problem, problem.remedy) for problem in wrong]

    def _all(self) -> list[float]:
        """Return the share of each group, and of all others."""
        named = [share for _, share in self.shares]
        return [*named, max(1 - sum(named), 0.0)]

    def open(self, columns: Mapping[str, Column]) -> Fair:
        """Return the step."""
        group = np.full(len(columns[self.column]), len(self.shares))
        for at, (value, _) in enumerate(self.shares):
            group[having(columns, self.column, (value,))] = at
        return Fair(group, np.array(self._all()))

    def reference(
        self, scores: Sequence[float], candidates: Sequence[Mapping[str, Any]], user: Mapping[str, Any]
    ) -> list[float]:
        """Return the scores of the places."""
        values, shares, line = [value for value, _ in self.shares], self._all(), line_of(scores, candidates)
        own = [candidate[self.column] for candidate in candidates]
        group = [values.index(value) if value in values else len(values) for value in own]

        def gain(chosen: list[int], at: int) -> float:
            place, count = len(chosen) + 1, sum(group[other] == group[at] for other in chosen)
            below = count < floor(shares[group[at]] * place)
            return 2.0 * below + (count < ceil(shares[group[at]] * place))

        order = choose_all(line, gain, scores, candidates, {})
        return scores_in_order(order, scores)


class Fair:
    """Each item's group ``[I + 1]``, and each group's share, float64."""

    def __init__(self, group: Rows, shares: npt.NDArray[np.float64]) -> None:
        self._group, self._shares = group, shares

    def apply(self, scores: Scores, arrays: Arrays) -> tuple[Scores, None]:
        """Go down the line, those first whose group lacks something."""
        line, width = Line.of(scores, arrays), scores.shape[1]
        group = self._group.take(line.rows)
        flat, at = group.reshape(-1), np.arange(len(scores))
        place_in_line = np.where(line.real, -np.arange(width, dtype=np.float32), -np.float32(np.inf))
        counts, gains = np.zeros((len(scores), len(self._shares))), np.empty_like(place_in_line)
        filled = 0

        def gain() -> None:
            below = counts < np.floor(self._shares * (filled + 1))
            allowed = counts < np.ceil(self._shares * (filled + 1))
            worth = (2 * width * (2.0 * below + allowed)).astype(np.float32)
            np.add(place_in_line, pick(worth, group), gains)

        def choose(chosen: Rows) -> None:
            nonlocal filled
            filled += 1
            place_in_line.reshape(-1)[chosen] = -np.inf
            counts[at, flat.take(chosen)] += 1
            gain()

        gain()
        return line.placed(fill(gains, places_to_fill(arrays, width), choose)), None
