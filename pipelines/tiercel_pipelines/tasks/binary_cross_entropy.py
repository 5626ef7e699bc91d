r"""``binary_cross_entropy``: a user's items are labelled 1 and negatives 0, each pair by itself.

.. math:: -\frac{1}{N} \sum_t w_t \Bigl( \log \sigma(s_{ut}) + \sum_j \log(1 - \sigma(s_{uj})) \Bigr)

over n negatives j of each positive t, drawn from those of the batch, where N is the total weight of all terms
(He et al. 2017, "Neural collaborative filtering", eq. 7).
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import softplus

from tiercel_serving.problems import COUNT, Problem, out_of_range

from ..arrays.pairs import Pairs
from .bpr import Paired
from .sampled_softmax import BatchedTask


class BinaryCrossEntropy(BatchedTask, frozen=True, tag="binary_cross_entropy"):
    """Binary cross-entropy.

    Parameters
    ----------
    negatives_per_positive
        n: number of negatives of each positive, drawn anew from those of the batch.
    """

    negatives_per_positive: int = 8

    def problems(self) -> list[Problem]:
        """Return the base class's problems, and one for an invalid number of negatives."""
        return [*super().problems(), *out_of_range(self, {"negatives_per_positive": COUNT})]

    def start(self, pairs: Pairs, n_items: int) -> OneByOne:
        """Return the task applied to some interactions."""
        return OneByOne(self, pairs, n_items)


class OneByOne(Paired):
    """Binary cross-entropy applied to some interactions."""

    def mean(self, positive: Tensor, negative: Tensor, real: Tensor, weights: Tensor) -> Tensor:
        """Return the mean cross-entropy of positives and negatives."""
        return cross_entropy(positive, negative, real, weights)

    def total(self, real: Tensor, weights: Tensor) -> Tensor:
        """Return the weight of all positives and negatives."""
        return weight_of_terms(real, weights)


def cross_entropy(positive: Tensor, negative: Tensor, real: Tensor, weights: Tensor) -> Tensor:
    """Return the loss; the parameters are what :func:`~.bpr.each_with_negatives` returns first."""
    losses = softplus(-positive) + (softplus(negative) * real).sum(dim=1)
    return (losses * weights).sum() / weight_of_terms(real, weights)


def weight_of_terms(real: Tensor, weights: Tensor) -> Tensor:
    """Return the weight of all positives and real negatives, above 0."""
    return ((1 + real.sum(dim=1)) * weights).sum().clamp(min=1e-9)
