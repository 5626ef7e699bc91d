r"""Base of the autoencoders: a user is a set of items, and the decoder's last layer holds the item vectors.

::

    history ─ W₁, summed ÷ √n ─ the family's layers ─ [h, 1] = query ┐
                                                                     ├─ inner product
    item ─────────────────────── the last layer's weights and bias ──┘

The first layer of a dense network over all items is a sum of embeddings, and the last is an inner product
with vectors, so an autoencoder is served like any model of queries and item vectors. It is trained on batches
of users; only one batch's scores of all items are in memory at a time.
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

#: Standard deviation of the initial embeddings of the first and of the last layer.
SPREAD = 0.05

#: Largest number of user × item scores in memory at once.
_CELLS = 20_000_000


@dataclass(frozen=True)
class Bags:
    """The items of some users.

    Parameters
    ----------
    users
        ``[B]`` user rows.
    owner, rows
        ``[n]`` int64: for each interaction the user's position in ``users``, and the catalogue row.
    lengths
        ``[B]`` number of items of each user.
    items
        I, the size of the catalogue.
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
        """Return the interactions as a dense matrix ``[B, I]`` of 1 and 0."""
        had = torch.zeros(len(self.users), self.items)
        had[self.owner, self.rows] = 1.0
        return had

    def summed(self, weights: Tensor, dropout: float) -> Tensor:
        """Return ``[B, W]``: each user's sum of item ``weights [I, W]``, divided by √n for n items.

        A share ``dropout`` of the items is left out, and the others are scaled up accordingly.
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
        Name of its candidate source.
    input_dropout
        Share of a user's items that is hidden from the encoder in training.
    batch_size
        Users in a batch; fewer for a very large catalogue, so that their scores fit in memory.
    learning_rate, weight_decay
        Learning rate and weight decay of the optimiser (AdamW).
    max_epochs, patience
        Maximum number of epochs; training stops after ``patience`` epochs without a better validation score.
    """

    name: str
    input_dropout: float = 0.5
    batch_size: int = 100
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    max_epochs: int = 200
    patience: int = 20

    #: Ranges of the family's own numeric settings.
    ranges: ClassVar[Mapping[str, Range]] = {}

    @property
    def dimension(self) -> int:
        """D: the width of the last hidden layer, plus a constant 1 for the bias."""
        raise NotImplementedError

    def problems(self) -> list[Problem]:
        """Return a problem for each number outside its range."""
        ranges = {**DESCENT, "input_dropout": BELOW_1, "batch_size": COUNT, **self.ranges}
        return list(out_of_range(self, ranges))

    def needs(self) -> Mapping[str, str]:
        """Return ``history_columns``, since the model reads the history."""
        return {"history_columns": "name the item id feature: users are described by their history"}

    def network(self, inputs: ModelInputs) -> BagNetwork:
        """Return the encoder, and the decoder without its last layer, with fresh weights."""
        raise NotImplementedError

    def loss(self, network: Any, batch: Batch) -> Tensor:
        """Return the loss of a batch."""
        raise NotImplementedError

    def epoch(self, data: RetrievalData, fitted: Any, rng: np.random.Generator, label: str) -> Epoch:
        """Train on all users that have interactions, batch by batch."""
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
    """The inputs of a loss.

    Parameters
    ----------
    bags
        The items of B users.
    first, last
        ``[I, W]`` and ``[I, D]``: the first layer's weights, and the last layer's with the bias.
    user
        The users' packed tensors ``[B, …]``.
    progress
        Epochs done so far, including the fraction of the current one.
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

    Subclasses implement :meth:`decode`; ``width`` is the width W of the first layer.
    """

    def __init__(self, inputs: ModelInputs, width: int):
        super().__init__()
        self.seen = history_items(inputs, width, SPREAD)

    def decode(self, bags: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the last hidden layer ``[B, D - 1]``, given the first layer's sums ``[B, W]``."""
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
    """Append a constant 1, the factor of the item's bias: ``[B, D - 1]`` → ``[B, D]``."""
    return torch.cat([vectors, torch.ones_like(vectors[:, :1])], dim=1)


def bag_network(kind: type[BagNetwork], inputs: ModelInputs, settings: Any, *more: str) -> BagNetwork:
    """Return a ``kind`` network whose ``forward`` takes the tensors ``more`` and those of the history."""
    return with_inputs(kind, (*more, *HISTORY))(inputs, settings)


def multinomial(scores: Tensor, bags: Bags) -> Tensor:
    """Return the mean over users of their items' negative log-likelihood, by softmax of ``scores [B, I]``."""
    found = scores.log_softmax(dim=1)[bags.owner, bags.rows]
    return -found.sum() / len(bags.users)
