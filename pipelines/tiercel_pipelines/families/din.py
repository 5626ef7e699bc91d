r"""``din``: each candidate attends to the items of the history that matter to it.

.. math:: v(c) = \sum_{l} a(h_l, c)\, h_l, \qquad a(h, c) = w^\top \mathrm{ReLU}(W_1 h + W_2 c + W_3 (h \odot
c) + b)

without a softmax over the history, followed by an MLP over v(c) and all fields (Zhou et al. 2018, "Deep
interest network for click-through rate prediction", eq. 3; the authors' code also feeds h - c, which W_1 and
W_2 cover, and uses Dice instead of ReLU). Since :math:`W_1 h + W_3 (h \odot c) = (W_1 + W_3
\operatorname{diag}(c))\, h`, each candidate has a matrix of its own, and one product replaces two.
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
        Width of the hidden layer that computes the weight of a history item.
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
        by_item = candidate.unsqueeze(3) * self.of_both.weight.T + self.of_history.weight.T
        by_item = by_item.transpose(1, 2).flatten(2)
        shift = self.of_candidate(candidate) + self.of_history.bias
        if not self.training:
            return self._weighted(history, by_item, shift, real)
        # One user at a time and without the padding, to need little memory.
        users = zip(history.unbind(), real.sum(1).tolist(), by_item.unbind(), shift.unbind(), strict=True)
        return torch.stack([self._weighted(items[:length], *own) for items, length, *own in users])

    def _weighted(
        self, history: Tensor, by_item: Tensor, shift: Tensor, real: Tensor | None = None
    ) -> Tensor:
        """Return v(c) ``[…, K, E]``, given matrices ``[…, E, K · A]`` and offsets ``[…, K, A]``."""
        hidden = (history @ by_item).reshape(*history.shape[:-1], *shift.shape[-2:])
        hidden = hidden + shift.unsqueeze(-3)
        weights = self.weigh(hidden.relu()).squeeze(-1).transpose(-1, -2)
        if real is not None:
            weights = weights * real.unsqueeze(-2).to(weights.dtype)
        interest: Tensor = weights @ history
        return interest
