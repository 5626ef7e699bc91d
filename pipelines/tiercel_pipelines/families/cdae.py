r"""``cdae``: a denoising autoencoder with a node for each user.

.. math:: h = \sigma(W^\top \tilde x + V_u + b), \qquad s_i = h^\top w'_i + b'_i

where x̃ holds the user's items with some left out. It is trained with the logistic loss over all items of the
user and about ``negatives`` times as many items drawn from the others (Wu et al. 2016, "Collaborative
denoising auto-encoders for top-N recommender systems", eq. 5 to 8). A user who is new since the training has
no V_u and is described only by the history.

The items of B users give queries ``[B, D]``; item vectors are ``[I, D]`` (see :mod:`~.autoencoders`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tiercel_serving.problems import COUNT, WIDTH, Range

from ..arrays.inputs import ModelInputs
from .autoencoders import AutoencoderFamily, BagNetwork, Batch, bag_network, with_one
from .category_vectors import id_place
from .layers import embedding


class CDAE(AutoencoderFamily, frozen=True, tag="cdae"):
    """Collaborative denoising autoencoder.

    Parameters
    ----------
    hidden_dimension
        Width of h.
    negatives
        Average number of negatives per item of the user, drawn anew in each epoch.
    """

    name: str = "cdae"
    hidden_dimension: int = 200
    negatives: int = 5

    ranges: ClassVar[Mapping[str, Range]] = {"hidden_dimension": WIDTH, "negatives": COUNT}

    @property
    def dimension(self) -> int:
        """D: the width of the hidden layer, plus a constant 1 for the bias."""
        return self.hidden_dimension + 1

    def network(self, inputs: ModelInputs) -> BagNetwork:
        """Return the layers with fresh weights."""
        return bag_network(UserAndBag, inputs, self, *(("user_cat",) if inputs.user.cat else ()))

    def loss(self, network: Any, batch: Batch) -> Tensor:
        """Return the mean logistic loss over the users' items and the drawn ones."""
        scores = with_one(network.decode(batch.encoded(self.input_dropout), batch.user)) @ batch.last.T
        had = batch.bags.dense()
        lengths = batch.bags.lengths.unsqueeze(1)
        share = self.negatives * lengths / (batch.bags.items - lengths).clamp(min=1)
        counted = torch.maximum(had, (torch.rand_like(had) < share).to(had.dtype))
        losses = F.binary_cross_entropy_with_logits(scores, had, reduction="none")
        return (losses * counted).sum() / counted.sum()


class UserAndBag(BagNetwork):
    """The hidden layer of a user and the user's items."""

    def __init__(self, inputs: ModelInputs, settings: CDAE):
        width = settings.hidden_dimension
        super().__init__(inputs, width)
        self.bias = nn.Parameter(torch.zeros(width))
        self.place = id_place(inputs.user) if inputs.user.cat else 0
        count = inputs.user.cat[self.place].cardinality if inputs.user.cat else 0
        self.user = embedding(count, width, 0.01) if count else None

    def decode(self, bags: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the hidden layer."""
        if self.user is not None:
            bags = bags + self.user(tensors["user_cat"][:, self.place])
        return (bags + self.bias).sigmoid()
