"""Metrics beyond accuracy: novelty, diversity and popularity bias of recommended lists.

Arrays as in :mod:`.metrics`: a ranking is ``ranked [U, m]``, catalogue rows with pad I.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from .metrics import FloatArray, IntArray

#: Pairs of items whose similarities are computed at once.
_PAIRS = 100_000


@dataclass(frozen=True)
class BeyondAccuracy:
    """Means over the users whose list is not empty.

    Parameters
    ----------
    novelty
        Mean of ``-log2 p(i)`` over each list, where p(i) is the share of users who had item i (Zhou et al.
        2010; Vargas and Castells 2011). An item that nobody had counts as if one user had it.
    popularity
        Mean over each list of the number of users who had the item (average recommendation popularity, Yin
        et al. 2012).
    popularity_lift
        ``popularity`` divided by the mean popularity of the items in all known interactions, minus 1. 0 means
        no popularity bias (Abdollahpouri et al. 2019).
    gini
        Gini coefficient of how often each catalogue item is recommended. 0 means equally often; near 1 means
        that a few items take nearly all places.
    diversity
        Mean of 1 - cosine similarity over the item pairs of a list, where an item's vector marks the users
        who had it (intra-list diversity, Ziegler et al. 2005). Lists of one item are left out; NaN if there
        are no others.
    """

    novelty: float
    popularity: float
    popularity_lift: float
    gini: float
    diversity: float

    def to_json(self) -> dict[str, Any]:
        """Return a JSON form."""
        return asdict(self)


def beyond_accuracy(
    ranked: npt.ArrayLike, k: int, users: IntArray, rows: IntArray, catalogue: int
) -> BeyondAccuracy:
    """Compute every figure for the first k places.

    Parameters
    ----------
    ranked
        ``[U, m]`` catalogue rows, best first.
    k
        Number of places to evaluate.
    users, rows
        ``[n]`` the known interactions: users (any distinct integers) and the catalogue rows that they had.
    catalogue
        Number of items, I.

    Raises
    ------
    ValueError
        If every list is empty, or there are no known interactions.
    """
    lists = np.asarray(ranked, np.int64)[:, :k]
    lists = lists[(lists != catalogue).any(axis=1)]
    if not len(lists) or not len(rows):
        raise ValueError("expected lists with items and known interactions, got none")
    had = interaction_matrix(users, rows, catalogue)
    counts = np.append(np.diff(had.indptr), 0).astype(np.float64)
    real = lists != catalogue
    lengths = real.sum(axis=1)
    information = -np.log2(np.maximum(counts, 1) / had.shape[1])
    popular = (np.where(real, counts[lists], 0).sum(axis=1) / lengths).mean()
    profile = float((counts[:-1] ** 2).sum() / counts.sum())
    return BeyondAccuracy(
        novelty=float((np.where(real, information[lists], 0).sum(axis=1) / lengths).mean()),
        popularity=float(popular),
        popularity_lift=float(popular) / profile - 1,
        gini=gini(np.bincount(lists[real], minlength=catalogue)),
        diversity=_diversity(lists, had, catalogue),
    )


def interaction_matrix(users: IntArray, rows: IntArray, catalogue: int) -> sp.csr_matrix:
    """Return a binary matrix ``[I, V]`` of the items that each of the V users with interactions had."""
    _, user = np.unique(users, return_inverse=True)
    size = (catalogue, int(user.max(initial=0)) + 1)
    matrix = sp.coo_matrix((np.ones(len(rows)), (rows, user)), size).tocsr()
    matrix.data[:] = 1
    return matrix


def gini(shown: IntArray) -> float:
    """Return the Gini coefficient of counts ``[I]``: ``Σ_i (2i - I - 1) x_(i) / (I Σ x)``, x ascending."""
    ordered, count = np.sort(shown).astype(np.float64), len(shown)
    total = ordered.sum()
    return float((2 * np.arange(1, count + 1) - count - 1) @ ordered / (count * total)) if total else 0.0


def _diversity(lists: IntArray, had: sp.csr_matrix, catalogue: int) -> float:
    norms = np.sqrt(np.maximum(np.diff(had.indptr), 1))
    first, second = np.triu_indices(lists.shape[1], 1)
    one, other = lists[:, first], lists[:, second]
    real = (one != catalogue) & (other != catalogue)
    if not real.any():
        return float("nan")
    # Lists share most of their pairs, so each distinct pair is computed once.
    keys, inverse = np.unique(
        np.minimum(one, other)[real] * catalogue + np.maximum(one, other)[real], return_inverse=True
    )
    cosine = np.empty(len(keys))
    for start in range(0, len(keys), _PAIRS):
        left, right = np.divmod(keys[start : start + _PAIRS], catalogue)
        shared = np.asarray(had[left].multiply(had[right]).sum(axis=1)).ravel()
        cosine[start : start + _PAIRS] = shared / (norms[left] * norms[right])
    apart = np.zeros(real.shape)
    apart[real] = 1 - cosine[inverse]
    pairs = real.sum(axis=1)
    each: FloatArray = apart.sum(axis=1)[pairs > 0] / pairs[pairs > 0]
    return float(each.mean())
