r"""``ncf``: the MLP of neural collaborative filtering, :math:`s = h^\top \mathrm{MLP}([p; q])`.

p and q are the sums of the fields of user and candidate (He et al. 2017, "Neural collaborative filtering",
eq. 10; in the paper each has one field, its id). :class:`~.mlp.MLP` keeps the fields apart.

With p ``[B, E]`` and q ``[B, K, E]`` the scores are ``[B, K, T]`` (:mod:`~.ranker`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from ..arrays.inputs import ModelInputs
from .layers import zero_linear
from .ranker import NeuralRanker, RankingNetwork, build_network
from .ranking_layers import CandidateFields, PairMLP


class NCF(NeuralRanker, frozen=True, tag="ncf"):
    """Neural collaborative filtering's MLP.

    Parameters
    ----------
    layers
        Widths of the hidden layers.
    """

    layers: tuple[int, ...] = (32, 16, 8)

    widths: ClassVar[tuple[str, ...]] = ("layers",)

    def build(self, inputs: ModelInputs, scale: float = 1.0) -> Joined:
        """Build the network with fresh weights."""
        return build_network(Joined, self, inputs, scale)


class Joined(RankingNetwork):
    """Hidden layers over one vector of the user and one of each candidate."""

    def __init__(self, settings: NCF, inputs: ModelInputs, scale: float):
        super().__init__(settings, inputs, scale)
        width = settings.embedding_dimension
        self.fields = CandidateFields(inputs, width, scored=settings.use_retrieval_score)
        self.hidden = PairMLP(width, width, settings.layers, settings.dropout)
        self.last = zero_linear(settings.layers[-1], self.tasks)

    def score(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the last layer's scores."""
        user, item = self.fields(tensors)
        score: Tensor = self.last(self.hidden(user.sum(1), item.sum(2)))
        return score
