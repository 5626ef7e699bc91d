"""Base of the factorisations: interactions by category, and a vector for each category of either side.

Users and items are identified by the categorical column with the most values on their side, which is their
id. Those with the same category, such as the unknown one, share a vector.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor, nn

from tiercel_serving.problems import Problem

from ..arrays.inputs import ModelInputs, Side
from ..errors import TrainingError
from .fitted import FittedVectors
from .layers import PackedModule, with_inputs
from .table import Columns, RetrievalData


class CategoryVectors(PackedModule):
    """The vector of a category, ``[B, D]``; its last element is a constant 1 if ``one``."""

    def __init__(self, side: Side, dimension: int, *, one: bool = False):
        super().__init__()
        self.part, self.place, self.one = side.part, id_place(side), one
        self.table = nn.Embedding(side.cat[self.place].cardinality, dimension - one)

    def compute(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the vectors."""
        return self.vectors(tensors[f"{self.part}_cat"][..., self.place])

    def vectors(self, ids: Tensor) -> Tensor:
        """Return the vectors of categories ``[B]``."""
        vectors: Tensor = self.table(ids)
        return torch.cat([vectors, torch.ones_like(vectors[..., :1])], dim=-1) if self.one else vectors


def vector_models(inputs: ModelInputs, dimension: int, *, one: bool = False) -> FittedVectors:
    """Return fresh tables of both sides; with ``one``, the last element of an item's vector is its bias."""
    user, item = (with_inputs(CategoryVectors, (f"{part}_cat",)) for part in ("user", "item"))
    return FittedVectors(user(inputs.user, dimension, one=one), item(inputs.item, dimension))


def id_place(side: Side) -> int:
    """Return the position of the categorical column with the most values."""
    return max(range(len(side.cat)), key=lambda place: side.cat[place].cardinality)


def had_by_category(data: RetrievalData, label: str) -> Any:
    """Return the interactions as CSR ``[user categories, item categories]``, float64: 1 for each pair.

    Raises
    ------
    TrainingError
        There are no interactions.
    """
    pairs, packed, sides = data.pairs, data.packed, (data.inputs.user, data.inputs.item)
    if not len(pairs):
        raise TrainingError(f"{label}: there are no interactions to learn from")
    places = [id_place(side) for side in sides]
    users = packed.user["user_cat"][pairs.users, places[0]]
    items = packed.item["item_cat"][pairs.items, places[1]]
    shape = tuple(side.cat[place].cardinality for side, place in zip(sides, places, strict=True))
    had = sp.csr_matrix((np.ones(len(pairs)), (users, items)), shape=shape)
    had.data[:] = 1
    return had


def lacks_user_id(user: Columns, family: str) -> list[Problem]:
    """Return a problem if users have no categorical column, by which their vectors would be stored."""
    if "category" in user.values():
        return []
    problem = f"a {family} keeps a vector for each user, but no category of the user reaches the models"
    remedy = "write ['user_id'] >> ops.Categorify() >> ops.TagAsUserID(), or take EASE(…)"
    return [Problem("", problem, remedy)]
