r"""``ease``: a linear item × item model in closed form.

.. math::
    \min_B \|X - XB\|_F^2 + \lambda \|B\|_F^2,\ B_{jj} = 0
    \;\Rightarrow\; B_{ji} = -\frac{P_{ji}}{P_{ii}},\ P = (X^\top X + \lambda I)^{-1}

(Steck 2019, "Embarrassingly shallow autoencoders for sparse data", eq. 8). With dropout p of the input, whose
rest is scaled up accordingly, the least-squares solution over all dropout masks has

.. math:: P = \Bigl(X^\top X + \lambda I + \tfrac{p}{1 - p} \operatorname{diag}(X^\top X)\Bigr)^{-1}

(Steck 2020, "Autoencoders that don't overfit towards the identity"), which regularises popular items most.
It inverts one dense float64 item × item matrix in place: memory grows with the square of the catalogue
(1.2 GB for 12,000 items, 4.6 GB for 24,000), time with its cube. Only each item's largest weights are served.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import scipy.sparse as sp
from scipy.linalg.lapack import dpotrf, dpotri

from tiercel_serving.problems import BELOW_1, COUNT, POSITIVE, Range
from tiercel_serving.spec import Array

from ..errors import TrainingError
from .sparse_weights import DenseFamily, largest, row_blocks
from .table import Plan


class EASE(DenseFamily, frozen=True, tag="ease"):
    """Embarrassingly shallow autoencoder.

    Parameters
    ----------
    l2
        λ, on the scale of an item's number of users.
    dropout
        p, the share of a user's items that is dropped, averaged over all dropout masks; 0 is plain EASE.
    most_items
        Largest catalogue that is accepted, so that the machine does not run out of memory.
    """

    name: str = "ease"
    l2: float = 400.0
    dropout: float = 0.0
    most_items: int = 20_000

    ranges: ClassVar[Mapping[str, Range]] = {"l2": POSITIVE, "dropout": BELOW_1, "most_items": COUNT}
    #: Scores estimate interactions, which are 0 or 1, and so lie between 0 and about 1.
    scale: ClassVar[float] = 10.0

    def solve(self, had: Any, plan: Plan) -> Any:
        """Return the sparse weights ``[I, I]``, only the largest of each row."""
        items = had.shape[1]
        gram = self.gram(had, plan).T  # symmetric: its transpose is column-major, which LAPACK overwrites
        gram[np.diag_indices(items)] *= 1 + self.dropout / (1 - self.dropout)
        gram[np.diag_indices(items)] += self.l2
        inverse = inverted(gram, plan.label)
        scale = -np.diag(inverse)
        return sp.vstack(
            [largest(mirrored(inverse, rows) / scale, self.weights) for rows in row_blocks(items)]
        )


def inverted(gram: Array, label: str) -> Array:
    """Return the lower triangle of the inverse of a positive definite matrix ``[I, I]``, in place.

    Uses the Cholesky factor (LAPACK's ``potrf`` and ``potri``), which takes a third of the work of a general
    inverse and no second matrix. Elements above the diagonal are meaningless. Raises TrainingError if there
    is no inverse.
    """
    factor, failed = dpotrf(gram, lower=1, clean=0, overwrite_a=1)
    if not failed:
        inverse: Array
        inverse, failed = dpotri(factor, lower=1, overwrite_c=1)
    if failed:
        raise TrainingError(f"{label}: items by items, the matrix has no inverse; raise l2")
    return inverse


def mirrored(lower: Array, rows: slice) -> Array:
    """Return rows ``[b, I]`` of the symmetric matrix given by its lower triangle, with a zero diagonal."""
    block = lower[rows].copy()
    place, column = np.arange(rows.start, rows.stop)[:, None], np.arange(len(lower))
    np.copyto(block, lower[:, rows].T, where=column > place)
    block[column == place] = 0
    return block
