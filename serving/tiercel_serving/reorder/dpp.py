"""``dpp``: each position goes to the item that most increases the volume of relevant, dissimilar items.

Chen, Zhang and Zhou 2018, "Fast greedy MAP inference for determinantal point process to improve
recommendation diversity".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import log
from typing import Any, ClassVar

import numpy as np

from ..columns import Column
from ..native import placing as native
from ..problems import SHARE, Problem
from ..ranked.order import Rows, Scores
from ..spec import Arrays
from .per_request import Amount, amount_problems, user_amount
from .placing import fill
from .plain import choose_all, line_of, relevance, scores_in_order
from .vectors import Basis, Candidates, ItemVectors, OfVectors, place_by_vectors, plain_rests

#: What is left of an item's vector counts as at least so much, squared: items that equal those placed before
#: them come late, by their scores, and do not vanish.
LEAST = 0.01


class DPP(OfVectors, frozen=True, tag="dpp"):
    r"""Place items greedily by the determinant of the kernel :math:`L_{ij} = q_i \cos(v_i, v_j)\, q_j`.

    :math:`q = e^{(1-s)\,r/2s}`, r the score scaled to 0 … 1. Each place goes to the item of the largest
    :math:`(1-s)\,r_i + s \log d_i^2`, where :math:`d_i` is the length of what is left of :math:`v_i` without
    the directions of the items placed before it: the greedy MAP of Chen et al. in their trade-off, whose
    Cholesky factor is here a Gram-Schmidt basis of the vectors. :math:`d_i^2` counts as at least
    :data:`LEAST`.

    Parameters
    ----------
    source, column
        Where the vectors are from, one of both: see :class:`~.vectors.OfVectors`.
    strength
        s, 0 to 1: 0 is the order of the scores, 1 heeds unlikeness alone.
    """

    source: str = ""
    column: str = ""
    strength: Amount = 0.3

    of_ranker: ClassVar[bool] = False
    reasons: ClassVar[tuple[str, ...]] = ()

    def problems(self) -> list[Problem]:
        """Return a strength that makes no sense, and vectors from nowhere."""
        return [*self.where_problems(), *amount_problems(self, {"strength": SHARE})]

    def open(self, columns: Mapping[str, Column]) -> Determinant:
        """Return the step."""
        return Determinant(self.vectors(columns), self.strength)

    def reference(
        self, scores: Sequence[float], candidates: Sequence[Mapping[str, Any]], user: Mapping[str, Any]
    ) -> list[float]:
        """Return the scores of the places."""
        strength, relevant = user_amount(self.strength, user), relevance(scores)
        rest_after = plain_rests(self.plain_vectors(candidates))

        def gain_after(chosen: list[int]) -> Callable[[int], float]:
            rest = rest_after(chosen)
            return lambda at: (1 - strength) * relevant[at] + strength * log(max(rest(at), LEAST))

        return scores_in_order(
            choose_all(line_of(scores, candidates), gain_after, scores, candidates, user), scores
        )


class Determinant:
    """The items' vectors, and how much they count."""

    def __init__(self, vectors: ItemVectors, strength: Amount) -> None:
        self._vectors, self._strength = vectors, strength

    def apply(self, scores: Scores, arrays: Arrays) -> tuple[Scores, None]:
        """Place item after item, taking its direction from what is left of the others."""
        step = native.DPP, self._vectors, self._strength
        return place_by_vectors(*step, scores, arrays, _picks, least=LEAST), None


def _picks(vectors: Candidates, relevant: Scores, strength: Scores, places: int) -> Rows:
    """Do the same in NumPy."""
    basis = Basis(vectors, places)
    gains, left = relevant.copy(), np.ones_like(relevant)

    # Whole arrays: NumPy takes as long to spread one number as to add five hundred.
    least, weight = np.full_like(left, LEAST), np.zeros_like(left) + strength
    flat_relevance = relevant.reshape(-1)

    def choose(chosen: Rows) -> None:
        flat_relevance[chosen] = -np.inf
        share = vectors.dots(basis.direction(chosen))
        np.multiply(share, share, share)
        np.subtract(left, share, left)
        np.maximum(left, least, gains)
        np.log(gains, gains)
        np.multiply(gains, weight, gains)
        np.add(gains, relevant, gains)

    return fill(gains, places, choose)
