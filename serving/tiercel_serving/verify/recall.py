"""Exact search, and the share of it that an index finds."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..spec import Array

#: Queries per exact-search block: bounds the score matrix to a few MB per 10,000 items.
_BLOCK = 256


def exact_search(vectors: Array, queries: Array, n: int) -> tuple[Array, Array]:
    """Return the n best rows for each query by inner product, and their scores.

    Parameters
    ----------
    vectors
        ``[I, D]`` float32.
    queries
        ``[Q, D]`` float32.
    n
        At most I.

    Returns
    -------
    rows : ``[Q, n]`` int64, by (score descending, row ascending); of items that tie at the end, any
    scores : ``[Q, n]`` float32
    """
    rows = np.empty((len(queries), n), np.int64)
    scores = np.empty((len(queries), n), np.float32)
    for start in range(0, len(queries), _BLOCK):
        block = np.asarray(queries[start : start + _BLOCK] @ vectors.T, np.float32)
        order = _best(block, n)
        rows[start : start + _BLOCK] = order
        scores[start : start + _BLOCK] = np.take_along_axis(block, order, axis=1)
    return rows, scores


def _best(scores: Array, n: int) -> Array:
    if n < scores.shape[1] // 4:
        few = np.sort(np.argpartition(-scores, n - 1, axis=1)[:, :n], axis=1)
        order = np.argsort(-np.take_along_axis(scores, few, axis=1), axis=1, kind="stable")
        return np.take_along_axis(few, order, axis=1)
    # A stable sort keeps the lower row first where scores are equal.
    return np.argsort(-scores, axis=1, kind="stable")[:, :n]


def recall(index: Any, vectors: Array, queries: Array, n: int) -> float:
    """Return the share of the exact top-n that the index finds.

    A found row counts if its exact score reaches the n-th best one: which of several equal items
    stands at the cut-off is nobody's loss.
    """
    n = min(n, len(vectors))
    if n == 0 or len(queries) == 0:
        return 1.0
    _, best = exact_search(vectors, queries, n)
    _, found = index.search(np.ascontiguousarray(queries, np.float32), n)
    scores = np.einsum("qd,qnd->qn", queries, vectors[np.maximum(found, 0)])
    cut = best[:, -1:]
    slack = 1e-6 + 1e-5 * np.abs(cut)
    # FAISS answers -1 where it ran out of candidates.
    return float(np.mean((found >= 0) & (scores >= cut - slack)))
