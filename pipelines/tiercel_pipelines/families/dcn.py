r"""``dcn``: a cross network with one vector for each layer, in parallel with an MLP.

.. math:: x_{l+1} = x_0 \, (x_l^\top w_l) + b_l + x_l

(Wang et al. 2017, "Deep & cross network for ad click predictions", eq. 3; the rank-1 case of
:class:`~.dcn_v2.DCNv2` with one fixed factor). Each x_l equals :math:`a_l x_0 + c_l` with a scalar a_l for
each candidate and a vector c_l that does not depend on the input. A layer therefore needs only
:math:`x_0^\top w_l`, whose user part is computed once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from tiercel_serving.problems import COUNT, Range

from ..arrays.inputs import ModelInputs
from .layers import zero_linear
from .ranker import NeuralRanker, RankingNetwork, build_network
from .ranking_layers import CandidateFields, PairMLP, flat_fields, pair_linear


class DCN(NeuralRanker, frozen=True, tag="dcn"):
    """Deep & cross network, version 1.

    Parameters
    ----------
    cross_layers
        Number of cross layers, which is one less than the degree of the crosses.
    layers
        Widths of the MLP's hidden layers.
    """

    cross_layers: int = 3
    layers: tuple[int, ...] = (64, 32)

    widths: ClassVar[tuple[str, ...]] = ("layers",)
    ranges: ClassVar[Mapping[str, Range]] = {"cross_layers": COUNT}

    def build(self, inputs: ModelInputs, scale: float = 1.0) -> DeepCross:
        """Build the network with fresh weights."""
        return build_network(DeepCross, self, inputs, scale)


class DeepCross(RankingNetwork):
    """Cross layers and hidden layers side by side."""

    def __init__(self, settings: DCN, inputs: ModelInputs, scale: float):
        super().__init__(settings, inputs, scale)
        width = settings.embedding_dimension
        self.fields = fields = CandidateFields(inputs, width, scored=settings.use_retrieval_score)
        sizes = fields.user_count * width, fields.item_count * width
        #: The weights w_l of all cross layers; and their biases b_l.
        self.cross = nn.Linear(sum(sizes), settings.cross_layers, bias=False)
        self.biases = nn.Parameter(torch.zeros(settings.cross_layers, sum(sizes)))
        self.hidden = PairMLP(*sizes, settings.layers, settings.dropout)
        self.last_cross = zero_linear(sum(sizes), self.tasks, bias=False)
        self.last = zero_linear(settings.layers[-1], self.tasks)

    def score(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return one linear layer over the last cross and the last hidden layer."""
        user, item = flat_fields(*self.fields(tensors))
        # x_0 · w_l of all layers [B, K, layers].
        products, weights = pair_linear(self.cross, user, item), self.cross.weight
        factor, constant = torch.ones_like(products[..., 0]), torch.zeros_like(self.biases[0])
        for layer in range(len(weights)):
            along = factor * products[..., layer] + constant @ weights[layer]
            factor, constant = factor + along, constant + self.biases[layer]
        # The last layer is linear too: last(a x_0 + c) = a last(x_0) + last(c).
        crossed = factor.unsqueeze(-1) * pair_linear(self.last_cross, user, item)
        crossed = crossed + self.last_cross.weight @ constant
        score: Tensor = crossed + self.last(self.hidden(user, item))
        return score
