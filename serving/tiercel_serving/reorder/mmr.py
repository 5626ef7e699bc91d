"""``mmr``: each place goes to an item that is relevant and dissimilar to those before it.

Carbonell and Goldstein 1998, "The use of MMR, diversity-based reranking for reordering documents and
producing summaries".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
from .vectors import Candidates, ItemVectors, OfVectors, place_by_vectors, plain_dot


class MMR(OfVectors, frozen=True, tag="mmr"):
    r"""Give each place to the item i of the largest :math:`(1-s)\,r_i - s \max_{j} \cos(v_i, v_j)`.

    j runs over the items placed before it (the maximum over none is 0), and r is the score, scaled to 0 … 1
    between the user's lowest and highest.

    Parameters
    ----------
    source, column
        Origin of the vectors, exactly one of the two; see :class:`~.vectors.OfVectors`.
    strength
        s, 0 to 1: 0 keeps the order of the scores, 1 considers similarity only.
    """

    source: str = ""
    column: str = ""
    strength: Amount = 0.3

    of_ranker: ClassVar[bool] = False
    reasons: ClassVar[tuple[str, ...]] = ()

    def problems(self) -> list[Problem]:
        """Return an invalid strength, or that not exactly one of source and column is set."""
        return [*self.where_problems(), *amount_problems(self, {"strength": SHARE})]

    def open(self, columns: Mapping[str, Column]) -> MarginalRelevance:
        """Return the step."""
        return MarginalRelevance(self.vectors(columns), self.strength)

    def reference(
        self, scores: Sequence[float], candidates: Sequence[Mapping[str, Any]], user: Mapping[str, Any]
    ) -> list[float]:
        """Return the scores, reassigned to the candidates in the new order."""
        strength, relevant = user_amount(self.strength, user), relevance(scores)
        vectors = self.plain_vectors(candidates)
        likeness: list[list[float]] = [[] for _ in vectors]

        def gain_after(chosen: list[int]) -> Callable[[int], float]:
            for own, vector in zip(likeness, vectors, strict=True):
                own += [plain_dot(vector, vectors[latest]) for latest in chosen[-1:]]
            return lambda at: (1 - strength) * relevant[at] - strength * max(likeness[at], default=0.0)

        return scores_in_order(
            choose_all(line_of(scores, candidates), gain_after, scores, candidates, user), scores
        )


class MarginalRelevance:
    """The opened step: the items' vectors, and the strength."""

    def __init__(self, vectors: ItemVectors, strength: Amount) -> None:
        self._vectors, self._strength = vectors, strength

    def apply(self, scores: Scores, arrays: Arrays) -> tuple[Scores, None]:
        """Place the items one by one; an item's gain can only fall after the first place."""
        return place_by_vectors(native.MMR, self._vectors, self._strength, scores, arrays, _picks), None


def _picks(vectors: Candidates, relevant: Scores, strength: Scores, places: int) -> Rows:
    """Compute the picks in NumPy."""
    gains, first = relevant.copy(), True

    def choose(chosen: Rows) -> None:
        nonlocal first
        likeness = vectors.dots(vectors.chosen(chosen))
        np.subtract(relevant, likeness, likeness)
        if first:
            # From here on the largest cosine may be negative; before, with nothing placed, it was 0.
            first = False
            gains[...] = likeness
            gains.reshape(-1)[chosen] = -np.inf
        else:
            np.minimum(gains, likeness, gains)

    return fill(gains, places, choose)
