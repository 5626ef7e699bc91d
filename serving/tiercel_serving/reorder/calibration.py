"""``calibration``: the answer has a mix of genres, or other values, close to that of the user's history.

Steck 2018, "Calibrated recommendations".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import log
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from ..columns import Column
from ..kinds import Settings
from ..native import placing as native
from ..problems import SHARE, Problem
from ..ranked.order import Rows, Scores
from ..spec import Arrays
from .per_request import Amount, amount_problems, batch_amount, user_amount
from .placing import Line, fill, places_to_fill, scaled
from .plain import choose_all, line_of, relevance, scores_in_order
from .vectors import codes_of, hot_rows, unfit_values_of

#: Share of the history's mix that is added to the answer's, so that no logarithm is of 0 (Steck's α).
SMOOTHING = 0.01


class Calibration(Settings, frozen=True, tag="calibration"):
    r"""Place items greedily by :math:`(1-s) \sum_i r_i - s\,\mathrm{KL}(p \,\|\, \tilde q)`.

    p is the share of each value of a column in the part of the user's history that the models see; the values
    of one item share it equally. q is that share in the places filled so far, with
    :math:`\tilde q = 0.99\,q + 0.01\,p`. r is the score, scaled to 0 … 1. If no item of the history has a
    value, the order of the scores is kept.

    Parameters
    ----------
    column
        A raw item column, of single values or of lists, such as genres.
    strength
        s, 0 to 1: 0 keeps the order of the scores, 1 considers the mix only.
    """

    column: str
    strength: Amount = 0.5

    of_ranker: ClassVar[bool] = False
    reasons: ClassVar[tuple[str, ...]] = ()
    places: ClassVar[bool] = True

    def problems(self) -> list[Problem]:
        """Return an invalid strength."""
        return list(amount_problems(self, {"strength": SHARE}))

    def columns(self) -> tuple[str, ...]:
        """Return the column."""
        return (self.column,)

    def reads(self) -> tuple[str, ...]:
        """Return the names of the history tensors."""
        return ("history_row", "history_length")

    def misfits(self, tasks: int) -> list[Problem]:
        """Return nothing: the step fits any ranker."""
        return []

    def unfit(self, columns: Mapping[str, Column]) -> list[Problem]:
        """Return a column of floating-point numbers, or with too many values."""
        return unfit_values_of(columns[self.column], self.column)

    def open(self, columns: Mapping[str, Column]) -> Calibrated:
        """Return the step."""
        column = columns[self.column]
        return Calibrated(_mixes(column), codes_of(column)[0], self.strength)

    def reference(
        self, scores: Sequence[float], candidates: Sequence[Mapping[str, Any]], user: Mapping[str, Any]
    ) -> list[float]:
        """Return the scores, reassigned to the candidates in the new order."""
        strength, relevant = user_amount(self.strength, user), relevance(scores)
        seen = user["history_row"][: int(user["history_length"][0])]
        history = [mix for row in seen if (mix := _plain_mix(user["item_of"](int(row))[self.column]))]
        wanted = _mean(history, len(history))
        mixes = [_plain_mix(candidate[self.column]) for candidate in candidates]
        if not wanted:
            return list(scores)

        def gain_after(chosen: list[int]) -> Callable[[int], float]:
            places = len(chosen) + 1
            before = _mean([mixes[one] for one in chosen], places)

            def gain(at: int) -> float:
                given = {
                    value: before.get(value, 0.0) + mixes[at].get(value, 0.0) / places for value in wanted
                }
                apart = sum(
                    share * log(share / ((1 - SMOOTHING) * given[value] + SMOOTHING * share))
                    for value, share in wanted.items()
                )
                return (1 - strength) * relevant[at] - strength * apart

            return gain

        return scores_in_order(
            choose_all(line_of(scores, candidates), gain_after, scores, candidates, user), scores
        )


def _mixes(column: Column) -> npt.NDArray[np.float32]:
    """Return ``[I + 1, G]``, each item's share of each value; zeros for an item without values."""
    hot = hot_rows(column)
    mixes: npt.NDArray[np.float32] = hot / np.maximum(hot.sum(axis=1, keepdims=True), 1)
    return mixes


def _plain_mix(value: Any) -> dict[Any, float]:
    values = {one for one in (value if isinstance(value, list) else [value]) if one is not None}
    return {one: 1 / len(values) for one in values}


