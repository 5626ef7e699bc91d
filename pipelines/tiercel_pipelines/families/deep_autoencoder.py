r"""``deep_autoencoder``: SELU layers around a code with strong dropout, also trained on its own outputs.

.. math:: \min \sum_i w_i (x_i - f_i(x))^2, \qquad \min \sum_i (y_i - f_i(y))^2 \ \text{ for } y = f(x)

where the second term is the dense re-feeding: an output should be a fixed point (Kuchaiev & Ginsburg 2017,
"Training deep autoencoders for collaborative filtering", sections 2.1 and 2.3). In the paper w masks items
without a rating. Histories hold no ratings, so here w_i is 1 for a user's items and ``unobserved_weight`` for
the others, whose x_i is 0 (weighted as in Hu et al. 2008).

The items of B users give queries ``[B, D]``; item vectors are ``[I, D]`` (see :mod:`~.autoencoders`).
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tiercel_serving.problems import BELOW_1, POSITIVE, Problem, Range

from ..arrays.inputs import ModelInputs
from .autoencoders import AutoencoderFamily, BagNetwork, Batch, bag_network, with_one
from .layers import wrong_widths


class DeepAutoencoder(AutoencoderFamily, frozen=True, tag="deep_autoencoder"):
    """Deep autoencoder.

    Parameters
    ----------
    layers
        Widths of the encoder's layers, the last of which is the code; the decoder mirrors them.
    dropout
        Dropout of the code.
    unobserved_weight
        Weight of an item that is not one of the user's, relative to 1 for one that is.
    refeed
        Whether the loss includes that of the model's own outputs, fed in again.
    """

    name: str = "deep_autoencoder"
    input_dropout: float = 0.2
    layers: tuple[int, ...] = (256, 256, 512)
    dropout: float = 0.8
    unobserved_weight: float = 0.1
    refeed: bool = True

    ranges: ClassVar[Mapping[str, Range]] = {"dropout": BELOW_1, "unobserved_weight": POSITIVE}

    @property
    def dimension(self) -> int:
        """D: the width of the last hidden layer, plus a constant 1 for the bias."""
        return self.layers[0] + 1 if self.layers else 1

    def problems(self) -> list[Problem]:
        """Return the base class's problems, and one for missing or invalid layers."""
        wrong = [*super().problems(), *wrong_widths(self, "layers")]
        if self.layers in ((), []):
            problem = "expected at least one hidden layer, got none"
            wrong.append(Problem("layers", problem, "write a tuple such as (256, 256, 512)"))
        return wrong

    def network(self, inputs: ModelInputs) -> BagNetwork:
        """Return the layers with fresh weights."""
        return bag_network(DeepLayers, inputs, self)

    def loss(self, network: Any, batch: Batch) -> Tensor:
        """Return the weighted squared error, plus that of the outputs fed in again."""
        answers = self._answers(network, batch.encoded(self.input_dropout), batch)
        had = batch.bags.dense()
        weights = had + self.unobserved_weight * (1 - had)
        loss = (weights * (answers - had).square()).sum() / weights.sum()
        if not self.refeed:
            return loss
        again = answers.detach()
        norm = again.norm(dim=1, keepdim=True).clamp(min=1e-6)
        return loss + (self._answers(network, again / norm @ batch.first, batch) - again).square().mean()

    def _answers(self, network: Any, bags: Tensor, batch: Batch) -> Tensor:
        return with_one(network.decode(bags, batch.user)) @ batch.last.T


class DeepLayers(BagNetwork):
    """The encoder, and the decoder without its last layer."""

    def __init__(self, inputs: ModelInputs, settings: DeepAutoencoder):
        widths = tuple(settings.layers)
        super().__init__(inputs, widths[0])
        self.bias = nn.Parameter(torch.zeros(widths[0]))
        self.down = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.up = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths[::-1]))
        self.drop = nn.Dropout(settings.dropout)

    def decode(self, bags: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the last hidden layer."""
        x = F.selu(bags + self.bias)
        for layer in self.down:
            x = F.selu(layer(x))
        x = self.drop(x)
        for layer in self.up:
            x = F.selu(layer(x))
        return x
