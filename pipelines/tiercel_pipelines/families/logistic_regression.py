r"""``logistic_regression``: a weight for each category, number and crossed pair.

It is the wide part of Wide & Deep by itself:

.. math:: s = \sum_j w_j x_j + \sum_{(a, b)} w_{\text{hash}(x_a, x_b)}

with the cross-product transformations of a user's and an item's category (Cheng et al. 2016, "Wide & deep
learning for recommender systems", eq. 1 and 2). Terms of the user alone shift all candidates equally, so a
linear model orders by the items' own columns and by the crosses.

Weights of the user ``[B, T]`` and of the candidates ``[B, K, T]`` are added up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import Tensor

from tiercel_serving.problems import COUNT, Problem, Range, choose

from ..arrays.inputs import ModelInputs
from .ranker import GradientRanker, RankingNetwork, build_network
from .ranking_layers import Wide
from .table import Columns


class LogisticRegression(GradientRanker, frozen=True, tag="logistic_regression"):
    """Logistic regression over sparse columns.

    Parameters
    ----------
    crosses
        Pairs (user column, item column) of scalar categorical columns; each pair of values gets a weight.
    cross_buckets
        Maximum number of weights per cross; with more pairs of values, weights are shared by hash.
    """

    crosses: tuple[tuple[str, str], ...] = ()
    cross_buckets: int = 100_000

    #: Like other terms of the user alone, the history would shift all candidates equally.
    use_history: ClassVar[bool] = False
    history_dropout: ClassVar[float] = 0.0
    ranges: ClassVar[Mapping[str, Range]] = {"cross_buckets": COUNT}

    def misfits(self, user: Columns, item: Columns, timed: bool) -> list[Problem]:
        """Return a problem for each crossed column that does not reach the models."""
        return [*super().misfits(user, item, timed), *cross_misfits(self.crosses, user, item)]

    def build(self, inputs: ModelInputs, scale: float = 1.0) -> Linear:
        """Build the network with fresh weights."""
        return build_network(Linear, self, inputs, scale)


class Linear(RankingNetwork):
    """First-order terms alone."""

    def __init__(self, settings: LogisticRegression, inputs: ModelInputs, scale: float):
        super().__init__(settings, inputs, scale)
        self.wide = Wide(inputs, self.tasks, crosses=settings.crosses, buckets=settings.cross_buckets)

    def score(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the sum of the weights."""
        score: Tensor = self.wide(tensors)
        return score


def cross_misfits(crosses: Sequence[tuple[str, str]], user: Columns, item: Columns) -> list[Problem]:
    """Return a problem for each crossed column that does not reach the models as a scalar category."""
    wrong = []
    for place, pair in enumerate(crosses):
        for name, side, known in zip(pair, ("user", "item"), (user, item), strict=True):
            if known.get(name) != "category":
                problem = f"no single category {name!r} of the {side} reaches the models"
                single = [column for column, holds in known.items() if holds == "category"]
                wrong.append(Problem(f"crosses[{place}]", problem, choose(name, single)))
    return wrong
