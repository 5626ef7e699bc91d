"""Inner products in C have the bits of NumPy's, independently of the rest of the batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from native_build import open_compiled, run_sanitized

from tiercel_serving.native import search
from tiercel_serving.ranked.masks import make_mask
from tiercel_serving.ranked.order import best_by_score
from tiercel_serving.sources.scan import ExactSearch, Space

ITEMS, USERS = 60, 3


@pytest.fixture(autouse=True)
def compiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Use functions compiled from the current sources."""
    monkeypatch.setattr(search, "library", open_compiled)
    remembered = search.functions
    remembered.cache_clear()
    yield
    remembered.cache_clear()


def drawn(size: int) -> tuple[Any, Any, Any]:
    """Return vectors, queries and positions, one of which is past the last vector."""
    random = np.random.default_rng(size)
    positions = random.integers(0, ITEMS, (USERS, 13))
    positions[1, 5] = ITEMS
    return (
        random.normal(size=(ITEMS, size)).astype(np.float32),
        random.normal(size=(USERS, size)).astype(np.float32),
        positions,
    )


@pytest.mark.parametrize("size", [*range(1, 36), 64, 100, 129])
def test_the_sums_are_numpys_to_the_bit(size: int) -> None:
    vectors, query, positions = drawn(size)
    found = search.inner_products(vectors, query, positions)
    assert found is not None
    wanted = np.einsum("bmd,bd->bm", vectors.take(positions, axis=0, mode="clip"), query)
    wanted[1, 5] = -np.inf
    assert np.array_equal(found, wanted)
    alone = search.inner_products(vectors, query[2:], positions[2:, 4:5])
    assert alone is not None
    assert alone[0, 0] == found[2, 4]


def test_the_nan_of_a_broken_model_is_nothing() -> None:
    vectors, query, positions = drawn(20)
    vectors[positions[0, 3]] = np.nan
    found = search.inner_products(vectors, query, positions)
    assert found is not None
    assert np.isneginf(found[0, 3])
    assert np.isfinite(np.delete(found[2], positions[2] == positions[0, 3])).all()


def both(count: int, monkeypatch: pytest.MonkeyPatch, rows: Any = None) -> list[tuple[Any, Any]]:
    """Return the results of an exact search in C and in NumPy."""
    vectors, query, _ = drawn(24)
    mask = make_mask(USERS, ITEMS, np.array([3, 4, 9, 50]), np.array([2, 0, 2]))
    found = []
    for functions in (search.functions(), None):
        monkeypatch.setattr(search, "functions", lambda one=functions: one)
        nearest: Callable[..., Any] = ExactSearch(Space(vectors, rows, ITEMS)).nearest
        found.append(nearest(query, mask, count))
    return found


@pytest.mark.parametrize("count", [1, 20, ITEMS - 2, ITEMS + 5])
def test_the_best_of_all_are_those_that_numpy_finds(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    (scores, rows), (numpy_scores, numpy_rows) = both(count, monkeypatch)
    assert np.array_equal(scores, numpy_scores)
    assert np.array_equal(rows, numpy_rows)
    vectors, query, _ = drawn(24)
    masked = np.zeros((USERS, ITEMS + 1), np.bool_)
    masked[0, [3, 4]] = masked[2, [9, 50]] = masked[:, ITEMS] = True
    best = best_by_score(np.einsum("id,bd->bi", vectors, query), np.arange(ITEMS), count, ITEMS, masked)
    assert np.array_equal(scores, best[0])
    assert np.array_equal(rows, best[1])


@pytest.mark.parametrize("size", [1, 3, 4, 15, 16, 17, 32, 37, 64, 130])
@pytest.mark.parametrize("items", [0, 1, 15, 16, 17, 700])
def test_blocks_give_the_sums_of_numpy_for_each_user(items: int, size: int) -> None:
    random = np.random.default_rng(items + size)
    vectors = random.normal(size=(items, size)).astype(np.float32)
    query = random.normal(size=(4, size)).astype(np.float32)
    if items > 5:
        vectors[5] = np.nan
    rows, masked = random.permutation(items), random.random((4, items + 1)) < 0.2
    blocks = search.in_blocks(vectors)
    assert blocks is not None
    found = search.best_of_all(blocks, query, rows, 40, items, masked)
    scores = np.fmax(np.einsum("id,bd->bi", vectors, query), np.float32(-np.inf))
    wanted = best_by_score(scores, rows, 40, items, masked)
    assert np.array_equal(found[0], wanted[0])
    assert np.array_equal(found[1], wanted[1])


def test_more_users_than_are_scored_at_once_get_what_each_gets_alone() -> None:
    random = np.random.default_rng(0)
    vectors, query = (random.normal(size=(many, 4)).astype(np.float32) for many in (5000, 500))
    rows, masked = np.arange(5000), random.random((500, 5001)) < 0.2
    blocks = search.in_blocks(vectors)
    assert blocks is not None
    scores, best = search.best_of_all(blocks, query, rows, 3, 5000, masked)
    for user in (0, 208, 209, 210, 419, 420, 499):
        alone = search.best_of_all(blocks, query[[user]], rows, 3, 5000, masked[[user]])
        assert np.array_equal(alone[0][0], scores[user])
        assert np.array_equal(alone[1][0], best[user])


def test_functions_of_other_sums_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    class Rounded:
        def inner_products(self, *sizes_and_places: Any) -> int:
            return 0

    monkeypatch.setattr(search, "library", Rounded)
    vectors, query, positions = drawn(8)
    assert search.functions() is None
    assert search.inner_products(vectors, query, positions) is None
    assert search.in_blocks(vectors) is None


SANITIZED = """
import sys
from pathlib import Path
import numpy as np
from tiercel_serving import native
from tiercel_serving.native import search
functions = native.open_library(Path(sys.argv[1]))
search.functions = lambda: functions
random = np.random.default_rng(0)
for size in range(1, 40):
    for items in (1, 3, 4, 9, 16, 300):
        vectors = random.normal(size=(items, size)).astype(np.float32)
        query = random.normal(size=(2, size)).astype(np.float32)
        search.inner_products(vectors, query, random.integers(0, items + 1, (2, 7)))
        masked = random.random((2, items + 1)) < 0.3
        search.best_of_all(search.in_blocks(vectors), query, np.arange(items), 5, items, masked)
"""


@pytest.mark.slow
def test_no_byte_beyond_what_was_given_is_read() -> None:
    run_sanitized(SANITIZED)
