r"""``mmoe``: experts shared by all tasks, mixed for each task by its own gate.

.. math:: s_t = h_t\Bigl( \sum_n g_t(x)_n f_n(x) \Bigr), \qquad g_t(x) = \mathrm{softmax}(W_t x)

(Ma et al. 2018, "Modeling task relationships in multi-task learning with multi-gate mixture-of-experts", eq.
5 to 7). With a task of one target it is a mixture of experts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from tiercel_serving.problems import COUNT, Range

from ..arrays.inputs import ModelInputs
from .layers import hidden_layers, zero_linear
from .ranker import NeuralRanker, RankingNetwork, build_network
from .ranking_layers import CandidateFields, PairMLP, flat_fields, pair_linear


class MMoE(NeuralRanker, frozen=True, tag="mmoe"):
    """Multi-gate mixture of experts; each target of its task is a column of ``rank_score``.

    Parameters
    ----------
    experts
        How many experts.
    expert_layers, tower_layers
        Widths of the hidden layers of each expert, and of each target's tower.
    """

    experts: int = 4
    expert_layers: tuple[int, ...] = (32,)
    tower_layers: tuple[int, ...] = (16,)

    widths: ClassVar[tuple[str, ...]] = ("expert_layers", "tower_layers")
    ranges: ClassVar[Mapping[str, Range]] = {"experts": COUNT}

    def build(self, inputs: ModelInputs, scale: float = 1.0) -> Mixture:
        """Build the network with fresh weights."""
        return build_network(Mixture, self, inputs, scale)


class Mixture(RankingNetwork):
    """Experts, a gate and a tower for each target."""

    def __init__(self, settings: MMoE, inputs: ModelInputs, scale: float):
        super().__init__(settings, inputs, scale)
        width, dropout = settings.embedding_dimension, settings.dropout
        self.fields = fields = CandidateFields(inputs, width, scored=settings.use_retrieval_score)
        sizes = fields.user_count * width, fields.item_count * width
        self.experts = nn.ModuleList(
            PairMLP(*sizes, settings.expert_layers, dropout) for _ in range(settings.experts)
        )
        self.gates = nn.Linear(sum(sizes), self.tasks * settings.experts)
        towers = [
            hidden_layers(settings.expert_layers[-1], settings.tower_layers, dropout)
            for _ in range(self.tasks)
        ]
        for tower in towers:
            tower.append(zero_linear(settings.tower_layers[-1], 1))
        self.towers = nn.ModuleList(towers)

    def score(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return one column for each target."""
        user, item = flat_fields(*self.fields(tensors))
        found = torch.stack([expert(user, item) for expert in self.experts], dim=2)
        gates = pair_linear(self.gates, user, item)
        gates = gates.reshape(*gates.shape[:2], self.tasks, len(self.experts)).softmax(-1)
        mixed = gates @ found  # [B, K, T, n] × [B, K, n, H]
        return torch.cat([tower(mixed[:, :, task]) for task, tower in enumerate(self.towers)], dim=-1)
