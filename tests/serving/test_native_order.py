"""``native/order.c`` and ``native/chance.c`` equal NumPy to the bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from native_build import open_compiled, run_sanitized

from drawing import examples
from tiercel_serving.columns import Column, with_null_row
from tiercel_serving.native import chance as native_chance
from tiercel_serving.native import order as native_order
from tiercel_serving.ranked import order as ranked
from tiercel_serving.reorder.chance import uniform
from tiercel_serving.reorder.epsilon_slot import EpsilonSlot
from tiercel_serving.reorder.gumbel_top_k import GumbelTopK
from tiercel_serving.reorder.pin_items import PinItems
from tiercel_serving.reorder.placing import Line, in_order

ITEMS = 300
STEPS = (GumbelTopK(0.3), EpsilonSlot(3, 0.7), PinItems("kind", (1, 3), 4))
COLUMNS = {"kind": with_null_row(Column(np.arange(ITEMS) % 5))}


@pytest.fixture(scope="module")
def functions() -> Any:
    return open_compiled()


def batch(seed: int, users: int, width: int) -> tuple[Any, Any, dict[str, Any]]:
    """Return scores with ties, both zeros, infinities and adjacent floats; distinct rows fix the order."""
    rng = np.random.default_rng(seed)
    odd = np.array(
        [0.0, -0.0, 1.0, np.nextafter(np.float32(1), 0), -1.5, np.inf, -np.inf, 1e-45, -3.4028235e38]
    )
    scores = rng.normal(size=(users, width)).astype(np.float32)
    drawn = rng.random(scores.shape) < rng.choice([0.0, 0.3, 1.0])
    scores[drawn] = rng.choice(odd.astype(np.float32), int(drawn.sum()))
    rows = np.stack([rng.permutation(ITEMS + 1)[:width] for _ in range(users)]).reshape(users, width)
    arrays = {"kept_row": rows, "seed": rng.choice([np.nan, 0.0, 7.0, 2.0**53], (users, 1))}
    return scores, rows, arrays


def everything(scores: Any, rows: Any, arrays: dict[str, Any]) -> list[Any]:
    """Return the results of every function under test."""
    line, users = Line.of(scores, arrays), len(scores)
    some = np.sort(rows % max(scores.shape[1], 1), axis=1)[:, :1]
    nothing = np.full((users, 2), scores.shape[1])
    found = [
        ranked.order_by_score(scores, rows),
        *ranked.sort_by_score(scores, rows),
        ranked.sorted_scores(scores),
        uniform(arrays["seed"], rows, 3),
        in_order(line.scores, line.order),
        line.placed(some),
        line.placed(np.concatenate([some, nothing], axis=1)),
        line.placed(nothing),
    ]
    # Rows shared by all users: fewer than requested, and some users with all rows masked.
    masked = np.random.default_rng(users).random((users, ITEMS + 1)) < 0.3
    masked[:1] |= scores.shape[1] % 3 == 0
    for count in (1, 2, scores.shape[1], scores.shape[1] + 2):
        found += ranked.best_by_score(scores, rows, count, ITEMS)
        found += ranked.best_by_score(scores, rows, count, ITEMS, masked)
        found += ranked.best_by_score(scores, np.sort(rows[0]), count, ITEMS, masked)
    for step in STEPS:
        opened = step.open(COLUMNS)
        after, why = opened.apply(scores, arrays)
        found += [after] if why is None else [after, why]
    return found


@examples(20)
@given(seed=st.integers(0, 2**32), users=st.integers(1, 3), width=st.integers(1, ITEMS))
def test_the_same_order_and_the_same_numbers(functions, seed, users, width):
    scores, rows, arrays = batch(seed, users, width)
    found = []
    for library in (functions, None):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(native_order, "library", lambda library=library: library)
            patch.setattr(native_chance, "library", lambda library=library: library)
            found.append(everything(scores, rows, arrays))
    for by_functions, by_numpy in zip(*found, strict=True):
        assert by_functions.dtype == by_numpy.dtype
        # bytes, because a draw without a seed gives NaN
        assert by_functions.tobytes() == by_numpy.tobytes()


def test_one_order_of_equal_scores_whatever_their_number(functions, monkeypatch):
    monkeypatch.setattr(native_order, "library", lambda: functions)
    rows = np.random.default_rng(0).permutation(100_000)[None] + 2**30
    order = ranked.order_by_score(np.zeros(rows.shape, np.float32), rows)
    assert (np.diff(rows[0, order[0]]) == 1).all()


def test_no_memory_is_an_error_of_its_own(monkeypatch):
    class Full:
        def sort_by_score(self, *arguments: Any) -> int:
            return -1

        best_by_score = put_in_place = sort_by_score

    monkeypatch.setattr(native_order, "library", Full)
    scores, rows = np.zeros((1, 3), np.float32), np.arange(3)[None]
    with pytest.raises(MemoryError, match="no memory to sort 3 candidates"):
        ranked.order_by_score(scores, rows)
    with pytest.raises(MemoryError, match="no memory to sort 3 candidates"):
        ranked.best_by_score(scores, rows, 1, 3)
    with pytest.raises(MemoryError, match="no memory to place 3 candidates"):
        in_order(scores, rows)


SANITIZED = """
import sys
from pathlib import Path
from test_native_order import batch, everything, native_chance, native_order
from tiercel_serving.native import open_library
functions = open_library(Path(sys.argv[1]))
native_order.library = native_chance.library = lambda: functions
for seed in range(200):
    everything(*batch(seed, seed % 3 + 1, seed % 60 + 1))
