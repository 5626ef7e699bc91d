"""Parquet through the feature program equals Parquet through NVTabular, in bounded memory."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from decimal import Decimal
from itertools import pairwise
from pathlib import Path

import numpy as np
import nvtabular as nvt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nvtabular import ops
from parity_helpers import compare

from drawing import examples
from tiercel_export.errors import UnsupportedOperator
from tiercel_export.workflow.cut import compile_workflow
from tiercel_export.workflow.frames import FrameOracle, oracle_frame
from tiercel_pipelines.errors import DataCorrupt, DataError, DataMissing
from tiercel_pipelines.features.arrow_columns import array_from_column, check_schema, column_from_arrow
from tiercel_pipelines.features.origin import FeatureOrigin, kind_of
from tiercel_pipelines.features.parquet_files import parquet_files
from tiercel_pipelines.features.transform import Transform, transform_files
from tiercel_serving.errors import MachineFault
from tiercel_serving.features import InputColumn, OutputColumn

ROWS = 2_500
SCHEMA = pa.schema(
    {
        "age": pa.int64(),
        "rank": pa.int32(),
        "tiny": pa.int8(),
        "far": pa.int64(),
        "price": pa.float64(),
        "score": pa.float32(),
        "flag": pa.bool_(),
        "city": pa.string(),
        "town": pa.string(),
        "words": pa.list_(pa.string()),
        "codes": pa.list_(pa.int64()),
        "weights": pa.list_(pa.float64()),
        "extra": pa.timestamp("us"),
    }
)
#: Strings that a lookup by bytes must distinguish.
WORDS = ["Zürich", "Zu\u0308rich", "", "東京", "a", "a\0", "b" * 300, "😀", " a"]


def table(rows: int, seed: int, *, nulls: bool = True) -> pa.Table:
    """Return rows that NVTabular answers, with nulls in columns where it supports them."""
    rng = np.random.default_rng(seed)

    def some(values: list) -> list:
        return [None if nulls and rng.random() < 0.1 else value for value in values]

    def lists(elements: list) -> list[list]:
        return [
            [elements[i] for i in rng.integers(0, len(elements), rng.integers(0, 5))] for _ in range(rows)
        ]

    def pick(values: list) -> list:
        return [values[i] for i in rng.integers(0, len(values), rows)]

    columns = {
        "age": some(rng.integers(-50, 100, rows).tolist()),
        "rank": rng.integers(-(2**31), 2**31, rows).tolist(),
        "tiny": rng.integers(-128, 128, rows).tolist(),
        "far": pick([2**60, -(2**60), 5, 7, -1, 2**63 - 1]),
        "price": some([*pick([0.1, -0.0, 1e300, 1e-300, 3.5])]),
        "score": some([*pick([0.1, -0.0, 1e-40, 2.5])]),
        "flag": pick([True, False]),
        "city": some(pick(WORDS)),
        "town": some(pick(WORDS)),
        "words": lists(WORDS),
        "codes": lists([1, -5, 2**40, 30]),
        "weights": lists([0.5, -1.5, 1e9]),
        "extra": [0] * rows,
    }
    if nulls and rows > 3:
        columns["price"][:3] = [float("inf"), float("-inf"), float("nan")]
    return pa.table({field.name: pa.array(columns[field.name], field.type) for field in SCHEMA})


def graph(folder: Path):
    filled = ["age", "price", "score"] >> ops.FillMissing(2, add_binary_cols=True) >> ops.Normalize()
    encoded = ["city", "tiny", "far", "words", "codes", "flag"] >> ops.Categorify(out_path=str(folder))
    logs = ["price", "score", "rank", "weights"] >> ops.LogOp() >> ops.Rename(postfix="_log")
    buckets = ["age", "price"] >> ops.Bucketize([0, 1, 30]) >> ops.Rename(postfix="_bucket")
    small = ["score", "tiny"] >> ops.Normalize(out_dtype=np.float32) >> ops.Rename(postfix="_f4")
    through = ["town", "rank", "tiny", "flag", "weights"] >> ops.Rename(postfix="_raw")
    return filled + encoded + logs + buckets + small + through


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Save a workflow with every type of column and return its folder."""
    root = tmp_path_factory.mktemp("transform")
    workflow = nvt.Workflow(graph(root / "categories") >> ops.TagAsUserFeatures())
    workflow.fit(nvt.Dataset(table(400, 1, nulls=False).drop_columns("extra").to_pandas()))
    workflow.save(str(root / "workflow"))
    return root / "workflow"


