"""Batches for both models, built with NumPy and without a loop over rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from ..families.layers import NULL_ID, UNKNOWN_ID, Side
from .pairs import Array, BoolArray, IntArray, Packed, Pairs, history_rows, left_align

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Groups:
    """Training rows of the two-tower model: a user in a context, with up to T positives.

    Parameters
    ----------
    contexts
        ``[G]`` rows of the packed user tensors.
    users
        ``[G]`` user rows.
    targets
        ``[G, T]`` positions into the pairs, -1 where a group has fewer than T.
    """

    contexts: IntArray
    users: IntArray
    targets: IntArray


def draw_groups(pairs: Pairs, size: int, context_dropout: float, rng: np.random.Generator) -> Groups:
    """Deal all interactions at random into groups of one user and context.

    One query then serves several positives, and the rest of the user's items is its history: an epoch
    costs a fraction of one query for each interaction.

    Parameters
    ----------
    pairs
        The interactions to train on.
    size
        T.
    context_dropout
        Share of the interactions whose context is hidden, so that the model also learns to answer
        without; does nothing where a recipe has no context.
    rng
        Source of randomness.
    """
    hidden = rng.random(len(pairs)) < context_dropout
    contexts = np.where(hidden, pairs.users, pairs.contexts)
    order = np.lexsort((rng.random(len(pairs)), contexts))
    ordered = contexts[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    run = np.cumsum(np.r_[0, ordered[1:] != ordered[:-1]])
    place = np.arange(len(order)) - starts[run]
    first = place % size == 0
    group = np.cumsum(first) - 1
    targets = np.full((int(first.sum()), size), -1, dtype=np.int64)
    targets[group, place % size] = order
    return Groups(ordered[first], pairs.users[order[first]], targets)


@dataclass(frozen=True)
class RetrievalBatch:
    """One batch of the two-tower model.

    Parameters
    ----------
    user
        The user tower's tensors, ``[B, …]``.
    items
        ``[C]`` distinct catalogue rows drawn in this batch, ascending.
    counts
        ``[C]`` how often each was drawn.
    positives
        ``[B, T]`` positions into ``items``.
    weights
        ``[B, T]`` 1 for a real positive, else 0.
    hits
        ``[B, C]`` True where the item is any positive of the row's user.
    """

    user: dict[str, Array]
    items: IntArray
    counts: FloatArray
    positives: IntArray
    weights: FloatArray
    hits: BoolArray


@dataclass(frozen=True)
class BatchMaker:
    """Makes batches of the two-tower model.

    Parameters
    ----------
    pairs
        The interactions to train on.
    packed
        The packed tensors.
    side
        The user's columns.
    history_dropout
        Mean share of a history that is left out; the share itself is drawn anew for each row, so
        that short and long histories both occur.
    id_dropout
        Share of category ids on the user's side that become null or unknown.
    """

    pairs: Pairs
    packed: Packed
    side: Side
    history_dropout: float
    id_dropout: float

    def epoch(self, groups: Groups, batch_size: int, rng: np.random.Generator) -> Iterator[RetrievalBatch]:
        """Yield the groups in random order, ``batch_size`` at a time."""
        order = rng.permutation(len(groups.users))
        for start in range(0, len(order), batch_size):
            yield self.batch(groups, order[start : start + batch_size], rng)

    def batch(self, groups: Groups, chosen: IntArray, rng: np.random.Generator) -> RetrievalBatch:
        """Build the batch of the chosen groups."""
        pairs, users, targets = self.pairs, groups.users[chosen], groups.targets[chosen]
        real = targets >= 0
        drawn = pairs.items[np.where(real, targets, 0)]
        items, inverse, counts = np.unique(drawn[real], return_inverse=True, return_counts=True)
        positives = np.zeros(targets.shape, dtype=np.int64)
        positives[real] = inverse
        tensors = self.packed.user_tensors(groups.contexts[chosen], self._history(users, targets, rng))
        tensors = drop_ids(tensors, self.side, self.id_dropout, rng)
        return RetrievalBatch(
            user=tensors,
            items=items,
            counts=counts.astype(np.float32),
            positives=positives,
            weights=real.astype(np.float32),
            hits=self._hits(users, items),
        )

    def _history(self, users: IntArray, targets: IntArray, rng: np.random.Generator) -> IntArray:
        """Return the users' latest items [B, L] without the targets, some left out at random."""
        length, pad = self.packed.history_length, self.packed.n_items
        # With T targets taken out, the latest L of the rest lie among the latest L + T.
        width = min(length + targets.shape[1], max(1, int(self.pairs.lengths[users].max(initial=0))))
        positions, keep = self.pairs.latest(users, width)
        start = self.pairs.offsets[users + 1] - keep.sum(axis=1)
        place = targets - start[:, None]
        owner, column = np.nonzero((targets >= 0) & (place >= 0))
        keep[owner, place[owner, column]] = False
        share = rng.random((len(users), 1)) * 2 * self.history_dropout
        keep &= rng.random(keep.shape) >= share
        return left_align(self.pairs.items[positions], keep, length, pad)

    def _hits(self, users: IntArray, items: IntArray) -> BoolArray:
        owner, rows = self.pairs.seen(users)
        column = np.full(self.packed.n_items + 1, len(items))
        column[items] = np.arange(len(items))
        # Items outside the batch all fall into one more column, which is cut off.
        hits = np.zeros((len(users), len(items) + 1), dtype=np.bool_)
        hits[owner, column[rows]] = True
        return hits[:, :-1]


