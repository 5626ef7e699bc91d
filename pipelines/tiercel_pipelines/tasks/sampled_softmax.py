"""``sampled_softmax``: each of a user's items against the other items of the batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tiercel_serving.kinds import Settings
from tiercel_serving.problems import COUNT, POSITIVE, SHARE, Problem, Range, out_of_range

from ..arrays.lists import FloatArray
from ..arrays.pairs import BoolArray, IntArray, Pairs
from .table import MASKED, RetrievalBatch


class SampledSoftmax(Settings, frozen=True, tag="sampled_softmax"):
    """In-batch sampled softmax with logQ correction; see :func:`sampled_softmax`.

    Parameters
    ----------
    temperature
        Inner products of unit vectors are divided by it.
    logq_correction
        Whether popular items, which are negatives more often, are corrected for.
    batch_size
        Interactions in a batch; the other items of a batch are the negatives.
    positives
        T: how many interactions of one user share one query in a batch; the rest of the user's items
        is its history.
    context_dropout
        Share of the interactions whose context is hidden in training, since requests may come without.
    """

    temperature: float = 0.2
    logq_correction: bool = True
    batch_size: int = 4096
    positives: int = 16
    context_dropout: float = 0.3

    @property
    def scale(self) -> float:
        """One over the temperature."""
        return 1 / self.temperature

    def problems(self) -> list[Problem]:
        """Return numbers out of their ranges."""
        ranges = {"temperature": POSITIVE, "batch_size": Range(2, whole=True), "positives": COUNT}
        return list(out_of_range(self, {**ranges, "context_dropout": SHARE}))

    def start(self, pairs: Pairs, n_items: int) -> InBatch:
        """Return the task at work."""
        return InBatch(self, pairs, n_items)


@dataclass(frozen=True)
class SampledBatch(RetrievalBatch):
    """One batch with its negatives.

    Parameters
    ----------
    counts
        ``[C]`` how often each item was drawn; ``items`` are distinct and ascending.
    positives, weights
        ``[B, T]`` positions into ``items``, and 1 for a real positive, else 0.
    hits
        ``[B, C]`` True where the item is any positive of the row's user.
    """

    counts: FloatArray
    positives: IntArray
    weights: FloatArray
    hits: BoolArray


class InBatch:
    """The task at work on some interactions with a catalogue of ``n_items``."""

    def __init__(self, settings: SampledSoftmax, pairs: Pairs, n_items: int) -> None:
        self._settings, self._pairs, self._n_items = settings, pairs, n_items
        counts = np.bincount(pairs.items, minlength=n_items)
        log_q = np.log(np.maximum(counts, 1) / max(len(pairs), 1))
        # The log probability [I] that a draw from a batch is the item.
        self._log_q = torch.from_numpy(
            (log_q if settings.logq_correction else np.zeros(n_items)).astype(np.float32)
        )

    def epoch(self, rng: np.random.Generator) -> Iterator[SampledBatch]:
        """Yield all groups in random order, as many at a time as hold about ``batch_size`` interactions."""
        settings = self._settings
        groups = draw_groups(self._pairs, settings.positives, settings.context_dropout, rng)
        size = max(1, round(settings.batch_size * len(groups.users) / len(self._pairs)))
        order = rng.permutation(len(groups.users))
        for start in range(0, len(order), size):
            yield self.batch(groups, order[start : start + size])

    def batch(self, groups: Groups, chosen: IntArray) -> SampledBatch:
        """Build the batch of the chosen groups."""
        users, targets = groups.users[chosen], groups.targets[chosen]
        real = targets >= 0
        drawn = self._pairs.items[np.where(real, targets, 0)]
        items, inverse, counts = np.unique(drawn[real], return_inverse=True, return_counts=True)
        positives = np.zeros(targets.shape, dtype=np.int64)
        positives[real] = inverse
        return SampledBatch(
            contexts=groups.contexts[chosen],
            users=users,
            targets=targets,
            items=items,
            counts=counts.astype(np.float32),
            positives=positives,
            weights=real.astype(np.float32),
            hits=self._hits(users, items),
        )

    def _hits(self, users: IntArray, items: IntArray) -> BoolArray:
        owner, rows = self._pairs.seen(users)
        column = np.full(self._n_items + 1, len(items))
        column[items] = np.arange(len(items))
        # Items outside the batch all fall into one more column, which is cut off.
        hits = np.zeros((len(users), len(items) + 1), dtype=np.bool_)
        hits[owner, column[rows]] = True
        return hits[:, :-1]

    def loss(self, query: Tensor, vectors: Tensor, batch: SampledBatch) -> Tensor:
        """Return the sampled softmax of a batch."""
        log_q = self._log_q[torch.from_numpy(batch.items)]
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
    targets
        ``[G, T]`` positions into the pairs, -1 where a group has fewer than T.
    """

    contexts: IntArray
    users: IntArray
    targets: IntArray


def draw_groups(pairs: Pairs, size: int, context_dropout: float, rng: np.random.Generator) -> Groups:
    """Deal all interactions at random into groups of one user and context, at most ``size`` (T) in each.

    One query then serves several positives, and the rest of the user's items is its history: an epoch
    costs a fraction of one query for each interaction.
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


def sampled_softmax(
    query: Tensor,
    vectors: Tensor,
    log_q: Tensor,
    counts: Tensor,
    positives: Tensor,
    masked: Tensor,
    weights: Tensor,
) -> Tensor:
    r"""Return the in-batch sampled softmax with logQ correction, averaged over all positives.

    For a positive ``t`` of user ``u``, with the batch's draws as negatives and logits ``s``, the inner
    products of queries and vectors, corrected by the log probability of being drawn,

    .. math:: -\log \frac{e^{s_{ut} - \log q_t}}
              {e^{s_{ut} - \log q_t} + \sum_{d \notin P_u} e^{s_{ud} - \log q_d}}

    where the sum runs over every draw ``d`` that is no positive of the user (Yi et al. 2019, "Sampling-
    bias-corrected neural modeling"). An item that was drawn ``c`` times has ``c`` equal terms, so each
    distinct item is scored once and gets ``log c`` on top. Only the negatives make a matrix ``[B, C]``, and
    few passes over it: that is most of a training's time.

    Parameters
    ----------
    query, vectors
        ``[B, D]``, and ``[C, D]`` of the batch's distinct items.
    log_q, counts
        ``[C]`` their log probabilities, and how often each was drawn.
    positives
        ``[B, T]`` places in C of each user's positives.
    masked
        ``[B, C]`` boolean: accidental hits, which are positives of this user.
    weights
        ``[B, T]`` weight of each positive; 0 where the user has fewer than T.
    """
    negatives = torch.addmm(torch.log(counts) - log_q, query, vectors.T).masked_fill_(masked, MASKED)
    rest = torch.logsumexp(negatives, dim=1)
    user, place = torch.nonzero(weights, as_tuple=True)
    item = positives[user, place]
    positive = (query[user] * vectors[item]).sum(1) - log_q[item]
    losses = torch.logaddexp(positive, rest[user]) - positive
    return (losses * weights[user, place]).sum() / weights.sum().clamp(min=1e-9)