@pytest.fixture(scope="module")
def source(folder):
    return FeatureOrigin("workflow", folder)


@pytest.fixture(scope="module")
def program(source):
    return source.program("user")


def written(tmp_path: Path, given: pa.Table, **options) -> Path:
    path = tmp_path / "in.parquet"
    pq.write_table(given, path, **options)
    return path


def as_nvtabular(source: FeatureOrigin, program, given: pa.Table) -> pd.DataFrame:
    """Return NVTabular's answer on the frame that the docs describe."""
    return FrameOracle(source.workflow, "user")(oracle_frame(given.to_pandas(), program.inputs))


def assert_equals_nvtabular(got: pa.Table, program, expected: pd.DataFrame) -> None:
    assert got.column_names == [output.name for output in program.outputs]
    for output in program.outputs:
        array = got[output.name].combine_chunks()
        assert str(array.type) == _arrow(output), output.name
        column = column_from_arrow(
            array, InputColumn(output.name, _asked(output), output.is_list, "user"), ""
        )
        if column.text_offsets is not None:
            column = replace(column, values=column.strings().objects(), text_offsets=None)
        if column.values.dtype.kind == "f" and column.valid is not None:
            column = replace(column, values=np.where(column.valid, column.values, np.nan), valid=None)
        compare(output.name, expected[output.name], column, np.zeros(len(expected), bool), flexible=True)


def _asked(output: OutputColumn) -> str:
    if output.dtype in ("bytes", "bool", "float32", "float64"):
        return output.dtype
    return "int64"


def _arrow(output: OutputColumn) -> str:
    names = {"bytes": "string", "float64": "double", "float32": "float"}
    element = names.get(output.dtype, output.dtype)
    return f"list<element: {element}>" if output.is_list else element


# ------------------------------------------------------------------------------------------- exactness


