"""Columns of a fitted table, gathered by row number.

One extra row after the table's last is the answer for keys that the table does not contain.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .expressions import INTEGER_DTYPES, Expression, Where, apply
from .vocabulary import utf8


@dataclass(frozen=True)
class TableColumn:
    """One column of a fitted table, with the row for unseen keys. Compared by source and column.

    Parameters
    ----------
    source, column
        The table, and the column's name in it.
    values
        ``[R + 1]`` int64, float32, float64, or objects that are ``bytes``. For a list column, the elements
        of all rows, concatenated.
    valid
        bool, as long as ``values``; False is null. None for floats, where a null is NaN, and where nothing
        is null.
    offsets
        ``[R + 2]`` int64, for a list column: where each row's elements begin and end.
    row_valid
        ``[R + 1]`` bool, for a list column: False is a null list.
    """

    source: str
    column: str
    values: Any = field(compare=False, repr=False)
    valid: Any = field(compare=False, repr=False, default=None)
    offsets: Any = field(compare=False, repr=False, default=None)
    row_valid: Any = field(compare=False, repr=False, default=None)


def gather(
    index: Expression, series: Any, *, source: str, where: Where, unseen: int | float | None = None
) -> Expression:
    """Return a column of a fitted table, gathered by row number.

    Parameters
    ----------
    index
        The table row of each row; the number after the last row stands for an unseen key.
    series
        The table's column: numbers, booleans, text, or lists of those.
    source
        Identifies the table.
    where
        Names the operator in a refusal.
    unseen
        The answer for an unseen key, for numbers and booleans; None is null.

    Raises
    ------
    UnsupportedOperator
        A program can't hold values of this type.
    """
    name, null = str(series.name), series.isna().to_numpy()
    dtype = series.dtype
    if isinstance(dtype, np.dtype):
        if dtype.name in ("float32", "float64"):
            last = np.nan if unseen is None else unseen
            column = TableColumn(source, name, np.append(series.to_numpy(), dtype.type(last)))
            return _gathered("gather", index, column, dtype.name, dtype.name)
        if dtype.name in INTEGER_DTYPES or dtype.name == "bool":
            values = np.append(series.to_numpy().astype(np.int64), np.int64(unseen or 0))
            valid = None if unseen is not None else np.arange(len(values)) < len(series)
            return _gathered("gather", index, TableColumn(source, name, values, valid), "int64", dtype.name)
        if dtype == np.object_:
            known = series[~null].tolist()
            if all(isinstance(value, str) for value in known):
                texts = _objects([utf8(value, source) if isinstance(value, str) else b"" for value in series])
                column = TableColumn(source, name, np.append(texts, b""), np.append(~null, False))
                return _gathered("gather_text", index, column, "bytes", "bytes")
            if all(isinstance(value, (list, tuple, np.ndarray)) for value in known):
                return _gather_list(index, series, ~null, source, where)
    kinds = sorted({type(value).__name__ for value in series[~null].tolist()})
    raise where.refuse(
        name,
        f"its table holds {dtype} values{' of types ' + ', '.join(kinds) if dtype == np.object_ else ''}, "
        "which no request or tensor carries",
        "Store the column as int64, float64, bool, text or lists of those",
    )


def _gathered(op: str, index: Expression, column: TableColumn, physical: str, dtype: str) -> Expression:
    return apply(op, index, own={"column": column}, physical=physical, dtype=dtype)


def _gather_list(index: Expression, series: Any, row_valid: Any, source: str, where: Where) -> Expression:
    name = str(series.name)
    rows = [row if ok else () for row, ok in zip(series.tolist(), row_valid, strict=True)]
    offsets = np.zeros(len(rows) + 2, np.int64)
    np.cumsum([*map(len, rows), 0], out=offsets[1:])
    values, valid, dtype = _elements(rows, name, source, where)
    column = TableColumn(source, name, values, valid, offsets, np.append(row_valid, False))
    physical = "bytes" if dtype == "bytes" else "int64" if values.dtype == np.int64 else dtype
    own = {"column": column}
    return apply("gather_list", index, own=own, physical=physical, dtype=dtype, is_list=True)


def _elements(rows: list[Any], name: str, source: str, where: Where) -> tuple[Any, Any, str]:
    """Return the concatenated elements, which are valid (None if all), and NVTabular's dtype of them."""
    import pandas as pd

    arrays = {row.dtype for row in rows if isinstance(row, np.ndarray) and row.dtype != np.object_}
    flat = [value for row in rows for value in (row.tolist() if isinstance(row, np.ndarray) else row)]
    flat = [value.item() if isinstance(value, np.generic) else value for value in flat]
    null = pd.isna(pd.Series(flat, dtype=object)).to_numpy()
    valid = ~null if null.any() else None
    types = {type(value) for value in flat if value is not None}  # a NaN makes the elements floats
    if len(arrays) == 1 and all(isinstance(row, np.ndarray) for row in rows if len(row)):
        dtype = arrays.pop()
    elif types <= {str}:
        return _objects([utf8(v, source) if isinstance(v, str) else b"" for v in flat]), valid, "bytes"
    else:
        plain = {bool: "bool", int: "int64", float: "float64"}
        of_types = {plain.get(kind, "object") for kind in types} - ({"int64"} if float in types else set())
        dtype = np.dtype(of_types.pop() if len(of_types) == 1 and not arrays else object)
    if dtype.name in ("float32", "float64"):
        filled = [np.nan if missing else value for value, missing in zip(flat, null, strict=True)]
        return np.array(filled, dtype), None, dtype.name
    if dtype.name in INTEGER_DTYPES or dtype.name == "bool":
        filled = [0 if missing else int(value) for value, missing in zip(flat, null, strict=True)]
        return np.array(filled, np.int64), valid, dtype.name
    raise where.refuse(
        name,
        f"its table's lists hold {', '.join(sorted(kind.__name__ for kind in types))}",
        "Store lists of int64, float64, bool or text",
    )


def _objects(values: list[bytes]) -> Any:
    out = np.empty(len(values), np.object_)
    out[:] = values
    return out
