"""``sampled_softmax``: each of a user's items against the batch's other items, or drawn ones, or both."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tiercel_serving.kinds import Settings
from tiercel_serving.problems import COUNT, POSITIVE, SHARE, Problem, Range, out_of_range

from ..arrays.counted import cut
from ..arrays.lists import FloatArray
from ..arrays.pairs import Array, BoolArray, IntArray, Pairs, narrow
from .negatives import Debiasing, Draws, Negatives
from .softmax_of_draws import sampled_softmax
from .table import RetrievalBatch

#: No drawn negatives.
NONE = np.zeros(0, np.int64)


class BatchedTask(Settings, frozen=True):
    """Base of the settings of retrieval tasks over batches that share their negatives.

    Parameters
    ----------
    temperature
        Inner products of unit vectors are divided by it.
    batch_size
        Interactions in a batch.
    positives
        T: number of a user's interactions that share one query in a batch; the rest of the user's items
        is its history.
    context_dropout
        Share of the interactions whose context is hidden in training, since requests may have none.
    negatives
        Where negatives come from.
    debiasing
        How popular items count less among the positives.
    """

    temperature: float = 0.2
    batch_size: int = 4096
    positives: int = 16
    context_dropout: float = 0.3
    negatives: Negatives = Negatives()
    debiasing: Debiasing = Debiasing()

    @property
    def scale(self) -> float:
        """One over the temperature."""
        return 1 / self.temperature

    def problems(self) -> list[Problem]:
        """Return a problem for each number outside its range, and those of its parts."""
        ranges = {"temperature": POSITIVE, "batch_size": Range(2, whole=True), "positives": COUNT}
        wrong = list(out_of_range(self, {**ranges, "context_dropout": SHARE}))
        wrong += [problem.within("negatives") for problem in self.negatives.problems()]
        return wrong + [problem.within("debiasing") for problem in self.debiasing.problems()]


class SampledSoftmax(BatchedTask, frozen=True, tag="sampled_softmax"):
    """Sampled softmax with logQ correction; its formula is in :mod:`.softmax_of_draws`.

    Parameters
    ----------
    logq_correction
        Whether to correct for popular items being negatives more often.
    """

    logq_correction: bool = True

    def start(self, pairs: Pairs, n_items: int) -> InBatch:
        """Return the task applied to some interactions."""
        return InBatch(self, pairs, n_items)


@dataclass(frozen=True)
class SampledBatch(RetrievalBatch):
    """One batch with its negatives.

    Parameters
    ----------
    counts
        ``[C]`` how often each item was drawn as a negative; ``items`` are distinct and ascending.
    positives, weights
        ``[B, T]`` positions in ``items``, and the weight of each positive: 0 where there is none.
    hits
        ``[B, C]`` True where the item is not a negative: the user interacted with it, or ``counts`` is 0.
    """

    counts: FloatArray
    positives: IntArray
    weights: FloatArray
    hits: BoolArray
    #: D: number of interactions in the batch, not counting drawn negatives.
    interactions: int

    @property
    def mass(self) -> float:
        """Total weight of its positives."""
        return float(self.weights.sum())

    def take(self, chosen: slice) -> SampledBatch:
        """Return some of the rows, with all items, since every row has them as negatives."""
        return replace(self, **self.rows_of(chosen))

    def rows_of(self, chosen: slice) -> dict[str, Any]:
        """Return some of the rows of every array that has rows."""
        rows = ("contexts", "users", "targets", "positives", "weights", "hits")
        return {name: getattr(self, name)[chosen] for name in rows}


class Batches:
    """Batches of some interactions with a catalogue of ``n_items``; base of the tasks that use them."""

    def __init__(self, settings: BatchedTask, pairs: Pairs, n_items: int) -> None:
        self._pairs, self._n_items, self._shared = pairs, n_items, settings
        self._draws = Draws(settings.negatives, pairs, n_items)
        self._item_weights = settings.debiasing.weights(pairs, n_items)

    def epoch(self, rng: np.random.Generator) -> Iterator[SampledBatch]:
        """Return all groups in random order, in batches of about ``batch_size`` interactions."""
        settings = self._shared
        groups = draw_groups(self._pairs, settings.positives, settings.context_dropout, rng)
        left_out, left = settings.debiasing.left_out(self._pairs, self._n_items, rng), len(self._pairs)
        if left_out is not None:
            groups, left = groups.without(left_out), left - len(left_out)
        size = max(1, round(settings.batch_size * len(groups) / max(left, 1)))

        def batch(some: Array) -> SampledBatch:
            return self.batch(groups, some, self._draws.draw(rng) if settings.negatives.drawn else NONE)

        return cut(rng.permutation(len(groups)), size).through(batch)

    def batch(self, groups: Groups, chosen: IntArray, drawn: IntArray = NONE) -> SampledBatch:
        """Build the batch of the chosen groups, with the negatives ``drawn [n]`` for it."""
        users, targets = groups.users[chosen].astype(np.int64), groups.targets(chosen)
        real = targets >= 0
        own = self._pairs.items[targets[real]].astype(np.int64)
        items, inverse = np.unique(np.append(own, drawn), return_inverse=True)
        positives = np.zeros(targets.shape, dtype=np.int64)
        positives[real] = inverse[: len(own)]
        negative = inverse if self._shared.negatives.in_batch else inverse[len(own) :]
        counts = np.bincount(negative, minlength=len(items))
        weights = np.zeros(targets.shape, np.float32)
        weights[real] = self._item_weights[own]
        return SampledBatch(
            contexts=groups.contexts[chosen].astype(np.int64),
            users=users,
            targets=targets,
            items=items,
            counts=counts.astype(np.float32),
            positives=positives,
            weights=weights,
            hits=self._hits(users, items) | (counts == 0),
            interactions=len(own),
        )

    def _hits(self, users: IntArray, items: IntArray) -> BoolArray:
        owner, rows = self._pairs.seen(users)
        column = np.full(self._n_items + 1, len(items))
        column[items] = np.arange(len(items))
        # Items outside the batch all fall into one more column, which is cut off.
        hits = np.zeros((len(users), len(items) + 1), dtype=np.bool_)
        hits[owner, column[rows]] = True
        return hits[:, :-1]


class InBatch(Batches):
    """Sampled softmax applied to some interactions."""

    def __init__(self, settings: SampledSoftmax, pairs: Pairs, n_items: int) -> None:
        super().__init__(settings, pairs, n_items)
        self._settings = settings

    def loss(self, query: Tensor, vectors: Tensor, batch: SampledBatch) -> Tensor:
        """Return the sampled softmax of a batch."""
        log_q = torch.zeros(len(batch.items))
        if self._settings.logq_correction:
            log_q = torch.from_numpy(self._draws.log_q(batch.items, batch.interactions))
        arrays = (batch.counts, batch.positives, batch.hits, batch.weights)
        query = query / self._settings.temperature
        return sampled_softmax(query, vectors, log_q, *map(torch.from_numpy, arrays))


@dataclass(frozen=True)
class Groups:
    """Training rows: a user in a context, with up to T positives.

    Parameters
    ----------
    contexts, users
        ``[G]`` rows of the packed user tensors, and user rows.
    order
        ``[n]`` positions into the pairs, group after group; -1 where an interaction is left out.
    starts, counts
        ``[G]`` where each group begins in ``order``, and how many positions it has.
    size
        T.
    """

    contexts: Array
    users: Array
    order: Array
    starts: Array
    counts: Array
    size: int

    def __len__(self) -> int:
        return len(self.users)

    def targets(self, chosen: IntArray) -> IntArray:
        """Return the positives of some groups ``[B, T]``, -1 where a group has fewer than T."""
        places = np.arange(self.size)
        real = places < self.counts[chosen][:, None]
        found = self.order[np.where(real, self.starts[chosen][:, None] + places, 0)]
        return np.where(real, found, -1).astype(np.int64)

    def without(self, left_out: IntArray) -> Groups:
        """Return the groups without some interactions, which stay in their users' histories."""
        order = np.where(np.isin(self.order, left_out), self.order.dtype.type(-1), self.order)
        # The groups lie end to end, so each is summed up to where the next begins.
        some = np.add.reduceat(order >= 0, self.starts) > 0
        starts, counts = self.starts[some], self.counts[some]
        return Groups(self.contexts[some], self.users[some], order, starts, counts, self.size)


def draw_groups(pairs: Pairs, size: int, context_dropout: float, rng: np.random.Generator) -> Groups:
    """Deal all interactions at random into groups of one user and context, at most ``size`` (T) in each.

    One query then serves several positives, and the rest of the user's items is its history. An epoch
    therefore needs far fewer queries than there are interactions.
    """
    hidden = rng.random(len(pairs)) < context_dropout
    contexts = np.where(hidden, pairs.users, pairs.contexts)
    order = narrow(np.lexsort((rng.random(len(pairs)), contexts)))
    ordered = contexts[order]
    opens = np.append(True, ordered[1:] != ordered[:-1])[: len(order)]
    runs = np.flatnonzero(opens)
    place = np.arange(len(order)) - np.repeat(runs, np.diff(np.append(runs, len(order))))
    starts = np.flatnonzero(place % size == 0)
    counts = np.diff(np.append(starts, len(order)))
    users = pairs.users[order[starts]]
    return Groups(ordered[starts], users, order, narrow(starts), narrow(counts), size)