@pytest.mark.parametrize(
    ("options", "batch_rows"),
    [
        ({}, 65_536),
        ({"row_group_size": 700}, 300),
        ({"row_group_size": 10}, 999),
        ({"use_dictionary": False, "compression": "zstd", "data_page_version": "2.0"}, 64),
        ({"version": "1.0", "use_dictionary": ["city"], "write_statistics": False}, 1_250),
    ],
)
def test_equals_nvtabular_over_all_types_of_columns(tmp_path, source, program, options, batch_rows):
    given = table(ROWS, 2)
    path = written(tmp_path, given, **options)
    done = transform_files(Transform([program], batch_rows=batch_rows), [path], tmp_path / "out.parquet")
    assert (done.rows, done.ignored) == (ROWS, ("extra",))
    assert done.row_groups == -(-ROWS // batch_rows)
    assert_equals_nvtabular(
        pq.read_table(tmp_path / "out.parquet"), program, as_nvtabular(source, program, given)
    )


def test_equals_the_file_that_nvtabular_writes(tmp_path, source, program):
    path = written(tmp_path, table(ROWS, 3, nulls=False), row_group_size=1_000)
    workflow = nvt.Workflow.load(str(source.path))
    workflow.transform(nvt.Dataset(str(path), engine="parquet", cpu=True)).to_parquet(str(tmp_path / "nvt"))
    expected = pa.concat_tables([pq.read_table(file) for file in parquet_files([tmp_path / "nvt"])])
    transform_files(Transform([program]), [path], tmp_path / "out.parquet")
    got = pq.read_table(tmp_path / "out.parquet")
    assert set(got.column_names) == set(expected.column_names)
    for name in got.column_names:
        assert got[name].type == expected[name].type, name
        assert got[name].equals(expected[name]), name


FORMS = {
    "dictionaries": lambda t: _recast(t, pa.string(), pa.dictionary(pa.int32(), pa.string())),
    "small dictionaries": lambda t: _recast(t, pa.string(), pa.dictionary(pa.int8(), pa.large_string())),
    "large text": lambda t: _recast(t, pa.string(), pa.large_string()),
    "binary": lambda t: _recast(t, pa.string(), pa.binary()),
    "large lists": lambda t: _large_lists(t),
    "wide integers": lambda t: _recast(_recast(t, pa.int8(), pa.int64()), pa.int32(), pa.int64()),
    "narrow integers": lambda t: t.set_column(0, "age", t["age"].cast(pa.int8())),
    "integers that nulls made floats": lambda t: t.set_column(0, "age", t["age"].cast(pa.float64())),
    "a dictionary of numbers": lambda t: t.set_column(0, "age", t["age"].dictionary_encode()),
    "float32 as float64": lambda t: _recast(t, pa.float32(), pa.float64()),
    "flags as numbers": lambda t: _recast(t, pa.bool_(), pa.uint8()),
}


def _recast(given: pa.Table, before: pa.DataType, after: pa.DataType) -> pa.Table:
    for i, field in enumerate(given.schema):
        if field.type == before:
            given = given.set_column(i, field.name, given[field.name].cast(after))
        elif field.type == pa.list_(before) and not pa.types.is_dictionary(after):
            given = given.set_column(i, field.name, given[field.name].cast(pa.list_(after)))
    return given


def _large_lists(given: pa.Table) -> pa.Table:
    for i, field in enumerate(given.schema):
        if pa.types.is_list(field.type):
            given = given.set_column(
                i, field.name, given[field.name].cast(pa.large_list(field.type.value_type))
            )
    return given


@pytest.mark.parametrize("form", FORMS)
def test_the_same_values_in_another_form_are_the_same_features(tmp_path, program, form):
    given = table(600, 4)
    transform = Transform([program], batch_rows=250)
    other = FORMS[form](given)
    assert other.schema != given.schema
    transform_files(transform, [written(tmp_path, given)], tmp_path / "plain.parquet")
    transform_files(transform, [written(tmp_path, other)], tmp_path / "other.parquet")
    assert pq.read_table(tmp_path / "plain.parquet").equals(pq.read_table(tmp_path / "other.parquet"))


def test_an_empty_file_has_the_same_schema(tmp_path, program):
    transform = Transform([program])
    for rows in (0, 1):
        path = written(tmp_path, table(rows, 5))
        done = transform_files(transform, [path], tmp_path / "out.parquet", overwrite=True)
        got = pq.read_table(tmp_path / "out.parquet")
        assert done.rows == got.num_rows == rows
        assert [str(field.type) for field in got.schema] == [_arrow(output) for output in program.outputs]


def test_several_files_are_one_after_another(tmp_path, source, program):
    given = table(300, 6)
    for name, begin in (("part.10", 200), ("part.2", 100), ("part.1", 0)):
        pq.write_table(given.slice(begin, 100), tmp_path / f"{name}.parquet")
    (tmp_path / "_metadata.parquet").write_text("left out")
    files = parquet_files([tmp_path])
    assert [file.name for file in files] == ["part.1.parquet", "part.2.parquet", "part.10.parquet"]
    (tmp_path / "out").mkdir()
    done = transform_files(Transform([program], keep={"age": "years"}), files, tmp_path / "out" / "o.parquet")
    got = pq.read_table(tmp_path / "out" / "o.parquet")
    assert (done.rows, got.column_names[0]) == (300, "years")
    assert got["years"].equals(given["age"])
    assert_equals_nvtabular(got.drop_columns("years"), program, as_nvtabular(source, program, given))


def test_packed_tensors_are_lists_of_a_fixed_size(tmp_path, source):
    lengths = {"words": 3, "codes": 2, "weights_log": 4, "weights_raw": 1}
    program = compile_workflow(source.workflow, "user", list_lengths=lengths).program
    given = table(500, 7)
    path = written(tmp_path, given)
    transform_files(Transform([program], packed=True, batch_rows=90), [path], tmp_path / "out.parquet")
    got = pq.read_table(tmp_path / "out.parquet")
    from tiercel_export.workflow.frames import columns_from_frame

    frame = oracle_frame(given.to_pandas(), program.inputs)
    expected = program.packed(columns_from_frame(frame, program.inputs), len(frame))
    assert set(got.column_names) == set(expected)
    for name, tensor in expected.items():
        array = got[name].combine_chunks()
        assert array.type.list_size == tensor.shape[1]
        flat = array.flatten().to_numpy(zero_copy_only=False).reshape(tensor.shape)
        assert flat.dtype == tensor.dtype
        assert np.array_equal(flat, tensor, equal_nan=tensor.dtype.kind == "f")


def test_a_list_without_a_length_is_not_packed(tmp_path, program):
    with pytest.raises(DataError, match="--list-length words=N"):
        transform_files(
            Transform([program], packed=True), [written(tmp_path, table(3, 8))], tmp_path / "o.parquet"
        )


# ------------------------------------------------------------------------------------ Arrow → columns

ELEMENTS = {
    "int64": (st.integers(-(2**63), 2**63 - 1), pa.int64()),
    "float64": (st.floats(), pa.float64()),
    "float32": (st.floats(width=32), pa.float32()),
    "bool": (st.booleans(), pa.bool_()),
    "bytes": (st.text(st.characters(blacklist_categories=["Cs"]), max_size=5), pa.string()),
}


@st.composite
def arrays(draw):
    dtype = draw(st.sampled_from(sorted(ELEMENTS)))
    element, arrow = ELEMENTS[dtype]
    row = st.none() | element
    is_list = draw(st.booleans())
    rows = draw(st.lists(st.none() | st.lists(row, max_size=4) if is_list else row, max_size=12))
    if dtype == "bytes":
        arrow = draw(st.sampled_from([arrow, pa.large_string()]))
    kinds = [pa.list_, pa.large_list]
    array = pa.array(rows, draw(st.sampled_from(kinds))(arrow) if is_list else arrow)
    if dtype == "bytes" and not is_list and draw(st.booleans()):
        array = array.dictionary_encode(null_encoding=draw(st.sampled_from(["mask", "encode"])))
    begin = draw(st.integers(0, len(rows)))
    length = draw(st.integers(0, len(rows) - begin))
    return dtype, is_list, array.slice(begin, length), rows[begin : begin + length]


def _plain(value):
    value = value.encode() if isinstance(value, str) else value
    return None if isinstance(value, float) and value != value else value


@given(arrays())
@examples(100)
def test_columns_hold_what_arrow_holds(drawn):
    dtype, is_list, array, rows = drawn
    column = column_from_arrow(array, InputColumn("c", dtype, is_list, "user"), "here")
    assert len(column) == len(rows)
    values = (column.values if dtype != "bytes" else column.strings().objects()).tolist()
    valid = [True] * len(values) if column.valid is None else column.valid.tolist()
    flat = [_plain(value) if ok else None for value, ok in zip(values, valid, strict=True)]
    if is_list:
        ends = column.offsets.tolist()
        got = [flat[a:b] for a, b in pairwise(ends)]
        present = [True] * len(rows) if column.row_valid is None else column.row_valid.tolist()
        got = [row if ok else None for row, ok in zip(got, present, strict=True)]
        assert got == [None if row is None else [_plain(value) for value in row] for row in rows]
    else:
        assert flat == [_plain(value) for value in rows]
    if dtype != "bytes":
        output = OutputColumn("c", "num", is_list, None, dtype)
        if is_list:
            return
        assert [_plain(value) for value in array_from_column(column, output).to_pylist()] == flat


def test_decimals_are_the_numbers_that_a_training_read():
    column = InputColumn("c", "float64", False, "user")
    held = column_from_arrow(pa.array([Decimal("0.30"), None], pa.decimal128(38, 2)), column, "f")
    assert held.values.tolist()[0] == 0.3
    assert held.valid.tolist() == [True, False]
    whole = InputColumn("c", "int64", True, "user")
    held = column_from_arrow(pa.array([[Decimal(2**62 + 1)]], pa.list_(pa.decimal128(38, 0))), whole, "f")
    assert held.values.tolist() == [2**62 + 1]
    with pytest.raises(DataCorrupt, match=r"f: column 'c': a cast to int64 would change 1\.5"):
        column_from_arrow(pa.array([[Decimal("1.5")]], pa.list_(pa.decimal128(9, 1))), whole, "f")
    check_schema(pa.schema({"c": pa.list_(pa.decimal128(9, 1))}), [whole], "f")


def test_fixed_size_lists_and_their_slices():
    column = InputColumn("c", "int64", True, "user")
    array = pa.array([[1, 2], None, [3, None], [5, 6]], pa.list_(pa.int8(), 2))
    got = column_from_arrow(array.slice(1, 2), column, "here")
    assert got.offsets.tolist() == [0, 2, 4]
    assert got.row_valid.tolist() == [False, True]
    assert got.values[2] == 3
    assert got.valid[2:].tolist() == [True, False]


@pytest.mark.parametrize("dtype", [*ELEMENTS])
@pytest.mark.parametrize("is_list", [False, True])
def test_a_column_of_nothing_but_nulls_may_have_the_null_type(dtype, is_list):
    got = column_from_arrow(pa.nulls(3), InputColumn("c", dtype, is_list, "user"), "here")
    assert len(got) == 3
    assert not (got.row_valid if is_list else got.valid).any()


@pytest.mark.parametrize(
    ("array", "dtype", "words"),
    [
        (pa.array([1.0, 2.5]), "int64", "2.5"),
        (pa.array([float("inf")]), "int64", "inf"),
        (pa.array([2.0**63]), "int64", "9.2"),
        (pa.array([2**63], pa.uint64()), "int64", "9223372036854775808"),
        (pa.array([0.1]), "float32", "0.1"),
        (pa.array([2**24 + 1]), "float32", "16777217"),
        (pa.array([2**63 - 1]), "float64", "9223372036854775807"),
        (pa.array([0, 2]), "bool", "2"),
        (pa.array([b"\xff"]), "bytes", "UTF-8"),
    ],
)
def test_a_value_that_a_cast_would_change_is_refused(array, dtype, words):
    column = InputColumn("c", dtype, False, "user")
    with pytest.raises(DataCorrupt, match=words) as error:
        column_from_arrow(array, column, "in.parquet: rows 0 to 1")
    assert "in.parquet: rows 0 to 1: column 'c'" in str(error.value)
    # The value under a null is ignored.
    masked = pa.array([None, None], array.type)
    assert not column_from_arrow(masked, column, "here").valid.any()


# ---------------------------------------------------------------------------------------------- errors


def _without(name: str):
    return lambda given: given.drop_columns(name)


def _replaced(name: str, array: pa.Array):
    return lambda given: given.set_column(given.schema.get_field_index(name), name, array)


WRONG = {
    "a missing column": (_without("city"), DataMissing, "'city' .text. missing; the file has age"),
    "text for a number": (
        _replaced("age", pa.array(["1"])),
        DataCorrupt,
        "'age': expected integers, .* string",
    ),
    "a number for text": (_replaced("city", pa.array([1])), DataCorrupt, "'city': expected text, .* int64"),
    "a list for a scalar": (
        _replaced("age", pa.array([[1]])),
        DataCorrupt,
        "'age': expected integers, .* list",
    ),
    "a scalar for a list": (_replaced("codes", pa.array([1])), DataCorrupt, "expected lists of integers"),
    "a time": (_replaced("rank", pa.array([0], pa.timestamp("s"))), DataCorrupt, "'rank'.*timestamp"),
    "a column twice": (lambda t: t.append_column("age", t["age"]), DataCorrupt, "'age' occurs twice"),
}


@pytest.mark.parametrize("what", WRONG)
def test_files_that_do_not_fit_are_refused_before_anything_is_written(tmp_path, program, what):
    change, kind, words = WRONG[what]
    good, bad = written(tmp_path, table(1, 9, nulls=False)), tmp_path / "bad.parquet"
    pq.write_table(change(table(1, 9, nulls=False)), bad)
    with pytest.raises(kind, match=words) as error:
        transform_files(Transform([program]), [good, bad], tmp_path / "out.parquet")
    assert str(error.value).startswith(str(bad))
    assert {path.name for path in tmp_path.iterdir()} == {"in.parquet", "bad.parquet"}


def test_unreadable_files(tmp_path, program):
    (tmp_path / "text.parquet").write_text("age,rank\n")
    with pytest.raises(DataCorrupt, match=r"text.parquet: not a readable Parquet file"):
        transform_files(Transform([program]), [tmp_path / "text.parquet"], tmp_path / "out.parquet")
    path = written(tmp_path, table(5_000, 10), row_group_size=1_000)
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 3_000] = b"\xff" * 3_000
    path.write_bytes(bytes(data))
    with pytest.raises(DataCorrupt, match=re.escape("in.parquet")):
        transform_files(Transform([program], batch_rows=500), [path], tmp_path / "out.parquet")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["in.parquet", "text.parquet"]


