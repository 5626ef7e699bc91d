"""Ranking metrics at k with binary relevance, vectorised over users.

The protocol is that of the recommenders team (``recommenders.evaluation.python_evaluation``), so that
figures can stand beside the ones it publishes:

- an item is relevant to a user if and only if it is among the user's test interactions;
- every metric is averaged over the users who have at least one test item, those with an empty answer
  included (they score 0);
- precision divides by k even where the answer is shorter, recall by the number of the user's test
  items, and the ideal DCG has ``min(k, number of test items)`` hits at its top.

Arrays: ``U`` users, ``k`` places. A ranking is ``ranked [U, k]`` (catalogue rows, best first) with
``counts [U]``, the number of real places of each user; what stands after them is never looked at.
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
        """Build from interactions; a pair that comes twice counts once.

        Parameters
        ----------
        users
            ``[n]`` positions in ``0 … n_users - 1``.
        rows
            ``[n]`` catalogue rows.
        n_users
            U. Users without a pair have no relevant item.
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
        Places looked at.
    users
        How many users were averaged over.
    ndcg, precision, recall, hit_rate
        In 0 … 1.
    coverage
        Share of the catalogue that stands in at least one answer, in 0 … 1.
    """

    k: int
    users: int
    ndcg: float
    precision: float
    recall: float
    hit_rate: float
    coverage: float

    def to_json(self) -> dict[str, Any]:
        """Return a JSON form."""
        return asdict(self)


def find_hits(ranked: npt.ArrayLike, counts: npt.ArrayLike, relevance: Relevance, k: int) -> BoolArray:
    """Mark the places that hold a relevant item.

    Parameters
    ----------
    ranked
        ``[U, m]`` catalogue rows, best first, without repeats in a user's real places.
    counts
        ``[U]`` real places of each user, at most m.
    relevance
        The relevant items of the same users.
    k
        Places looked at; a ranking narrower than k is as if filled with misses.

    Returns
    -------
    hits
        ``[U, k]`` boolean.

    Raises
    ------
    ValueError
        If shapes do not fit, k is below 1, or an answer names an item twice (which would count a hit
        twice).
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    rows = np.asarray(ranked, dtype=np.int64)
    real = np.asarray(counts, dtype=np.int64)
    users = len(relevance)
    if rows.ndim != 2 or len(rows) != users or real.shape != (users,):
        raise ValueError(f"expected ranked [{users}, m] and counts [{users}], got {rows.shape}, {real.shape}")
    if users and (real.min() < 0 or real.max() > rows.shape[1]):
        raise ValueError(f"counts must lie in 0 … {rows.shape[1]}, got {real.min()} … {real.max()}")
    rows = rows[:, :k]
    valid = np.arange(rows.shape[1]) < real[:, None]
    _refuse_repeats(rows, valid)
    hits = np.zeros((users, k), dtype=np.bool_)
    if not valid.any() or not len(relevance.rows):
        return hits
    # One sorted key per (user, relevant row) turns membership in U sets into one binary search.
    lowest = min(int(rows[valid].min()), int(relevance.rows.min()))
    stride = max(int(rows[valid].max()), int(relevance.rows.max())) - lowest + 1
    owner = np.repeat(np.arange(users, dtype=np.int64), relevance.counts)
    keys = owner * stride + (relevance.rows - lowest)
    wanted = np.arange(users, dtype=np.int64)[:, None] * stride + (rows - lowest)
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    hits[:, : rows.shape[1]] = (keys[place] == wanted) & valid
    return hits


def _refuse_repeats(rows: IntArray, valid: BoolArray) -> None:
    """Raise ValueError if a row stands twice among one user's real places."""
    # Places that are not real get values that differ from each other and from every row.
    filler = np.iinfo(np.int64).min + np.arange(rows.shape[1])
    ordered = np.sort(np.where(valid, rows, filler), axis=1)
    repeats = (ordered[:, 1:] == ordered[:, :-1]).any(axis=1)
    if repeats.any():
        user = int(np.flatnonzero(repeats)[0])
        raise ValueError(f"the answer of user {user} names an item twice: {rows[user][valid[user]].tolist()}")


