"""Drawn columns, and frames of them for fitting a workflow and for requests.

Hypothesis draws each column's dtype and its pool of values; rows are then taken from the pool by a seeded
generator, so that a frame of 1,000 rows costs Hypothesis one integer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from hypothesis import strategies as st

TEXTS = ["", "a", "b", "aa", "é", "e\u0301", "日本", "a\0", "\0", " ", "None", "nan", "🦅" * 9, "0", "1.0"]
UNSEEN_TEXTS = ["unseen", "A", "a\0\0", "\ud800", "ab" * 50]
INTS = [0, 1, 2, 3, 5, 7, -1, -2, 40, 99, 127, -128, 1000, 2**31, -(2**40), 2**52 + 1, 2**53 + 1, 2**62 + 1]
FLOATS = [0.0, -0.0, 0.5, 1.0, 1.5, 3.0, -0.5, -1.0, -2.5, 5.5, 1e-9, 7.25, 99.0, 0.1, 1e6, 2.0**60, 1e30]
EXTREMES = [np.inf, -np.inf, 1e308, -1e308, 3e38, 5e-324, 2.0**63, -(2.0**63)]

INT_DTYPES = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32")
FLOAT_DTYPES = ("float32", "float64")
#: dtypes of scalar columns, and of the elements of lists.
SCALARS = (*INT_DTYPES, "int64", "int64", *FLOAT_DTYPES, *FLOAT_DTYPES, "bool", "text", "text", "text")
ELEMENTS = ("int64", "int64", "int32", "float64", "float32", "text", "text", "bool")
#: The pandas extension dtypes that a fitted frame may have instead of NumPy's.
EXTENSIONS = {
    "int8": "Int8",
    "int16": "Int16",
    "int32": "Int32",
    "int64": "Int64",
    "uint8": "UInt8",
    "uint16": "UInt16",
    "uint32": "UInt32",
    "bool": "boolean",
    "text": "string",
}


@dataclass(frozen=True)
class ColumnSpec:
    """A raw column.

    Parameters
    ----------
    name
        Its name.
    dtype
        A NumPy dtype's name, or ``text``; for a list, that of its elements.
    is_list
        Whether each row is a list.
    values
        Values in the fitted frame.
    more
        Values that occur only in requests.
    nulls
        Share of nulls in the fitted frame.
    form
        ``plain``; ``extension``, a pandas extension dtype; or ``floats``, integers that became float64
        because some are null.
    """

    name: str
    dtype: str
    is_list: bool
    values: tuple[Any, ...]
    more: tuple[Any, ...]
    nulls: float = 0.0
    form: str = "plain"


@dataclass(frozen=True)
class Request:
    """A request's frame: number of rows, seed, share of null cells, share of unseen values."""

    rows: int
    seed: int
    nulls: float
    unseen: float


# ---------------------------------------------------------------------------------------------- strategies


def _pool(dtype: str, *, request: bool) -> st.SearchStrategy[Any]:
    if dtype == "text":
        known = st.sampled_from(TEXTS) | st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
        return known | st.sampled_from(UNSEEN_TEXTS) if request else known
    if dtype == "bool":
        return st.booleans()
    if dtype in FLOAT_DTYPES:
        width = int(dtype[-2:])
        known = st.sampled_from(FLOATS) | st.floats(width=width, allow_nan=False, allow_infinity=False)
        return known | st.sampled_from(EXTREMES) if request else known | st.integers(0, 9).map(float)
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    inside = [value for value in INTS if low <= value <= high]
    return (
        st.integers(0, 9) | st.sampled_from([*inside, int(low), int(high)]) | st.integers(int(low), int(high))
    )


def columns(name: str, dtypes: tuple[str, ...], *, is_list: bool = False) -> st.SearchStrategy[ColumnSpec]:
    """Draw a column whose dtype is one of ``dtypes``."""

    @st.composite
    def draw_column(draw: Callable[[Any], Any]) -> ColumnSpec:
        dtype = draw(st.sampled_from(dtypes))
        values = draw(st.lists(_pool(dtype, request=False), min_size=1, max_size=9))
        more = draw(st.lists(_pool(dtype, request=True), min_size=1, max_size=5))
        form, nulls = "plain", 0.0
        if not is_list and draw(st.integers(0, 2)) == 0:
            nulls = draw(st.sampled_from([0.1, 0.5]))
            form = "floats" if dtype in INT_DTYPES else "plain"
        if (
            not is_list
            and dtype in EXTENSIONS
            and ((dtype == "bool" and nulls) or draw(st.integers(0, 9)) == 0)
        ):
            form = "extension"
        if is_list and dtype in ("text", "int64") and draw(st.integers(0, 5)) == 0:
            nulls = 0.1
        return ColumnSpec(name, dtype, is_list, _typed(values, dtype), _typed(more, dtype), nulls, form)

    return draw_column()