def test_text_that_passes_through_must_be_text(tmp_path, program):
    given = table(3, 17, nulls=False)
    broken = pa.array([b"a", b"\xff", b""], pa.binary())
    text = pa.StringArray.from_buffers(3, broken.buffers()[1], broken.buffers()[2])
    path = written(tmp_path, given.set_column(given.schema.get_field_index("town"), "town", text))
    with pytest.raises(DataCorrupt, match="'town_raw': expected UTF-8 text"):
        transform_files(Transform([program]), [path], tmp_path / "out.parquet")
    assert [file.name for file in tmp_path.iterdir()] == ["in.parquet"]


def test_outputs_that_may_not_be_written(tmp_path, program):
    path, transform = written(tmp_path, table(2, 11, nulls=False)), Transform([program])
    with pytest.raises(DataError, match="one of the files to read"):
        transform_files(transform, [path], path, overwrite=True)
    with pytest.raises(DataError, match="is a folder"):
        transform_files(transform, [path], tmp_path, overwrite=True)
    with pytest.raises(DataMissing, match="no folder"):
        transform_files(transform, [path], tmp_path / "none" / "out.parquet")
    (tmp_path / "out.parquet").write_text("mine")
    with pytest.raises(DataError, match="--overwrite"):
        transform_files(transform, [path], tmp_path / "out.parquet")
    with pytest.raises(DataError, match=r"--keep age=raw_age"):
        transform_files(Transform([program], keep={"age": "age"}), [path], tmp_path / "new.parquet")
    with pytest.raises(DataMissing, match="--keep none"):
        transform_files(Transform([program], keep={"none": "none"}), [path], tmp_path / "new.parquet")
    assert (tmp_path / "out.parquet").read_text() == "mine"
    transform_files(transform, [path], tmp_path / "out.parquet", overwrite=True)
    assert pq.read_table(tmp_path / "out.parquet").num_rows == 2


