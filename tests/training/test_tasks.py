"""Objectives and sampling, each compared with a plain reference."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from tiercel_pipelines.arrays.pairs import Pairs
from tiercel_pipelines.families.views import drop_item_ids
from tiercel_pipelines.recipe import (
    BPR,
    BinaryCrossEntropy,
    Debiasing,
    Negatives,
    SampledSoftmax,
    TwoTower,
)
from tiercel_pipelines.tasks.binary_cross_entropy import cross_entropy
from tiercel_pipelines.tasks.bpr import bpr, each_with_negatives
from tiercel_pipelines.tasks.negatives import Draws
from tiercel_pipelines.tasks.sampled_softmax import draw_groups

USERS, ITEMS = 9, 14


@pytest.fixture(scope="module")
def pairs() -> Pairs:
    rng = np.random.default_rng(5)
    users, items = np.nonzero(rng.random((USERS, ITEMS - 2)) < np.linspace(0.9, 0.1, ITEMS - 2))
    return Pairs.build(users, items, users, np.ones(len(users)), USERS)


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


@pytest.fixture(scope="module")
def drawn() -> tuple[torch.Tensor, ...]:
    """Return scores of positives and negatives, a mask of real negatives, and weights."""
    rng = np.random.default_rng(0)
    arrays = rng.normal(size=5), rng.normal(size=(5, 3)), rng.random((5, 3)) < 0.7, rng.random(5)
    return tuple(map(torch.tensor, arrays))


def test_bpr_equals_its_formula(drawn: Any) -> None:
    positive, negative, real, weights = (value.tolist() for value in drawn)
    total = mass = 0.0
    for s, others, ok, w in zip(positive, negative, real, weights, strict=True):
        total += sum(-w * math.log(sigmoid(s - other)) for other, one in zip(others, ok, strict=True) if one)
        mass += w * sum(ok)
    assert float(bpr(*drawn)) == pytest.approx(total / mass, rel=1e-9)


def test_binary_cross_entropy_equals_its_formula(drawn: Any) -> None:
    positive, negative, real, weights = (value.tolist() for value in drawn)
    total = mass = 0.0
    for s, others, ok, w in zip(positive, negative, real, weights, strict=True):
        total -= w * math.log(sigmoid(s))
        total -= sum(w * math.log(1 - sigmoid(other)) for other, one in zip(others, ok, strict=True) if one)
        mass += w * (1 + sum(ok))
    assert float(cross_entropy(*drawn)) == pytest.approx(total / mass, rel=1e-9)


@pytest.mark.parametrize("task", [BPR(), BinaryCrossEntropy(), SampledSoftmax(negatives=Negatives(drawn=5))])
def test_descending_a_loss_finds_what_users_had(task: Any, pairs: Pairs) -> None:
    torch.manual_seed(0)
    users = torch.nn.Parameter(0.1 * torch.randn(USERS, 8))
    items = torch.nn.Parameter(0.1 * torch.randn(ITEMS, 8))
    optimiser, objective = torch.optim.Adam([users, items], lr=0.2), task.start(pairs, ITEMS)
    rng = np.random.default_rng(0)
    for _ in range(25):
        for batch in objective.epoch(rng):
            optimiser.zero_grad()
            objective.loss(users[batch.users], items[batch.items], batch).backward()
            optimiser.step()
    scores = (users @ items.T).detach().numpy()
    had = np.zeros((USERS, ITEMS), bool)
    had[pairs.users, pairs.items] = True
    assert scores[had].min() > np.median(scores[~had])


def test_each_positive_gets_negatives_that_are_not_its_users(pairs: Pairs) -> None:
    objective = BPR(batch_size=20).start(pairs, ITEMS)
    [batch, *_] = objective.epoch(np.random.default_rng(1))
    scores = torch.arange(len(batch.users) * len(batch.items), dtype=torch.float64).view(len(batch.users), -1)
    torch.manual_seed(0)
    (positive, negative, real, weights), _ = each_with_negatives(scores, batch, 6)
    assert negative.shape == real.shape == (int((batch.targets >= 0).sum()), 6)
    assert weights.tolist() == pytest.approx([1.0] * len(positive))
    had = set(zip(pairs.users.tolist(), pairs.items.tolist(), strict=True))
    for mine, others, ok in zip(positive.tolist(), negative.tolist(), real.tolist(), strict=True):
        row = int(mine) // len(batch.items)
        assert (batch.users[row], batch.items[int(mine) % len(batch.items)]) in had
        for other, one in zip(others, ok, strict=True):
            assert int(other) // len(batch.items) == row
            assert ((batch.users[row], batch.items[int(other) % len(batch.items)]) in had) != one


@pytest.mark.parametrize(("in_batch", "alpha"), [(True, 0.0), (False, 0.0), (True, 0.75), (False, 1.0)])
def test_draws_come_with_the_chance_that_they_are_corrected_by(
    in_batch: bool, alpha: float, pairs: Pairs
) -> None:
    settings = Negatives(in_batch, 4000, alpha)
    draws, rng = Draws(settings, pairs, ITEMS), np.random.default_rng(2)
    many = 1000 if in_batch else 0
    shown = pairs.items[rng.integers(0, len(pairs), many)]
    found = np.bincount(np.append(shown, draws.draw(rng)), minlength=ITEMS) / (many + 4000)
    counts = np.bincount(pairs.items, minlength=ITEMS)
    expected = (many * counts / counts.sum() + 4000 * counts**alpha / (counts**alpha).sum()) / (many + 4000)
    np.testing.assert_allclose(found, expected, atol=0.02)
    had = counts > 0
    log_q = draws.log_q(np.arange(ITEMS), 1000)
    np.testing.assert_allclose(np.exp(log_q)[had], expected[had], rtol=1e-5)


def test_a_batch_without_its_own_negatives_has_the_drawn_ones_alone(pairs: Pairs) -> None:
    objective = SampledSoftmax(negatives=Negatives(in_batch=False, drawn=3)).start(pairs, ITEMS)
    groups = draw_groups(pairs, 16, 0.0, np.random.default_rng(0))
    batch = objective.batch(groups, np.arange(4), np.array([13, 2, 13]))
    assert dict(zip(batch.items.tolist(), batch.counts.tolist(), strict=True)) | {13: 2.0, 2: 1.0} == {
        **dict.fromkeys(batch.items.tolist(), 0.0),
        13: 2.0,
        2: 1.0,
    }
    assert batch.hits[:, ~np.isin(batch.items, [2, 13])].all()
    loss = objective.loss(torch.randn(4, 5), torch.randn(len(batch.items), 5), batch)
    assert math.isfinite(float(loss))


def test_popular_positives_are_left_out_or_weigh_less(pairs: Pairs) -> None:
    counts = np.bincount(pairs.items, minlength=ITEMS)
    settings = Debiasing(subsampling=0.05, weight_exponent=0.5)
    rng, taken = np.random.default_rng(0), np.zeros(len(pairs))
    for _ in range(400):
        left_out = settings.left_out(pairs, ITEMS, rng)
        assert left_out is not None
        taken[np.setdiff1d(np.arange(len(pairs)), left_out)] += 1
    share = counts[pairs.items] / len(pairs)
    np.testing.assert_allclose(taken / 400, np.minimum(1, np.sqrt(0.05 / share)), atol=0.1)
    weights = settings.weights(pairs, ITEMS)[pairs.items]
    assert weights.mean() == pytest.approx(1, rel=1e-5)
    np.testing.assert_allclose(
        weights * counts[pairs.items] ** 0.5, (weights * counts[pairs.items] ** 0.5)[0], rtol=1e-5
    )
    objective = SampledSoftmax(debiasing=settings).start(pairs, ITEMS)
    seen = sum((batch.targets >= 0).sum() for batch in objective.epoch(np.random.default_rng(0)))
    assert 0 < seen < len(pairs)


def test_a_share_of_item_ids_becomes_unknown() -> None:
    cats = np.stack([np.full(500, 7), np.arange(500) + 3], axis=1)
    dropped = drop_item_ids({"item_cat": cats}, 1, 0.3, np.random.default_rng(0))["item_cat"]
    assert (dropped[:, 0] == 7).all()
    assert 0.2 < (dropped[:, 1] == 2).mean() < 0.4
    assert (dropped[:, 1] == cats[:, 1])[dropped[:, 1] != 2].all()
    assert (cats[:, 1] >= 3).all()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (SampledSoftmax(negatives=Negatives(in_batch=False)), "negatives.drawn: there are no negatives"),
        (SampledSoftmax(negatives=Negatives(drawn=-1)), "negatives.drawn: expected a whole number"),
        (BPR(debiasing=Debiasing(subsampling=2.0)), "debiasing.subsampling: expected"),
        (BPR(negatives_per_positive=0), "negatives_per_positive: expected a whole number"),
        (BinaryCrossEntropy(negatives_per_positive=0), "negatives_per_positive: expected a whole number"),
        (TwoTower(item_id_dropout=1.0), "item_id_dropout: expected"),
        (TwoTower(task=BPR(temperature=0.0)), "task.temperature: expected"),
    ],
)
def test_mistakes_are_told(settings: Any, words: str) -> None:
    assert any(words in str(problem) for problem in settings.problems()), settings.problems()
