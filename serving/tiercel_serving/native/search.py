"""Inner products with item vectors: ``search.c``. All functions return None if it was not built.

They are used only if their results equal those of ``np.einsum``, which defines them, bit for bit, as on every
x86.
"""

from __future__ import annotations

from functools import cache
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from . import library

Rows = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float32]

#: As in ``search.c``: elements of a vector that are added at once, and vectors in a block.
LANES, GROUP = 4, 16


@cache
def functions() -> Any | None:
    """Return the built functions; None if there are none, or their sums differ from NumPy's in any bit."""
    built: Any = library()
    return built if built is not None and all(_same(built, size) for size in (1, 5, 16, 37, 64)) else None


def _same(built: Any, size: int) -> bool:
    drawn = np.random.default_rng(size).normal(size=(10, size)).astype(np.float32)
    vectors, query, found = drawn[:7], drawn[7:], np.empty((3, 7), np.float32)
    built.inner_products(3, 7, 7, size, vectors, query, None, found)
    return np.array_equal(found, np.einsum("id,bd->bi", vectors, query))


def inner_products(vectors: Scores, query: Scores, positions: Rows) -> Scores | None:
    """Implement :meth:`tiercel_serving.sources.scan.Space.score`, for at least one vector."""
    built = functions()
    if built is None:
        return None
    vectors, query = np.ascontiguousarray(vectors, np.float32), np.ascontiguousarray(query, np.float32)
    positions = np.ascontiguousarray(positions, np.int64)
    users, width = positions.shape
    found = np.empty((users, width), np.float32)
    built.inner_products(users, len(vectors), width, vectors.shape[1], vectors, query, positions, found)
    return found


def in_blocks(vectors: Scores) -> Scores | None:
    """Return a copy of vectors ``[A, D]`` in the layout of :func:`best_of_all`; None without the function."""
    built = functions()
    if built is None:
        return None
    many, size = vectors.shape
    shape = (-(-many // GROUP), -(-size // LANES) * LANES, GROUP)
    # Aligned to cache lines of GROUP floats: a load across two lines takes twice as long.
    held = np.zeros(prod(shape) + GROUP, np.float32)
    begin = -held.ctypes.data % (4 * GROUP) // 4
    blocks = held[begin : begin + prod(shape)].reshape(shape)
    built.put_in_blocks(many, size, np.ascontiguousarray(vectors, np.float32), blocks)
    return blocks


def best_of_all(
    blocks: Scores, query: Scores, rows: Rows, count: int, pad: int, masked: npt.NDArray[np.bool_]
) -> tuple[Scores, Rows]:
    """Return what :meth:`tiercel_serving.sources.scan.ExactSearch.nearest` does.

    Parameters
    ----------
    blocks, rows
        The vectors as :func:`in_blocks` returns them, and ``[A]`` their catalogue rows.
    query, count
        ``[B, D]``, and how many items each user gets.
    pad, masked
        The pad row, and ``[B, I + 1]`` whether a user must not get an item, contiguous.
    """
    built: Any = functions()
    query = np.ascontiguousarray(query, np.float32)
    users, size = query.shape
    found = np.empty((users, count), np.float32), np.empty((users, count), np.int64)
    sizes = users, len(rows), size, count, masked.shape[1], pad
    if built.best_of_all(*sizes, blocks, query, rows, masked, *found):
        raise MemoryError(f"no memory to score {len(rows)} items for {users} users")
    return found
