"""Sorting of candidates and reassigning of scores: the interface to ``order.c``.

All functions return None if it was not built, and raise MemoryError if C runs out of memory.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ..spec import Array
from . import library

Rows = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]


def order_by_score(scores: Scores, rows: Rows) -> Rows | None:
    """Implement :func:`tiercel_serving.ranked.order.order_by_score`."""
    order = np.empty(scores.shape, np.int64)
    return order if _sort(scores, rows, order, None, None) else None


def sort_by_score(scores: Scores, rows: Rows) -> tuple[Scores, Rows] | None:
    """Implement :func:`tiercel_serving.ranked.order.sort_by_score`."""
    found = np.empty(scores.shape, np.float32), np.empty(scores.shape, np.int64)
    return found if _sort(scores, rows, None, *found) else None


def line_up(scores: Scores, rows: Rows) -> tuple[Rows, Scores, Rows] | None:
    """Return the order ``[B, K]``, and scores and rows in that order."""
    found = (
        np.empty(scores.shape, np.int64),
        np.empty(scores.shape, np.float32),
        np.empty(scores.shape, np.int64),
    )
    return found if _sort(scores, rows, *found) else None


def sorted_scores(scores: Scores) -> Scores | None:
    """Implement :func:`tiercel_serving.ranked.order.sorted_scores`."""
    found = np.empty(scores.shape, np.float32)
    return found if _sort(scores, None, None, found, None) else None


def best_by_score(
    scores: Scores, rows: Rows, count: int, pad: int, masked: npt.NDArray[np.bool_] | None
) -> tuple[Scores, Rows] | None:
    """Implement :func:`tiercel_serving.ranked.order.best_by_score`."""
    functions: Any = library()
    if functions is None:
        return None
    users, width = scores.shape
    found = np.empty((users, count), np.float32), np.empty((users, count), np.int64)
    scores, rows = np.ascontiguousarray(scores, np.float32), np.ascontiguousarray(rows, np.int64)
    masked = None if masked is None else np.ascontiguousarray(masked)
    cells = 0 if masked is None else masked.shape[1]
    sizes = users, width, count, width if rows.ndim == 2 else 0, cells, pad
    if functions.best_by_score(*sizes, scores, rows, masked, *found):
        raise MemoryError(f"no memory to sort {width} candidates")
    return found


def _sort(
    scores: Scores, rows: Rows | None, order: Rows | None, found: Scores | None, found_rows: Rows | None
) -> bool:
    functions: Any = library()
    if functions is None:
        return False
    scores = np.ascontiguousarray(scores, np.float32)
    rows = None if rows is None else np.ascontiguousarray(rows, np.int64)
    if functions.sort_by_score(*scores.shape, scores, rows, order, found, found_rows):
        raise MemoryError(f"no memory to sort {scores.shape[1]} candidates")
    return True


def put_in_place(scores: Scores, order: Rows, picks: Rows | None) -> Scores | None:
    """Implement :meth:`tiercel_serving.reorder.placing.Line.placed` for its scores, order and picks.

    Without picks, the scores go to the candidates in the given order.
    """
    functions: Any = library()
    if functions is None:
        return None
    out = np.empty(scores.shape, np.float32)
    scores, order = np.ascontiguousarray(scores, np.float32), np.ascontiguousarray(order, np.int64)
    picks = None if picks is None else np.ascontiguousarray(picks, np.int64)
    places = 0 if picks is None else picks.shape[1]
    if functions.put_in_place(*scores.shape, places, scores, order, picks, out):
        raise MemoryError(f"no memory to place {scores.shape[1]} candidates")
    return out


def put_pinned(
    scores: Scores, rows: Rows, number: npt.NDArray[np.int32], count: int, before: int
) -> tuple[Scores, npt.NDArray[np.int32]] | None:
    """Implement :meth:`tiercel_serving.reorder.pin_items.Pinned.apply`."""
    functions: Any = library()
    if functions is None:
        return None
    scores, rows = np.ascontiguousarray(scores, np.float32), np.ascontiguousarray(rows, np.int64)
    out, pinned = np.empty(scores.shape, np.float32), np.empty(scores.shape, np.int32)
    if functions.put_pinned(*scores.shape, count, before, scores, rows, number, out, pinned):
        raise MemoryError(f"no memory to place {scores.shape[1]} candidates")
    return out, pinned


def put_by_draw(scores: Scores, noise: Doubles, weights: Doubles, rows: Rows) -> Scores | None:
    """Return scores, reassigned in the order of ``scores - weights * noise``; weights are ``[B or 1, 1]``."""
    functions: Any = library()
    if functions is None:
        return None
    if len(weights) != len(scores):
        weights = np.repeat(weights, len(scores), axis=0)
    given: list[Array] = [np.ascontiguousarray(scores, np.float32)]
    given += [np.ascontiguousarray(noise, np.float64), np.ascontiguousarray(weights, np.float64)]
    given.append(np.ascontiguousarray(rows, np.int64))
    out = np.empty(scores.shape, np.float32)
    if functions.put_by_draw(*scores.shape, *given, out):
        raise MemoryError(f"no memory to place {scores.shape[1]} candidates")
    return out
