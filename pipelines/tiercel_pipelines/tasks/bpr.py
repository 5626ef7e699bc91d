r"""``bpr``: each of a user's items should score above negatives, pair by pair.

.. math:: -\frac{1}{\sum w} \sum_{t, j} w_t \log \sigma(s_{ut} - s_{uj})

over n negatives j of each positive t, drawn from those of the batch (Rendle et al. 2009, "BPR: Bayesian
personalized ranking from implicit feedback").
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus

from tiercel_serving.problems import COUNT, Problem, out_of_range

from ..arrays.pairs import Pairs
from .sampled_softmax import BatchedTask, Batches, SampledBatch


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


class PairByPair(Batches):
    """Bayesian personalised ranking applied to some interactions."""

    def __init__(self, settings: BPR, pairs: Pairs, n_items: int) -> None:
        super().__init__(settings, pairs, n_items)
        self._settings = settings

    def loss(self, query: Tensor, vectors: Tensor, batch: SampledBatch) -> Tensor:
        """Return the mean of ``-log σ(s⁺ - s⁻)``."""
        scores = query @ vectors.T / self._settings.temperature
        return bpr(*each_with_negatives(scores, batch, self._settings.negatives_per_positive))


def each_with_negatives(
    scores: Tensor, batch: SampledBatch, count: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draw negatives for each positive of a batch, in proportion to how often the batch drew them.

    Parameters
    ----------
    scores
        ``[B, C]`` score of each item of the batch for each user.
    batch
        The batch.
    count
        n.

    Returns
    -------
    positive, negative, real, weights
        Scores of the positives ``[P]`` and negatives ``[P, n]``, ``[P, n]`` True where a negative is not one
        of the user's own items, and the weight of each positive ``[P]``.
    """
    weights = torch.from_numpy(batch.weights)
    user, place = torch.nonzero(weights, as_tuple=True)
    item = torch.from_numpy(batch.positives)[user, place]
    chance = torch.from_numpy(batch.counts)
    drawn = torch.multinomial(chance, max(len(user) * count, 1), replacement=True)[: len(user) * count]
    drawn = drawn.view(len(user), count)
    real = ~torch.from_numpy(batch.hits)[user.unsqueeze(1), drawn]
    return scores[user, item], scores[user.unsqueeze(1), drawn], real, weights[user, place]


def bpr(positive: Tensor, negative: Tensor, real: Tensor, weights: Tensor) -> Tensor:
    """Return the loss; the parameters are what :func:`each_with_negatives` returns."""
    pairs = real * weights.unsqueeze(1)
    losses = softplus(negative - positive.unsqueeze(1)) * pairs
    return losses.sum() / pairs.sum().clamp(min=1e-9)