def _mean(mixes: Sequence[Mapping[Any, float]], of: int) -> dict[Any, float]:
    mean: dict[Any, float] = {}
    for mix in mixes:
        for value, share in mix.items():
            mean[value] = mean.get(value, 0.0) + share / of
    return mean


class Calibrated:
    """The items' mixes ``[I + 1, G]``, their values as codes ``[I + 1, L]``, and the strength."""

    def __init__(self, mixes: npt.NDArray[np.float32], codes: Rows, strength: Amount) -> None:
        # A code of G is no value. For a column without any values, mixes still have one dimension.
        self._mixes, self._codes, self._strength = mixes, codes, strength
        # Number of an item's values → what it adds to the share of each.
        counts = np.maximum(np.arange(codes.shape[1] + 1), 1)
        self._adds = (np.float32(1 - SMOOTHING) / counts).astype(np.float32)

    def _wanted(self, arrays: Arrays) -> npt.NDArray[np.float32]:
        """Return ``[B, G, 1]``, the shares in each user's history; zeros if it has no such values."""
        history = arrays["history_row"]
        seen = np.arange(history.shape[1]) < arrays["history_length"]
        mixes = self._mixes.take(np.where(seen, history, len(self._mixes) - 1), axis=0)
        of = np.count_nonzero(mixes.any(axis=2), axis=1)[:, None]
        wanted: npt.NDArray[np.float32] = mixes.sum(axis=1) / np.maximum(of, 1)
        return wanted.astype(np.float32)[:, :, None]

    def apply(self, scores: Scores, arrays: Arrays) -> tuple[Scores, None]:
        """Place the items one by one, each by its effect on the mix."""
        line, wanted = Line.of(scores, arrays), self._wanted(arrays)
        strength = batch_amount(self._strength, arrays).astype(np.float32)
        relevant = scaled(line.relevance(), 1 - strength)
        codes, places = self._codes.take(line.rows, axis=0), places_to_fill(arrays, scores.shape[1])
        start, weights = np.float32(SMOOTHING) * wanted[:, :, 0], wanted[:, :, 0] * strength
        picks = native.place_by_mix(codes, relevant, start, weights, self._adds, places)
        if picks is None:
            picks = self._picks(codes, relevant, start, weights, places)
        return np.where(wanted.any(axis=1), line.placed(picks), scores), None

    def _picks(self, codes: Rows, relevant: Scores, start: Scores, weights: Scores, places: int) -> Rows:
        """Compute the picks in NumPy."""
        # adds [L, B, K] is what each of an item's L values adds to its share, and at [L, B, K] the flat index
        # of that share in [B, G]. Dividing by the number of filled places would not change the comparison.
        users, many = start.shape
        base = np.arange(users)[:, None] * many
        there = codes < many
        at = np.where(there, codes + base[:, :, None], users * many).transpose(2, 0, 1).copy()
        adds = self._adds.take(there.sum(axis=2, keepdims=True)) * there
        adds = adds.transpose(2, 0, 1).copy()
        weights = np.append(weights, np.float32(0)).take(at)
        # Values that are not in the history have weight 0; a total of 1 keeps their logarithms finite.
        total, steps = np.append(start + (start == 0), np.float32(1)), np.append(start, np.float32(0))
        work, own = np.empty_like(adds), tuple(x.reshape(len(x), -1).T.copy() for x in (at, adds))
        gains = relevant.copy()
        flat_relevance, ones, one = relevant.reshape(-1), np.ones_like(work), np.float32(1)

        def gain() -> None:
            # The logarithm of a share with the item added, minus that of the share without it.
            (one / total).take(at, out=work, mode="clip")
            np.multiply(work, adds, work)
            np.add(work, ones, work)
            np.log(work, work)
            np.multiply(work, weights, work)
            np.add.reduce(work, axis=0, out=gains)
            np.add(gains, relevant, gains)

        def choose(chosen: Rows) -> None:
            flat_relevance[chosen] = -np.inf
            np.add(total, steps, total)
            places, shares = own[0].take(chosen, axis=0), own[1].take(chosen, axis=0)
            total[places] = total.take(places) + shares
            gain()

        gain()
        return fill(gains, places, choose)
