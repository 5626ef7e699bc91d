"""Every value of a Parquet file is read exactly, or refused by column: integers, times, nested parts."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from drawing import examples
from tiercel_pipelines.data import Dataset
from tiercel_pipelines.data.arrow import canonical, joined, plain_values
from tiercel_pipelines.data.parquet import read_table
from tiercel_pipelines.data.plain import plain_column, plain_frame
from tiercel_pipelines.errors import DataCorrupt, DataMissing

EDGES = [0, 1, 2**53 - 1, 2**53, 2**53 + 1, 2**62 + 1, 2**63 - 1, 2**63, 2**64 - 1, -(2**53) - 1, -(2**63)]
WHOLE = st.sampled_from(EDGES) | st.integers(-(2**63), 2**64 - 1)


def by_arrow(array: pa.Array) -> np.ndarray:
    return plain_values(canonical(pa.chunked_array([array]), "t, column 'x'"), "t, column 'x'")


def by_pandas(values: Any) -> np.ndarray:
    return plain_column(pd.Series(values), "t, column 'x'")


# --------------------------------------------------------------------------------------------- integers


def as_it_came(read: np.ndarray, values: list[int | None]) -> bool:
    """Return whether each integer is equal, whatever the dtype, and each null is NaN."""
    return all(
        np.isnan(got) if value is None else int(got) == value
        for got, value in zip(read.tolist(), values, strict=True)
    )


def integer_type(values: list[int]) -> pa.DataType:
    return pa.uint64() if max(values, default=0) >= 2**63 else pa.int64()


def masked(values: list[int | None], dtype: type) -> Any:
    """Return pandas' nullable integers; pandas' own constructor would pass wide ones through floats."""
    known = np.array([0 if value is None else value for value in values], dtype)
    return pd.arrays.IntegerArray(known, np.array([value is None for value in values]))


@examples(50)
@given(st.lists(WHOLE | st.none(), min_size=1, max_size=5))
def test_integers_come_exactly_or_are_refused_by_value(values: list[int | None]) -> None:
    known = [value for value in values if value is not None]
    if known and max(known) >= 2**63:
        values = [None if value is None else abs(value) for value in values]
        known = [abs(value) for value in known]
    dtype = integer_type(known)
    sources: list[Callable[[], np.ndarray]] = [
        lambda: by_arrow(pa.array(values, dtype)),
        lambda: by_arrow(pa.array(values, dtype).dictionary_encode()),
        lambda: by_pandas(masked(values, np.uint64 if dtype == pa.uint64() else np.int64)),
    ]
    if known:
        sources += [
            lambda: by_pandas(pd.Series(values, dtype=object)),
            lambda: by_pandas(pd.Categorical(pd.Series(values, dtype=object))),
        ]
    strays = [value for value in known if value >= 2**63 or (None in values and int(float(value)) != value)]
    for read in sources:
        if not strays:
            assert as_it_came(read(), values)
        else:
            with pytest.raises(DataCorrupt, match=rf"t, column 'x'.*({'|'.join(map(str, strays))})"):
                read()


def test_the_pandas_dtype_of_wide_integers_is_unsigned() -> None:
    with pytest.raises(DataCorrupt, match=f"column 'x'.*{2**63}"):
        by_pandas(np.array([1, 2**63], np.uint64))


@examples(50)
@given(st.lists(st.none() | st.lists(WHOLE.filter(lambda n: n >= 0) | st.none(), max_size=3), max_size=4))
def test_integers_in_lists(rows: list[list[int | None] | None]) -> None:
    flat = [value for row in rows if row is not None for value in row]
    known = [value for value in flat if value is not None]
    strays = [value for value in known if value >= 2**63 or (None in flat and int(float(value)) != value)]
    array = pa.array(rows, pa.list_(integer_type(known)))
    sources = [lambda: by_arrow(array)]
    if any(row is not None for row in rows):
        sources.append(lambda: by_pandas(pd.Series(rows, dtype=object)))
    for read in sources:
        if not strays:
            assert read().tolist() == [[] if row is None else row for row in rows]
        else:
            with pytest.raises(DataCorrupt, match=rf"t, column 'x'.*({'|'.join(map(str, strays))})"):
                read()


def test_one_null_leaves_the_integers_of_lists_what_they_are() -> None:
    [first, second] = by_arrow(pa.array([[1, None], [2]]))
    assert first == [1, None]
    assert [type(value) for value in [first[0], *second]] == [int, int]


def test_every_kind_of_list() -> None:
    for dtype in (pa.list_(pa.int32()), pa.large_list(pa.uint8()), pa.list_(pa.int16(), 2)):
        array = pa.array([[1, 2], None, [3, 4]], dtype)
        assert by_arrow(array).tolist() == [[1, 2], [], [3, 4]]
        assert by_arrow(array.slice(1)).tolist() == [[], [3, 4]]
    for dtype in (pa.list_(pa.float16()), pa.list_(pa.float32()), pa.large_list(pa.float64())):
        [row] = by_arrow(pa.array([[0.5, None]], pa.list_(pa.float64())).cast(dtype))
        assert row[0] == 0.5
        assert np.isnan(row[1])
    words = pa.array(["a", None, "b"]).dictionary_encode()
    assert by_arrow(pa.ListArray.from_arrays([0, 1, 3], words)).tolist() == [["a"], [None, "b"]]
    assert by_arrow(pa.array([[None], []])).tolist() == [[None], []]


def test_lists_of_nothing_but_nulls() -> None:
    rows = [[None] * count for count in (3, 0, 1, 3, 2, 3)]
    for dtype in (pa.list_(pa.null()), pa.large_list(pa.null())):
        array = canonical(pa.chunked_array([pa.array(rows, dtype)]), "x")
        assert plain_values(joined([array]), "x").tolist() == rows
        assert plain_values(joined([array, array]), "x").tolist() == [*rows, *rows]
        texts = canonical(pa.chunked_array([pa.array([["a"]])]), "x")
        assert plain_values(joined([array, texts]), "x").tolist() == [*rows, ["a"]]


def test_types_for_which_no_plain_dtype_stands() -> None:
    for array in (
        pa.array([b"x"]),
        pa.array([{"a": 1}]),
        pa.array([[[1]]]),
        pa.array([[date(2020, 1, 1)]]),
        pa.array([timedelta(1)]),
    ):
        with pytest.raises(DataCorrupt, match=r"t, column 'x': expected one of integers"):
            by_arrow(array)


# --------------------------------------------------------------------------------------------- decimals


@given(
    st.lists(st.none() | st.decimals(-(10**9), 10**9, places=4), max_size=20),
    st.sampled_from([pa.decimal128(20, 4), pa.decimal256(40, 4), pa.decimal128(14, 4)]),
)
@example([Decimal("0.1235"), None, Decimal("-0.0001")], pa.decimal128(38, 18))
@examples(20)
def test_decimals_are_the_nearest_floats(values: list[Decimal | None], dtype: pa.DataType) -> None:
    expected = [None if value is None else float(value) for value in values]
    for array in (pa.array(values, dtype), pa.array(values, dtype).dictionary_encode()):
        assert [None if np.isnan(one) else one for one in by_arrow(array)] == expected
    [row] = by_arrow(pa.array([values], pa.list_(dtype)))
    assert [None if one is None or np.isnan(one) else one for one in row] == expected


def test_decimals_without_places_are_integers() -> None:
    for dtype in (pa.decimal128(38, 0), pa.decimal256(60, 0)):
        whole = by_arrow(pa.array([Decimal(2**63 - 1), Decimal(-(2**63))], dtype))
        assert (whole.dtype, whole.tolist()) == (np.int64, [2**63 - 1, -(2**63)])
        assert by_arrow(pa.array([Decimal(5), None], dtype)).tolist()[0] == 5.0
        assert by_arrow(pa.array([[Decimal(7)], None], pa.list_(dtype))).tolist() == [[7], []]
        with pytest.raises(DataCorrupt, match=f"column 'x': expected integers of 64 bits .*found {2**63};"):
            by_arrow(pa.array([Decimal(1), Decimal(2**63), None], dtype))
        with pytest.raises(DataCorrupt, match=r"the column has nulls.*9007199254740993 would become"):
            by_arrow(pa.array([Decimal(2**53 + 1), None], dtype))


def test_two_decimals_stay_two() -> None:
    near = [Decimal("0.1"), None, Decimal("0.100000000000000001"), Decimal("0.1")]
    pattern = r"t, column 'x': .*, and 0\.1[0]+ and 0\.100000000000000001 would both become 0\.1; write"
    for values in (near, [near]):
        dtype = pa.decimal128(38, 18)
        with pytest.raises(DataCorrupt, match=pattern):
            by_arrow(pa.array(values, dtype if values is near else pa.list_(dtype)))


# ------------------------------------------------------------------------------------------------ times

MOMENTS = st.datetimes(datetime(1, 1, 1), datetime(9999, 12, 31, 23, 59, 59, 999_999))
EPOCH = datetime(1970, 1, 1)


def seconds(moment: datetime) -> int:
    return (moment - EPOCH) // timedelta(seconds=1)


@pytest.mark.parametrize(
    ("day", "expected"),
    [("9999-12-31", 253402214400), ("2024-05-01", 1714521600), ("1600-02-29", -11670998400)],
)
def test_days(day: str, expected: int) -> None:
    value = date.fromisoformat(day)
    moment = datetime(value.year, value.month, value.day)
    for unit in ("s", "ms", "us"):
        for zone in (None, "UTC", "Europe/Amsterdam"):
            array = pa.array([moment], pa.timestamp(unit)).cast(pa.int64()).cast(pa.timestamp(unit, zone))
            assert by_arrow(array).tolist() == [expected]
    for dtype in (pa.date32(), pa.date64()):
        read = by_arrow(pa.array([value, None], dtype))
        assert read[0] == expected
        assert np.isnan(read[1])
    assert by_pandas(pd.Series([value], dtype=object)).tolist() == [expected]


@examples(35)
@given(MOMENTS | st.none(), MOMENTS)
def test_moments(one: datetime | None, other: datetime) -> None:
    values = [one, other]
    expected = [None if value is None else seconds(value) for value in values]
    aware = [None if value is None else value.replace(tzinfo=timezone.utc) for value in values]
    for read in (
        by_arrow(pa.array(values, pa.timestamp("us"))),
        by_arrow(pa.array(aware, pa.timestamp("us", "Asia/Tokyo"))),
        by_pandas(pd.Series(values, dtype=object)),
        by_pandas(pd.Series(aware, dtype=object)),
    ):
        assert as_it_came(read, expected)


def test_moments_of_pandas() -> None:
    moments = pd.Series(pd.to_datetime(["1969-12-31 23:59:59.5", "2024-05-01", "1700-01-01"]))
    expected = [-1, 1714521600, -8520336000]
    assert by_pandas(moments).tolist() == expected
    assert by_pandas(moments.dt.tz_localize("UTC").dt.tz_convert("Asia/Tokyo")).tolist() == expected
    assert by_arrow(pa.array(moments)).tolist() == expected


# ------------------------------------------------------------------------------------------------ parts


def parts(folder: Path, *arrays: pa.Array, names: tuple[str, ...] = ()) -> Path:
    for number, array in enumerate(arrays):
        table = pa.table({names[number] if names else "x": array})
        pq.write_table(table, folder / f"part-{number}.parquet")
    return folder


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (pa.array([1], pa.int8()), pa.array([2**40]), [1, 2**40]),
        (pa.array([1], pa.uint64()), pa.array([-1]), [1, -1]),
        (pa.array([0.5], pa.float32()), pa.array([0.1]), [0.5, 0.1]),
        (pa.array(["a"]), pa.array(["b"]).dictionary_encode(), ["a", "b"]),
        (pa.array(["a"], pa.large_string()), pa.array([None]), ["a", None]),
        (pa.array([None]), pa.array([True]), [None, True]),
        (
            pa.array([[1]], pa.list_(pa.int8())),
            pa.array([[2], None], pa.large_list(pa.int64())),
            [[1], [2], []],
        ),
        (pa.array([[]], pa.list_(pa.null())), pa.array([["a"]]), [[], ["a"]]),
        (pa.array([date(2024, 5, 1)]), pa.array([EPOCH], pa.timestamp("ns", "UTC")), [1714521600, 0]),
    ],
)
def test_parts_of_one_kind_are_one_table(
    tmp_path: Path, first: pa.Array, second: pa.Array, expected: list[Any]
) -> None:
    read = read_table(parts(tmp_path, first, second), "items")["x"]
    assert read.astype(object).where(read.notna(), None).tolist() == expected


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (pa.array([1]), pa.array([0.5])),
        (pa.array([0.5]), pa.array([1])),
        (pa.array([1]), pa.array(["a"])),
        (pa.array([1]), pa.array([True])),
        (pa.array([1]), pa.array([date(2024, 5, 1)])),
        (pa.array([1]), pa.array([[1]])),
        (pa.array([[1]]), pa.array([["a"]])),
        (pa.array([[1]]), pa.array([[0.5]])),
    ],
)
def test_parts_of_two_kinds(tmp_path: Path, first: pa.Array, second: pa.Array) -> None:
    with pytest.raises(DataCorrupt) as raised:
        read_table(parts(tmp_path, first, second), "items")
    message = str(raised.value).replace("<element:", "<item:")
    assert f"{tmp_path}/part-1.parquet: items.x: the file holds {second.type}" in message
    assert f"{tmp_path}/part-0.parquet holds {first.type}" in message


def test_a_part_without_a_column(tmp_path: Path) -> None:
    parts(tmp_path, pa.array([1]), pa.array([1]), names=("x", "y"))
    with pytest.raises(DataMissing, match=r"part-1\.parquet: items has no column 'x', which .*part-0"):
        read_table(tmp_path, "items")


def test_a_null_in_one_part_and_a_wide_integer_in_another(tmp_path: Path) -> None:
    parts(tmp_path, pa.array([2**53 + 1]), pa.array([None], pa.int64()))
    with pytest.raises(DataCorrupt, match=f"items, column 'x'.*{2**53 + 1}"):
        read_table(tmp_path, "items")


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(DataMissing, match="there is no Parquet file in this folder"):
        read_table(tmp_path, "items")


def test_a_part_that_is_no_parquet_file(tmp_path: Path) -> None:
    parts(tmp_path, pa.array([1]))
    (tmp_path / "part-1.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataCorrupt, match=r"part-1\.parquet: items is not a readable Parquet file"):
        read_table(tmp_path, "items")


def test_columns_that_are_the_names_of_folders(tmp_path: Path) -> None:
    for country in ("DE", "NL"):
        (tmp_path / f"country={country}").mkdir()
        parts(tmp_path / f"country={country}", pa.array([len(country)]))
    assert read_table(tmp_path, "items").to_dict("list") == {"x": [2, 2], "country": ["DE", "NL"]}


def test_a_nameless_column(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"a": [1], "": [2]}), file)
    with pytest.raises(DataCorrupt, match="items: column 2 of 2 has the empty name ''"):
        read_table(file, "items")
    with pytest.raises(DataCorrupt, match="column 1 of 1 has the empty name"):
        plain_frame(pd.DataFrame({"": [1]}), "items")


def test_a_column_of_the_name_that_a_run_needs() -> None:
    table, events = {"user_id": [1]}, pd.DataFrame({"user_id": [1], "item_id": [2], "timestamp": [3]})
    users = pd.DataFrame({**table, "__row__": [5]})
    with pytest.raises(DataCorrupt, match="mine: users: a run needs the name '__row__' for itself; rename"):
        Dataset("mine", users, pd.DataFrame({"item_id": [2]}), events).check()


def test_joined_keeps_the_wider_type() -> None:
    narrow, wide = pa.array([0.5], pa.float32()), pa.array([0.1], pa.float64())
    assert joined([narrow, pa.array([None]), wide]).to_pylist() == [0.5, None, 0.1]


def test_a_part_without_rows_says_nothing_of_its_columns(tmp_path: Path) -> None:
    parts(tmp_path, pa.array([], pa.string()), pa.array([1]), pa.array([], pa.float64()))
    assert read_table(tmp_path, "items")["x"].tolist() == [1]


def test_a_column_that_is_there_twice_is_named(tmp_path: Path) -> None:
    twice = pa.Table.from_arrays([pa.array([1])] * 3, ["x", "y", "y"])
    pq.write_table(twice, tmp_path / "items.parquet")
    with pytest.raises(DataCorrupt, match=r"items\.parquet: items: the column 'y' is there twice"):
        read_table(tmp_path / "items.parquet", "items")


@pytest.mark.parametrize("form", ["plain", "dictionary", "list"])
def test_text_that_is_not_utf8(form: str) -> None:
    """Arrow, and so anything that writes files with it, accepts any bytes as text."""
    offsets = pa.py_buffer(np.array([0, 1, 3], np.int32))
    text = pa.Array.from_buffers(pa.string(), 2, [None, offsets, pa.py_buffer(b"a\xff\xfe")])
    if form == "dictionary":
        text = pa.DictionaryArray.from_arrays(pa.array([1, 0]), text)
    elif form == "list":
        text = pa.ListArray.from_arrays([0, 2], text)
    with pytest.raises(DataCorrupt, match="t, column 'x': expected text in UTF-8, found other bytes"):
        by_arrow(text)