"""


@pytest.mark.parametrize("count", [1, 5, 99])
def test_the_best_of_many_alike_are_some_of_them(functions, monkeypatch, count):
    scores, rows = np.zeros((2, 100), np.float32), np.full((2, 100), 7)
    rows[1] = np.arange(100) // 2
    for library in (functions, None):
        monkeypatch.setattr(native_order, "library", lambda library=library: library)
        found, best = ranked.best_by_score(scores, rows, count, 200)
        assert found.tolist() == [[0.0] * count] * 2
        assert best.tolist() == [[7] * count, (np.arange(count) // 2).tolist()]


def test_the_best_are_those_of_the_whole_order(functions, monkeypatch):
    monkeypatch.setattr(native_order, "library", lambda: functions)
    rng = np.random.default_rng(1)
    scores, rows = rng.normal(size=(3, 5000)).astype(np.float32).round(2), rng.permutation(5000)
    masked = rng.random((3, 5001)) < 0.9
    found, best = ranked.best_by_score(scores, rows, 600, 5000, masked)
    for user in range(3):
        order = [at for at in np.lexsort((rows, -scores[user])) if not masked[user, rows[at]]][:600]
        wanted = len(order)
        assert best[user, :wanted].tolist() == rows[order].tolist()
        assert found[user, :wanted].tolist() == scores[user, order].tolist()
        assert (best[user, wanted:] == 5000).all()
        assert np.isneginf(found[user, wanted:]).all()


@pytest.mark.slow
def test_no_byte_beyond_what_was_given_is_touched():
    run_sanitized(SANITIZED)


#: Distributions of 4,096 scores for which a sample at a fixed stride may be misleading: place → score.
SAMPLED = {
    "the best are those of the sample": lambda at: np.where(at % 32 == 0, 5.0, -at),
    "none of the best is in the sample": lambda at: np.where(at % 32 == 1, 5.0, -at),
    "falling": lambda at: -at,
    "rising": lambda at: at,
    "all alike": lambda at: np.zeros(len(at)),
    "two values": lambda at: at % 2,
}


@pytest.mark.parametrize("hidden", [0.0, 0.5, 0.97, 1.0])
@pytest.mark.parametrize("kind", SAMPLED)
def test_the_best_are_found_however_a_sample_misleads(functions, monkeypatch, kind, hidden):
    monkeypatch.setattr(native_order, "library", lambda: functions)
    at = np.arange(4096)
    scores, rng = SAMPLED[kind](at).astype(np.float32)[None], np.random.default_rng(0)
    masked = rng.random((1, 4097)) < hidden
    for count in (1, 31, 200, 4000, 5000):
        found, best = ranked.best_by_score(scores, at, count, 4096, masked)
        order = [one for one in np.lexsort((at, -scores[0])).tolist() if not masked[0, one]][:count]
        assert best[0].tolist() == order + [4096] * (count - len(order))
        assert found[0, : len(order)].tolist() == scores[0, order].tolist()
        assert np.isneginf(found[0, len(order) :]).all()
