"""Rows of tables, and lists of catalogue rows for each user: the interface to ``rows.c``.

If it was not built, :func:`take_rows` and :class:`Tables` use NumPy, and the others return None.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from . import library

Array = npt.NDArray[Any]
Rows = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float32]
Codes = npt.NDArray[np.int32]


def take_rows(table: Array, at: npt.NDArray[np.integer[Any]]) -> Array:
    """Return ``table[at]`` for a contiguous table without objects, and numbers of any shape, none negative.

    NumPy gives the GIL away meanwhile, which takes longer than to copy the rows of one user.

    Raises
    ------
    IndexError
        A number is beyond the table.
    """
    functions: Any = library()
    if functions is None:
        return np.asarray(table[at])
    found = np.empty((*at.shape, *table.shape[1:]), table.dtype)
    places = np.ascontiguousarray(at, np.int64)
    sizes = len(table), table.nbytes // len(table), places.size
    if beyond := functions.take_rows(*sizes, table, places, found):
        raise IndexError(f"{beyond} of {places.size} rows are beyond the {len(table)} rows of a table")
    return found


class Tables:
    """Tables, contiguous and without objects, whose rows are taken together, in one call."""

    def __init__(self, tables: Mapping[str, Array]) -> None:
        self._tables = dict(tables)
        self._forms = [(name, table.shape[1:], table.dtype) for name, table in tables.items()]
        sizes = [(len(table), table.nbytes // len(table)) for table in tables.values()]
        self._sizes = np.array(sizes, np.int64).reshape(-1, 2)

    def take(self, at: npt.NDArray[np.integer[Any]]) -> dict[str, Array]:
        """Return what :func:`take_rows` does, of each table."""
        functions: Any = library()
        if functions is None:
            return {name: np.asarray(table[at]) for name, table in self._tables.items()}
        places = np.ascontiguousarray(at, np.int64)
        found = {name: np.empty((*at.shape, *row), dtype) for name, row, dtype in self._forms}
        arrays = *self._tables.values(), *found.values()
        if beyond := functions.take_from(len(found), places.size, arrays, self._sizes, places):
            raise IndexError(f"{beyond} rows are beyond the tables {', '.join(found)}")
        return found


def latest_rows(of: Rows, offsets: Rows, listed: Codes, length: int, pad: int) -> tuple[Rows, Codes] | None:
    """Return the last ``length`` rows of the lists ``of [B]``, padded, and how many ``[B]`` are real.

    Raises
    ------
    IndexError
        There is no such list.
    """
    functions: Any = library()
    if functions is None:
        return None
    users = len(of)
    found, counts = np.empty((users, length), np.int64), np.empty(users, np.int32)
    sizes = users, length, len(offsets) - 1, pad
    if functions.latest_rows(*sizes, offsets, listed, np.ascontiguousarray(of, np.int64), found, counts):
        raise IndexError(f"a list is beyond the {len(offsets) - 1} lists")
    return found, counts


def keep_first(
    rows: Rows, scores: Scores, source: Codes, reasons: Codes, most: int
) -> tuple[Rows, Rows, Scores, Codes, Codes] | None:
    """Implement :meth:`tiercel_serving.rules.kept.KeptRules.keep`.

    Returns
    -------
    Rows, places, scores and sources of the kept ``[B, most]``, and the reason of each candidate ``[B, N]``.

    Raises
    ------
    IndexError
        A row is beyond the items.
    """
    functions: Any = library()
    if functions is None:
        return None
    users, width = rows.shape
    shape = users, most
    found = (
        np.empty(shape, np.int64),
        np.empty(shape, np.int64),
        np.empty(shape, np.float32),
        np.empty(shape, np.int32),
        np.empty((users, width), np.int32),
    )
    rows, scores = np.ascontiguousarray(rows, np.int64), np.ascontiguousarray(scores, np.float32)
    source = np.ascontiguousarray(source, np.int32)
    beyond = functions.keep_first(users, width, most, len(reasons), rows, scores, source, reasons, *found)
    if beyond:
        raise IndexError(f"{beyond} of {rows.size} rows are beyond the {len(reasons) - 1} items")
    return found


def blank_scores(scores: Scores, rows: Rows, pad: int) -> Scores | None:
    """Return scores of any shape, -inf where they are NaN or their row is ``pad``."""
    functions: Any = library()
    if functions is None:
        return None
    blanked = np.empty(scores.shape, np.float32)
    scores, rows = np.ascontiguousarray(scores, np.float32), np.ascontiguousarray(rows, np.int64)
    functions.blank_scores(blanked.size, pad, scores, rows, blanked)
    return blanked
