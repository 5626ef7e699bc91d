r"""``bpr_mf``: matrix factorisation that learns to score a user's items above other items.

.. math:: -\sum_{(u, i, j)} \ln \sigma\bigl( (w_u^\top h_i + b_i) - (w_u^\top h_j + b_j) \bigr)

over interactions (u, i) and items j drawn uniformly from those that others, but not u, have interacted with
(Rendle et al. 2009, "BPR: Bayesian personalized ranking from implicit feedback"). The last element of an
item's vector is its bias, that of a user's vector is 1.

Vectors are ``[B, D]`` of users and ``[I, D]`` of items.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from tiercel_serving.problems import COUNT, WIDTH, Problem, Range, out_of_range

from ..arrays.counted import cut
from ..arrays.inputs import ModelInputs
from ..arrays.pairs import Array
from .category_vectors import had_by_category, lacks_user_id, vector_models
from .descent import DESCENT
from .fitted import FittedVectors
from .table import Columns, RetrievalData
from .vector_family import Epoch, VectorFamily

#: Standard deviation of the initial vectors.
_SPREAD = 0.1


class BPRMF(VectorFamily, frozen=True, tag="bpr_mf"):
    """Bayesian personalised ranking.

    Parameters
    ----------
    name
        Name of its candidate source.
    dimension
        D, the length of the vectors, including the bias.
    batch_size
        Interactions in a batch, each paired with one item that its user has not interacted with.
    learning_rate, weight_decay
        Learning rate and weight decay of the optimiser (AdamW).
    max_epochs, patience
        Maximum number of epochs; training stops after ``patience`` epochs without a better validation score.
    """

    name: str = "bpr_mf"
    dimension: int = 64
    batch_size: int = 1024
    learning_rate: float = 5e-3
    weight_decay: float = 0.3
    max_epochs: int = 60
    patience: int = 10

    def problems(self) -> list[Problem]:
        """Return a problem for each number outside its range."""
        ranges = {**DESCENT, "dimension": Range(2, WIDTH.high, whole=True), "batch_size": COUNT}
        return list(out_of_range(self, ranges))

    def needs(self) -> Mapping[str, str]:
        """Return nothing, since the model identifies users by their id."""
        return {}

    def misfits(self, user: Columns, item: Columns, timed: bool) -> list[Problem]:
        """Return a problem if users have no id."""
        return lacks_user_id(user, "BPRMF")

    def epoch(self, data: RetrievalData, fitted: Any, rng: np.random.Generator, label: str) -> Epoch:
        """Train both tables on each interaction, paired with a drawn item."""
        had = had_by_category(data, label)
        users = np.repeat(np.arange(had.shape[0]), np.diff(had.indptr))
        listed = np.flatnonzero(np.diff(had.T.tocsr().indptr))
        keys = users * had.shape[1] + had.indices
        _start(fitted.user_tower, users)
        _start(fitted.item_tower, had.indices, biased=True)

        def loss(some: Array) -> Tensor:
            other = rng.choice(listed, len(some))
            wanted = users[some] * had.shape[1] + other
            place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
            free = torch.from_numpy(keys[place] != wanted)
            return self._loss(fitted, users[some], had.indices[some], other, free)

        return lambda number: cut(rng.permutation(len(users)), self.batch_size).through(loss)

    def _loss(self, fitted: Any, users: Any, items: Any, others: Any, free: Tensor) -> Tensor:
        """Return the mean loss of the pairs whose drawn item is ``free``, that is, not one of the user's."""
        query, items, others = (torch.from_numpy(rows).long() for rows in (users, items, others))
        difference = fitted.item_tower.vectors(items) - fitted.item_tower.vectors(others)
        losses = softplus(-(fitted.user_tower.vectors(query) * difference).sum(-1))
        loss: Tensor = (losses * free).sum() / free.sum().clamp(min=1)
        return loss

    def fresh(self, inputs: ModelInputs) -> FittedVectors:
        """Return both tables."""
        return vector_models(inputs, self.dimension, one=True)


def _start(module: Any, seen: Any, *, biased: bool = False) -> None:
    """Draw initial vectors for the categories that occur; the others, and all biases, start at 0."""
    weight = module.table.weight
    unseen = np.ones(len(weight), np.bool_)
    unseen[seen] = False
    nn.init.normal_(weight, std=_SPREAD)
    with torch.no_grad():
        weight[torch.from_numpy(unseen)] = 0
        if biased:
            weight[:, -1] = 0
