r"""``ease``: the linear model of items by items, in closed form.

.. math::
    \min_B \|X - XB\|_F^2 + \lambda \|B\|_F^2,\ B_{jj} = 0
    \;\Rightarrow\; B_{ji} = -\frac{P_{ji}}{P_{ii}},\ P = (X^\top X + \lambda I)^{-1}

(Steck 2019, "Embarrassingly shallow autoencoders for sparse data", eq. 8). With dropout p of what is seen,
the rest scaled up to the same sum, the least squares over all ways to drop have

.. math:: P = \Bigl(X^\top X + \lambda I + \tfrac{p}{1 - p} \operatorname{diag}(X^\top X)\Bigr)^{-1}

(Steck 2020, "Autoencoders that don't overfit towards the identity"), which regularises popular items most.
It inverts one dense matrix item × item: memory grows with the square of the catalogue, time with its cube.
What is served are each item's largest weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import scipy.linalg
import scipy.sparse as sp

from tiercel_serving.problems import BELOW_1, COUNT, POSITIVE, Range

from .sparse_weights import WeightsFamily, largest, refuse_large, row_blocks
from .table import Plan


class EASE(WeightsFamily, frozen=True, tag="ease"):
    """Embarrassingly shallow autoencoder.

    Parameters
    ----------
    l2
        λ, in users.
    dropout
        p, the share of a user's items that is dropped, on average over all ways to do so; 0 is plain EASE.
    most_items
        Larger catalogues are refused, before the memory is gone.
    """

    name: str = "ease"
    l2: float = 400.0
    dropout: float = 0.0
    most_items: int = 20_000

    ranges: ClassVar[Mapping[str, Range]] = {"l2": POSITIVE, "dropout": BELOW_1, "most_items": COUNT}
    #: Its scores are shares of an interaction, from 0 to about 1.
    scale: ClassVar[float] = 10.0

    def solve(self, had: Any, plan: Plan) -> Any:
        """Return the weights ``[I, I]``, each row's largest."""
        items = had.shape[1]
        refuse_large(items, self.most_items, "EASE", plan.label)
        gram = (had.T @ had).toarray()
        gram[np.diag_indices(items)] *= 1 + self.dropout / (1 - self.dropout)
        gram[np.diag_indices(items)] += self.l2
        inverse = scipy.linalg.inv(gram, overwrite_a=True, check_finite=False)
        weights = inverse / -np.diag(inverse)
        weights[np.diag_indices(items)] = 0
        return sp.vstack([largest(weights[rows], self.weights) for rows in row_blocks(items)])
