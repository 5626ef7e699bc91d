r"""``neumf``: GMF and NCF's MLP in parallel, each with its own embeddings.

.. math:: s = h^\top [\, p^G \odot q^G;\ \mathrm{MLP}([p^M; q^M]) \,]

(He et al. 2017, "Neural collaborative filtering", eq. 12). Both are learned together from the start, without
the paper's pre-training of each.

With p ``[B, E]`` and q ``[B, K, E]`` the scores are ``[B, K, T]`` (:mod:`~.ranker`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from ..arrays.inputs import ModelInputs
from .layers import zero_linear
from .ranker import NeuralRanker, RankingNetwork, build_network
from .ranking_layers import CandidateFields, PairMLP


class NeuMF(NeuralRanker, frozen=True, tag="neumf"):
    """Neural matrix factorisation.

    Parameters
    ----------
    layers
        Widths of the MLP's hidden layers.
    """

    layers: tuple[int, ...] = (32, 16, 8)

    widths: ClassVar[tuple[str, ...]] = ("layers",)

    def build(self, inputs: ModelInputs, scale: float = 1.0) -> NeuralFactorisation:
        """Build the network with fresh weights."""
        return build_network(NeuralFactorisation, self, inputs, scale)


class NeuralFactorisation(RankingNetwork):
    """A product and hidden layers, combined by one linear layer."""

    def __init__(self, settings: NeuMF, inputs: ModelInputs, scale: float):
        super().__init__(settings, inputs, scale)
        width, scored = settings.embedding_dimension, settings.use_retrieval_score
        self.product_fields = CandidateFields(inputs, width, scored=scored)
        self.hidden_fields = CandidateFields(inputs, width, scored=scored)
        self.hidden = PairMLP(width, width, settings.layers, settings.dropout)
        self.last = zero_linear(width + settings.layers[-1], self.tasks)

    def score(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the last layer's scores."""
        user, item = self.product_fields(tensors)
        product = user.sum(1).unsqueeze(1) * item.sum(2)
        user, item = self.hidden_fields(tensors)
        score: Tensor = self.last(torch.cat([product, self.hidden(user.sum(1), item.sum(2))], dim=-1))
        return score
