r"""``item_knn``: items similar to those of the history, by the users that they have in common.

.. math::
    W_{ji} = \frac{n_{ji}}{n_{ji} + h} \cdot \frac{x_j^\top x_i}{\|x_j\| \|x_i\|}
    \quad\text{or}\quad \frac{n_{ji}}{n_j + n_i - n_{ji} + h}

where x_i is the weighted vector of item i's users and n counts users: cosine (Sarwar et al. 2001, "Item-based
collaborative filtering recommendation algorithms") or Jaccard, shrunk by h where few users had both items
(Bell & Koren 2007, "Scalable collaborative filtering with jointly derived neighborhood interpolation
weights"). Each item keeps its nearest neighbours (Deshpande & Karypis 2004). Users are weighted like words in
documents, where an item is a document: TF-IDF, or BM25 instead of the norms (Robertson & Zaragoza 2009), so
that a user of very many items counts little. With ratings, x_i holds each rating minus its user's mean. This
is the adjusted cosine of Sarwar et al., by which items are similar if the same users prefer them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any, ClassVar, Literal

import numpy as np
import scipy.sparse as sp

from tiercel_serving.problems import AT_LEAST_0, Problem, Range
from tiercel_serving.spec import Array

from ..arrays.pairs import Pairs
from .ratings import centred
from .sparse_weights import WeightsFamily
from .table import Plan

#: BM25's k1 and b: how soon a count saturates, and how strongly an item's number of users is normalised.
K1, B = 1.2, 0.75

#: About how many item × item products are computed at once.
_PRODUCTS = 20_000_000


class ItemKNN(WeightsFamily, frozen=True, tag="item_knn"):
    """Item-item neighbourhood.

    Parameters
    ----------
    similarity
        ``cosine`` or ``jaccard``.
    weighting
        Weighting of users: ``none``, ``tf_idf`` or ``bm25``; Jaccard counts users and needs ``none``.
    shrinkage
        h, in users.
    rating
        Column of the interactions whose values, minus their user's mean, replace the 1 of an interaction.
        None weights all alike. Histories hold no ratings: in serving, every item supports similar ones.
    """

    name: str = "item_knn"
    similarity: Literal["cosine", "jaccard"] = "cosine"
    weighting: Literal["none", "tf_idf", "bm25"] = "none"
    shrinkage: float = 10.0
    rating: str | None = None

    ranges: ClassVar[Mapping[str, Range]] = {"shrinkage": AT_LEAST_0}

    def problems(self) -> list[Problem]:
        """Return a problem for each number outside its range, and for a weighting together with Jaccard."""
        return super().problems() + similarity_problems(self)

    def interaction_columns(self) -> tuple[str, ...]:
        """Return the column of ratings, if one is set."""
        return () if self.rating is None else (self.rating,)

    def values(self, pairs: Pairs, label: str) -> Array:
        """Return ``[n]`` float64: 1 for each interaction, or its rating minus its user's mean."""
        return super().values(pairs, label) if self.rating is None else centred(pairs, self.rating, label)

    def solve(self, had: Any, plan: Plan) -> Any:
        """Return the similarities ``[I, I]`` of each item's nearest neighbours."""
        items, values = had.shape[1], had
        had = sp.csr_matrix((np.ones(had.nnz), had.indices, had.indptr), had.shape)
        counts = np.asarray(had.sum(axis=0)).ravel()
        weighed = sp.csc_matrix(_weighed(values, counts, self.weighting))
        norms = np.sqrt(np.asarray(weighed.multiply(weighed).sum(axis=0)).ravel())
        if self.weighting == "bm25":
            # BM25 already normalises by an item's number of users; a norm would undo that.
            norms = np.ones_like(norms)
        columns, parts = sp.csc_matrix(had), []
        for rows in _blocks(had, columns):
            together = sp.csr_matrix(columns[:, rows].T @ had)
            together.sort_indices()
            row = np.repeat(np.arange(rows.start, rows.stop), np.diff(together.indptr))
            both, column = together.data, together.indices
            if self.similarity == "jaccard":
                alike = both / np.maximum(counts[row] + counts[column] - both + self.shrinkage, 1e-12)
            else:
                product = _at(sp.csr_matrix(weighed[:, rows].T @ weighed), together)
                alike = product / np.maximum(norms[row] * norms[column], 1e-12)
                alike *= both / (both + self.shrinkage)
            alike[row == column] = 0
            shape = (rows.stop - rows.start, items)
            parts.append(_largest(sp.csr_matrix((alike, column, together.indptr), shape), self.weights))
        return sp.vstack(parts)


def _at(found: Any, wanted: Any) -> Array:
    """Return the values of sparse ``found`` at the positions of ``wanted``, which include all of its own."""
    found.sort_indices()
    wanted.sort_indices()
    if found.nnz == wanted.nnz:
        return np.asarray(found.data)
    rows = np.repeat(np.arange(wanted.shape[0]), np.diff(wanted.indptr))
    return np.asarray(found[rows, wanted.indices]).ravel()


def _blocks(had: Any, columns: Any) -> Iterator[slice]:
    """Yield slices of rows of the item × item matrix whose products fit in memory."""
    cost = np.cumsum(columns.T @ np.diff(had.indptr).astype(np.float64))
    ends = np.searchsorted(cost, np.arange(_PRODUCTS, cost[-1], _PRODUCTS))
    edges = np.unique([0, *ends, len(cost)])
    yield from (slice(int(start), int(stop)) for start, stop in pairwise(edges))


def _largest(block: Any, count: int | None) -> Any:
    """Return a sparse block with only the ``count`` entries of each row that are largest by magnitude."""
    lengths = np.diff(block.indptr)
    if count is not None and lengths.max(initial=0) > count:
        row = np.repeat(np.arange(len(lengths)), lengths)
        order = np.lexsort((-np.abs(block.data), row))
        block.data[order[np.arange(len(row)) - block.indptr[row] >= count]] = 0
    block.eliminate_zeros()
    return block


def _weighed(had: Any, counts: Array, weighting: str) -> Any:
    """Return the interactions ``[U, I]`` with each user weighted like a word in documents."""
    if weighting == "none":
        return had
    weighed = sp.diags(rarity(np.diff(had.indptr), had.shape[1])) @ had
    return weighed @ sp.diags(bm25_share(counts)) if weighting == "bm25" else weighed


def rarity(counts: Array, total: int) -> Array:
    """Return the inverse document frequency of words in ``counts`` of ``total`` documents, at least 0."""
    # A user with all items has weight 0.
    return np.asarray(np.maximum(np.log(total) - np.log1p(counts), 0.0))


def bm25_share(lengths: Array) -> Array:
    """Return BM25's factor of a word that occurs once in documents of these lengths."""
    normal = 1 - B + B * lengths / max(float(lengths.mean()), 1e-12)
    return np.asarray((K1 + 1) / (K1 * normal + 1))


def similarity_problems(settings: Any) -> list[Problem]:
    """Return a problem if Jaccard is combined with a weighting."""
    if settings.similarity != "jaccard" or settings.weighting not in ("tf_idf", "bm25"):
        return []
    problem = f"{settings.weighting!r}, but Jaccard counts and weighs none"
    return [Problem("weighting", problem, "take similarity='cosine', or weighting='none'")]
