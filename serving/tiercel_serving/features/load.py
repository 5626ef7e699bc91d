"""The steps that load a batch's columns into registers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..columns import Column
from ..errors import InvalidRequest
from ..lookups.strings import Strings
from ..spec import Array
from .registers import Columns, Register, Registers, nan_where_null

#: Up to this many offsets are compared as Python integers, in a fifth of NumPy's time.
FEW_OFFSETS = 8


def checked_column(columns: Columns, name: str, n: int, is_list: bool) -> Column:
    """Return a column with ``n`` rows; InvalidRequest if it is missing or has another form."""
    column = columns.get(name)
    if column is None:
        raise InvalidRequest(f"features: column {name!r} is missing; send it, or null in every row")
    if (column.offsets is not None) != is_list:
        want, came = ("lists", "scalars") if is_list else ("scalars", "lists")
        raise InvalidRequest(f"features: column {name!r} holds {want}, but got {came}")
    if column.text_offsets is not None:
        _check_offsets(name, column.text_offsets, len(column.values), "strings", "byte")
    if column.offsets is not None:
        _check_offsets(name, column.offsets, _count(column), "lists", "element")
    if len(column) != n:
        raise InvalidRequest(f"features: column {name!r} has {len(column)} rows, expected {n}")
    return column


def _count(column: Column) -> int:
    """Return a column's number of values, which for a list column are the elements of all rows."""
    return len(column.values) if column.text_offsets is None else len(column.text_offsets) - 1


def _check_offsets(name: str, offsets: Array, size: int, what: str, unit: str) -> None:
    """Refuse offsets that are not ascending integers within ``size`` elements or bytes."""
    if offsets.dtype.kind not in "iu" or len(offsets) == 0:
        raise InvalidRequest(
            f"features: column {name!r}: its {what} need int64 offsets, one more than there are of them, "
            f"but got {len(offsets)} of {offsets.dtype.name}"
        )
    if len(offsets) <= FEW_OFFSETS:
        ends = offsets.tolist()
        fit = ends[0] >= 0 and ends[-1] <= size and ends == sorted(ends)
    else:
        fit = offsets[0] >= 0 and offsets[-1] <= size and not (offsets[1:] < offsets[:-1]).any()
    if not fit:
        raise _misfit(name, offsets, size, what, unit)


def _misfit(name: str, offsets: Array, size: int, what: str, unit: str) -> InvalidRequest:
    if offsets[0] < 0 or offsets[-1] > size:
        return InvalidRequest(
            f"features: column {name!r}: its {what} begin at {unit} {offsets[0]} and end at {unit} "
            f"{offsets[-1]}, but there are {size}"
        )
    row = int((offsets[1:] < offsets[:-1]).argmax())
    return InvalidRequest(
        f"features: column {name!r}: number {row} of its {what} ends at {unit} {offsets[row + 1]}, before it "
        f"begins at {unit} {offsets[row]}"
    )


def _check_valid(name: str, valid: Array | None, size: int, what: str) -> None:
    """Refuse validity flags that are not one boolean for each value or row."""
    if valid is not None and (len(valid) != size or valid.dtype != np.bool_):
        raise InvalidRequest(
            f"features: column {name!r} has {size} {what}, but got {len(valid)} validity flags of "
            f"{valid.dtype.name}; send one boolean for each"
        )


def _typed(name: str, column: Column, dtype: np.dtype[Any]) -> Array:
    """Return a column's values in the register's dtype, or refuse them."""
    if column.text_offsets is not None and dtype == np.object_:
        return column.strings().objects()
    values = column.values
    if values.dtype == dtype and column.text_offsets is None:
        return values
    kind = "O" if column.text_offsets is not None else values.dtype.kind
    if dtype == np.int64 and kind in "iub":
        return values.astype(np.int64)
    if dtype.kind == "f" and kind in "iubf":
        return values.astype(dtype)
    if _count(column) == 0:
        # An empty column carries no value that could be of the wrong type.
        return np.empty(0, dtype)
    want = "bytes" if dtype == np.object_ else dtype.name
    came = "bytes" if kind == "O" else values.dtype.name
    raise InvalidRequest(f"features: column {name!r} must be {want}, but got {came}")


