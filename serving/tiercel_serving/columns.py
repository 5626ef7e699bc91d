"""Columns as used by feature programs and stores: values, validity, and offsets of lists."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from .lookups.strings import Strings
from .spec import DTYPES, Array


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a batch.

    Parameters
    ----------
    values
        ``[n]`` for a scalar column, the flat elements of all rows for a list column. Strings are an
        object array of ``bytes`` (UTF-8); every other kind is a plain NumPy dtype. The value at a null's
        place is unspecified.
    valid
        Boolean, one per value; False is null. None means that nothing is null, except NaN in a float column,
        which is always null.
    offsets
        ``[n + 1]`` int64 for a list column: row ``i`` is ``values[offsets[i]:offsets[i + 1]]``.
        None for a scalar column.
    row_valid
        For a list column, ``[n]`` boolean; False is a null list (not an empty one). None means that no list
        is null.
    text_offsets
        ``[m + 1]`` int64 for *packed text*, which only feature programs accept: ``values`` is then uint8,
        the bytes of all m strings, and value ``i`` is ``values[text_offsets[i]:text_offsets[i + 1]]``.
        Vocabularies look it up without a Python object per string. None for any other column.
    """

    values: Array
    valid: npt.NDArray[np.bool_] | None = None
    offsets: npt.NDArray[np.int64] | None = None
    row_valid: npt.NDArray[np.bool_] | None = None
    text_offsets: npt.NDArray[np.int64] | None = None

    def __len__(self) -> int:
        if self.offsets is not None:
            return len(self.offsets) - 1
        return len(self.values) if self.text_offsets is None else len(self.text_offsets) - 1

    @property
    def is_list(self) -> bool:
        """Whether each row is a list."""
        return self.offsets is not None

    def strings(self) -> Strings:
        """Return the values of a column of packed text."""
        assert self.text_offsets is not None
        return Strings(self.values, self.text_offsets)


def null_column(dtype: str, is_list: bool, n: int) -> Column:
    """Return a column of ``n`` nulls; ``dtype`` is a key of :data:`tiercel_serving.spec.DTYPES`."""
    kind = DTYPES[dtype]
    if is_list:
        return Column(_filler(kind, 0), None, np.zeros(n + 1, np.int64), np.zeros(n, np.bool_))
    if kind.kind == "f":
        return Column(np.full(n, np.nan, kind))
    return Column(_filler(kind, n), np.zeros(n, np.bool_))


def with_null_row(column: Column) -> Column:
    """Return the column with a null row appended: the row of unknown users, or the pad row of items."""
    n = len(column)
    if column.offsets is not None:
        valid = np.ones(n, np.bool_) if column.row_valid is None else column.row_valid
        offsets = np.append(column.offsets, column.offsets[-1])
        return replace(column, offsets=offsets, row_valid=np.append(valid, False))
    kind = column.values.dtype
    if kind.kind == "f":
        values = np.append(column.values, np.array([np.nan], kind))
        return Column(values, None if column.valid is None else np.append(column.valid, False))
    valid = np.ones(n, np.bool_) if column.valid is None else column.valid
    return Column(np.concatenate([column.values, _filler(kind, 1)]), np.append(valid, False))


def take_rows(column: Column, rows: npt.NDArray[np.int64]) -> Column:
    """Return some rows of a column, in the given order."""
    if column.offsets is None:
        return Column(column.values[rows], None if column.valid is None else column.valid[rows])
    starts = column.offsets[rows]
    lengths = column.offsets[rows + 1] - starts
    index = flat_ranges(starts, lengths)
    return Column(
        column.values[index],
        None if column.valid is None else column.valid[index],
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        None if column.row_valid is None else column.row_valid[rows],
    )


def merge_rows(over: Column, under: Column, where: npt.NDArray[np.bool_]) -> Column:
    """Return the rows of ``over`` where ``where [n]`` is True, else those of ``under``, in its dtype."""
    merge = _merge_scalars if under.offsets is None else _merge_lists
    return merge(over, under, where)


def _merge_scalars(over: Column, under: Column, where: npt.NDArray[np.bool_]) -> Column:
    values = np.where(where, over.values.astype(under.values.dtype, copy=False), under.values)
    if over.valid is None:
        return Column(values, None if under.valid is None else under.valid | where)
    return Column(values, np.where(where, over.valid, True if under.valid is None else under.valid))


def _merge_lists(over: Column, under: Column, where: npt.NDArray[np.bool_]) -> Column:
    assert over.offsets is not None
    assert under.offsets is not None
    behind = len(under.values)
    starts = np.where(where, over.offsets[:-1] + behind, under.offsets[:-1])
    lengths = np.where(where, np.diff(over.offsets), np.diff(under.offsets))
    index = flat_ranges(starts, lengths)
    values = np.concatenate([under.values, over.values.astype(under.values.dtype, copy=False)])[index]
    valid = None
    if under.valid is not None:
        valid = np.concatenate([under.valid, np.ones(len(over.values), np.bool_)])[index]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    every = np.ones(len(where), np.bool_)
    of_over, of_under = (every if c.row_valid is None else c.row_valid for c in (over, under))
    row_valid = np.where(where, of_over, of_under)
    return Column(values, valid, offsets, None if row_valid.all() else row_valid)


def _filler(kind: np.dtype[Any], n: int) -> Array:
    array: Array = np.zeros(n, kind)
    if kind == np.object_:
        array[:] = b""
    return array


def flat_ranges(starts: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the concatenated indexes of ``[n]`` ranges: ``starts[0], starts[0] + 1, …, starts[1], …``."""
    if len(starts) == 1:
        start = int(starts[0])
        return np.arange(start, start + int(lengths[0]))
    ends = np.cumsum(lengths)
    return np.arange(int(ends[-1]) if len(ends) else 0) + np.repeat(starts - ends + lengths, lengths)
