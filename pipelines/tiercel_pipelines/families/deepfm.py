r"""``deepfm``: a factorisation machine and an MLP over the same embeddings, added up.

.. math:: s = s_\text{FM} + w^\top \mathrm{MLP}(x)

(Guo et al. 2017, "DeepFM: a factorization-machine based neural network for CTR prediction", eq. 1).

User fields ``[B, u, E]`` and candidate fields ``[B, K, i, E]`` give ``[B, K, T]`` (:mod:`~.ranker`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from ..arrays.inputs import ModelInputs
from .layers import zero_linear
from .ranker import NeuralRanker, RankingNetwork, build_network
from .ranking_layers import CandidateFields, PairMLP, Wide, bi_interaction, flat_fields


class DeepFM(NeuralRanker, frozen=True, tag="deepfm"):
    """DeepFM.

    Parameters
    ----------
    layers
        Widths of the MLP's hidden layers.
    """

    layers: tuple[int, ...] = (64, 32)

    widths: ClassVar[tuple[str, ...]] = ("layers",)

    def build(self, inputs: ModelInputs, scale: float = 1.0) -> DeepFactorisation:
        """Build the network with fresh weights."""
        return build_network(DeepFactorisation, self, inputs, scale)


class DeepFactorisation(RankingNetwork):
    """First-order terms, products of pairs of fields, and hidden layers over the same fields."""

    def __init__(self, settings: DeepFM, inputs: ModelInputs, scale: float):
        super().__init__(settings, inputs, scale)
        width = settings.embedding_dimension
        self.fields = fields = CandidateFields(inputs, width, scored=settings.use_retrieval_score)
        self.wide = Wide(inputs, self.tasks)
        self.weights = zero_linear(width, self.tasks, bias=False)
        sizes = fields.user_count * width, fields.item_count * width
        self.hidden = PairMLP(*sizes, settings.layers, settings.dropout)
        self.last = zero_linear(settings.layers[-1], self.tasks)

    def score(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the sum of the three."""
        user, item = self.fields(tensors)
        second = self.weights(bi_interaction(user, item))
        score: Tensor = self.wide(tensors) + second + self.last(self.hidden(*flat_fields(user, item)))
        return score
