"""Columns with plain dtypes (see :class:`~.dataset.Dataset`), made from pandas' without changing a value.

A value that a plain dtype cannot hold is refused, with its column, and never rounded or wrapped. Only times
lose something: they are rounded down to whole seconds.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timezone
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from ..errors import DataCorrupt

Array = npt.NDArray[Any]

LARGEST = 2**63 - 1
#: Up to here a float64 holds every integer.
_EXACT = 2**53


def plain_frame(frame: pd.DataFrame, where: str) -> pd.DataFrame:
    """Return a frame with a fresh index and plain dtypes only (see :class:`~.dataset.Dataset`).

    Raises
    ------
    DataCorrupt
        If a column has an empty or duplicate name, a type without a plain dtype, or a value that its plain
        dtype cannot hold.
    """
    check_names([str(name) for name in frame.columns], where)
    plain = {str(name): plain_column(frame[name], f"{where}, column {name!r}") for name in frame.columns}
    return pd.DataFrame(plain, index=pd.RangeIndex(len(frame)), columns=list(plain))


def check_names(names: list[str], where: str) -> None:
    """Refuse names of columns that occur twice or are empty."""
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataCorrupt(f"{where}: the column {twice!r} is there twice; rename or drop one")
    if "" in names:
        raise DataCorrupt(
            f"{where}: column {names.index('') + 1} of {len(names)} has the empty name ''; rename or drop it"
        )


def plain_column(column: pd.Series, where: str) -> Array:
    """Return a column's values in a plain dtype."""
    dtype = column.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        return plain_column(_decoded(column), where)
    if pd.api.types.is_datetime64_any_dtype(dtype):
        return _seconds(column, where)
    if pd.api.types.is_bool_dtype(dtype):
        return _booleans(column)
    if pd.api.types.is_integer_dtype(dtype):
        null = column.isna().to_numpy()
        known = column.fillna(0) if null.any() else column
        unsigned = pd.api.types.is_unsigned_integer_dtype(dtype)
        return whole_numbers(known.to_numpy(dtype=np.uint64 if unsigned else np.int64), null, where)
    if pd.api.types.is_float_dtype(dtype):
        single = str(dtype) in ("float32", "Float32", "float16")
        return np.asarray(column.to_numpy(dtype=np.float32 if single else np.float64, na_value=np.nan))
    if pd.api.types.is_object_dtype(dtype) or pd.api.types.is_string_dtype(dtype):
        return _objects(column, where)
    raise not_plain(where, str(dtype))


def not_plain(where: str, found: str, remedy: str = "convert or drop the column") -> DataCorrupt:
    """Return the error of a column that has no plain dtype."""
    return DataCorrupt(
        f"{where}: expected one of integers, floats, booleans, strings, dates or lists in all its rows, "
        f"found {found}; {remedy}"
    )


def whole_numbers(values: Array, null: npt.NDArray[np.bool_], where: str) -> Array:
    """Return integers as int64, or as float64 with NaN if some are null.

    Raises DataCorrupt if an integer does not fit.

    Parameters
    ----------
    values
        ``[n]`` integers of any width, arbitrary where null.
    null
        ``[n]`` boolean.
    where
        Name of the column in messages.
    """
    if values.dtype.kind == "u":
        wide = (values > LARGEST) & ~null
        if wide.any():
            raise too_wide(values[wide][0].item(), where)
    whole = values.astype(np.int64)
    if not null.any():
        return whole
    check_exact(whole[~null & ((whole > _EXACT) | (whole < -_EXACT))].tolist(), where, "the column has nulls")
    floats = whole.astype(np.float64)
    floats[null] = np.nan
    return floats


def too_wide(value: int, where: str) -> DataCorrupt:
    """Return the error of an integer that does not fit int64."""
    return DataCorrupt(
        f"{where}: expected integers of 64 bits with a sign ({-LARGEST - 1} to {LARGEST}), found {value}; "
        "write the column as strings"
    )


def check_exact(values: Iterable[int], where: str, why: str) -> None:
    """Refuse integers that would change as float64, which they become because of ``why``."""
    stray = next((value for value in values if int(float(value)) != value), None)
    if stray is not None:
        raise DataCorrupt(
            f"{where}: {why}, which makes its integers float64, and {stray} would become "
            f"{int(float(stray))}; fill the nulls, or write the column as strings"
        )


