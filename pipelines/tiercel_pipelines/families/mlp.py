"""``mlp``: hidden layers over the concatenated fields of user and candidate.

``s = w · MLP([u₁; …; i₁; …])``, the deep part of Cheng et al. 2016, "Wide & deep learning for recommender
systems", by itself. The first layer's product with the user's fields is computed once per user.

User fields ``[B, u, E]`` and candidate fields ``[B, K, i, E]`` give ``[B, K, T]`` (:mod:`~.ranker`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from ..arrays.inputs import ModelInputs
from .layers import zero_linear
from .ranker import NeuralRanker, RankingNetwork, build_network
from .ranking_layers import CandidateFields, PairMLP, flat_fields


class MLP(NeuralRanker, frozen=True, tag="mlp"):
    """Multilayer perceptron over all fields.

    Parameters
    ----------
    layers
        Widths of the hidden layers.
    """

    layers: tuple[int, ...] = (64, 32)

    widths: ClassVar[tuple[str, ...]] = ("layers",)

    def build(self, inputs: ModelInputs, scale: float = 1.0) -> Deep:
        """Build the network with fresh weights."""
        return build_network(Deep, self, inputs, scale)


class Deep(RankingNetwork):
    """Concatenated fields, hidden layers, and one score per task."""

    def __init__(self, settings: MLP, inputs: ModelInputs, scale: float):
        super().__init__(settings, inputs, scale)
        width = settings.embedding_dimension
        self.fields = fields = CandidateFields(inputs, width, scored=settings.use_retrieval_score)
        sizes = fields.user_count * width, fields.item_count * width
        self.hidden = PairMLP(*sizes, settings.layers, settings.dropout)
        self.last = zero_linear(settings.layers[-1], self.tasks)

    def score(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the last layer's scores."""
        score: Tensor = self.last(self.hidden(*flat_fields(*self.fields(tensors))))
        return score
