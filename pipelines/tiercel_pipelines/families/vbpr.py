r"""``vbpr``: BPR with item vectors from another model in addition to learned ones.

.. math:: s_{ui} = w_u^\top h_i + \theta_u^\top E f_i + \beta^\top f_i + b_i

where f_i is a given vector, such as that of a picture or a text (He & McAuley 2016, "VBPR: visual Bayesian
personalized ranking from implicit feedback", eq. 4 and 6). It is trained like ``bpr_mf``. A new item has E f
and β·f from the start. The query of a user is ``[w_u, θ_u, 1]``, the vector of an item ``[h_i, E f_i, β·f_i +
b_i]``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tiercel_serving.problems import COUNT, WIDTH, Problem, choose, out_of_range
from tiercel_serving.spec import list_tensor

from ..arrays.inputs import ModelInputs
from ..errors import TrainingError
from .bpr_mf import BPRMF
from .category_vectors import CategoryVectors, id_place
from .fitted import FittedVectors
from .layers import PackedModule, with_inputs
from .table import Columns, RetrievalData
from .vector_family import Epoch


class VBPR(BPRMF, frozen=True, tag="vbpr"):
    """Bayesian personalised ranking over given vectors of items.

    Parameters
    ----------
    vectors
        The item feature that holds them: a list of numbers.
    length
        Length of each given vector.
    vector_dimension
        Length of θ and of E f; the rest of ``dimension`` is the length of w and h, and one for the bias.
    """

    name: str = "vbpr"
    vectors: str = "embedding"
    length: int = 64
    vector_dimension: int = 31

    def problems(self) -> list[Problem]:
        """Return a problem for each number outside its range, and if nothing is left for w and h."""
        wrong = [*super().problems(), *out_of_range(self, {"length": COUNT, "vector_dimension": WIDTH})]
        if not wrong and self.vector_dimension > self.dimension - 2:
            problem = f"{self.vector_dimension}, but dimension, {self.dimension}, holds w and the bias too"
            wrong.append(Problem("vector_dimension", problem, f"take {self.dimension - 2} at most"))
        return wrong

    def misfits(self, user: Columns, item: Columns, timed: bool) -> list[Problem]:
        """Return a problem if users have no id, or items no such vectors."""
        wrong = super().misfits(user, item, timed)
        if item.get(self.vectors) != "numbers":
            listed = [name for name, holds in item.items() if holds == "numbers"]
            problem = f"no feature of the items that holds lists of numbers is called {self.vectors!r}"
            remedy = (
                choose(self.vectors, listed) if listed else "tag their column of vectors as such a feature"
            )
            wrong.append(Problem("vectors", problem, remedy))
        return wrong

    def epoch(self, data: RetrievalData, fitted: Any, rng: np.random.Generator, label: str) -> Epoch:
        """Train like BPR, with the given vectors indexed by the items' category."""
        given = data.packed.item[list_tensor("item", self.vectors)]
        if given.shape[1] != self.length:
            raise TrainingError(
                f"{label}: the vectors in {self.vectors!r} have {given.shape[1]} numbers, not {self.length}; "
                f"write length={given.shape[1]}"
            )
        tower = fitted.item_tower
        by_category = np.zeros((tower.table.num_embeddings, self.length), np.float32)
        by_category[data.packed.item["item_cat"][:-1, tower.place]] = np.nan_to_num(given[:-1])
        tower.given = torch.from_numpy(by_category)
        return super().epoch(data, fitted, rng, label)

    def fresh(self, inputs: ModelInputs) -> FittedVectors:
        """Return the user table, and the item table with the layer over the given vectors."""
        lists = {column.name: column for column in inputs.item.lists}
        column = lists.get(self.vectors)
        if column is None or column.cardinality is not None:
            raise TrainingError(
                f"{self.name}: the item feature {self.vectors!r} is not a list of numbers; name one that is"
            )
        users = with_inputs(CategoryVectors, ("user_cat",))(inputs.user, self.dimension, one=True)
        name = inputs.item.list_tensor(column)
        return FittedVectors(users, with_inputs(GivenAndLearned, ("item_cat", name))(inputs, self, name))


class GivenAndLearned(PackedModule):
    """Item category and given vector → ``[B, D]`` float32: learned, given, and the bias."""

    def __init__(self, inputs: ModelInputs, settings: VBPR, name: str):
        super().__init__()
        self.place, self.name = id_place(inputs.item), name
        count = inputs.item.cat[self.place].cardinality
        self.table = nn.Embedding(count, settings.dimension - settings.vector_dimension)
        #: The last output is β·f.
        self.layer = nn.Linear(settings.length, settings.vector_dimension + 1, bias=False)
        #: The given vectors by category, in training.
        self.given = torch.zeros(0)

    def compute(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the vectors ``[B, D]``."""
        given = tensors[self.name]
        given = torch.where(torch.isnan(given), torch.zeros_like(given), given)
        return self._joined(self.table(tensors["item_cat"][..., self.place]), self.layer(given))

    def vectors(self, ids: Tensor) -> Tensor:
        """Return the vectors of categories ``[B]`` in training."""
        return self._joined(self.table(ids), self.layer(self.given[ids]))

    def _joined(self, own: Tensor, given: Tensor) -> Tensor:
        bias = own[..., -1:] + given[..., -1:]
        return torch.cat([own[..., :-1], given[..., :-1], bias], dim=-1)
