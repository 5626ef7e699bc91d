r"""``dcn_v2``: a cross network with a matrix for each layer, before an MLP or in parallel with it.

.. math:: x_{l+1} = x_0 \odot (W_l x_l + b_l) + x_l, \qquad W_l = U_l V_l^\top \text{ with a rank}

(Wang et al. 2021, "DCN V2: improved deep & cross network", eq. 1 and 2). If *stacked*, the MLP takes the
output of the last cross layer; if *parallel*, it takes x_0, and both outputs are concatenated. The first
layer's product with the user's fields is computed once per user; later layers mix user and candidate.

User fields ``[B, u, E]`` and candidate fields ``[B, K, i, E]`` give ``[B, K, T]`` (:mod:`~.ranker`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from tiercel_serving.problems import COUNT, Problem, Range, out_of_range

from ..arrays.inputs import ModelInputs
from .layers import hidden_layers, zero_linear
from .ranker import NeuralRanker, RankingNetwork, build_network
from .ranking_layers import CandidateFields, PairMLP, flat_fields, pair_linear


class DCNv2(NeuralRanker, frozen=True, tag="dcn_v2"):
    """Deep & cross network, version 2.

    Parameters
    ----------
    cross_layers
        Number of cross layers, which is one less than the degree of the crosses.
    rank
        Rank of the cross layers' matrices; None is full rank.
    structure
        ``stacked`` or ``parallel``.
    layers
        Widths of the MLP's hidden layers.
    """

    cross_layers: int = 2
    rank: int | None = None
    structure: Literal["stacked", "parallel"] = "stacked"
    layers: tuple[int, ...] = (64, 32)

    widths: ClassVar[tuple[str, ...]] = ("layers",)
    ranges: ClassVar[Mapping[str, Range]] = {"cross_layers": COUNT}

    def problems(self) -> list[Problem]:
        """Return the base class's problems, and one for an invalid rank."""
        return [*super().problems(), *out_of_range(self, {"rank": COUNT}, none={"rank": "full rank"})]

    def build(self, inputs: ModelInputs, scale: float = 1.0) -> DeepCrossV2:
        """Build the network with fresh weights."""
        return build_network(DeepCrossV2, self, inputs, scale)


class DeepCrossV2(RankingNetwork):
    """Cross layers, and hidden layers after them or in parallel."""

    def __init__(self, settings: DCNv2, inputs: ModelInputs, scale: float):
        super().__init__(settings, inputs, scale)
        width, rank, layers = settings.embedding_dimension, settings.rank, settings.layers
        self.fields = fields = CandidateFields(inputs, width, scored=settings.use_retrieval_score)
        sizes = fields.user_count * width, fields.item_count * width
        total = sum(sizes)
        # Each W is one matrix, or the product of two of lower rank. The user part of the first layer is
        # computed separately.
        self.first = nn.Linear(total, rank or total, bias=rank is None)
        self.first_up = nn.Linear(rank, total) if rank else nn.Identity()
        later = range(1, settings.cross_layers)
        self.rest = nn.ModuleList(
            nn.Sequential(nn.Linear(total, rank, bias=False), nn.Linear(rank, total))
            if rank
            else nn.Linear(total, total)
            for _ in later
        )
        self.stacked = settings.structure == "stacked"
        if self.stacked:
            self.behind = hidden_layers(total, layers, settings.dropout)
        else:
            self.beside = PairMLP(*sizes, layers, settings.dropout)
        self.last = zero_linear(layers[-1] + (0 if self.stacked else total), self.tasks)

    def score(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the last layer's scores."""
        user, item = flat_fields(*self.fields(tensors))
        start = torch.cat([user.unsqueeze(1).expand(-1, item.shape[1], -1), item], dim=-1)
        crossed = start * self.first_up(pair_linear(self.first, user, item)) + start
        for layer in self.rest:
            crossed = start * layer(crossed) + crossed
        if self.stacked:
            joined = self.behind(crossed)
        else:
            joined = torch.cat([crossed, self.beside(user, item)], dim=-1)
        score: Tensor = self.last(joined)
        return score
