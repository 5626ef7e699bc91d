"""Metrics of scores, rather than of lists: AUC, log loss, the 1 + n protocol, factorised top-K accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .metrics import FloatArray, IntArray, Relevance

#: Maximum number of scores (pairs × items) computed at once.
_CELLS = 4_000_000


def auc(positive: npt.ArrayLike, scores: npt.ArrayLike) -> float:
    """Return the area under the ROC curve: the probability that a positive scores above a negative.

    Ties count half. The formula is ``(Σ ranks of the positives - P (P + 1) / 2) / (P N)``, where equal scores
    share their mean rank (Mann and Whitney 1947).

    Parameters
    ----------
    positive, scores
        ``[n]`` booleans and numbers.

    Raises
    ------
    ValueError
        If lengths differ, a score is NaN, or all are of one class.
    """
    label, score = np.asarray(positive, np.bool_), np.asarray(scores, np.float64)
    if label.shape != score.shape or label.ndim != 1 or np.isnan(score).any():
        raise ValueError(f"expected two vectors of one length without NaN, got {label.shape}, {score.shape}")
    hits, misses = int(label.sum()), int((~label).sum())
    if not hits or not misses:
        raise ValueError(f"expected positives and negatives, got {hits} and {misses}")
    _, place, counts = np.unique(score, return_inverse=True, return_counts=True)
    rank = (np.cumsum(counts) - (counts - 1) / 2)[place]
    return float((rank[label].sum() - hits * (hits + 1) / 2) / (hits * misses))


def log_loss(positive: npt.ArrayLike, probability: npt.ArrayLike) -> float:
    """Return the mean negative log-likelihood, with probabilities ``[n]`` clipped to 2⁻⁵² … 1 - 2⁻⁵².

    Raises
    ------
    ValueError
        If lengths differ, the vectors are empty, or a probability is outside 0 … 1.
    """
    label, p = np.asarray(positive, np.bool_), np.asarray(probability, np.float64)
    if label.shape != p.shape or label.ndim != 1 or not len(p) or not ((p >= 0) & (p <= 1)).all():
        raise ValueError(
            f"expected vectors of one length, probabilities in 0 … 1, got {label.shape}, {p.shape}"
        )
    p = np.clip(p, np.finfo(np.float64).eps, 1 - np.finfo(np.float64).eps)
    return float(-np.where(label, np.log(p), np.log1p(-p)).mean())


@dataclass(frozen=True)
class SampledMetrics:
    """Means over the positives, each against its own n negatives; see :func:`one_plus_n`."""

    k: int
    positives: int
    negatives: int
    hit_rate: float
    ndcg: float
    mrr: float
    auc: float

    def to_json(self) -> dict[str, Any]:
        """Return a JSON form."""
        return asdict(self)


def draw_negatives(
    relevance: Relevance, known: Relevance, catalogue: int, n: int, rng: np.random.Generator
) -> tuple[IntArray, IntArray]:
    """Draw n distinct negatives for each positive, from the items that its user never had.

    Returns
    -------
    users, candidates
        ``[P]`` the user of each positive, and ``[P, 1 + n]`` the positive followed by its negatives.

    Raises
    ------
    ValueError
        If a user has fewer than n such items.
    """
    users = np.repeat(np.arange(len(relevance)), relevance.counts)
    candidates = np.empty((len(users), 1 + n), np.int64)
    candidates[:, 0] = relevance.rows
    for user in np.unique(users):
        free = np.ones(catalogue, np.bool_)
        for had in (relevance, known):
            free[had.rows[had.offsets[user] : had.offsets[user + 1]]] = False
        unseen = np.flatnonzero(free)
        if len(unseen) < n:
            raise ValueError(f"user {user} never had {len(unseen)} items, expected {n} at least; draw fewer")
        for place in np.flatnonzero(users == user):
            candidates[place, 1:] = rng.choice(unseen, n, replace=False)
    return users, candidates


def one_plus_n(scores: npt.ArrayLike, k: int = 10) -> SampledMetrics:
    """Return the figures of the 1 + n protocol (He et al. 2017); column 0 of ``[P, 1 + n]`` is the positive.

    The positive's rank is 1 plus the number of negatives that score at least as high, so that a model that
    scores all items equally gains nothing from ties. Up to rank k, nDCG is ``1 / log2(rank + 1)`` and the hit
    rate is 1; below it both are 0. MRR is the mean of ``1 / rank`` regardless of k. AUC is the share of the
    negatives below the positive, where ties count half. Sampled figures do not order models as those of the
    full catalogue do (Krichene and Rendle 2020).

    Raises
    ------
    ValueError
        If there is no positive or no negative, or a score is NaN.
    """
    values = np.asarray(scores, np.float64)
    if values.ndim != 2 or values.shape[1] < 2 or not len(values) or np.isnan(values).any():
        raise ValueError(f"expected scores [P, 1 + n] without NaN, got {values.shape}")
    own, others = values[:, :1], values[:, 1:]
    rank = 1 + (others >= own).sum(axis=1)
    below = (others < own).mean(axis=1) + (others == own).mean(axis=1) / 2
    hit = rank <= k
    return SampledMetrics(
        k=k,
        positives=len(values),
        negatives=others.shape[1],
        hit_rate=float(hit.mean()),
        ndcg=float(np.where(hit, 1 / np.log2(rank + 1), 0).mean()),
        mrr=float((1 / rank).mean()),
        auc=float(below.mean()),
    )


def factorised_top_k(
    queries: FloatArray, vectors: FloatArray, items: IntArray, ks: Sequence[int] = (1, 5, 10, 50, 100)
) -> dict[int, float]:
    """Return, for each k, the share of pairs whose item is among the k best of the whole catalogue.

    The protocol is that of TensorFlow Recommenders' ``FactorizedTopK``. Scores are inner products, nothing is
    masked, and an item is among the k best if fewer than k items score above it.

    Parameters
    ----------
    queries
        ``[P, D]``, the query vector of each pair.
    vectors
        ``[I, D]``, the item vectors.
    items
        ``[P]`` the item of each pair.
    ks
        Values of k.
    """
    above = np.empty(len(items), np.int64)
    size = max(1, _CELLS // max(1, len(vectors)))
    for start in range(0, len(items), size):
        some = slice(start, start + size)
        scores = queries[some] @ vectors.T
        own = scores[np.arange(len(scores)), items[some]]
        above[some] = (scores > own[:, None]).sum(axis=1)
    return {k: float((above < k).mean()) for k in ks}
