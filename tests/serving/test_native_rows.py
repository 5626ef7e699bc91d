"""Rows and lists of rows in C equal those that NumPy makes, and rows beyond the items are errors."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from native_build import open_compiled, run_sanitized

from tiercel_serving.native import rows as native
from tiercel_serving.reorder.steps import Steps
from tiercel_serving.rules.kept import KeptRules
from tiercel_serving.settings import EMPTY_SLOT, FIRST_RULE_REASON, KEPT
from tiercel_serving.stores.memory_mapped import UserRows

ITEMS = 12


def by_both(make: Any) -> tuple[Any, Any]:
    """Return what ``make`` gives with the functions, compiled from the current sources, and without them."""
    found = []
    for functions in (open_compiled(), None):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(native, "library", lambda one=functions: one)
            found.append(make())
    return found[0], found[1]


def assert_same(one: Any, other: Any) -> None:
    assert one.dtype == other.dtype
    assert np.array_equal(one, other, equal_nan=one.dtype.kind == "f")


@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(1, 20), st.integers(1, 20))
def test_the_kept_are_those_that_numpy_keeps(seed: int, users: int, width: int, most: int) -> None:
    random = np.random.default_rng(seed)
    reasons = random.choice([KEPT, KEPT, FIRST_RULE_REASON], ITEMS + 1).astype(np.int32)
    reasons[ITEMS] = EMPTY_SLOT
    rules = KeptRules(reasons, width, min(most, width))
    rows = random.integers(0, ITEMS + 1, (users, width))
    scores = random.normal(size=(users, width)).astype(np.float32)
    source = random.integers(0, 3, (users, width)).astype(np.int32)
    built, plain = by_both(lambda: rules.keep(rows, scores, source))
    assert list(built) == list(plain)
    for name, array in built.items():
        assert_same(array, plain[name])


@pytest.mark.parametrize("row", [-1, ITEMS + 1])
def test_candidates_beyond_the_items_are_an_error(row: int) -> None:
    rules = KeptRules(np.zeros(ITEMS + 1, np.int32), 3, 2)
    rows, scores, source = np.array([[1, row, 2]]), np.ones((1, 3), np.float32), np.ones((1, 3), np.int32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "library", open_compiled)
        with pytest.raises(IndexError, match="1 of 3 rows are beyond the 12 items"):
            rules.keep(rows, scores, source)


@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(["i1", "i4", "i8", "f2", "f4", "f8", "?", "S3"]),
    st.lists(st.integers(0, 3), max_size=2),
    st.lists(st.integers(0, 4), min_size=1, max_size=3),
    st.sampled_from([np.int32, np.int64, np.uint8]),
)
def test_taken_rows_are_those_that_numpy_takes(
    seed: int, dtype: str, row: list[int], shape: list[int], numbers: Any
) -> None:
    random = np.random.default_rng(seed)
    table = random.integers(0, 100, (ITEMS, *row)).astype(dtype)
    at = random.integers(0, ITEMS, shape).astype(numbers)
    built, plain = by_both(lambda: native.take_rows(table, at))
    assert built.shape == plain.shape == (*shape, *row)
    assert built.dtype == plain.dtype
    assert built.tobytes() == plain.tobytes()
    other = random.normal(size=(ITEMS, 3))
    for taken in by_both(lambda: native.Tables({"a": table, "b": other}).take(at)):
        assert list(taken) == ["a", "b"]
        assert_same(taken["a"], plain)
        assert_same(taken["b"], other[at])


@pytest.mark.parametrize("row", [ITEMS, 2**40])
def test_a_row_beyond_the_table_is_an_error(row: int) -> None:
    for functions in (open_compiled(), None):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(native, "library", lambda one=functions: one)
            with pytest.raises(IndexError):
                native.take_rows(np.zeros((ITEMS, 2)), np.array([0, row]))
            with pytest.raises(IndexError):
                native.Tables({"a": np.zeros((2**41, 0)), "b": np.zeros(ITEMS)}).take(np.array([0, row]))


@given(st.lists(st.integers(0, 6), min_size=1, max_size=6), st.integers(1, 4), st.data())
def test_the_latest_rows_are_those_that_numpy_finds(sizes: list[int], length: int, data: Any) -> None:
    offsets = np.cumsum([0, *sizes])
    listed = np.arange(100, 100 + offsets[-1], dtype=np.int32)
    of = np.array(data.draw(st.lists(st.integers(0, len(sizes) - 1), min_size=1, max_size=5)))
    tables: Any = SimpleNamespace(history_offsets=offsets, history_rows=listed, size=len(sizes) - 1)
    built, plain = by_both(lambda: UserRows(tables, of).history(length, 7))
    for one, other in zip(built, plain, strict=True):
        assert_same(one, other)
    latest = [listed[offsets[row] : offsets[row + 1]][-length:] for row in of]
    assert built[0].tolist() == [[*rows, *[7] * (length - len(rows))] for rows in latest]


@pytest.mark.parametrize("row", [-1, 2])
def test_a_list_beyond_the_lists_is_an_error(row: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "library", open_compiled)
        with pytest.raises(IndexError, match="beyond the 2 lists"):
            native.latest_rows(np.array([0, row]), np.array([0, 1, 1]), np.array([4], np.int32), 3, 9)


def test_scores_of_empty_slots_and_nan_are_nothing() -> None:
    steps = Steps.__new__(Steps)
    steps._pad = ITEMS
    scores = np.array([[1, np.nan, -np.inf, -0.0, np.inf, 2]], np.float32)
    rows = np.array([[0, 1, 2, 3, ITEMS, ITEMS]])
    built, plain = by_both(lambda: steps._blank(scores, rows))
    assert_same(built, plain)
    assert built.tolist() == [[1, -np.inf, -np.inf, 0, -np.inf, -np.inf]]
    assert np.signbit(built[0, 3])


SANITIZED = """
import sys
from pathlib import Path
import numpy as np
from tiercel_serving.native import open_library, rows
functions = open_library(Path(sys.argv[1]))
rows.library = lambda: functions
random = np.random.default_rng(0)
for users in range(1, 4):
    for width in range(1, 20):
        offsets = np.cumsum(np.append(0, random.integers(0, 5, width)))
        listed = np.arange(offsets[-1], dtype=np.int32)
        rows.latest_rows(random.integers(0, width, users), offsets, listed, users, 99)
        cells = random.integers(0, 13, (users, width))
        scores, source = np.ones(cells.shape, np.float32), np.ones(cells.shape, np.int32)
        rows.keep_first(cells, scores, source, random.integers(0, 4, 13).astype(np.int32), users)
        rows.blank_scores(scores, cells, 12)
        for size in (1, 2, 4, 8, 12):
            rows.take_rows(np.ones((13, size), np.int8), cells)
        rows.Tables({"a": np.ones((13, 3), np.int8), "b": np.ones(13)}).take(cells)
"""


@pytest.mark.slow
def test_no_byte_beyond_what_was_given_is_touched() -> None:
    run_sanitized(SANITIZED)
