"""Sums over the rows of sparse matrices that users pick, and the best of such sums: no loop over users.

A *cell* is a place of a table users × columns, read row by row; a cell that is not there is 0.
"""

from __future__ import annotations

import numpy as np

from ..ranked.masks import BITMAP_CELLS, Mask
from ..ranked.order import Rows, Scores, best_by_score
from ..spec import Array

_NOTHING = np.float32(-np.inf)


def picked(offsets: Array, rows: Rows) -> tuple[Rows, Rows]:
    """Return where the entries ``[n]`` of CSR rows ``[m]`` lie, end to end, and how many each row has."""
    first = offsets[rows]
    counts = offsets[rows + 1] - first
    begin = np.cumsum(counts) - counts
    return np.arange(int(counts.sum())) + np.repeat(first - begin, counts), counts


def sum_cells(cells: Rows, size: int, *weights: Array) -> tuple[Rows, list[Array]]:
    """Return the distinct cells, ascending, and for each of the weights ``[n]`` their sums in each cell.

    Sums are float64, taken in the order of the cells that came, so that they are the same in whatever
    company. Where the table has few cells (``size``) it is laid out, else the cells are sorted: both give
    the same, but that what sums to 0 may be left out.
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
    """Return ascending cells as scores and columns ``[users, w]``, one row a user.

    w is that of the longest row, and ``least`` at least; what is empty is -inf, and the last column.
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
    """Return each user's ``count`` largest sums above 0 of users × (I + 1) that the mask allows."""
    above = sums > 0
    scores, rows = left_aligned(cells[above], sums[above], mask.users, items + 1, count)
    allowed = mask.allows(rows)
    scores, rows = np.where(allowed, scores, _NOTHING), np.where(allowed, rows, items)
    return best_by_score(scores, rows, count, items)


def sums_of(cells: Rows, sums: Scores, rows: Rows, items: int) -> Scores:
    """Return the sums of items ``[B, M]`` among cells of users × (I + 1): else 0, -inf for the pad row."""
    wanted = rows + (np.arange(len(rows)) * (items + 1))[:, None]
    sums = np.append(sums, np.float32(0))
    place = np.searchsorted(cells, wanted)
    found = np.where(np.append(cells, -1)[place] == wanted, sums[place], np.float32(0))
    return np.where(rows == items, _NOTHING, found).astype(np.float32)
