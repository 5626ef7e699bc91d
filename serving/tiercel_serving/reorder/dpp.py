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

#: Lower bound on the squared length of an item's residual vector. With it, items that equal already placed
#: ones come late, in the order of their scores, and are not lost.
LEAST = 0.01


class DPP(OfVectors, frozen=True, tag="dpp"):
    r"""Place items greedily by the determinant of the kernel :math:`L_{ij} = q_i \cos(v_i, v_j)\, q_j`.

    :math:`q = e^{(1-s)\,r/2s}`, with r the score scaled to 0 … 1. Each place goes to the item of the largest
    :math:`(1-s)\,r_i + s \log d_i^2`, where :math:`d_i` is the length of :math:`v_i` after projecting out the
    directions of the items placed before it. This is the greedy MAP of Chen et al. with their trade-off; a
    Gram-Schmidt basis of the vectors takes the place of their Cholesky factor. :math:`d_i^2` counts as at
    least :data:`LEAST`.

    Parameters
    ----------
    source, column
        Origin of the vectors, exactly one of the two; see :class:`~.vectors.OfVectors`.
    strength
        s, 0 to 1: 0 keeps the order of the scores, 1 considers dissimilarity only.
    """

    source: str = ""
    column: str = ""
    strength: Amount = 0.3

    of_ranker: ClassVar[bool] = False
    reasons: ClassVar[tuple[str, ...]] = ()

    def problems(self) -> list[Problem]:
        """Return an invalid strength, or that not exactly one of source and column is set."""
        return [*self.where_problems(), *amount_problems(self, {"strength": SHARE})]

    def open(self, columns: Mapping[str, Column]) -> Determinant:
        """Return the step."""
        return Determinant(self.vectors(columns), self.strength)

    def reference(
        self, scores: Sequence[float], candidates: Sequence[Mapping[str, Any]], user: Mapping[str, Any]
    ) -> list[float]:
        """Return the scores, reassigned to the candidates in the new order."""
        strength, relevant = user_amount(self.strength, user), relevance(scores)
        rest_after = plain_rests(self.plain_vectors(candidates))

        def gain_after(chosen: list[int]) -> Callable[[int], float]:
            rest = rest_after(chosen)
            return lambda at: (1 - strength) * relevant[at] + strength * log(max(rest(at), LEAST))

        return scores_in_order(
            choose_all(line_of(scores, candidates), gain_after, scores, candidates, user), scores
        )


class Determinant:
    """The opened step: the items' vectors, and the strength."""

    def __init__(self, vectors: ItemVectors, strength: Amount) -> None:
        self._vectors, self._strength = vectors, strength

    def apply(self, scores: Scores, arrays: Arrays) -> tuple[Scores, None]:
        """Place the items one by one, projecting each one's direction out of the others."""
        step = native.DPP, self._vectors, self._strength
        return place_by_vectors(*step, scores, arrays, _picks, least=LEAST), None


def _picks(vectors: Candidates, relevant: Scores, strength: Scores, places: int) -> Rows:
    """Compute the picks in NumPy."""
    basis = Basis(vectors, places)
    gains, left = relevant.copy(), np.ones_like(relevant)

    # Full arrays: broadcasting a single number costs NumPy as much as adding five hundred.
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
