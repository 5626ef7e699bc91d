"""``spread``: within a sliding window of positions, items span as large a volume as possible.

Huang et al. 2021, "Sliding spectrum decomposition for diversified recommendation" (SSD).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import sqrt
from typing import Any, ClassVar

import numpy as np

from ..columns import Column
from ..native import placing as native
from ..problems import SHARE, Problem, Range, out_of_range
from ..ranked.order import Rows, Scores
from ..spec import Arrays
from .per_request import Amount, amount_problems, user_amount
from .placing import fill, places_to_fill
from .plain import choose_all, line_of, relevance, scores_in_order
from .vectors import Basis, Candidates, ItemVectors, OfVectors, place_by_vectors, plain_rests

_WINDOW = Range(2, whole=True)


class Spread(OfVectors, frozen=True, tag="spread"):
    r"""Give each place to the item i of the largest :math:`(1-s)\,r_i + s\,d_i`.

    :math:`d_i` is the length of what is left of :math:`v_i` without the directions of the last ``window`` - 1
    items placed, r the score scaled to 0 … 1. What was placed longer ago may come again: people see a window.

    Parameters
    ----------
    source, column
        Where the vectors are from, one of both: see :class:`~.vectors.OfVectors`.
    window
        How many places are seen together, at least 2.
    strength
        s, 0 to 1: 0 is the order of the scores, 1 heeds unlikeness alone.
    """

    source: str = ""
    column: str = ""
    window: int = 5
    strength: Amount = 0.3

    of_ranker: ClassVar[bool] = False
    reasons: ClassVar[tuple[str, ...]] = ()

    def problems(self) -> list[Problem]:
        """Return numbers that make no sense, and vectors from nowhere."""
        numbers = [*out_of_range(self, {"window": _WINDOW}), *amount_problems(self, {"strength": SHARE})]
        return [*self.where_problems(), *numbers]

    def open(self, columns: Mapping[str, Column]) -> SlidingSpread:
        """Return the step."""
        return SlidingSpread(self.vectors(columns), self.window, self.strength)

    def reference(
        self, scores: Sequence[float], candidates: Sequence[Mapping[str, Any]], user: Mapping[str, Any]
    ) -> list[float]:
        """Return the scores of the places."""
        strength, relevant = user_amount(self.strength, user), relevance(scores)
        rest_after = plain_rests(self.plain_vectors(candidates), self.window - 1)

        def gain_after(chosen: list[int]) -> Callable[[int], float]:
            rest = rest_after(chosen)
            return lambda at: (1 - strength) * relevant[at] + strength * sqrt(max(rest(at), 0.0))

        return scores_in_order(
            choose_all(line_of(scores, candidates), gain_after, scores, candidates, user), scores
        )


class SlidingSpread:
    """The items' vectors, the window, and how much unlikeness counts."""

    def __init__(self, vectors: ItemVectors, window: int, strength: Amount) -> None:
        self._vectors, self._seen, self._strength = vectors, window - 1, strength

    def apply(self, scores: Scores, arrays: Arrays) -> tuple[Scores, None]:
        """Place item after item; a direction that leaves the window is given back."""
        window = min(self._seen, places_to_fill(arrays, scores.shape[1]))
        picks = partial(_picks, window)
        step = native.SPREAD, self._vectors, self._strength
        return place_by_vectors(*step, scores, arrays, picks, window=window), None


def _picks(window: int, vectors: Candidates, relevant: Scores, strength: Scores, places: int) -> Rows:
    """Do the same in NumPy."""
    basis = Basis(vectors, window)
    gains, left = relevant + strength, np.ones_like(relevant)
    shares = np.zeros((basis.size, *relevant.shape), np.float32)

    # Whole arrays: NumPy takes as long to spread one number as to add five hundred.
    nothing, weight = np.zeros_like(left), np.zeros_like(left) + strength
    flat_relevance = relevant.reshape(-1)

    def choose(chosen: Rows) -> None:
        flat_relevance[chosen] = -np.inf
        share = vectors.dots(basis.direction(chosen))
        oldest = shares[basis.last]
        np.add(left, oldest, left)
        np.multiply(share, share, oldest)
        np.subtract(left, oldest, left)
        np.maximum(left, nothing, gains)
        np.sqrt(gains, gains)
        np.multiply(gains, weight, gains)
        np.add(gains, relevant, gains)

    return fill(gains, places, choose)