def ndcg_at_k(hits: BoolArray, relevant: IntArray) -> FloatArray:
    """Return each user's normalised discounted cumulative gain.

    ``DCG = Σ_i hit_i / log2(i + 1)`` over places ``i = 1 … k``, divided by the ideal
    ``IDCG = Σ_{i = 1 … min(k, |relevant|)} 1 / log2(i + 1)``; 0 where a user has no relevant item.
    (Järvelin and Kekäläinen 2002, with binary gains.)

    Parameters
    ----------
    hits
        ``[U, k]`` from :func:`find_hits`.
    relevant
        ``[U]`` number of relevant items.
    """
    k = hits.shape[1]
    discount = 1.0 / np.log2(np.arange(2, k + 2, dtype=np.float64))
    ideal = np.concatenate([[0.0], np.cumsum(discount)])[np.minimum(relevant, k)]
    gain: FloatArray = hits @ discount
    return _divide(gain, ideal)


def precision_at_k(hits: BoolArray) -> FloatArray:
    """Return each user's ``hits / k``, whatever the length of the answer; ``[U]``."""
    share: FloatArray = hits.mean(axis=1, dtype=np.float64)
    return share


def recall_at_k(hits: BoolArray, relevant: IntArray) -> FloatArray:
    """Return each user's ``hits / |relevant|``, 0 where a user has no relevant item; ``[U]``."""
    found: FloatArray = hits.sum(axis=1, dtype=np.float64)
    return _divide(found, relevant.astype(np.float64))


def hit_rate_at_k(hits: BoolArray) -> FloatArray:
    """Return 1 for each user with at least one hit, else 0; ``[U]``."""
    found: BoolArray = hits.any(axis=1)
    return found.astype(np.float64)


def catalogue_coverage(ranked: npt.ArrayLike, counts: npt.ArrayLike, k: int, catalogue: int) -> float:
    """Return the share of the catalogue that stands among the first k places of at least one answer.

    ``|∪_u answer_u| / catalogue`` ("catalogue coverage" of Ge, Delgado-Battenfeld and Jannach 2010).

    Parameters
    ----------
    ranked, counts
        As in :func:`find_hits`.
    k
        Places looked at.
    catalogue
        Number of items, at least 1.
    """
    if catalogue < 1:
        raise ValueError(f"the catalogue must hold at least one item, got {catalogue}")
    rows = np.asarray(ranked, dtype=np.int64)[:, :k]
    valid = np.arange(rows.shape[1]) < np.asarray(counts, dtype=np.int64)[:, None]
    return len(np.unique(rows[valid])) / catalogue


def ranking_metrics(
    ranked: npt.ArrayLike, counts: npt.ArrayLike, relevance: Relevance, k: int, catalogue: int
) -> RankingMetrics:
    """Compute every metric at k, averaged over the users who have relevant items.

    Parameters
    ----------
    ranked
        ``[U, m]`` catalogue rows, best first.
    counts
        ``[U]`` real places of each user.
    relevance
        The relevant items of the same users.
    k
        Places looked at.
    catalogue
        Number of items.

    Raises
    ------
    ValueError
        As :func:`find_hits`; also if no user has a relevant item.
    """
    hits = find_hits(ranked, counts, relevance, k)
    relevant = relevance.counts
    judged = relevant > 0
    if not judged.any():
        raise ValueError("no user has a relevant item, so there is nothing to average over")
    return RankingMetrics(
        k=k,
        users=int(judged.sum()),
        ndcg=float(ndcg_at_k(hits, relevant)[judged].mean()),
        precision=float(precision_at_k(hits)[judged].mean()),
        recall=float(recall_at_k(hits, relevant)[judged].mean()),
        hit_rate=float(hit_rate_at_k(hits)[judged].mean()),
        coverage=catalogue_coverage(ranked, counts, k, catalogue),
    )


def _divide(numerator: FloatArray, denominator: FloatArray) -> FloatArray:
    """Divide element by element; 0 where the denominator is 0."""
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator > 0)
