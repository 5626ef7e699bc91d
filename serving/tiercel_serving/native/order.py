"""Candidates by score, and the scores of places: ``order.c``. Functions that were not built return None."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ..spec import Array
from . import address, library

Rows = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float32]


def order_by_score(scores: Scores, rows: Rows) -> Rows | None:
    """Do what :func:`tiercel_serving.ranked.order_by_score` does."""
    order = np.empty(scores.shape, np.int64)
    return order if _sort(scores, rows, order, None, None) else None


def sort_by_score(scores: Scores, rows: Rows) -> tuple[Scores, Rows] | None:
    """Do what :func:`tiercel_serving.ranked.sort_by_score` does."""
    found = np.empty(scores.shape, np.float32), np.empty(scores.shape, np.int64)
    return found if _sort(scores, rows, None, *found) else None


def sorted_scores(scores: Scores) -> Scores | None:
    """Do what :func:`tiercel_serving.ranked.sorted_scores` does."""
    found = np.empty(scores.shape, np.float32)
    return found if _sort(scores, None, None, found, None) else None


def _sort(
    scores: Scores, rows: Rows | None, order: Rows | None, found: Scores | None, found_rows: Rows | None
) -> bool:
    functions: Any = library()
    if functions is None:
        return False
    scores = np.ascontiguousarray(scores, np.float32)
    rows = None if rows is None else np.ascontiguousarray(rows, np.int64)
    made = (None if array is None else address(array) for array in (rows, order, found, found_rows))
    if functions.sort_by_score(*scores.shape, address(scores), *made):
        raise MemoryError(f"no memory to sort {scores.shape[1]} candidates")
    return True


def put_in_place(scores: Scores, order: Rows, picks: Rows) -> Scores | None:
    """Do what :meth:`tiercel_serving.reorder.placing.Line.placed` does, of its scores, order and picks."""
    functions: Any = library()
    if functions is None:
        return None
    out = np.empty(scores.shape, np.float32)
    given: list[Array] = [np.ascontiguousarray(scores, np.float32)]
    given += [np.ascontiguousarray(places, np.int64) for places in (order, picks)]
    if functions.put_in_place(*scores.shape, picks.shape[1], *map(address, given), address(out)):
        raise MemoryError(f"no memory to place {scores.shape[1]} candidates")
    return out
