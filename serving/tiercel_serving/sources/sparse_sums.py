"""Sums over rows of a sparse matrix, one set of rows per user, and the largest sums, without a user loop.

A *cell* is the flat index of an entry in a table users × columns, row by row; absent cells are 0.
"""

from __future__ import annotations

import numpy as np

from ..ranked.masks import BITMAP_CELLS, Mask
from ..ranked.order import Rows, Scores, best_by_score
from ..spec import Array

_NOTHING = np.float32(-np.inf)


def picked(offsets: Array, rows: Rows) -> tuple[Rows, Rows]:
    """Return the positions ``[n]`` of the entries of CSR rows ``[m]``, end to end, and each row's count."""
    first = offsets[rows]
    counts = offsets[rows + 1] - first
    begin = np.cumsum(counts) - counts
    return np.arange(int(counts.sum())) + np.repeat(first - begin, counts), counts


def sum_cells(cells: Rows, size: int, *weights: Array) -> tuple[Rows, list[Array]]:
    """Return the distinct cells, ascending, and each cell's sum of each of the weights ``[n]``.

    Sums are float64 and are added in the given order of the cells, so they do not depend on the rest of the
    batch. A table of few cells (``size``) is allocated densely; otherwise the cells are sorted. The results
    differ only in that the dense way leaves out cells that sum to 0.
    """
    if size <= BITMAP_CELLS:
        tables: list[Array] = [np.bincount(cells, some, minlength=size) for some in weights]
        there = tables[0] != 0
        for table in tables[1:]:
            there |= table != 0
        found: Rows = there.nonzero()[0]
        return found, [table[found] for table in tables]
    unique, inverse = np.unique(cells, return_inverse=True)
    sums: list[Array] = [np.bincount(inverse, some, minlength=len(unique)) for some in weights]
    return unique, sums


def left_aligned(cells: Rows, sums: Scores, users: int, columns: int, least: int) -> tuple[Scores, Rows]:
    """Return ascending cells as scores and columns ``[users, w]``, one row per user.

    w is the length of the longest row, but at least ``least``. Empty places hold -inf and the last column.
    """
    ends = np.searchsorted(cells, np.arange(users + 1) * columns)
    lengths = np.diff(ends)
    width = max(int(lengths.max(initial=0)), least)
    owner = np.repeat(np.arange(users), lengths)
    place = np.arange(len(cells)) - ends[owner]
    rows = np.full((users, width), columns - 1, np.int64)
    scores = np.full((users, width), _NOTHING, np.float32)
    rows[owner, place] = cells - owner * columns
    scores[owner, place] = sums
    return scores, rows


def best_allowed(cells: Rows, sums: Scores, mask: Mask, items: int, count: int) -> tuple[Scores, Rows]:
    """Return each user's ``count`` largest allowed sums above 0, from cells of users × (I + 1)."""
    above = sums > 0
    scores, rows = left_aligned(cells[above], sums[above], mask.users, items + 1, count)
    allowed = mask.allows(rows)
    scores, rows = np.where(allowed, scores, _NOTHING), np.where(allowed, rows, items)
    return best_by_score(scores, rows, count, items)


def sums_of(cells: Rows, sums: Scores, rows: Rows, items: int) -> Scores:
    """Return the sums ``[B, M]`` of items from cells of users × (I + 1); else 0, -inf for the pad row."""
    wanted = rows + (np.arange(len(rows)) * (items + 1))[:, None]
    sums = np.append(sums, np.float32(0))
    place = np.searchsorted(cells, wanted)
    found = np.where(np.append(cells, -1)[place] == wanted, sums[place], np.float32(0))
    return np.where(rows == items, _NOTHING, found).astype(np.float32)