def _typed(values: list[Any], dtype: str) -> tuple[Any, ...]:
    """Round floats to their dtype, so that fit and request have the same values."""
    if dtype != "float32":
        return tuple(values)
    with np.errstate(all="ignore"):
        return tuple(np.float32(value).item() for value in values)


def requests(sizes: tuple[int, ...], count: int) -> st.SearchStrategy[list[Request]]:
    """Draw ``count`` requests; the first have the given sizes, so that each size occurs."""
    shares = st.sampled_from([0.0, 0.0, 0.2, 0.5, 1.0])
    some = st.sampled_from([1, 1, 2, 7, 40])

    def request(rows: st.SearchStrategy[int]) -> st.SearchStrategy[Request]:
        return st.builds(Request, rows, st.integers(0, 2**32 - 1), shares, shares)

    rest = st.lists(request(some), min_size=count - len(sizes), max_size=count - len(sizes))
    return st.tuples(st.tuples(*(request(st.just(size)) for size in sizes)), rest).map(
        lambda both: [*both[0], *both[1]]
    )


# -------------------------------------------------------------------------------------------------- frames


def fit_frame(specs: tuple[ColumnSpec, ...], rows: int, seed: int) -> pd.DataFrame:
    """Return a frame to fit on."""
    rng = np.random.default_rng(seed)
    return pd.DataFrame({spec.name: _fit_series(spec, rows, rng) for spec in specs})


def _fit_series(spec: ColumnSpec, rows: int, rng: np.random.Generator) -> pd.Series:
    # Low indices are frequent, so that frequency thresholds split the vocabulary.
    def take(size: int) -> np.ndarray:
        return _objects(spec.values)[(len(spec.values) * rng.random(size) ** 2).astype(np.int64)]

    if spec.is_list:
        data = [take(size) for size in rng.choice([0, 1, 2, 3, 12], rows, p=[0.2, 0.3, 0.3, 0.15, 0.05])]
        # NVTabular reads a list column's dtype from its first row.
        data[0] = take(1) if len(data[0]) == 0 else data[0]
        lists = [_with_nulls(row, spec.nulls, rng).tolist() for row in data]
        lists[0] = data[0].tolist()
        return _list_series(lists, spec)
    data = _with_nulls(take(rows), spec.nulls, rng)
    if spec.form == "extension":
        return pd.Series(data, dtype=EXTENSIONS[spec.dtype])
    if spec.dtype == "text":
        return pd.Series(data, dtype=object)
    if spec.form == "floats" or spec.dtype in FLOAT_DTYPES:
        dtype = "float64" if spec.form == "floats" else spec.dtype
        return pd.Series([np.nan if value is None else value for value in data], dtype=dtype)
    return pd.Series(data.astype(spec.dtype))


def request_frame(specs: tuple[ColumnSpec, ...], request: Request) -> pd.DataFrame:
    """Return the frame of a request: every column is ``object``, as a service would gather it."""
    rng = np.random.default_rng(request.seed)
    return pd.DataFrame({spec.name: _request_series(spec, request, rng) for spec in specs})


def _request_series(spec: ColumnSpec, request: Request, rng: np.random.Generator) -> pd.Series:
    known, more = _objects(spec.values), _objects(spec.more)

    def take(size: int) -> np.ndarray:
        unseen = rng.random(size) < request.unseen
        return np.where(
            unseen, more[rng.integers(0, len(more), size)], known[rng.integers(0, len(known), size)]
        )

    rows = request.rows
    if not spec.is_list:
        data = _with_nulls(take(rows), request.nulls, rng)
        if spec.dtype == "int64" and None in data:
            # Beside a null the oracle's frame is float64, which rounds the highest integers up to 2**63.
            data = np.where(np.equal(data, None), None, [min(value or 0, 2**63 - 1025) for value in data])
        return pd.Series(data, dtype=object)
    data = [take(size) for size in rng.choice([0, 1, 2, 3, 40], rows, p=[0.2, 0.3, 0.3, 0.17, 0.03])]
    lists: list[Any] = [_with_nulls(row, request.nulls / 2, rng).tolist() for row in data]
    if request.nulls > 0.25:
        lists = [None if null else row for row, null in zip(lists, rng.random(rows) < 0.3, strict=True)]
    return pd.Series(_objects(lists), dtype=object)


def _with_nulls(data: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    if share:
        data = data.copy()
        data[rng.random(len(data)) < share] = None
    return data


def _list_series(lists: list[Any], spec: ColumnSpec) -> pd.Series:
    """Return lists of a fit, as arrays where NVTabular could not infer the dtype otherwise."""
    rows = lists
    if spec.dtype in ("float32", "int32"):
        rows = [row if None in row and spec.dtype == "int32" else np.array(row, spec.dtype) for row in lists]
    return pd.Series(_objects(rows), dtype=object)


def _objects(values: Any) -> np.ndarray:
    out = np.empty(len(values), object)
    for i, value in enumerate(values):
        out[i] = value
    return out
