r"""``mult_vae``: a variational autoencoder with a multinomial likelihood over the catalogue.

.. math:: \mathbb E_{z \sim q(z|x)} \bigl[ \sum_i x_i \log \mathrm{softmax}_i(f(z)) \bigr]
    - \beta\, \mathrm{KL}\bigl(q(z|x) \,\|\, \mathcal N(0, I)\bigr), \qquad
    q(z|x) = \mathcal N(\mu(x), \mathrm{diag}\,\sigma^2(x))

with β rising during training to a final value below 1 (Liang et al. 2018, "Variational autoencoders for
collaborative filtering", eq. 2 and 7). By default the encoder is items → 600 → 200 and the decoder 200 → 600
→ items, with tanh between. In serving, z is its mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tiercel_serving.problems import AT_LEAST_0, COUNT, WIDTH, Range

from ..arrays.inputs import ModelInputs
from .autoencoders import AutoencoderFamily, BagNetwork, Batch, bag_network, multinomial, with_one


class MultVAE(AutoencoderFamily, frozen=True, tag="mult_vae"):
    """Variational autoencoder.

    Parameters
    ----------
    hidden_dimension, latent_dimension
        Widths of the layers around z, and of z.
    kl_weight, anneal_epochs
        Final value of β, and the number of epochs in which it rises linearly from 0 to it.
    """

    name: str = "mult_vae"
    hidden_dimension: int = 600
    latent_dimension: int = 200
    kl_weight: float = 0.2
    anneal_epochs: int = 50

    ranges: ClassVar[Mapping[str, Range]] = {
        **dict.fromkeys(("hidden_dimension", "latent_dimension"), WIDTH),
        "anneal_epochs": COUNT,
        "kl_weight": AT_LEAST_0,
    }

    @property
    def dimension(self) -> int:
        """D: the width of the hidden layer, plus a constant 1 for the bias."""
        return self.hidden_dimension + 1

    def network(self, inputs: ModelInputs) -> BagNetwork:
        """Return the layers with fresh weights."""
        return bag_network(Variational, inputs, self)

    def loss(self, network: Any, batch: Batch) -> Tensor:
        """Return the negative evidence lower bound for one sample of z."""
        mean, log_variance = network.latent(batch.encoded(self.input_dropout))
        z = mean + torch.randn_like(mean) * (log_variance / 2).exp()
        found = multinomial(with_one(network.after(z)) @ batch.last.T, batch.bags)
        spread = mean.square() + log_variance.exp() - log_variance - 1
        weight = self.kl_weight * min(1.0, batch.progress / self.anneal_epochs)
        bound: Tensor = found + weight * spread.sum(dim=1).mean() / 2
        return bound


class Variational(BagNetwork):
    """The encoder, and the decoder's first layer."""

    def __init__(self, inputs: ModelInputs, settings: MultVAE):
        hidden, latent = settings.hidden_dimension, settings.latent_dimension
        super().__init__(inputs, hidden)
        self.bias = nn.Parameter(torch.zeros(hidden))
        self.mean, self.log_variance = nn.Linear(hidden, latent), nn.Linear(hidden, latent)
        self.up = nn.Linear(latent, hidden)

    def latent(self, bags: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean and the log variance of z, ``[B, Z]`` each."""
        hidden = (bags + self.bias).tanh()
        return self.mean(hidden), self.log_variance(hidden)

    def after(self, z: Tensor) -> Tensor:
        """Return the decoder's hidden layer."""
        hidden: Tensor = self.up(z).tanh()
        return hidden

    def decode(self, bags: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the decoder's hidden layer for the mean of z."""
        return self.after(self.mean((bags + self.bias).tanh()))
