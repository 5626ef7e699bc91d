r"""``item_knn``: what users had together, by a similarity of items.

.. math::
    W_{ji} = \frac{n_{ji}}{n_{ji} + h} \cdot \frac{x_j^\top x_i}{\|x_j\| \|x_i\|}
    \quad\text{or}\quad \frac{n_{ji}}{n_j + n_i - n_{ji} + h}

where x_i holds the users of item i, weighed, and n counts users: cosine (Sarwar et al. 2001, "Item-based
collaborative filtering recommendation algorithms") or Jaccard, shrunk by h where few users had both (Bell &
Koren 2007, "Scalable collaborative filtering with jointly derived neighborhood interpolation weights"). Each
item keeps its nearest neighbours (Deshpande & Karypis 2004). Users are weighed as words are in documents,
which here are items: TF-IDF, or BM25 in place of the norms (Robertson & Zaragoza 2009), so that who had
everything says little.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import scipy.sparse as sp

from tiercel_serving.problems import AT_LEAST_0, Problem, Range
from tiercel_serving.spec import Array

from .sparse_weights import WeightsFamily, largest, row_blocks
from .table import Plan

#: BM25: how soon a count saturates, and how much an item's number of users is normalised.
K1, B = 1.2, 0.75


class ItemKNN(WeightsFamily, frozen=True, tag="item_knn"):
    """Item-item neighbourhood.

    Parameters
    ----------
    similarity
        ``cosine`` or ``jaccard``.
    weighting
        Of users: ``none``, ``tf_idf`` or ``bm25``; Jaccard counts users and has none.
    shrinkage
        h, in users.
    """

    name: str = "item_knn"
    similarity: Literal["cosine", "jaccard"] = "cosine"
    weighting: Literal["none", "tf_idf", "bm25"] = "none"
    shrinkage: float = 10.0

    ranges: ClassVar[Mapping[str, Range]] = {"shrinkage": AT_LEAST_0}

    def problems(self) -> list[Problem]:
        """Return numbers out of their ranges, and similarities and weightings that there are not."""
        wrong = super().problems()
        for field, known in (
            ("similarity", ("cosine", "jaccard")),
            ("weighting", ("none", "tf_idf", "bm25")),
        ):
            if getattr(self, field) not in known:
                problem = f"expected {' or '.join(map(repr, known))}, got {getattr(self, field)!r}"
                wrong.append(Problem(field, problem, "write one of them"))
        if self.similarity == "jaccard" and self.weighting in ("tf_idf", "bm25"):
            problem = f"{self.weighting!r}, but Jaccard counts users and weighs none"
            wrong.append(Problem("weighting", problem, "take similarity='cosine', or weighting='none'"))
        return wrong

    def solve(self, had: Any, plan: Plan) -> Any:
        """Return the similarities ``[I, I]`` of each item's nearest neighbours."""
        items = had.shape[1]
        counts = np.asarray(had.sum(axis=0)).ravel()
        weighed = sp.csc_matrix(_weighed(had, counts, self.weighting))
        norms = np.sqrt(np.asarray(weighed.multiply(weighed).sum(axis=0)).ravel())
        if self.weighting == "bm25":
            # It has put items of many and of few users on one scale by itself, and a norm would undo that.
            norms = np.ones_like(norms)
        columns, parts = sp.csc_matrix(had), []
        for rows in row_blocks(items):
            together = (columns[:, rows].T @ had).toarray()
            if self.similarity == "jaccard":
                either = counts[rows, None] + counts - together + self.shrinkage
                alike = together / np.maximum(either, 1e-12)
            else:
                product = (weighed[:, rows].T @ weighed).toarray()
                alike = product / np.maximum(norms[rows, None] * norms, 1e-12)
                alike *= together / np.maximum(together + self.shrinkage, 1e-12)
            alike[np.arange(len(alike)), np.arange(rows.start, rows.stop)] = 0
            parts.append(largest(alike, self.weights))
        return sp.vstack(parts)


def _weighed(had: Any, counts: Array, weighting: str) -> Any:
    """Return who had what ``[U, I]``, each user weighed as a word of items."""
    if weighting == "none":
        return had
    rare = np.log(had.shape[1]) - np.log1p(np.asarray(had.sum(axis=1)).ravel())
    # A user who had everything weighs nothing, and never less.
    weighed = sp.diags(np.maximum(rare, 0)) @ had
    if weighting == "tf_idf":
        return weighed
    normal = 1 - B + B * counts / max(float(counts.mean()), 1e-12)
    return weighed @ sp.diags((K1 + 1) / (K1 * normal + 1))
