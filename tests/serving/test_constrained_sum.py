"""``constrained_sum``: the multiplier is the least that keeps the floor."""

from __future__ import annotations

import numpy as np
import pytest

from tiercel_serving.errors import InvalidSettings
from tiercel_serving.reorder.constrained_sum import ConstrainedSum


def test_the_multiplier_is_the_least_that_keeps_the_floor() -> None:
    rng = np.random.default_rng(0)
    lists = [rng.normal(size=(30, 2)).astype(np.float32) for _ in range(40)]

    def means(weight: float) -> tuple[float, float]:
        best = [one[np.argsort(-(one[:, 0] + weight * one[:, 1]))[:5]].mean(axis=0) for one in lists]
        first, second = np.mean(best, axis=0)
        return float(first), float(second)

    most = float(np.mean([np.sort(one[:, 1])[-5:].mean() for one in lists]))
    before = -1.0
    for share in (0.0, 0.3, 0.6, 0.9, 1.0):
        weight = ConstrainedSum(share=share).solved(lists, 5).multiplier
        assert weight is not None
        assert weight >= before
        floor = means(0.0)[1] + share * (most - means(0.0)[1])
        assert means(weight)[1] >= floor - 1e-5
        if weight:
            assert means(weight * 0.99)[1] < floor, "a smaller one would not do"
        before = weight
    given = ConstrainedSum(multiplier=0.5)
    assert given.solved(lists, 5) is given
    assert ConstrainedSum().solved([], 5).multiplier is None


@pytest.mark.parametrize("scale", [2.0**-19, 1.0, 2.0**18, 2.0**30])
def test_tasks_of_very_different_scales_are_weighed_alike(scale: float) -> None:
    rng = np.random.default_rng(0)
    lists = [rng.normal(size=(30, 2)).astype(np.float32) for _ in range(40)]
    scaled = [one * np.array([scale, 1], np.float32) for one in lists]
    weight, expected = ConstrainedSum(share=0.6).solved(scaled, 5), ConstrainedSum(share=0.6).solved(lists, 5)
    assert weight.multiplier == pytest.approx((expected.multiplier or 0) * scale, rel=1e-4)


def test_a_floor_that_no_multiplier_keeps_is_refused() -> None:
    rng = np.random.default_rng(0)
    lists = [(rng.normal(size=(30, 2)) * (1e30, 1e-6)).astype(np.float32) for _ in range(40)]
    with pytest.raises(InvalidSettings, match=r"constrained_sum: no multiplier .* task 1 .* smaller share"):
        ConstrainedSum(share=0.6).solved(lists, 5)
    assert ConstrainedSum(share=0.0).solved(lists, 5).multiplier == 0.0


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (ConstrainedSum(1, 1), "floor: 1 is the task that is maximised"),
        (ConstrainedSum(share=1.5), "share"),
        (ConstrainedSum(multiplier=-1.0), "multiplier: expected a number from 0 on"),
        (ConstrainedSum(multiplier=float("nan")), "multiplier: expected a number from 0 on"),
    ],
)
def test_constraints_that_are_none(step: ConstrainedSum, message: str) -> None:
    [problem] = step.problems()
    assert message in str(problem)
    assert "no task 1: the ranker has 1" in str(ConstrainedSum().misfits(1)[0])


def test_rounding_is_no_floor_that_is_not_kept() -> None:
    """If a list has at most k candidates, no weight changes the mean, only the order of its terms."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        one = (rng.normal(size=(10, 2)) * 1e4).astype(np.float32)
        one[:, 1] -= np.float32(one[:, 1].mean())
        assert ConstrainedSum(share=1.0).solved([one], 10).multiplier == 0.0
