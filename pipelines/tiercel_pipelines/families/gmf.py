r"""``gmf``: generalised matrix factorisation, :math:`s = h^\top (p \odot q)`.

p and q are the sums of the fields of user and candidate (He et al. 2017, "Neural collaborative filtering",
eq. 9; in the paper each has one field, its id).

With p ``[B, E]`` and q ``[B, K, E]`` the scores are ``[B, K, T]`` (:mod:`~.ranker`).
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ..arrays.inputs import ModelInputs
from .layers import zero_linear
from .ranker import NeuralRanker, RankingNetwork, build_network
from .ranking_layers import CandidateFields


class GMF(NeuralRanker, frozen=True, tag="gmf"):
    """Generalised matrix factorisation; its settings are those of every ranking network."""

    def build(self, inputs: ModelInputs, scale: float = 1.0) -> Product:
        """Build the network with fresh weights."""
        return build_network(Product, self, inputs, scale)


class Product(RankingNetwork):
    """The weighted product of one vector of the user and one of each candidate."""

    def __init__(self, settings: GMF, inputs: ModelInputs, scale: float):
        super().__init__(settings, inputs, scale)
        width = settings.embedding_dimension
        self.fields = CandidateFields(inputs, width, scored=settings.use_retrieval_score)
        self.weights = zero_linear(width, self.tasks, bias=False)

    def score(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return ``h · (p ⊙ q)``."""
        user, item = self.fields(tensors)
        score: Tensor = self.weights(user.sum(1).unsqueeze(1) * item.sum(2))
        return score
