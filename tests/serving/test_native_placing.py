"""``native/placing.c`` places candidates as NumPy does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from native_build import open_compiled, run_sanitized

from drawing import examples
from tiercel_serving.columns import Column, with_null_row
from tiercel_serving.native import placing as native
from tiercel_serving.reorder.calibration import Calibration
from tiercel_serving.reorder.cap import Cap
from tiercel_serving.reorder.dpp import DPP
from tiercel_serving.reorder.fair_shares import FairShares
from tiercel_serving.reorder.mmr import MMR
from tiercel_serving.reorder.per_request import PerRequest
from tiercel_serving.reorder.spread import Spread
from tiercel_serving.verify.reference import plain_items

ITEMS = 60


@pytest.fixture(scope="module")
def functions() -> Any:
    return open_compiled()


def columns(rng: np.random.Generator, dimension: int) -> dict[str, Column]:
    """Return vectors, some equal and some zero, and values that some items lack."""
    vectors = rng.normal(size=(ITEMS, dimension)).astype(np.float32)
    vectors[rng.random(ITEMS) < 0.1] = 0
    vectors[rng.integers(0, ITEMS, 6)] = vectors[0]
    counts = rng.integers(0, 4, ITEMS)
    genres = np.concatenate([rng.permutation(5)[:count] for count in counts])
    made = {
        "vectors": Column(vectors.reshape(-1), None, np.arange(ITEMS + 1) * dimension),
        "genres": Column(genres.astype(np.int64), None, np.concatenate([[0], np.cumsum(counts)])),
        "kind": Column(rng.integers(0, 4, ITEMS), rng.random(ITEMS) < 0.8),
    }
    return {name: with_null_row(column) for name, column in made.items()}


def batch(rng: np.random.Generator, users: int, width: int, k: int | None) -> tuple[Any, dict[str, Any]]:
    """Return scores, some of them equal, and some candidates without a score."""
    scores = rng.random((users, width)).astype(np.float32)
    scores[:, ::3] = np.float32(0.25)
    scores[rng.random(scores.shape) < 0.1] = -np.inf
    arrays = {
        "kept_row": np.stack([rng.permutation(ITEMS + 1)[:width] for _ in range(users)]),
        "history_row": rng.integers(0, ITEMS, (users, 7)),
        "history_length": rng.integers(0, 8, (users, 1)).astype(np.int32),
        "strength": rng.choice([np.nan, 0.0, 0.4, 1.0], (users, 1)),
        "most": rng.integers(1, 4, (users, 1)).astype(np.float64),
    }
    if k is not None:
        arrays["k"] = np.full((users, 1), k, np.int32)
    return scores, arrays


STRENGTH = PerRequest("strength", 0.5)
STEPS = {
    "mmr": MMR(column="vectors", strength=STRENGTH),
    "dpp": DPP(column="vectors", strength=STRENGTH),
    "spread": Spread(column="vectors", window=4, strength=STRENGTH),
    "calibration": Calibration("genres", strength=STRENGTH),
    "cap": Cap("genres", PerRequest("most", 2.0, 1.0, 9.0)),
    "fair_shares": FairShares("kind", ((1, 0.3), (2, 0.2))),
}


@pytest.mark.parametrize("name", STEPS)
@examples(4)
@given(
    seed=st.integers(0, 2**32),
    users=st.integers(1, 3),
    width=st.integers(1, 40),
    # With fewer dimensions a window spans the whole space, and only rounding remains.
    dimension=st.sampled_from([8, 16, 37]),
    k=st.one_of(st.none(), st.integers(1, 60)),
)
def test_the_same_is_placed(functions, name, seed, users, width, dimension, k):
    rng = np.random.default_rng(seed)
    made = columns(rng, dimension)
    step = STEPS[name].open(made)
    scores, arrays = batch(rng, users, width, k)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "library", lambda: functions)
        by_functions = step.apply(scores, arrays)
        patch.setattr(native, "library", lambda: None)
        expected = step.apply(scores, arrays)
    # Only the first k places are compared; the places after them are in score order.
    for found, wanted in zip(by_functions, expected, strict=True):
        assert (found is None) == (wanted is None)
    for user in range(users):
        if all(
            a is None or np.array_equal(a[user], b[user]) for a, b in zip(by_functions, expected, strict=True)
        ):
            continue
        # C and NumPy round float32 differently: only gains that nearly tie may swap.
        for placed in (by_functions[0], expected[0]):
            check_against_reference(STEPS[name], made, scores, arrays, placed, user, k or width)


def check_against_reference(kind, made, scores, arrays, placed, user, seen):
    """Check a user's first places with the plain reference, which accepts the served order for near ties."""
    item_of, rows = plain_items(made), arrays["kept_row"][user]
    served = in_order(placed[user], rows)
    told = {name: array[user] for name, array in arrays.items()}
    told |= {name: float(told[name][0]) for name in ("strength", "most")}
    described = [{**item_of(row), "row": row} for row in rows.tolist()]
    again = kind.reference(
        scores[user].tolist(), described, {**told, "item_of": item_of, "served": served.tolist()}
    )
    np.testing.assert_array_equal(in_order(np.array(again, np.float32), rows)[:seen], served[:seen])


def in_order(scores, rows):
    """Return the rows in served order, best first."""
    return rows[np.lexsort((rows, -scores))]


def test_no_memory_is_an_error_of_its_own(monkeypatch):
    class Full:
        def place_in_shares(self, *arguments: int) -> int:
            return -1

    monkeypatch.setattr(native, "library", Full)
    with pytest.raises(MemoryError, match="no memory to place 3 candidates of each of 2 users"):
        native.place_in_shares(
            np.zeros((2, 3), np.int64), np.ones((1, 1), np.int64), np.ones((1, 1), np.int64)
        )


SANITIZED = """
import sys, numpy as np
from pathlib import Path
from test_native_placing import STEPS, batch, columns, native
from tiercel_serving.native import open_library
functions = open_library(Path(sys.argv[1]))
native.library = lambda: functions
for seed in range(150):
    rng = np.random.default_rng(seed)
    made = columns(rng, (1, 3, 16, 37)[seed % 4])
    for step in STEPS.values():
        step.open(made).apply(*batch(rng, seed % 3 + 1, seed % 40 + 1, None if seed % 2 else seed % 50 + 1))
"""


@pytest.mark.slow
def test_no_byte_beyond_what_was_given_is_touched():
    run_sanitized(SANITIZED)