def drop_ids(
    tensors: dict[str, Array], side: Side, share: float, rng: np.random.Generator
) -> dict[str, Array]:
    """Make a share of the category ids null or unknown, so that their embeddings are learned too.

    Without this a user who is not in the training data would meet embeddings that never moved.
    Buckets have no such ids and stay.
    """
    name = f"{side.part}_cat"
    if share <= 0 or name not in tensors:
        return tensors
    ids = tensors[name].copy()
    vocabulary = np.array([column.vocabulary and column.cardinality > UNKNOWN_ID for column in side.cat])
    dropped = (rng.random(ids.shape) < share) & vocabulary
    ids[dropped] = rng.choice([NULL_ID, UNKNOWN_ID], size=int(dropped.sum()))
    return {**tensors, name: ids}


@dataclass(frozen=True)
class RankingLists:
    """Lists to train or judge the ranker on: what retrieval gave when some positives were held out.

    Parameters
    ----------
    users
        ``[M]`` user rows.
    contexts
        ``[M]`` rows of the packed user tensors.
    history
        ``[M, L]`` the users' histories without the held-out positives.
    rows, scores, sources
        ``[M, N]`` the candidates, best first, as the stages give them; padding row I.
    weights
        ``[M, N]`` float32: above 0 for a held-out positive.
    """

    users: IntArray
    contexts: IntArray
    history: IntArray
    rows: IntArray
    scores: FloatArray
    sources: npt.NDArray[np.int32]
    weights: FloatArray

    def take(self, chosen: IntArray) -> RankingLists:
        """Return some of the lists."""
        return RankingLists(
            self.users[chosen],
            self.contexts[chosen],
            self.history[chosen],
            self.rows[chosen],
            self.scores[chosen],
            self.sources[chosen],
            self.weights[chosen],
        )

    @classmethod
    def concatenate(cls, parts: Sequence[RankingLists]) -> RankingLists:
        """Put lists of the same widths together."""
        return cls(*(np.concatenate([getattr(part, name.name) for part in parts]) for name in fields(cls)))


def make_lists(
    rest: Pairs,
    held_out: Pairs,
    packed: Packed,
    candidates: tuple[IntArray, FloatArray, npt.NDArray[np.int32]],
    context_dropout: float,
    rng: np.random.Generator,
) -> RankingLists:
    """Build one list for each user.

    Parameters
    ----------
    rest
        The interactions that the retrieval model knew: histories come from these.
    held_out
        Those it did not: the positives.
    packed
        The packed tensors.
    candidates
        Rows, scores and sources ``[U, N]`` for every user, with ``rest`` masked.
    context_dropout
        Share of the lists without context; the others have that of one of their positives.
    rng
        Source of randomness.
    """
    rows, scores, sources = candidates
    users = np.arange(rest.n_users)
    counts = held_out.lengths
    picked = held_out.offsets[:-1] + (rng.random(len(users)) * counts).astype(np.int64)
    shown = (counts > 0) & (rng.random(len(users)) >= context_dropout)
    contexts = np.where(shown, np.append(held_out.contexts, 0)[np.minimum(picked, len(held_out))], users)
    return RankingLists(
        users=users,
        contexts=contexts,
        history=history_rows(rest, users, packed.history_length, packed.n_items),
        rows=rows,
        scores=scores,
        sources=sources,
        weights=_weights_of(held_out, rows, packed.n_items),
    )


def _weights_of(held_out: Pairs, rows: IntArray, n_items: int) -> FloatArray:
    """Return the weight of each candidate [U, N], 0 for those that were not held out."""
    if not len(held_out):
        return np.zeros(rows.shape, dtype=np.float32)
    keys = held_out.users * (n_items + 1) + held_out.items
    order = np.argsort(keys)
    wanted = np.arange(len(rows))[:, None] * (n_items + 1) + rows
    place = np.minimum(np.searchsorted(keys, wanted, sorter=order), len(keys) - 1)
    found = order[place]
    return np.where(keys[found] == wanted, held_out.weights[found], np.float32(0))


def sample_candidates(
    lists: RankingLists, kept: int, negatives: int, hard: float, n_items: int, rng: np.random.Generator
) -> BoolArray:
    """Choose which candidates of each list take part in one training step.

    The best candidate always does (scores are seen relative to its), and every positive among the
    first ``kept``. Of the negatives, ``hard`` are drawn from the first ``kept`` candidates, which are
    the ones the ranker will have to order, the others from all N that were retrieved.

    Parameters
    ----------
    lists
        A batch of lists, N wide.
    kept
        K, how many candidates reach the ranker when it serves.
    negatives
        For each list.
    hard
        Share of the hard ones.
    n_items
        The padding row.
    rng
        Source of randomness.

    Returns
    -------
    numpy.ndarray
        ``[B, N]`` True for those that take part.
    """
    width = lists.rows.shape[1]
    real = lists.rows != n_items
    near = np.arange(width) < kept
    positive = (lists.weights > 0) & real & near
    free = real & ~positive & (lists.weights <= 0)
    drawn = rng.random(lists.rows.shape)
    wanted = round(negatives * hard)
    first = _lowest(np.where(free & near, drawn, np.inf), wanted)
    second = _lowest(np.where(free & ~first, drawn, np.inf), negatives - wanted)
    best = real & (np.arange(width) == 0)
    return np.asarray(positive | first | second | best)


def _lowest(values: npt.NDArray[np.float64], count: int) -> BoolArray:
    """Mark the ``count`` lowest finite values of each row."""
    if count <= 0:
        return np.zeros(values.shape, dtype=np.bool_)
    count = min(count, values.shape[1])
    limit = np.partition(values, count - 1, axis=1)[:, count - 1 : count]
    return np.asarray((values <= limit) & np.isfinite(values))