def test_a_full_disk_leaves_nothing_and_says_so(tmp_path, program):
    """A limit on the size of a file simulates a full disk."""
    resource = pytest.importorskip("resource")
    path = written(tmp_path, table(3_000, 18))
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(MachineFault, match=r"while writing out\.parquet; .*make room"):
            transform_files(Transform([program], batch_rows=500), [path], tmp_path / "out.parquet")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert [file.name for file in tmp_path.iterdir()] == ["in.parquet"]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError])
def test_what_is_stopped_leaves_nothing_that_looks_whole(tmp_path, program, stop):
    path = written(tmp_path, table(100, 12))
    (tmp_path / "out.parquet").write_text("the last one")

    def progress(what, done, total):
        if done >= 50:
            assert len([file for file in tmp_path.iterdir() if ".partial-" in file.name]) == 1
            raise stop

    with pytest.raises(stop):
        transform_files(
            Transform([program], batch_rows=10),
            [path],
            tmp_path / "out.parquet",
            overwrite=True,
            progress=progress,
        )
    assert sorted(file.name for file in tmp_path.iterdir()) == ["in.parquet", "out.parquet"]
    assert (tmp_path / "out.parquet").read_text() == "the last one"


# ---------------------------------------------------------------------------------------------- source


def test_a_program_of_its_own_needs_no_workflow(tmp_path, source, program):
    compile_workflow(source.workflow, "user").write(tmp_path / "program", "b1")
    alone = FeatureOrigin(kind_of(tmp_path / "program"), tmp_path / "program")
    assert (alone.kind, alone.parts, alone.build_id) == ("program", ("user",), "b1")
    given = written(tmp_path, table(50, 13))
    for name, made in (("a", program), ("b", alone.program("user"))):
        transform_files(Transform([made]), [given], tmp_path / f"{name}.parquet")
    assert pq.read_table(tmp_path / "a.parquet").equals(pq.read_table(tmp_path / "b.parquet"))


