"""The contract of a reorder step, held by every row of ``REORDER``, and all steps as one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from kind_contracts import check_rows, check_settings
from own_kinds import EvenYears
from tiny_release import column

from tiercel_serving.columns import Column
from tiercel_serving.reorder.steps import Steps, reasons_of
from tiercel_serving.reorder.table import REORDER, ReorderKind
from tiercel_serving.reorder.weighted_sum import WeightedSum
from tiercel_serving.settings import KNOWN, UNKNOWN, ServingSettings
from tiercel_serving.verify import reference

#: Raw item columns ``[I + 1]`` that steps may read; the last row is the pad row.
ITEMS = 20
COLUMNS: dict[str, Column] = {
    "year": column([None if row % 5 == 4 else 1990 + row for row in range(ITEMS)] + [None], np.int64),
    "label": column([f"Film {row % 4}".encode() for row in range(ITEMS)] + [None], np.object_),
}
TASKS = 2

#: Kind → some of its settings, for a ranker of two tasks and the columns above.
EXAMPLES: dict[str, list[Any]] = {
    "weighted_sum": [WeightedSum((1.0, -0.5)), WeightedSum((0.0, 1e-3))],
    "even_years": [EvenYears(), EvenYears(0.25)],
}


def test_every_kind_is_here() -> None:
    check_rows(REORDER, EXAMPLES)


@dataclass(frozen=True)
class Batch:
    """Users with their kept candidates, empty slots last."""

    arrays: dict[str, np.ndarray]

    @property
    def users(self) -> int:
        return len(self.arrays["kept_row"])

    def of(self, user: int) -> dict[str, np.ndarray]:
        return {name: array[[user]] for name, array in self.arrays.items()}

    def kept(self, user: int) -> list[reference.Candidate]:
        rows, scores = self.arrays["kept_row"][user].tolist(), self.arrays["kept_score"][user].tolist()
        return [reference.Candidate(row, s, 1) for row, s in zip(rows, scores, strict=True) if row < ITEMS]


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    users, kept = draw(st.integers(1, 4)), draw(st.integers(1, 7))
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    rows = np.stack([rng.permutation(ITEMS)[:kept] for _ in range(users)])
    real = np.arange(kept) < rng.integers(0, kept + 1, users)[:, None]
    # Few distinct numbers, so that scores tie; a broken model says NaN.
    tasks = rng.choice(np.array([-1.5, 0, 0.1, 3, np.nan], np.float32), (users, kept, TASKS))
    scores = rng.choice(np.array([0.25, 0.5, 1], np.float32), (users, kept))
    return Batch(
        {
            "kept_row": np.where(real, rows, ITEMS),
            "kept_score": np.where(real, scores, np.float32(0)),
            "rank_score": tasks,
            "status": rng.choice(np.array([KNOWN, UNKNOWN], np.int32), (users, 1)),
            "history_row": rng.integers(0, ITEMS + 1, (users, 3)),
            "history_length": rng.integers(0, 4, (users, 1)).astype(np.int32),
        }
    )


def item_of(row: int) -> Mapping[str, Any]:
    return reference.plain_items(COLUMNS)(row)


@pytest.mark.parametrize("name", EXAMPLES)
class TestReorderKind:
    def test_settings(self, name: str) -> None:
        for kind in EXAMPLES[name]:
            check_settings(REORDER, name, kind, ReorderKind)
            assert set(kind.columns()) <= set(COLUMNS)
            assert kind.misfits(TASKS) == []
            assert bool(kind.misfits(0)) == kind.of_ranker

    @hypothesis_settings(max_examples=50, deadline=None)
    @given(batch=batches())
    def test_it_scores_as_its_reference(self, name: str, batch: Batch) -> None:
        rows, tasks = batch.arrays["kept_row"], batch.arrays["rank_score"]
        empty = rows == ITEMS
        scores = np.where(empty, np.float32(-np.inf), np.fmax(tasks[:, :, 0], np.float32(-np.inf)))
        arrays = {**batch.arrays, "scores": scores}
        before = {key: array.copy() for key, array in arrays.items()}
        for kind in EXAMPLES[name]:
            step = kind.open(COLUMNS)
            changed, why = step.apply(scores, batch.arrays)
            for key, array in arrays.items():
                np.testing.assert_array_equal(array, before[key], err_msg=f"{key} was changed in place")
            assert (changed.shape, changed.dtype) == (rows.shape, np.float32)
            assert (why is None) == (not kind.reasons)
            if why is not None:
                dropped = np.isneginf(changed) & ~np.isneginf(scores)
                assert (why.shape, why.dtype) == (rows.shape, np.int32)
                assert why.min() >= 0
                assert why.max() <= len(kind.reasons)
                assert why[dropped].all(), "a step with reasons says why it drops an item"
                assert not why[empty].any()
            for user in range(batch.users):
                kept = batch.kept(user)
                described = [
                    {**item_of(c.row), "row": c.row, "kept_score": c.score, "rank_score": t}
                    for c, t in zip(kept, tasks[user].tolist(), strict=False)
                ]
                expected = kind.reference(scores[user, : len(kept)].tolist(), described)
                np.testing.assert_array_equal(changed[user, : len(kept)], np.array(expected, np.float32))
                alone, _ = step.apply(scores[[user]], batch.of(user))
                np.testing.assert_array_equal(alone[0], changed[user])


CHAINS = st.lists(st.sampled_from([kind for kinds in EXAMPLES.values() for kind in kinds]), max_size=3)


@hypothesis_settings(max_examples=100, deadline=None)
@given(batch=batches(), chain=CHAINS, ranked=st.booleans(), unknown=st.sampled_from(["fallback", "rank"]))
def test_all_steps_together(batch: Batch, chain: list[Any], ranked: bool, unknown: str) -> None:
    chain = [kind for kind in chain if ranked or not kind.of_ranker]
    settings = ServingSettings(reorder=tuple(chain), unknown_users=unknown)
    arrays = {name: array for name, array in batch.arrays.items() if ranked or name != "rank_score"}
    scores, rows, reasons = Steps(settings, COLUMNS, ITEMS).apply(arrays)
    assert (reasons is None) == (not reasons_of(chain))
    assert np.isneginf(scores[rows == ITEMS]).all()
    for user in range(batch.users):
        kept = batch.kept(user)
        tasks = arrays["rank_score"][user, : len(kept)].tolist() if ranked else None
        nobody = bool(arrays["status"][user, 0] == UNKNOWN)
        ordered = reference.order(settings, item_of, kept, tasks, unknown=nobody)
        left = {int(row): float(score) for row, score in zip(rows[user], scores[user], strict=True)}
        left.pop(ITEMS, None)
        assert left == dict(ordered)
        if reasons is not None:
            assert not reasons[user, len(kept) :].any()
            own = 2 * sum(isinstance(kind, EvenYears) for kind in chain)
            for candidate, code in zip(kept, reasons[user], strict=False):
                if candidate.row not in left:
                    assert code == 2, "the first step that drops an item has the last word"
                elif np.isfinite(left[candidate.row]):
                    assert code == (own - 1 if item_of(candidate.row)["year"] % 2 == 0 else 0)


# ``weighted_sum``


@pytest.mark.parametrize("weights", [(), (True,), ("1",), 1.0, None])
def test_weights_that_are_none(weights: Any) -> None:
    [problem] = WeightedSum(weights).problems()
    assert "expected a number a task" in str(problem)


def test_weights_that_do_not_fit() -> None:
    assert "2 weights, but the ranking model has 3 tasks" in str(WeightedSum((1.0, 2.0)).misfits(3)[0])
    assert "has no tasks" in str(WeightedSum((1.0,)).misfits(0)[0])