def _decoded(column: pd.Series) -> pd.Series:
    categories = column.cat.categories
    if not column.isna().any():
        return column.astype(categories.dtype)
    # Integers with nulls would pass through floats.
    values = np.array([*categories, None], dtype=object)[column.cat.codes.to_numpy()]
    return pd.Series(values, index=column.index, dtype=object)


def _booleans(column: pd.Series) -> Array:
    if column.isna().any():
        return np.asarray(column.to_numpy(dtype=np.float64, na_value=np.nan))
    return np.asarray(column.to_numpy(dtype=bool))


def _seconds(column: pd.Series, where: str) -> Array:
    if column.dt.tz is not None:
        column = column.dt.tz_convert("UTC").dt.tz_localize(None)
    return _whole_seconds(column.to_numpy(dtype="datetime64[ns]"), where)


def _whole_seconds(moments: Array, where: str) -> Array:
    null = np.isnat(moments)
    return whole_numbers(moments.astype("datetime64[s]").astype(np.int64), null, where)


def _objects(column: pd.Series, where: str) -> Array:
    values = column.to_numpy(dtype=object)
    kind = pd.api.types.infer_dtype(column, skipna=True)
    if kind in ("string", "empty"):
        strings: Array = values.copy()
        strings[column.isna().to_numpy()] = None
        return strings
    if kind in ("date", "datetime", "datetime64"):
        # pandas' own dates end in 2262.
        moments = [None if pd.isna(value) else _in_utc(value) for value in values]
        return _whole_seconds(np.array(moments, dtype="datetime64[us]"), where)
    if kind == "boolean":
        return _booleans(column.astype("boolean"))
    if kind == "integer":
        return _python_integers(values, column.isna().to_numpy(), where)
    if kind == "floating":
        return np.asarray(column.to_numpy(dtype=np.float64, na_value=np.nan))
    first = next((value for value in values if value is not None), None)
    if isinstance(first, list | tuple | np.ndarray):
        return _lists(values, where)
    raise not_plain(where, f"{kind}, such as {first!r}")


def _in_utc(value: Any) -> Any:
    if isinstance(value, datetime) and value.tzinfo is not None:
        return value.astimezone(timezone.utc).replace(tzinfo=None)
    return value


def _python_integers(values: Array, null: npt.NDArray[np.bool_], where: str) -> Array:
    known = np.where(null, 0, values)
    for value in known:
        _check_width(int(value), where)
    return whole_numbers(known.astype(np.int64), null, where)


def _check_width(value: int, where: str) -> None:
    """Refuse an integer that does not fit int64."""
    if not -LARGEST - 1 <= value <= LARGEST:
        raise too_wide(value, where)


def _lists(values: Array, where: str) -> Array:
    """Return lists of Python values; a null list becomes an empty one, as NVTabular needs."""
    rows = np.empty(len(values), dtype=object)
    kinds: set[type] = set()
    for position, value in enumerate(values):
        if value is None or (isinstance(value, float) and np.isnan(value)):
            rows[position] = []
            continue
        if not isinstance(value, list | tuple | np.ndarray):
            raise DataCorrupt(f"{where}, row {position}: expected a list as in other rows, found {value!r}")
        rows[position] = list(value) if not isinstance(value, np.ndarray) else value.tolist()
        kinds.update(map(type, rows[position]))
    held = kinds - {type(None)}
    if len(held) > 1 or not held <= {str, int, float, bool}:
        names = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise DataCorrupt(f"{where}: the lists must hold one of strings, integers or floats, found {names}")
    has_nulls = type(None) in kinds
    if held == {int}:
        _check_integer_lists(rows, has_nulls, where)
    if held == {float} and has_nulls:
        for position, row in enumerate(rows):
            rows[position] = [np.nan if value is None else value for value in row]
    return rows


def _check_integer_lists(rows: Iterable[list[int | None]], has_nulls: bool, where: str) -> None:
    for row in rows:
        for value in row:
            if value is not None and not -_EXACT <= value <= _EXACT:
                _check_width(value, where)
                if has_nulls:
                    check_exact([value], where, "its lists have null elements")