def test_a_workflow_without_tags_is_all_one_part(tmp_path):
    workflow = nvt.Workflow(["age", "rank"] >> ops.Normalize())
    workflow.fit(nvt.Dataset(table(20, 14, nulls=False).select(["age", "rank"]).to_pandas()))
    workflow.save(str(tmp_path / "w"))
    source = FeatureOrigin("workflow", tmp_path / "w")
    assert source.parts == ("user",)
    assert source.input_names("user") == ["age", "rank"]


def test_target_encoding_without_folds_must_be_asked_for(tmp_path):
    given = table(60, 16, nulls=False).select(["far", "score"])
    node = ["far"] >> ops.TargetEncoding("score", kfold=3, out_path=str(tmp_path / "t"))
    workflow = nvt.Workflow(node >> ops.TagAsUserFeatures())
    workflow.fit(nvt.Dataset(given.to_pandas()))
    workflow.save(str(tmp_path / "w"))
    with pytest.raises(UnsupportedOperator, match="no_fold"):
        FeatureOrigin("workflow", tmp_path / "w").program("user")
    program = FeatureOrigin("workflow", tmp_path / "w", target_encoding="no_fold").program("user")
    path = written(tmp_path, given.select(["far"]))
    transform_files(Transform([program]), [path], tmp_path / "out.parquet")
    mean = float(np.mean(given["score"].to_numpy().astype(np.float64)))
    frame = given.to_pandas().astype({"score": "float64"}).groupby("far")["score"].agg(["sum", "count"])
    smooth = (frame["sum"] + 20 * mean) / (frame["count"] + 20)
    got = pq.read_table(tmp_path / "out.parquet")[0].to_numpy()
    assert np.allclose(got, smooth[given["far"].to_pylist()], rtol=1e-6)


