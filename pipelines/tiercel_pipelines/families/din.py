r"""``din``: a candidate looks at the items of the history that matter to it.

.. math:: v(c) = \sum_{l} a(h_l, c)\, h_l, \qquad a(h, c) = w^\top \mathrm{ReLU}(W_1 h + W_2 c + W_3 (h \odot
c) + b)

without a softmax over the history, and then an MLP over v(c) and all fields (Zhou et al. 2018, "Deep interest
network for click-through rate prediction", eq. 3; the authors' code feeds h - c too, which W_1 and W_2 hold,
and uses Dice for ReLU). W_1 h is computed once a user.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from tiercel_serving.problems import COUNT, Range

from ..arrays.inputs import ModelInputs
from .layers import zero_linear
from .ranker import RankingNetwork, SequenceRanker, build_network
from .ranking_layers import CandidateFields, PairMLP, flat_fields


class DIN(SequenceRanker, frozen=True, tag="din"):
    """Deep interest network.

    Parameters
    ----------
    attention_width
        Width of the hidden layer that weighs an item of the history.
    layers
        Widths of the MLP's hidden layers.
    """

    attention_width: int = 32
    layers: tuple[int, ...] = (64, 32)

    widths: ClassVar[tuple[str, ...]] = ("layers",)
    ranges: ClassVar[Mapping[str, Range]] = {"attention_width": COUNT}

    def build(self, inputs: ModelInputs, scale: float = 1.0) -> Interest:
        """Build the network with fresh weights."""
        return build_network(Interest, self, inputs, scale)


class Interest(RankingNetwork):
    """Attention of each candidate over the history, and hidden layers."""

    def __init__(self, settings: DIN, inputs: ModelInputs, scale: float):
        super().__init__(settings, inputs, scale)
        width, attention = settings.embedding_dimension, settings.attention_width
        scored = settings.use_retrieval_score
        self.fields = fields = CandidateFields(inputs, width, scored=scored, pooled=False)
        self.of_history = nn.Linear(width, attention)
        self.of_candidate = nn.Linear(width, attention, bias=False)
        self.of_both = nn.Linear(width, attention, bias=False)
        self.weigh = nn.Linear(attention, 1)
        sizes = fields.user_count * width, (fields.item_count + 1) * width
        self.hidden = PairMLP(*sizes, settings.layers, settings.dropout)
        self.last = zero_linear(settings.layers[-1], self.tasks)

    def score(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the last layer's scores."""
        history, real = self.fields.history(tensors)
        interest = self.interest(history, real, self.fields.alike(tensors))
        user, item = self.fields(tensors)
        item = torch.cat([item, interest.unsqueeze(2)], dim=2)
        score: Tensor = self.last(self.hidden(*flat_fields(user, item)))
        return score

    def interest(self, history: Tensor, real: Tensor, candidate: Tensor) -> Tensor:
        """Return v(c) ``[B, K, E]`` of candidates ``[B, K, E]``, given histories ``[B, L, E]``."""
        both = history.unsqueeze(1) * candidate.unsqueeze(2)
        hidden = self.of_history(history).unsqueeze(1) + self.of_candidate(candidate).unsqueeze(2)
        weights = self.weigh((hidden + self.of_both(both)).relu()).squeeze(-1)
        interest: Tensor = (weights * real.unsqueeze(1).to(weights.dtype)) @ history
        return interest
