"""Both losses against an oracle that follows the formula draw by draw."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from drawing import examples
from tiercel_pipelines.tasks import softmax_of_draws
from tiercel_pipelines.tasks.listwise_softmax import listwise_softmax
from tiercel_pipelines.tasks.softmax_of_draws import sampled_softmax


def oracle_sampled(draws, query_scores, log_q, positives_of, owner):
    """Return the mean of -log softmax of each draw against all draws that are not positives of its user."""
    losses = []
    for draw, item in enumerate(draws):
        user = owner[draw]
        own = math.exp(query_scores[user][item] - log_q[item])
        rest = sum(
            math.exp(query_scores[user][other] - log_q[other])
            for other in draws
            if other not in positives_of[user]
        )
        losses.append(-math.log(own / (own + rest)))
    return float(np.mean(losses))


@examples(14)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(1, 4), st.integers(2, 9))
def test_sampled_softmax_equals_the_sum_over_draws(seed, users, width, n_items):
    rng = np.random.default_rng(seed)
    drawn = rng.integers(n_items, size=(users, width))
    real = rng.random((users, width)) < 0.8
    real[0, 0] = True
    scores = rng.normal(size=(users, n_items)) * 3
    probability = rng.dirichlet(np.ones(n_items)) + 1e-3
    log_q = np.log(probability)
    items, inverse, counts = np.unique(drawn[real], return_inverse=True, return_counts=True)
    positions = np.zeros(drawn.shape, dtype=np.int64)
    positions[real] = inverse
    extra = rng.integers(n_items, size=users)  # a positive that may not be among this row's draws
    positives_of = [{int(i) for i in drawn[u][real[u]]} | {int(extra[u])} for u in range(users)]
    hits = np.array([[int(item) in positives_of[u] for item in items] for u in range(users)])

    # With one-hot item vectors, the products are the scores.
    vectors, counts = np.eye(n_items)[items], counts.astype(float)
    arrays = (scores, vectors, log_q[items], counts, positions, hits, real.astype(float))
    loss = sampled_softmax(*map(torch.tensor, arrays))
    owner = np.nonzero(real)[0]
    expected = oracle_sampled(drawn[real].tolist(), scores, log_q, positives_of, owner)
    assert float(loss) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("at_once", [1, 20, 1_000])
def test_the_gradient_of_the_sampled_softmax_is_that_of_its_value(at_once, monkeypatch):
    """For any chunk size. The first user has no positive, and the second no negative."""
    monkeypatch.setattr(softmax_of_draws, "_AT_ONCE", at_once)
    torch.manual_seed(0)
    query = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    vectors = torch.randn(9, 3, dtype=torch.float64, requires_grad=True)
    log_q, counts = torch.rand(9, dtype=torch.float64).log(), torch.randint(1, 4, (9,)).double()
    weights = torch.rand(6, 4, dtype=torch.float64) * (torch.rand(6, 4) < 0.6)
    weights[0], weights[1, 0] = 0, 0.5
    masked = torch.rand(6, 9) < 0.3
    masked[1] = True
    others = (log_q, counts, torch.randint(9, (6, 4)), masked, weights)
    assert torch.autograd.gradcheck(lambda *both: 3 * sampled_softmax(*both, *others), (query, vectors))


def test_log_q_makes_the_sampled_loss_estimate_the_full_softmax():
    """The sum over negatives drawn by q and corrected by it estimates that over the whole catalogue."""
    rng = np.random.default_rng(0)
    n_items, draws = 30, 200_000
    q = rng.dirichlet(np.ones(n_items))
    scores = rng.normal(size=n_items)
    counts = rng.multinomial(draws, q)
    seen = counts > 0
    corrected = (scores - np.log(q))[seen]
    estimate = np.log(np.sum(counts[seen] * np.exp(corrected)) / draws)
    assert estimate == pytest.approx(np.log(np.exp(scores).sum()), abs=0.02)


def test_listwise_softmax_equals_its_formula():
    rng = np.random.default_rng(1)
    scores = rng.normal(size=(4, 7))
    weights = np.where(rng.random((4, 7)) < 0.3, rng.random((4, 7)), 0.0)
    weights[3] = 0  # a list without a positive counts for nothing
    real = rng.random((4, 7)) < 0.9
    weights[~real] = 0
    expected = []
    for row in range(4):
        if not weights[row].any():
            continue
        rest = sum(
            math.exp(s) for s, w, r in zip(scores[row], weights[row], real[row], strict=True) if r and not w
        )
        terms = [
            -w * math.log(math.exp(s) / (math.exp(s) + rest))
            for s, w in zip(scores[row], weights[row], strict=True)
            if w
        ]
        expected.append(sum(terms) / weights[row].sum())
    loss = listwise_softmax(torch.tensor(scores), torch.tensor(weights), torch.tensor(real))
    assert float(loss) == pytest.approx(np.mean(expected), rel=1e-9)


def test_losses_without_any_positive_are_zero_and_not_nan():
    scores = torch.randn(2, 3)
    nothing = torch.zeros(2, 3)
    assert float(listwise_softmax(scores, nothing, torch.ones(2, 3, dtype=torch.bool))) == 0.0
