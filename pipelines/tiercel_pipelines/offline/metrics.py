"""Ranking metrics at k with binary relevance, vectorised over users.

The protocol is that of the recommenders team (``recommenders.evaluation.python_evaluation``), so that
figures can be compared with the ones it publishes:

- an item is relevant to a user if and only if it is among the user's test interactions;
- every metric is averaged over the users who have at least one test item, those with an empty answer
  included (they score 0);
- precision divides by k even where the answer is shorter, recall by the number of the user's test
  items, and the ideal DCG has ``min(k, number of test items)`` hits at its top.

Arrays: ``U`` users, ``k`` places, ``I`` items. A ranking is ``ranked [U, m]``: catalogue rows, best first.
The pad row I is not an item; it fills the empty places of a short answer.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Relevance:
    """The relevant items of each user, in CSR form.

    Parameters
    ----------
    offsets
        ``[U + 1]`` int64; the items of user ``u`` are ``rows[offsets[u]:offsets[u + 1]]``.
    rows
        Catalogue rows, sorted and without repeats inside each user.
    """

    offsets: IntArray
    rows: IntArray

    @classmethod
    def from_pairs(cls, users: npt.ArrayLike, rows: npt.ArrayLike, n_users: int) -> Relevance:
        """Build from interactions ``[n]``: user positions below ``n_users``, which is U, and catalogue rows.

        Repeated pairs count once, and users without a pair have no relevant item.

        Raises
        ------
        ValueError
            If the two are not vectors of one length, or a user position is out of range.
        """
        user = np.asarray(users, dtype=np.int64)
        row = np.asarray(rows, dtype=np.int64)
        if user.shape != row.shape or user.ndim != 1:
            raise ValueError(
                f"users and rows must be two vectors of one length, got {user.shape}, {row.shape}"
            )
        if len(user) and (user.min() < 0 or user.max() >= n_users):
            raise ValueError(f"user positions must lie in 0 … {n_users - 1}, got {user.min()} … {user.max()}")
        pairs = np.unique(np.stack([user, row], axis=1), axis=0)
        offsets = np.zeros(n_users + 1, dtype=np.int64)
        np.cumsum(np.bincount(pairs[:, 0], minlength=n_users), out=offsets[1:])
        return cls(offsets, pairs[:, 1])

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def counts(self) -> IntArray:
        """``[U]`` int64: how many relevant items each user has."""
        return np.diff(self.offsets)


@dataclass(frozen=True)
class RankingMetrics:
    """Means over the users who have relevant items.

    Parameters
    ----------
    k
        Number of places evaluated.
    users
        Number of users averaged over.
    ndcg, precision, recall, hit_rate, mrr
        In 0 … 1.
    coverage
        Share of the catalogue that appears in at least one answer, in 0 … 1.
    """

    k: int
    users: int
    ndcg: float
    precision: float
    recall: float
    hit_rate: float
    mrr: float
    coverage: float

    def to_json(self) -> dict[str, Any]:
        """Return a JSON form."""
        return asdict(self)


def ranking_metrics(ranked: npt.ArrayLike, relevance: Relevance, k: int, catalogue: int) -> RankingMetrics:
    """Compute every metric at k, averaged over the users who have relevant items.

    For each user, precision is ``hits / k``, recall is ``hits / |relevant|``, the hit rate is 1 with any hit,
    and the reciprocal rank is ``1 / place`` of the first hit, or 0 without one.
    Coverage is ``|∪_u answer_u| / I`` ("catalogue coverage" of Ge, Delgado-Battenfeld and Jannach 2010).

    Parameters
    ----------
    ranked
        ``[U, m]`` catalogue rows, best first. If m < k, the missing places count as misses.
    relevance
        The relevant items of the same users.
    k
        Number of places to evaluate.
    catalogue
        Number of items, I.

    Raises
    ------
    ValueError
        If shapes or rows do not fit, k is below 1, an answer names an item twice (which would count a hit
        twice), or no user has a relevant item.
    """
    rows = np.asarray(ranked, dtype=np.int64)
    hits, relevant = find_hits(rows, relevance, k, catalogue), relevance.counts
    judged = relevant > 0
    if not judged.any():
        raise ValueError("no user has a relevant item, so there is nothing to average over")
    answered = rows[:, :k]
    return RankingMetrics(
        k=k,
        users=int(judged.sum()),
        ndcg=float(ndcg_at_k(hits, relevant)[judged].mean()),
        precision=float(hits[judged].mean()),
        recall=float((hits.sum(axis=1)[judged] / relevant[judged]).mean()),
        hit_rate=float(hits.any(axis=1)[judged].mean()),
        mrr=float((hits.any(axis=1) / (1 + hits.argmax(axis=1)))[judged].mean()),
        coverage=len(np.unique(answered[answered != catalogue])) / catalogue,
    )


def recall_curve(ranked: npt.ArrayLike, relevance: Relevance, k: int, catalogue: int) -> FloatArray:
    """Return recall at 1, 2, … k ``[k]``; parameters and errors as for :func:`ranking_metrics`."""
    hits, relevant = find_hits(np.asarray(ranked, np.int64), relevance, k, catalogue), relevance.counts
    judged = relevant > 0
    if not judged.any():
        raise ValueError("no user has a relevant item, so there is nothing to average over")
    curve: FloatArray = (hits.cumsum(axis=1)[judged] / relevant[judged, None]).mean(axis=0)
    return curve


def find_hits(rows: IntArray, relevance: Relevance, k: int, catalogue: int) -> BoolArray:
    """Mark the places ``[U, k]`` that hold a relevant item; see :func:`ranking_metrics`."""
    users = len(relevance)
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    if rows.ndim != 2 or len(rows) != users:
        raise ValueError(f"expected ranked [{users}, m], got {rows.shape}")
    if rows.size and (rows.min() < 0 or rows.max() > catalogue):
        raise ValueError(f"rows must lie in 0 … {catalogue}, got {rows.min()} … {rows.max()}")
    rows = rows[:, :k]
    _refuse_repeats(rows, catalogue)
    # With one key for each (user, row), a single isin replaces U membership tests.
    base = np.arange(users)[:, None] * (catalogue + 1)
    keys = np.repeat(base[:, 0], relevance.counts) + relevance.rows
    hits = np.zeros((users, k), dtype=np.bool_)
    hits[:, : rows.shape[1]] = np.isin(base + rows, keys)
    return hits


def _refuse_repeats(rows: IntArray, pad: int) -> None:
    # Pads get values that differ from each other and from every row.
    ordered = np.sort(np.where(rows == pad, -1 - np.arange(rows.shape[1]), rows), axis=1)
    repeats = (ordered[:, 1:] == ordered[:, :-1]).any(axis=1)
    if repeats.any():
        user = int(np.flatnonzero(repeats)[0])
        answer = rows[user][rows[user] != pad].tolist()
        raise ValueError(f"the answer of user {user} names an item twice: {answer}")


def ndcg_at_k(hits: BoolArray, relevant: IntArray) -> FloatArray:
    """Return each user's normalised discounted cumulative gain ``[U]``.

    ``DCG = Σ_i hit_i / log2(i + 1)`` over places ``i = 1 … k``, divided by the ideal
    ``IDCG = Σ_{i = 1 … min(k, |relevant|)} 1 / log2(i + 1)``; 0 where a user has no relevant item.
    (Järvelin and Kekäläinen 2002, with binary gains.)

    Parameters
    ----------
    hits
        ``[U, k]``, true where the place holds a relevant item.
    relevant
        ``[U]`` number of relevant items.
    """
    k = hits.shape[1]
    discount = 1.0 / np.log2(np.arange(2, k + 2, dtype=np.float64))
    ideal = np.concatenate([[0.0], np.cumsum(discount)])[np.minimum(relevant, k)]
    gain: FloatArray = hits @ discount
    return np.divide(gain, ideal, out=np.zeros_like(gain), where=ideal > 0)
