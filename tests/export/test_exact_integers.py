"""Integers given to an export or a client are passed on exactly, or refused by value."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drawing import examples
from tiercel_client.errors import InvalidInput
from tiercel_client.values import convert_column, convert_ids
from tiercel_export.errors import ExportInputError
from tiercel_export.release.given import infer_column, raw_ids
from tiercel_export.workflow.frames import column_from_series
from tiercel_serving.features import InputColumn

EDGES = [0, 1, 2**24 + 1, 2**53, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1, 2**64, -(2**53) - 1, -(2**63)]
WHOLE = st.sampled_from(EDGES) | st.integers(-(2**63) - 1, 2**64)
DTYPES = ["int64", "float32", "float64"]


def fits(value: int, dtype: str) -> bool:
    if dtype == "int64":
        return -(2**63) <= value < 2**63
    return int(np.dtype(dtype).type(value)) == value


def frames(values: list[int | None]) -> list[pd.Series]:
    """Return the column in every pandas dtype that can hold it."""
    series = [pd.Series(values, dtype=object)]
    known = np.array([0 if value is None else value for value in values], object)
    for dtype in (np.int64, np.uint64):
        limits = np.iinfo(dtype)
        if all(limits.min <= value <= limits.max for value in known):
            null = np.array([value is None for value in values])
            series.append(pd.Series(pd.arrays.IntegerArray(known.astype(dtype), null)))
            if not null.any():
                series += [pd.Series(known.astype(dtype)), pd.Series(list(known.astype(dtype)), dtype=object)]
    return series


@examples(40)
@given(st.lists(WHOLE | st.none(), min_size=1, max_size=4), st.sampled_from(DTYPES))
def test_columns(values: list[int | None], dtype: str) -> None:
    strays = [value for value in values if value is not None and not fits(value, dtype)]
    for series in frames(values):
        column = InputColumn("x", dtype, False, "item")
        if strays:
            with pytest.raises(ExportInputError, match=rf"column 'x'.*({'|'.join(map(str, strays))})"):
                column_from_series(series, column)
            continue
        read = column_from_series(series, column)
        assert [int(got) for got, value in zip(read.values, values, strict=True) if value is not None] == [
            value for value in values if value is not None
        ]


@examples(40)
@given(st.lists(st.lists(WHOLE | st.none(), max_size=3), min_size=1, max_size=3), st.sampled_from(DTYPES))
def test_lists(rows: list[list[int | None]], dtype: str) -> None:
    column = InputColumn("x", dtype, True, "item")
    flat = [value for row in rows for value in row]
    strays = [value for value in flat if value is not None and not fits(value, dtype)]
    shapes: list[Any] = [rows]
    if None not in flat and all(0 <= value < 2**64 for value in flat if value is not None):
        shapes.append([np.array(row, np.uint64) for row in rows])
    for shape in shapes:
        series = pd.Series(shape, dtype=object)
        if strays:
            with pytest.raises(ExportInputError, match=rf"column 'x'.*({'|'.join(map(str, strays))})"):
                column_from_series(series, column)
            continue
        read = column_from_series(series, column)
        for got, value in zip(read.values.tolist(), flat, strict=True):
            assert value is None or got == value


@examples(25)
@given(st.lists(WHOLE, min_size=1, max_size=4))
def test_ids(values: list[int]) -> None:
    strays = [value for value in values if not fits(value, "int64")]
    for series in frames([*values]):
        if strays:
            with pytest.raises(ExportInputError, match=rf"items: ids in 'x'.*({'|'.join(map(str, strays))})"):
                raw_ids(pd.DataFrame({"x": series}), "x", "items")
        else:
            assert raw_ids(pd.DataFrame({"x": series}), "x", "items").tolist() == values


def test_columns_that_no_program_reads() -> None:
    wide = pd.Series(np.array([1, 2**63], np.uint64))
    with pytest.raises(ExportInputError, match=f"column 'x'.*{2**63}"):
        column_from_series(wide, infer_column(wide, "x", "items"))


@pytest.mark.parametrize("code", np.typecodes["AllInteger"] + "efd")
@pytest.mark.parametrize("as_arrays", [True, False])
def test_lists_of_every_width_that_no_program_reads(code: str, as_arrays: bool) -> None:
    rows = [np.array([1, 2], code), np.array([3], code)]
    series = pd.Series(rows if as_arrays else [list(row) for row in rows], dtype=object)
    column = infer_column(series, "x", "items")
    assert (column.dtype, column.is_list) == ("float64" if code in "efd" else "int64", True)
    assert column_from_series(series, column).values.tolist() == [1, 2, 3]


def test_lists_of_numbers_beyond_the_widest() -> None:
    wide = pd.Series([np.array([1, 2**63], np.uint64)])
    with pytest.raises(ExportInputError, match=f"column 'x'.*{2**63}"):
        column_from_series(wide, infer_column(wide, "x", "items"))


@pytest.mark.parametrize("value", [1.5, "5", 1e300, float("inf"), -1e19])
def test_what_is_no_integer(value: Any) -> None:
    for series in (pd.Series([value], dtype=object), pd.Series([value])):
        with pytest.raises(ExportInputError, match="column 'x': expected int64, found"):
            column_from_series(series, InputColumn("x", "int64", False, "item"))


# -------------------------------------------------------------------------------------------- requests


@examples(40)
@given(st.lists(WHOLE, min_size=1, max_size=4), st.sampled_from(["int64", "float64"]))
def test_requests(values: list[int], dtype: str) -> None:
    strays = [value for value in values if not fits(value, dtype)]
    shapes: list[Any] = [values]
    if all(0 <= value < 2**64 for value in values):
        shapes.append(np.array(values, np.uint64))
    if all(-(2**63) <= value < 2**63 for value in values):
        shapes.append(np.array(values, np.int64))
    for shape in shapes:
        asks = [lambda shape=shape: convert_column(shape, dtype, "x[{}]".format, nullable=True)[0]]
        if dtype == "int64":
            asks.append(lambda shape=shape: convert_ids(shape, dtype, "x[{}]".format))
        for ask in asks:
            if strays:
                with pytest.raises(InvalidInput, match=rf"x\[{values.index(strays[0])}\]: expected"):
                    ask()
            else:
                assert [int(value) for value in ask()] == values


def test_a_float_that_may_have_lost_digits() -> None:
    assert convert_column([2.0**53 - 1, None], "int64", "x[{}]".format, nullable=True)[0][0] == 2**53 - 1
    for value in (2.0**53, -(2.0**60)):
        with pytest.raises(InvalidInput, match=r"x\[0\]: .* a float"):
            convert_column([value], "int64", "x[{}]".format, nullable=True)
