"""Losses, each with its formula. ``tests/training/test_losses.py`` holds a NumPy oracle beside each."""

from __future__ import annotations

import torch
from torch import Tensor

#: Stands for minus infinity: its exponential is 0, and unlike infinity it never makes a NaN.
MASKED = -1e9


def sampled_softmax(
    positive: Tensor,
    positive_log_q: Tensor,
    negatives: Tensor,
    negative_log_q: Tensor,
    counts: Tensor,
    masked: Tensor,
    weights: Tensor,
) -> Tensor:
    r"""Return the in-batch sampled softmax with logQ correction, averaged over all positives.

    For a positive ``t`` of user ``u``, with the batch's draws as negatives and logits corrected by
    the log probability of being drawn,

    .. math:: -\log \frac{e^{s_{ut} - \log q_t}}
              {e^{s_{ut} - \log q_t} + \sum_{d \notin P_u} e^{s_{ud} - \log q_d}}

    where the sum runs over every draw ``d`` that is no positive of the user (Yi et al. 2019, "Sampling-
    bias-corrected neural modeling"). An item that was drawn ``c`` times has ``c`` equal terms, so each
    distinct item is scored once and gets ``log c`` on top.

    Parameters
    ----------
    positive
        ``[B, T]`` logits of each user's positives.
    positive_log_q
        ``[B, T]`` their log probabilities.
    negatives
        ``[B, C]`` logits of the batch's distinct items.
    negative_log_q
        ``[C]`` their log probabilities.
    counts
        ``[C]`` how often each was drawn.
    masked
        ``[B, C]`` boolean: accidental hits, which are positives of this user.
    weights
        ``[B, T]`` weight of each positive; 0 where the user has fewer than T.
    """
    corrected = negatives - negative_log_q + torch.log(counts)
    rest = torch.logsumexp(corrected.masked_fill(masked, MASKED), dim=1, keepdim=True)
    logits = positive - positive_log_q
    losses = torch.logaddexp(logits, rest.expand_as(logits)) - logits
    return (losses * weights).sum() / weights.sum().clamp(min=1e-9)


def listwise_softmax(scores: Tensor, weights: Tensor, real: Tensor) -> Tensor:
    r"""Return the softmax of each positive against its list's negatives, averaged over lists.

    For a list with positives ``P`` and negatives ``N``,

    .. math:: \frac{1}{\sum_P w_p} \sum_{p \in P} -w_p \log \frac{e^{s_p}}{e^{s_p} + \sum_{n \in N} e^{s_n}}

    so positives never push each other down. Lists without a positive count for nothing.

    Parameters
    ----------
    scores
        ``[B, K]``.
    weights
        ``[B, K]`` weight of each positive, 0 for negatives.
    real
        ``[B, K]`` boolean: False is padding.
    """
    positive = weights > 0
    negatives = scores.masked_fill(positive | ~real, MASKED)
    rest = torch.logsumexp(negatives, dim=1, keepdim=True)
    losses = (torch.logaddexp(scores, rest.expand_as(scores)) - scores) * weights
    total = weights.sum(dim=1)
    lists = losses.sum(dim=1) / total.clamp(min=1e-9)
    return lists.sum() / (total > 0).sum().clamp(min=1)
