r"""``biased_mf``: matrix factorisation of ratings, with biases.

.. math::
    \hat r_{ui} = \mu + b_u + b_i + w_u^\top h_i, \qquad
    \min \sum_{(u,i)} (r_{ui} - \hat r_{ui})^2 + \lambda (\|w_u\|^2 + \|h_i\|^2 + b_u^2 + b_i^2)

by stochastic gradient descent over the known ratings (Koren, Bell & Volinsky 2009, "Matrix factorization
techniques for recommender systems", eq. 5). Its scores are predicted ratings: how much a user would like an
item, not whether the user would choose it. An item without ratings gets the user's mean, μ + b_u.

The query of a user is ``[w_u, μ + b_u, 1]``, the vector of an item ``[h_i, 1, b_i]``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tiercel_serving.problems import AT_LEAST_0, COUNT, Problem, out_of_range

from ..arrays.counted import cut
from ..arrays.inputs import ModelInputs, Side
from ..arrays.pairs import Array
from .category_vectors import id_place, lacks_user_id
from .descent import DESCENT
from .fitted import FittedVectors
from .layers import PackedModule, with_inputs
from .ratings import ratings_of
from .table import Columns, RetrievalData
from .vector_family import Epoch, VectorFamily

#: Standard deviation of the initial vectors.
_SPREAD = 0.1


class BiasedMF(VectorFamily, frozen=True, tag="biased_mf"):
    """Matrix factorisation of ratings.

    Parameters
    ----------
    name
        Name of its candidate source.
    rating
        The column of the interactions to predict.
    factors
        Length of w and h.
    regularisation
        λ.
    batch_size
        Ratings in a batch.
    learning_rate, weight_decay
        Learning rate and weight decay of the optimiser (AdamW). Weight decay acts in addition to λ, and also
        on vectors without a rating in the batch.
    max_epochs, patience
        Maximum number of epochs; training stops after ``patience`` epochs without a better validation score.
    """

    name: str = "biased_mf"
    rating: str = "rating"
    factors: int = 32
    regularisation: float = 0.05
    batch_size: int = 1024
    learning_rate: float = 5e-3
    weight_decay: float = 0.0
    max_epochs: int = 30
    patience: int = 4

    @property
    def dimension(self) -> int:
        """D: the factors, plus two elements for the biases."""
        return self.factors + 2

    def problems(self) -> list[Problem]:
        """Return a problem for each number outside its range, and for an empty column name."""
        ranges = {**DESCENT, "factors": COUNT, "batch_size": COUNT, "regularisation": AT_LEAST_0}
        wrong = list(out_of_range(self, ranges))
        if not self.rating:
            problem = f"expected a column of the interactions, got {self.rating!r}"
            wrong.append(Problem("rating", problem, "write its name, such as 'rating'"))
        return wrong

    def needs(self) -> Mapping[str, str]:
        """Return nothing, since the model identifies users by their id."""
        return {}

    def misfits(self, user: Columns, item: Columns, timed: bool) -> list[Problem]:
        """Return a problem if users have no id."""
        return lacks_user_id(user, "BiasedMF")

    def interaction_columns(self) -> tuple[str, ...]:
        """Return the column of ratings."""
        return (self.rating,)

    def epoch(self, data: RetrievalData, fitted: Any, rng: np.random.Generator, label: str) -> Epoch:
        """Train both tables on each rating."""
        pairs, packed = data.pairs, data.packed
        ratings = torch.from_numpy(ratings_of(pairs, self.rating, label)).float()
        user, item = fitted.user_tower, fitted.item_tower
        users = torch.from_numpy(packed.user["user_cat"][pairs.users, user.place])
        items = torch.from_numpy(packed.item["item_cat"][pairs.items, item.place])
        user.start(users)
        item.start(items)
        with torch.no_grad():
            user.mean.copy_(ratings.mean())

        def loss(some: Array) -> Tensor:
            query, vector = user.vectors(users[some]), item.vectors(items[some])
            error = ratings[some] - (query * vector).sum(dim=1)
            own = user.table(users[some]).square().sum(1) + item.table(items[some]).square().sum(1)
            found: Tensor = (error.square() + self.regularisation * own).mean()
            return found

        return lambda number: cut(rng.permutation(len(users)), self.batch_size).through(loss)

    def fresh(self, inputs: ModelInputs) -> FittedVectors:
        """Return both modules, with tables of zeros."""
        user, item = (with_inputs(Biased, (f"{part}_cat",)) for part in ("user", "item"))
        return FittedVectors(user(inputs.user, self.factors), item(inputs.item, self.factors))


class Biased(PackedModule):
    """Vector and bias of a category: ``[w, μ + b, 1]`` for users, ``[h, 1, b]`` for items."""

    def __init__(self, side: Side, factors: int):
        super().__init__()
        self.part, self.place = side.part, id_place(side)
        self.table = nn.Embedding(side.cat[self.place].cardinality, factors + 1)
        nn.init.zeros_(self.table.weight)
        self.mean: Tensor
        self.register_buffer("mean", torch.zeros(()))

    def start(self, seen: Tensor) -> None:
        """Draw initial vectors for the categories that occur; the others stay 0."""
        with torch.no_grad():
            drawn = torch.randn_like(self.table.weight[:, :-1]) * _SPREAD
            rows = torch.unique(seen)
            self.table.weight[rows, :-1] = drawn[rows]

    def compute(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the vectors ``[B, D]``."""
        return self.vectors(tensors[f"{self.part}_cat"][..., self.place])

    def vectors(self, ids: Tensor) -> Tensor:
        """Return the vectors of categories ``[B]``."""
        own = self.table(ids)
        vector, bias = own[..., :-1], own[..., -1:]
        ends = [self.mean + bias, torch.ones_like(bias)]
        return torch.cat([vector, *(ends if self.part == "user" else [ends[1], bias])], dim=-1)
