r"""What autoencoders share: a user is the set of items had, and the decoder's last layer is the item vectors.

::

    history ─ W₁, summed ÷ √n ─ the family's layers ─ [h, 1] = query ┐
                                                                     ├─ inner product
    item ─────────────────────── the last layer's weights and bias ──┘

The first layer of a dense network over all items is a sum of embeddings, the last is an inner product with
vectors: so an autoencoder is served as any model of queries and item vectors. It learns from blocks of users,
of which alone the scores of all items are in memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from tiercel_serving.problems import BELOW_1, COUNT, Problem, Range, out_of_range

from ..arrays.counted import Counted
from ..arrays.inputs import ModelInputs
from ..arrays.pairs import IntArray, Pairs
from .descent import DESCENT
from .fitted import FittedVectors
from .history_items import HISTORY, catalogue_tensor, history_items
from .layers import PackedModule, with_inputs
from .table import RetrievalData
from .vector_family import Epoch, VectorFamily

#: Spread of the initial embeddings of the first and of the last layer.
SPREAD = 0.05

#: Scores of users × items at once.
_CELLS = 20_000_000


@dataclass(frozen=True)
class Bags:
    """What some users had.

    Parameters
    ----------
    users
        ``[B]`` user rows.
    owner, rows
        ``[n]`` places in ``users`` and catalogue rows.
    lengths
        ``[B]`` how many items each has.
    items
        I.
    """

    users: IntArray
    owner: Tensor
    rows: Tensor
    lengths: Tensor
    items: int

    @classmethod
    def of(cls, pairs: Pairs, users: IntArray, items: int) -> Bags:
        """Return the bags of users."""
        owner, rows = pairs.seen(users)
        lengths = torch.from_numpy(pairs.lengths[users])
        return cls(users, torch.from_numpy(owner), torch.from_numpy(rows), lengths, items)

    def dense(self) -> Tensor:
        """Return who had what, ``[B, I]``: 1 or 0."""
        had = torch.zeros(len(self.users), self.items)
        had[self.owner, self.rows] = 1.0
        return had

    def summed(self, weights: Tensor, dropout: float) -> Tensor:
        """Return each user's sum of the items' weights ``[I, W]``, over the root of how many there are.

        ``dropout`` of the items are left out, and the others made as much larger.
        """
        values = 1 / self.lengths[self.owner].sqrt()
        values = torch.nn.functional.dropout(values, dropout)
        places = torch.stack([self.owner, self.rows])
        bags = torch.sparse_coo_tensor(places, values, (len(self.users), self.items), check_invariants=False)
        total: Tensor = torch.sparse.mm(bags, weights)
        return total


class AutoencoderFamily(VectorFamily, frozen=True):
    """Base of the settings of an autoencoder over the bag of a user's items.

    Parameters
    ----------
    name
        What its source is called.
    input_dropout
        Share of a user's items that training leaves out of what the encoder sees.
    batch_size
        Users in a batch; fewer where the catalogue is so large that their scores would fill the memory.
    learning_rate, weight_decay
        Of the optimiser.
    max_epochs, patience
        Training stops after so many epochs, or after so many without a better validation.
    """

    name: str
    input_dropout: float = 0.5
    batch_size: int = 100
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    max_epochs: int = 200
    patience: int = 20

    #: The family's own numbers and their ranges.
    ranges: ClassVar[Mapping[str, Range]] = {}

    @property
    def dimension(self) -> int:
        """D: the width of the layer before the last, and a constant 1 for the bias."""
        raise NotImplementedError

    def problems(self) -> list[Problem]:
        """Return numbers out of their ranges."""
        ranges = {**DESCENT, "input_dropout": BELOW_1, "batch_size": COUNT, **self.ranges}
        return list(out_of_range(self, ranges))

    def needs(self) -> Mapping[str, str]:
        """Return the history's columns."""
        return {"history_columns": "name the item id feature: users are described by their history"}

    def network(self, inputs: ModelInputs) -> BagNetwork:
        """Return the encoder, and the decoder but for its last layer, with fresh weights."""
        raise NotImplementedError

    def loss(self, network: Any, batch: Batch) -> Tensor:
        """Return the loss of a batch."""
        raise NotImplementedError

    def epoch(self, data: RetrievalData, fitted: Any, rng: np.random.Generator, label: str) -> Epoch:
        """Train on the users that had anything, block by block."""
        pairs, packed = data.pairs, data.packed
        users = np.flatnonzero(pairs.lengths)
        size = max(1, min(self.batch_size, _CELLS // packed.n_items))
        catalogue = catalogue_tensor(packed.item)
        network, items = fitted.user_tower, fitted.item_tower

        def losses(number: int) -> Counted[Tensor]:
            order = rng.permutation(users)

            def loss(start: int) -> Tensor:
                bags = Bags.of(pairs, order[start : start + size], packed.n_items)
                first = network.seen(item_cat=catalogue)
                user = {name: torch.from_numpy(array[bags.users]) for name, array in packed.user.items()}
                progress = number + start / len(order)
                return self.loss(network, Batch(bags, first, items(item_cat=catalogue), user, progress))

            return Counted(range(0, len(order), size)).through(loss)

        return losses

    def fresh(self, inputs: ModelInputs) -> FittedVectors:
        """Return the network, and the last layer's vectors with their biases."""
        items = history_items(inputs, self.dimension, SPREAD, biased=True)
        return FittedVectors(self.network(inputs), items)


@dataclass(frozen=True)
class Batch:
    """What a loss is made of.

    Parameters
    ----------
    bags
        What B users had.
    first, last
        ``[I, W]`` and ``[I, D]``: the first layer's weights, and the last layer's with the bias.
    user
        The users' packed tensors ``[B, …]``.
    progress
        Epochs done so far.
    """

    bags: Bags
    first: Tensor
    last: Tensor
    user: Mapping[str, Tensor]
    progress: float

    def encoded(self, dropout: float) -> Tensor:
        """Return the first layer's sums ``[B, W]``."""
        return self.bags.summed(self.first, dropout)


class BagNetwork(PackedModule):
    """History → query ``[B, D]``, whose last number is 1.

    A family's network writes :meth:`decode`; ``width`` is that of its first layer.
    """

    def __init__(self, inputs: ModelInputs, width: int):
        super().__init__()
        self.seen = history_items(inputs, width, SPREAD)

    def decode(self, bags: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the layer before the last ``[B, D - 1]`` of the first layer's sums ``[B, W]``."""
        raise NotImplementedError

    def compute(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the queries ``[B, D]``."""
        length = tensors["history_length"]
        vectors = self.seen.shown(tensors["history_cat"])
        places = torch.arange(vectors.shape[1], device=vectors.device)
        real = (places < length).unsqueeze(-1).to(vectors.dtype)
        bags = (vectors * real).sum(dim=1) / length.to(vectors.dtype).clamp(min=1.0).sqrt()
        return with_one(self.decode(bags, tensors))


def with_one(vectors: Tensor) -> Tensor:
    """Return ``[B, D]`` of ``[B, D - 1]``, the last number 1: it meets the bias."""
    return torch.cat([vectors, torch.ones_like(vectors[:, :1])], dim=1)


def bag_network(kind: type[BagNetwork], inputs: ModelInputs, settings: Any, *more: str) -> BagNetwork:
    """Return a network of a kind whose ``forward`` names the history's tensors, and some ``more``."""
    return with_inputs(kind, (*more, *HISTORY))(inputs, settings)


def multinomial(scores: Tensor, bags: Bags) -> Tensor:
    """Return the negative log-likelihood of what each user had under a softmax ``[B, I]``, a user's mean."""
    found = scores.log_softmax(dim=1)[bags.owner, bags.rows]
    return -found.sum() / len(bags.users)
