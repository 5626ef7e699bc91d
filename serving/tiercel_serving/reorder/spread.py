"""``spread``: within a sliding window of places, items span as large a volume as possible.

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

    :math:`d_i` is the length of :math:`v_i` after projecting out the directions of the last ``window`` - 1
    items placed, and r is the score scaled to 0 … 1. Similarity to items placed earlier does not matter,
    since people see only a window.

    Parameters
    ----------
    source, column
        Origin of the vectors, exactly one of the two; see :class:`~.vectors.OfVectors`.
    window
        Number of places that people see together, at least 2.
    strength
        s, 0 to 1: 0 keeps the order of the scores, 1 considers dissimilarity only.
    """

    source: str = ""
    column: str = ""
    window: int = 5
    strength: Amount = 0.3

    of_ranker: ClassVar[bool] = False
    reasons: ClassVar[tuple[str, ...]] = ()

    def problems(self) -> list[Problem]:
        """Return an invalid window or strength, or that not exactly one of source and column is set."""
        numbers = [*out_of_range(self, {"window": _WINDOW}), *amount_problems(self, {"strength": SHARE})]
        return [*self.where_problems(), *numbers]

    def open(self, columns: Mapping[str, Column]) -> SlidingSpread:
        """Return the step."""
        return SlidingSpread(self.vectors(columns), self.window, self.strength)

    def reference(
        self, scores: Sequence[float], candidates: Sequence[Mapping[str, Any]], user: Mapping[str, Any]
    ) -> list[float]:
        """Return the scores, reassigned to the candidates in the new order."""
        strength, relevant = user_amount(self.strength, user), relevance(scores)
        rest_after = plain_rests(self.plain_vectors(candidates), self.window - 1)

        def gain_after(chosen: list[int]) -> Callable[[int], float]:
            rest = rest_after(chosen)
            return lambda at: (1 - strength) * relevant[at] + strength * sqrt(max(rest(at), 0.0))

        return scores_in_order(
            choose_all(line_of(scores, candidates), gain_after, scores, candidates, user), scores
        )


class SlidingSpread:
    """The opened step: the items' vectors, the window, and the strength."""

    def __init__(self, vectors: ItemVectors, window: int, strength: Amount) -> None:
        self._vectors, self._seen, self._strength = vectors, window - 1, strength

    def apply(self, scores: Scores, arrays: Arrays) -> tuple[Scores, None]:
        """Place the items one by one; a direction that leaves the window no longer counts."""
        window = min(self._seen, places_to_fill(arrays, scores.shape[1]))
        picks = partial(_picks, window)
        step = native.SPREAD, self._vectors, self._strength
        return place_by_vectors(*step, scores, arrays, picks, window=window), None


def _picks(window: int, vectors: Candidates, relevant: Scores, strength: Scores, places: int) -> Rows:
    """Compute the picks in NumPy."""
    basis = Basis(vectors, window)
    gains, left = relevant + strength, np.ones_like(relevant)
    shares = np.zeros((basis.size, *relevant.shape), np.float32)

    # Full arrays: broadcasting a single number costs NumPy as much as adding five hundred.
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