# ---------------------------------------------------------------------------------------------- memory

MEMORY = """
    import sys
    from pathlib import Path
    from tiercel_pipelines.features.origin import FeatureOrigin
    from tiercel_pipelines.features.transform import Transform, transform_files

    root = Path(sys.argv[1])
    transform = Transform([FeatureOrigin("program", root / "program").program("user")])
    peaks = []
    for name in ("small", "large"):
        transform_files(transform, [root / name], root / "out", overwrite=True)
        # Of this process alone; getrusage would begin with the peak of the one that started it.
        status = Path("/proc/self/status").read_text()
        peaks.append(int(status.split("VmHWM:")[1].split()[0]) / 1024)
    assert "nvtabular" not in sys.modules  # its own peak would hide what is measured
    print(*peaks)
"""


def many(rows: int) -> pa.Table:
    rng = np.random.default_rng(0)
    cities = pa.array([f"city {i}" for i in range(1_000)])
    ends = np.arange(rows + 1, dtype=np.int32) * 2
    return pa.table(
        {
            "age": rng.integers(0, 1_000, rows),
            "price": pa.array(rng.standard_normal(rows), mask=rng.random(rows) < 0.1),
            "city": cities.take(pa.array(rng.integers(0, 1_000, rows))),
            "codes": pa.ListArray.from_arrays(pa.array(ends), pa.array(rng.integers(0, 50, 2 * rows))),
        }
    )


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from Linux's /proc")
def test_memory_is_bounded_by_the_batch_and_not_by_the_file(tmp_path):
    """Two million rows in one row group take as much memory as two batches."""
    node = (["age", "city", "codes"] >> ops.Categorify(out_path=str(tmp_path / "categories"))) + (
        ["price"] >> ops.FillMissing() >> ops.Normalize()
    )
    workflow = nvt.Workflow(node >> ops.TagAsUserFeatures())
    workflow.fit(nvt.Dataset(many(5_000).to_pandas()))
    compile_workflow(workflow, "user").write(tmp_path / "program", "b1")
    rows, given = 2_000_000, many(200_000)
    pq.write_table(given.slice(0, 70_000), tmp_path / "small")
    with pq.ParquetWriter(tmp_path / "large", given.schema) as writer:
        writer.write_table(pa.concat_tables([given] * 10), row_group_size=rows)
    assert pq.ParquetFile(tmp_path / "large").num_row_groups == 1
    command = [sys.executable, "-c", textwrap.dedent(MEMORY), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert pq.ParquetFile(tmp_path / "out").metadata.num_rows == rows
    assert 10 * given.nbytes > 90e6
    small, large = map(float, done.stdout.split())
    assert large - small < 32, (small, large)  # MB
