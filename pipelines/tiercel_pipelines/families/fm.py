r"""``fm``: a factorisation machine of second order.

.. math:: s = \sum_j w_j x_j + \sum_e h_e \Bigl( \sum_{a < b} v_a x_a \odot v_b x_b \Bigr)_e

over all fields of user and candidate (Rendle 2010, "Factorization machines"). In the paper h is 1; here it is
learned from zero, one h per task, as in He & Chua 2017, "Neural factorization machines", without its hidden
layers.

User fields ``[B, u, E]`` and candidate fields ``[B, K, i, E]`` give ``[B, K, T]`` (:mod:`~.ranker`).
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ..arrays.inputs import ModelInputs
from .layers import zero_linear
from .ranker import NeuralRanker, RankingNetwork, build_network
from .ranking_layers import CandidateFields, Wide, bi_interaction


class FM(NeuralRanker, frozen=True, tag="fm"):
    """Factorisation machine; its settings are those of every ranking network."""

    def build(self, inputs: ModelInputs, scale: float = 1.0) -> FactorisationMachine:
        """Build the network with fresh weights."""
        return build_network(FactorisationMachine, self, inputs, scale)


class FactorisationMachine(RankingNetwork):
    """First-order terms, and the products of all pairs of fields."""

    def __init__(self, settings: FM, inputs: ModelInputs, scale: float):
        super().__init__(settings, inputs, scale)
        width = settings.embedding_dimension
        self.fields = CandidateFields(inputs, width, scored=settings.use_retrieval_score)
        self.wide = Wide(inputs, self.tasks)
        self.weights = zero_linear(width, self.tasks, bias=False)

    def score(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return first- and second-order terms."""
        score: Tensor = self.wide(tensors) + self.weights(bi_interaction(*self.fields(tensors)))
        return score
