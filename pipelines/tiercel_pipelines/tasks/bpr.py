r"""``bpr``: each of a user's items should score above negatives, pair by pair.

.. math:: -\frac{1}{\sum w} \sum_{t, j} w_t \log \sigma(s_{ut} - s_{uj})

over n negatives j of each positive t, drawn from those of the batch (Rendle et al. 2009, "BPR: Bayesian
personalized ranking from implicit feedback").
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus

from tiercel_serving.problems import COUNT, Problem, out_of_range

from ..arrays.pairs import IntArray, Pairs
from .sampled_softmax import NONE, BatchedTask, Batches, Groups, SampledBatch


class BPR(BatchedTask, frozen=True, tag="bpr"):
    """Bayesian personalised ranking.

    Parameters
    ----------
    negatives_per_positive
        n: number of negatives that each positive is compared with, drawn anew from those of the batch.
    """

    negatives_per_positive: int = 8

    def problems(self) -> list[Problem]:
        """Return the base class's problems, and one for an invalid number of negatives."""
        return [*super().problems(), *out_of_range(self, {"negatives_per_positive": COUNT})]

    def start(self, pairs: Pairs, n_items: int) -> PairByPair:
        """Return the task applied to some interactions."""
        return PairByPair(self, pairs, n_items)


@dataclass(frozen=True)
class PairedBatch(SampledBatch):
    """A batch whose positives are each paired with negatives, which the loss draws.

    Parameters
    ----------
    whole, rows
        The batch that this is a share of, and which of its rows; None for a whole batch.
    """

    whole: PairedBatch | None = None
    rows: slice | None = None

    @property
    def mass(self) -> float:
        """1, since the loss of a share is its part of the whole batch's loss."""
        return 1.0

    def take(self, chosen: slice) -> PairedBatch:
        """Return some of the rows, as a share of this batch."""
        return replace(self, **self.rows_of(chosen), whole=self, rows=chosen)


class Paired(Batches):
    """Base of the tasks over pairs of a positive and a drawn negative, applied to some interactions."""

    def __init__(self, settings: Any, pairs: Pairs, n_items: int) -> None:
        super().__init__(settings, pairs, n_items)
        self._settings = settings

    def batch(self, groups: Groups, chosen: IntArray, drawn: IntArray = NONE) -> PairedBatch:
        """Build the batch of the chosen groups, with the negatives ``drawn [n]`` for it."""
        return PairedBatch(**vars(super().batch(groups, chosen, drawn)))

    def loss(self, query: Tensor, vectors: Tensor, batch: PairedBatch) -> Tensor:
        """Return the mean over the pairs; for a share of a batch, its part of the batch's mean."""
        scores = query @ vectors.T / self._settings.temperature
        mine, whole = each_with_negatives(scores, batch, self._settings.negatives_per_positive)
        _, _, real, weights = mine
        return self.mean(*mine) * (self.total(real, weights) / self.total(*whole))

    def mean(self, positive: Tensor, negative: Tensor, real: Tensor, weights: Tensor) -> Tensor:
        """Return the mean loss; the parameters are what :func:`each_with_negatives` returns first."""
        raise NotImplementedError

    def total(self, real: Tensor, weights: Tensor) -> Tensor:
        """Return the total weight that :meth:`mean` divides by, above 0."""
        raise NotImplementedError


class PairByPair(Paired):
    """Bayesian personalised ranking applied to some interactions."""

    def mean(self, positive: Tensor, negative: Tensor, real: Tensor, weights: Tensor) -> Tensor:
        """Return the mean of ``-log σ(s⁺ - s⁻)``."""
        return bpr(positive, negative, real, weights)

    def total(self, real: Tensor, weights: Tensor) -> Tensor:
        """Return the weight of all pairs."""
        return weight_of_pairs(real, weights)


def each_with_negatives(
    scores: Tensor, batch: PairedBatch, count: int
) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Draw negatives for each positive of a batch, in proportion to how often the batch drew them.

    For a share of a batch they are drawn for the whole batch, so that all processes draw the same.

    Parameters
    ----------
    scores
        ``[B, C]`` score of each item of the batch for each user.
    batch
        The batch, or a share of one.
    count
        n.

    Returns
    -------
    (positive, negative, real, weights), (real, weights)
        Scores of the positives ``[P]`` and negatives ``[P, n]``, ``[P, n]`` True where a negative is not one
        of the user's own items, and the weight of each positive ``[P]``; then the last two for the whole
        batch.
    """
    whole = batch if batch.whole is None else batch.whole
    every = torch.from_numpy(whole.weights)
    user, place = torch.nonzero(every, as_tuple=True)
    item = torch.from_numpy(whole.positives)[user, place]
    chance = torch.from_numpy(whole.counts)
    drawn = torch.multinomial(chance, max(len(user) * count, 1), replacement=True)[: len(user) * count]
    drawn = drawn.view(len(user), count)
    real = ~torch.from_numpy(whole.hits)[user.unsqueeze(1), drawn]
    weights = every[user, place]
    if batch.rows is None:
        return (scores[user, item], scores[user.unsqueeze(1), drawn], real, weights), (real, weights)
    row = torch.full((len(every),), -1)
    row[batch.rows] = torch.arange(len(scores))
    mine = row[user] >= 0
    user, item, drawn = row[user[mine]], item[mine], drawn[mine]
    own = scores[user, item], scores[user.unsqueeze(1), drawn], real[mine], weights[mine]
    return own, (real, weights)


def bpr(positive: Tensor, negative: Tensor, real: Tensor, weights: Tensor) -> Tensor:
    """Return the loss; the parameters are what :func:`each_with_negatives` returns first."""
    losses = softplus(negative - positive.unsqueeze(1)) * (real * weights.unsqueeze(1))
    return losses.sum() / weight_of_pairs(real, weights)


def weight_of_pairs(real: Tensor, weights: Tensor) -> Tensor:
    """Return the weight of all pairs of a positive and a real negative, above 0."""
    return (real * weights.unsqueeze(1)).sum().clamp(min=1e-9)