class Load:
    """Stack scalar columns of one dtype into a register; text stays packed if the step says ``packed``."""

    def __init__(self, step: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
        self._names: list[str] = step["columns"]
        self._dtype = np.dtype(step["dtype"])
        self._packed: bool = step.get("packed", False)

    def run(self, registers: Registers, columns: Columns, n: int) -> Register:
        """Stack; in float dtypes nulls become NaN."""
        parts: list[Array] = []
        dtype = self._dtype
        for name in self._names:
            column = columns.get(name)
            if column is None or column.valid is not None or column.offsets is not None:
                return self._run_checked(columns, n)
            values = column.values
            if values.dtype is not dtype or len(values) != n:
                return self._run_checked(columns, n)
            parts.append(values)
        return Register(_stacked(parts, n))

    def _run_checked(self, columns: Columns, n: int) -> Register:
        """Load columns that have nulls, need a cast, are packed text, or are invalid."""
        loaded = [checked_column(columns, name, n, False) for name in self._names]
        if self._packed and all(column.text_offsets is not None for column in loaded):
            strings = Strings.join([column.strings() for column in loaded])
            return self._register(strings, loaded, n)
        parts = [_typed(name, c, self._dtype) for name, c in zip(self._names, loaded, strict=True)]
        return self._register(_stacked(parts, n), loaded, n)

    def _register(self, x: Any, loaded: Sequence[Column], n: int) -> Register:
        if all(column.valid is None for column in loaded):
            return Register(x)
        for name, column in zip(self._names, loaded, strict=True):
            _check_valid(name, column.valid, n, "values")
        full = np.ones(n, np.bool_)
        valid = _stacked([full if column.valid is None else column.valid for column in loaded], n)
        if self._dtype.kind == "f":
            return Register(nan_where_null(x, valid))
        return Register(x, None if valid.all() else valid)


def _stacked(parts: Sequence[Array], n: int) -> Array:
    if len(parts) == 1:
        return parts[0].reshape(1, n)
    stacked: Array = np.concatenate(parts).reshape(len(parts), n)
    return stacked


class LoadList:
    """Load one list column; elements of a null list are dropped."""

    def __init__(self, step: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
        self._name: str = step["column"]
        self._dtype = np.dtype(step["dtype"])
        self._packed: bool = step.get("packed", False)

    def run(self, registers: Registers, columns: Columns, n: int) -> Register:
        """Load; in float dtypes null elements become NaN."""
        column = checked_column(columns, self._name, n, True)
        valid, offsets, row_valid = column.valid, column.offsets, column.row_valid
        assert offsets is not None
        _check_valid(self._name, valid, _count(column), "values")
        _check_valid(self._name, row_valid, n, "rows")
        if self._packed and column.text_offsets is not None:
            values: Array | Strings = column.strings()
        else:
            values = _typed(self._name, column, self._dtype)
        if len(values) and (offsets[0] != 0 or offsets[-1] != len(values)):
            begin, end = int(offsets[0]), int(offsets[-1])
            values = values.part(begin, end) if isinstance(values, Strings) else values[begin:end]
            valid = None if valid is None else valid[begin:end]
            offsets = offsets - begin
        if row_valid is not None and not row_valid.all():
            lengths = np.diff(offsets)
            keep = np.repeat(row_valid, lengths)
            values = values.take(np.flatnonzero(keep)) if isinstance(values, Strings) else values[keep]
            valid = None if valid is None else valid[keep]
            offsets = np.concatenate([[0], np.cumsum(lengths * row_valid)])
        else:
            row_valid = None
        valid = None if valid is None else valid.reshape(1, -1)
        if isinstance(values, Strings):
            packed: Any = values
            return Register(packed, _unless_all(valid), offsets, row_valid)
        if self._dtype.kind == "f":
            return Register(nan_where_null(values.reshape(1, -1), valid), None, offsets, row_valid)
        return Register(values.reshape(1, -1), _unless_all(valid), offsets, row_valid)


def _unless_all(valid: npt.NDArray[np.bool_] | None) -> npt.NDArray[np.bool_] | None:
    return None if valid is None or valid.all() else valid
