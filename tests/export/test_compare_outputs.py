"""The comparator: which outputs count as equal, and the messages where they are not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tiercel_serving.verify.compare import ENGINE, EXACT, Tolerance, compare, compare_arrays, compare_rankings

FLOATS = hnp.arrays(np.float32, hnp.array_shapes(max_dims=3, max_side=5), elements=st.floats(width=32))


@given(FLOATS)
def test_everything_equals_itself_nan_and_inf_included(array: np.ndarray) -> None:
    for tolerance in (EXACT, ENGINE):
        difference = compare_arrays(array, array.copy(), tolerance)
        assert difference.ok
        assert difference.worst == 0
        assert difference.compared == array.size


@given(FLOATS, st.data())
def test_one_changed_element_is_found_and_named(array: np.ndarray, data: st.DataObject) -> None:
    where = tuple(data.draw(st.integers(0, side - 1)) for side in array.shape)
    changed = array.copy()
    changed[where] = 0.0 if not np.isfinite(array[where]) else np.nan
    difference = compare_arrays(changed, array, ENGINE, "score")
    assert not difference.ok
    assert difference.worst == np.inf
    assert difference.where.startswith(f"score{list(where)}")


def test_tolerance_is_absolute_plus_relative() -> None:
    oracle = np.array([0.0, 100.0], np.float32)
    tolerance = Tolerance(0.5, 0.1)
    assert compare_arrays(oracle + np.float32([0.4, 10.0]), oracle, tolerance).ok
    assert not compare_arrays(oracle + np.float32([0.6, 0.0]), oracle, tolerance).ok
    assert not compare_arrays(oracle + np.float32([0.0, 10.9]), oracle, tolerance).ok


@pytest.mark.parametrize(
    "values", [np.array([1, 2, 3]), np.array([b"a", b"b", b"c"], object), np.zeros(3, bool)]
)
def test_what_is_no_float_must_be_equal(values: np.ndarray) -> None:
    other = values.copy()
    other[1] = values[0] if values.dtype != bool else True
    assert compare_arrays(values, values, ENGINE).ok
    assert not compare_arrays(other, values, ENGINE, "id").ok


def test_shapes_dtypes_and_names_count() -> None:
    a = np.zeros((2, 3), np.float32)
    assert "expected float32 [2, 3]" in compare_arrays(a[:, :2], a, name="t").where
    assert not compare_arrays(a.astype(np.float64), a).ok
    assert "tensors" in compare({"x": a}, {"x": a, "y": a}).where


def test_ties_may_swap_and_others_not() -> None:
    scores = np.array([[0.9, 0.5, 0.5, 0.1]], np.float32)
    ids = np.array([[7, 8, 9, 3]])
    assert compare_rankings(ids[:, [0, 2, 1, 3]], scores, ids, scores).ok
    assert not compare_rankings(ids[:, [1, 0, 2, 3]], scores, ids, scores).ok
    # At the end, an item that the oracle does not list may replace one that it ties with; no other item may.
    assert compare_rankings(np.array([[7, 8, 9, 4]]), scores, ids, scores).ok
    assert not compare_rankings(np.array([[7, 8, 4, 3]]), scores, ids, scores).ok
