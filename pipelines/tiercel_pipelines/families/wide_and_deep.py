r"""``wide_and_deep``: first-order terms with crosses, and an MLP, added up.

.. math:: s = w_\text{wide}^\top [x; \phi(x)] + w_\text{deep}^\top \mathrm{MLP}(x)

(Cheng et al. 2016, "Wide & deep learning for recommender systems", eq. 3). One optimiser learns both; the
paper takes FTRL for the wide part.

User fields ``[B, u, E]`` and candidate fields ``[B, K, i, E]`` give ``[B, K, T]`` (:mod:`~.ranker`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from tiercel_serving.problems import COUNT, Problem, Range

from ..arrays.inputs import ModelInputs
from .logistic_regression import cross_misfits
from .mlp import MLP, Deep
from .ranker import build_network
from .ranking_layers import Wide
from .table import Columns


class WideAndDeep(MLP, frozen=True, tag="wide_and_deep"):
    """Wide & Deep: an MLP's settings, and the crosses.

    Parameters
    ----------
    crosses
        Pairs (user column, item column) of scalar categorical columns; each pair of values gets a weight.
    cross_buckets
        Maximum number of weights per cross; with more pairs of values, weights are shared by hash.
    """

    crosses: tuple[tuple[str, str], ...] = ()
    cross_buckets: int = 100_000

    ranges: ClassVar[Mapping[str, Range]] = {"cross_buckets": COUNT}

    def misfits(self, user: Columns, item: Columns, timed: bool) -> list[Problem]:
        """Return a problem for each crossed column that does not reach the models."""
        return [*super().misfits(user, item, timed), *cross_misfits(self.crosses, user, item)]

    def build(self, inputs: ModelInputs, scale: float = 1.0) -> WideDeep:
        """Build the network with fresh weights."""
        return build_network(WideDeep, self, inputs, scale)


class WideDeep(Deep):
    """The deep part, and the wide one."""

    def __init__(self, settings: WideAndDeep, inputs: ModelInputs, scale: float):
        super().__init__(settings, inputs, scale)
        self.wide = Wide(inputs, self.tasks, crosses=settings.crosses, buckets=settings.cross_buckets)

    def score(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the sum of both parts."""
        score: Tensor = super().score(tensors) + self.wide(tensors)
        return score
