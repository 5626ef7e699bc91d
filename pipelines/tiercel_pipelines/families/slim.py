r"""``slim``: a sparse linear item × item model with non-negative weights.

.. math:: \min_{w_i \ge 0,\ w_{ii} = 0} \tfrac12 \|x_i - X w_i\|^2 + \tfrac{\beta}{2} \|w_i\|^2 + \lambda
\|w_i\|_1

for each item i (Ning & Karypis 2011, "SLIM: sparse linear methods for top-n recommender systems", eq. 4),
restricted to its nearest items by cosine (the paper's fsSLIM). It is solved by coordinate descent on the Gram
matrix, for many items at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import scipy.sparse as sp

from tiercel_serving.problems import AT_LEAST_0, COUNT, Range
from tiercel_serving.spec import Array

from .sparse_weights import DenseFamily, largest
from .table import Plan

#: Items whose weights are solved at once.
_BLOCK = 256


class SLIM(DenseFamily, frozen=True, tag="slim"):
    """Sparse linear method.

    Parameters
    ----------
    l1, l2
        λ and β, on the scale of an item's number of users.
    neighbours
        Number of items, the nearest by cosine, that may have a weight for an item.
    sweeps
        Sweeps of coordinate descent.
    most_items
        Largest catalogue that is accepted, so that the machine does not run out of memory.
    """

    name: str = "slim"
    l1: float = 1.0
    l2: float = 50.0
    neighbours: int = 200
    sweeps: int = 10
    most_items: int = 20_000

    ranges: ClassVar[Mapping[str, Range]] = {
        **dict.fromkeys(("l1", "l2"), AT_LEAST_0),
        **dict.fromkeys(("neighbours", "sweeps", "most_items"), COUNT),
    }
    #: Scores estimate interactions, which are 0 or 1, and so lie between 0 and about 1.
    scale: ClassVar[float] = 10.0

    def solve(self, had: Any, plan: Plan) -> Any:
        """Return the weights ``[I, I]``: column i is w_i."""
        items = had.shape[1]
        gram = self.gram(had, plan)
        count = min(self.neighbours, items - 1)
        if count < 1:
            return sp.csr_matrix((items, items))
        norms = np.sqrt(np.maximum(np.diag(gram), 1))
        rows, columns, found = [], [], []
        for start in range(0, items, _BLOCK):
            targets = np.arange(start, min(start + _BLOCK, items))
            alike = gram[targets] / norms
            alike[np.arange(len(targets)), targets] = -1
            near = np.argpartition(-alike, count - 1, axis=1)[:, :count]
            weights = self._descend(gram, targets, near)
            rows.append(near.ravel())
            columns.append(np.repeat(targets, count))
            found.append(weights.ravel())
        triples = (np.concatenate(found), (np.concatenate(rows), np.concatenate(columns)))
        solved = sp.csr_matrix(triples, shape=(items, items))
        solved.eliminate_zeros()
        if self.weights is None:
            return solved
        return sp.vstack(
            [
                largest(solved[start : start + _BLOCK].toarray(), self.weights)
                for start in range(0, items, _BLOCK)
            ]
        )

    def _descend(self, gram: Array, targets: Array, near: Array) -> Array:
        """Return the weights ``[b, n]`` of the items ``near [b, n]`` for the targets ``[b]``."""
        inner = gram[near[:, :, None], near[:, None, :]]  # [b, n, n]
        wanted = gram[near, targets[:, None]]
        own = np.diagonal(inner, axis1=1, axis2=2)
        weights = np.zeros(near.shape)
        for _ in range(self.sweeps):
            for place in range(near.shape[1]):
                rest = np.einsum("bn,bn->b", inner[:, place], weights) - own[:, place] * weights[:, place]
                step = np.maximum(wanted[:, place] - rest - self.l1, 0)
                weights[:, place] = step / np.maximum(own[:, place] + self.l2, 1e-12)
        return weights
