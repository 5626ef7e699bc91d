"""Convert a pandas series to the dtype that a feature program computes in, exactly or with an error."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import numpy as np
import pandas as pd

from tiercel_serving.features import InputColumn
from tiercel_serving.features.calendar import PER_SECOND
from tiercel_serving.spec import Array

from ..errors import ExportInputError


def elements(series: pd.Series, column: InputColumn) -> tuple[Array, Array | None]:
    """Return a series' values in the dtype of a program's input, and which are valid (None if all are).

    Floats have no validity array, because a null is NaN.

    Raises
    ------
    ExportInputError
        A value is of another type, or the dtype can't hold it.
    """
    if column.unit is not None:
        series = _ticks(series, column)
    null = series.isna().to_numpy()
    valid = None if not null.any() else ~null
    if column.dtype == "bytes":
        return _texts(series, null, column.name), valid
    try:
        if column.dtype in ("float32", "float64"):
            known = series.astype(object).where(~null, np.nan) if valid is not None else series
            floats = np.asarray(known.to_numpy(column.dtype))
            _check_unchanged(series, floats, column)
            return floats, None
        filled = series.where(~null, 0) if valid is not None else series
        return _whole(filled, column), valid
    except (ValueError, TypeError, OverflowError) as error:
        raise ExportInputError(f"column {column.name!r}: expected {column.dtype} ({error})") from error


def _ticks(series: pd.Series, column: InputColumn) -> pd.Series:
    """Return dates and times as integer counts of the column's unit, rounded down; numbers pass unchanged."""
    if isinstance(series.dtype, pd.DatetimeTZDtype):
        series = series.dt.tz_convert("UTC").dt.tz_localize(None)
    if series.dtype.kind == "M":
        moments = series.to_numpy()
    elif series.dtype == object and pd.api.types.infer_dtype(series) in ("date", "datetime", "datetime64"):
        values = [None if pd.isna(value) else _in_utc(value) for value in series]
        # Microseconds unless the values are nanoseconds, which can't hold dates before 1678 or after 2262.
        exact = any(isinstance(value, np.datetime64) for value in values)
        moments = np.array(values, "datetime64[ns]" if exact else "datetime64[us]")
    else:
        return series
    own, null = np.datetime_data(moments.dtype)[0], np.isnat(moments)
    ticks, more = moments.astype(np.int64), PER_SECOND[str(column.unit)] / PER_SECOND[own]
    if more < 1:
        ticks = ticks // (PER_SECOND[own] // PER_SECOND[str(column.unit)])
    elif (np.abs(ticks[~null]) > (2**63 - 1) // int(more)).any():
        raise ExportInputError(
            f"column {column.name!r}: expected times that int64 holds in {column.unit}, found "
            f"{moments[~null].max()}; fit the workflow on seconds since 1970 instead"
        )
    else:
        ticks = ticks * int(more)
    return pd.Series(ticks, series.index).astype("Int64").mask(null)


def _in_utc(value: Any) -> Any:
    if isinstance(value, datetime) and value.tzinfo is not None:
        value = value.astimezone(timezone.utc).replace(tzinfo=None)
    return value.to_datetime64() if isinstance(value, pd.Timestamp) else value


def _check_unchanged(series: pd.Series, floats: Array, column: InputColumn) -> None:
    """Refuse integers that change when cast to float, which would merge two categories."""
    if series.dtype.kind == "f":
        return
    # float32 holds all integers below 2**24 exactly.
    doubtful = np.flatnonzero(~(np.abs(floats) < 2.0**24))
    for value, number in zip(series.iloc[doubtful], floats[doubtful].tolist(), strict=True):
        if isinstance(value, (int, np.integer)) and int(number) != value:
            raise ExportInputError(
                f"column {column.name!r}: the workflow was fitted on {column.dtype}, as which {value} would "
                f"be {int(number)}; fit it on integers without nulls, or on strings"
            )


def _whole(series: pd.Series, column: InputColumn) -> Array:
    if column.dtype == "bool":
        return np.asarray(series.to_numpy().astype(np.bool_))
    if series.dtype.kind in "iub":
        # Integers of any width and extension dtypes become int64, uint64 or bool.
        values = series.to_numpy(dtype=series.dtype.kind + "8" if series.dtype.kind != "b" else np.bool_)
        whole: Array = values.astype(np.int64)
        wide = whole < 0 if values.dtype.kind == "u" else np.zeros(0, np.bool_)
        if wide.any():
            raise _not_whole(values[wide][0], column)
        return whole
    if series.dtype.kind == "f":
        values = series.to_numpy()
        within = (values >= -(2.0**63)) & (values < 2.0**63)
        whole = np.where(within, values, 0).astype(np.int64)
        same = within & (whole == values)
        if not same.all():
            raise _not_whole(values[~same][0], column)
        return whole
    return np.array([_as_int(value, column) for value in series], np.int64)


def _as_int(value: Any, column: InputColumn) -> int:
    whole = isinstance(value, (int, np.integer, np.bool_))
    if isinstance(value, (float, np.floating)):
        whole = float(value).is_integer()
    if not whole or not -(2**63) <= int(value) < 2**63:
        raise _not_whole(value, column)
    return int(value)


def _not_whole(value: Any, column: InputColumn) -> ExportInputError:
    return ExportInputError(
        f"column {column.name!r}: expected int64, found {value!r}; convert the column, or write it as strings"
    )


def _texts(series: pd.Series, null: Array, name: str) -> Array:
    out, values = np.empty(len(series), np.object_), series.tolist()
    if set(map(type, values)) == {str}:
        out[:] = [value.encode("utf-8", "surrogatepass") for value in values]
    else:
        out[:] = [_utf8(value, name) if ok else b"" for value, ok in zip(values, ~null, strict=True)]
    return out


def _utf8(value: Any, name: str) -> bytes:
    if isinstance(value, str):
        return value.encode("utf-8", "surrogatepass")
    if isinstance(value, bytes):
        return value
    raise ExportInputError(f"column {name!r}: expected text, found {value!r}")
