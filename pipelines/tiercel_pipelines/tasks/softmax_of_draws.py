"""The sampled softmax and its gradient, a few users at a time: the whole matrix of logits never exists."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .table import MASKED

#: Logits in memory at once: half a megabyte, so that they stay in a core's own cache.
_AT_ONCE = 1 << 17


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

    where the sum runs over every draw ``d`` that is not a positive of the user (Yi et al. 2019, "Sampling-
    bias-corrected neural modeling"). An item that was drawn ``c`` times has ``c`` equal terms, so each
    distinct item is scored once and ``log c`` is added to its logit.

    Parameters
    ----------
    query, vectors
        ``[B, D]``, and ``[C, D]`` of the batch's distinct items; only these two get gradients.
    log_q, counts
        ``[C]`` their log probabilities, and how often each was drawn.
    positives
        ``[B, T]`` positions in C of each user's positives.
    masked
        ``[B, C]`` boolean: items that are not negatives, such as accidental hits: positives of this user.
    weights
        ``[B, T]`` weight of each positive; 0 where the user has fewer than T.
    """
    given = (query, vectors, log_q, counts, positives, masked, weights)
    loss: Tensor = _SampledSoftmax.apply(*given)  # type: ignore[no-untyped-call]
    return loss


class _SampledSoftmax(torch.autograd.Function):
    """The loss; its forward pass also computes the gradient, since the logits are not kept for later.

    With r the log of the sum over the negatives and g the weight of a positive times σ(r - s), the derivative
    is -g with respect to the positive's logit, and g times the negatives' softmax with respect to theirs.
    """

    @staticmethod
    def forward(ctx: Any, *given: Tensor) -> Tensor:
        query, vectors, log_q, counts, positives, masked, weights = given
        user, place = torch.nonzero(weights, as_tuple=True)
        item = positives[user, place]
        shares = weights / weights.sum().clamp(min=1e-9)
        logits = query.new_zeros(weights.shape)
        logits[user, place] = (query[user] * vectors[item]).sum(1) - log_q[item]
        slopes, to_query = torch.empty_like(logits), torch.empty_like(query)
        to_vectors = torch.zeros_like(vectors)
        offsets, turned = torch.log(counts) - log_q, vectors.T
        loss = query.new_zeros(())
        for some in _pieces(len(query), len(vectors)):
            negatives = torch.addmm(offsets, query[some], turned).masked_fill_(masked[some], MASKED)
            top = negatives.amax(1, keepdim=True)
            odds = negatives.sub_(top).exp_()
            total = odds.sum(1, keepdim=True)
            rest = top + torch.log(total)
            own = logits[some]
            loss += ((torch.logaddexp(own, rest) - own) * shares[some]).sum()
            slopes[some] = shares[some] * torch.sigmoid(rest - own)
            odds *= slopes[some].sum(1, keepdim=True) / total
            to_query[some] = odds @ vectors
            to_vectors.addmm_(odds.T, query[some])
        slope = slopes[user, place][:, None]
        to_query.index_add_(0, user, slope * vectors[item], alpha=-1)
        to_vectors.index_add_(0, item, slope * query[user], alpha=-1)
        ctx.save_for_backward(to_query, to_vectors)
        return loss

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        to_query, to_vectors = ctx.saved_tensors
        return (to_query * slopes[0], to_vectors * slopes[0], *[None] * 5)


def _pieces(rows: int, columns: int) -> list[slice]:
    """Return slices of rows that hold about :data:`_AT_ONCE` logits each."""
    size = max(1, _AT_ONCE // max(columns, 1))
    return [slice(start, start + size) for start in range(0, rows, size)]
