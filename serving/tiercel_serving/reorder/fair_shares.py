"""``fair_shares``: every prefix of the answer shows groups of items in given shares.

DetGreedy of Geyik, Ambler and Kenthapadi 2019, "Fairness-aware ranking in search and recommendation systems
with application to LinkedIn talent search".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from math import ceil, floor
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from ..columns import Column
from ..kinds import Settings
from ..native import placing as native
from ..problems import SHARE, Problem
from ..ranked.order import Rows, Scores
from ..spec import Arrays
from .boost_items import having, unfit_values
from .placing import Line, fill, places_to_fill
from .plain import choose_all, line_of, scores_in_order


class FairShares(Settings, frozen=True, tag="fair_shares"):
    r"""Show each group of items in its share, at every place of the answer.

    Of the first j places, group g gets between :math:`\lfloor p_g j \rfloor` and :math:`\lceil p_g j \rceil`.
    Each place goes to the best item of a group that would otherwise fall below its share, or else of a group
    that has not yet reached its upper bound, as far as there are such candidates. All groups that are not
    named form one group, which gets the remaining share.

    Parameters
    ----------
    column
        A raw item column with one value per item: the group, such as a provider.
    shares
        Pairs of a value and its share p of the places; the shares add up to at most 1.
    """

    column: str
    shares: tuple[tuple[str | int, float], ...]

    of_ranker: ClassVar[bool] = False
    reasons: ClassVar[tuple[str, ...]] = ()
    places: ClassVar[bool] = True

    def problems(self) -> list[Problem]:
        """Return missing or repeated values, and shares that are invalid or add up to more than 1."""
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
        """Return nothing: the step fits any ranker."""
        return []

    def unfit(self, columns: Mapping[str, Column]) -> list[Problem]:
        """Return a column of lists, values whose type differs from the column's, and groups without items."""
        if columns[self.column].is_list:
            return [Problem("column", f"{self.column!r} holds lists", "name a column with one value an item")]
        wrong = unfit_values(columns, self.column, [value for value, _ in self.shares])
        return [Problem("shares", problem.problem, problem.remedy) for problem in wrong]

    def _all(self) -> list[float]:
        """Return the share of each named group, and that of all others together."""
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
        """Return the scores, reassigned to the candidates in the new order."""
        values, shares, line = [value for value, _ in self.shares], self._all(), line_of(scores, candidates)
        own = [candidate[self.column] for candidate in candidates]
        group = [values.index(value) if value in values else len(values) for value in own]

        def gain_after(chosen: list[int]) -> Callable[[int], float]:
            place, counts = len(chosen) + 1, Counter(group[other] for other in chosen)
            owed = [share * place for share in shares]
            worth = [2.0 * (counts[one] < floor(x)) + (counts[one] < ceil(x)) for one, x in enumerate(owed)]
            return lambda at: worth[group[at]]

        order = choose_all(line, gain_after, scores, candidates, {})
        return scores_in_order(order, scores)


class Fair:
    """Each item's group ``[I + 1]``, and each group's share, float64."""

    def __init__(self, group: Rows, shares: npt.NDArray[np.float64]) -> None:
        self._group, self._shares = group, shares

    def apply(self, scores: Scores, arrays: Arrays) -> tuple[Scores, None]:
        """Place the candidates in score order, items of groups below their share first."""
        line, groups = Line.of(scores, arrays), len(self._shares)
        group = np.where(line.real, self._group.take(line.rows), groups)
        # One place more than needed: in NumPy, fill() does not call choose() for the last pick.
        shares = self._shares * np.arange(1, places_to_fill(arrays, scores.shape[1]) + 2)[:, None]
        least, most = (bound(shares).astype(np.int64) for bound in (np.floor, np.ceil))
        picks = native.place_in_shares(group, least[:-1], most[:-1])
        if picks is None:
            picks = self._picks(group, least, most)
        return line.placed(picks), None

    def _picks(self, group: Rows, least: Rows, most: Rows) -> Rows:
        """Compute the picks in NumPy."""
        (users, width), (more, groups) = group.shape, least.shape
        at = np.arange(users)
        # Each group's places in the line, one group after another; the entry after the last is no place.
        queue = np.full((users, width + 1), width)
        queue[:, :width] = group.argsort(axis=1, kind="stable")
        size = (group[:, :, None] == np.arange(groups)).sum(axis=1)
        end: Rows = np.cumsum(size, axis=1)
        front = end - size
        # Flat over users and groups, like the indexes that choose() gets.
        front, end = front.reshape(-1), end.reshape(-1)
        flat, base = queue.reshape(-1), np.repeat(at * (width + 1), groups)
        head = np.where(size.reshape(-1) > 0, flat.take(base + front), np.inf).astype(np.float32)
        counts, gains = np.zeros(users * groups, np.float32), np.empty((users, groups), np.float32)
        picks, (least, most) = list[Rows](), (np.tile(bounds, users) for bounds in (least, most))
        out, first, second = gains.reshape(-1), np.float32(4 * width), np.float32(2 * width)

        def gain(place: int) -> None:
            np.multiply(counts < least[place], first, out)
            np.add(out, (counts < most[place]) * second, out)
            np.subtract(out, head, out)

        def choose(chosen: Rows) -> None:
            stands = head.take(chosen)
            picks.append(np.minimum(stands, width).astype(np.int64))
            counts[chosen] += 1
            front[chosen] += 1
            ahead = front.take(chosen)
            following = flat.take(base.take(chosen) + np.minimum(ahead, width))
            head[chosen] = np.where(ahead < end.take(chosen), following, np.inf)
            gain(len(picks))

        gain(0)
        fill(gains, more, choose)
        return np.stack(picks, axis=1)
