"""Packed text gives the results of object arrays, and stays packed where only vocabularies read it."""

from __future__ import annotations

import warnings

import numpy as np
import nvtabular as nvt
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nvtabular import ops

from drawing import examples
from tiercel_export.workflow.cut import compile_workflow
from tiercel_serving.columns import Column
from tiercel_serving.errors import InvalidRequest
from tiercel_serving.features.quiet import Quiet
from tiercel_serving.lookups.strings import Strings

WORDS = ["", "a", "ab", "né", "日本", "x" * 8, "x" * 9, "y" * 24, "z" * 60, "w" * 150]
TEXT = st.one_of(st.none(), st.sampled_from([word.encode() for word in WORDS]), st.binary(max_size=30))


def packed(column: Column) -> Column:
    """Return a column of objects as packed text; a null gets arbitrary bytes."""
    values = column.values.copy()
    if column.valid is not None:
        values[~column.valid] = b"anything\0"
    strings = Strings.of(values)
    return Column(strings.blob, column.valid, column.offsets, column.row_valid, strings.offsets)


def column_of(items: list[bytes | None]) -> Column:
    values = np.empty(len(items), np.object_)
    values[:] = [b"" if item is None else item for item in items]
    return Column(values, np.array([item is not None for item in items], np.bool_))


def list_column_of(rows: list[list[bytes | None] | None], before: int, after: int) -> Column:
    """Return lists that are a slice of a larger buffer; a null list still has elements, as Arrow allows."""
    kept = [[b"hidden", None] if row is None else row for row in rows]
    flat = [b"before"] * before + [item for row in kept for item in row] + [b"after"] * after
    offsets = np.cumsum([before, *map(len, kept)])
    elements = column_of(flat)
    return Column(
        elements.values, elements.valid, offsets, np.array([row is not None for row in rows], np.bool_)
    )


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("packed"))
    rows = 400
    frame = pd.DataFrame(
        {
            **{name: [WORDS[i % 7] for i in range(rows)] for name in ("a", "b")},
            **{name: [WORDS[i % len(WORDS)] for i in range(rows)] for name in ("c", "raw", "filled")},
            "lists": [WORDS[i % 5 : i % 9] for i in range(rows)],
        }
    )
    texts = ["a", "b", "c", "raw", "lists"] >> ops.Categorify(out_path=folder)
    filled = ["filled"] >> ops.FillMissing("ab") >> ops.Categorify(out_path=folder)
    kept = ["raw"] >> ops.Rename(postfix="_kept")
    workflow = nvt.Workflow((texts + filled + kept) >> ops.TagAsUserFeatures())
    workflow.fit(nvt.Dataset(frame))
    return compile_workflow(workflow, "user").program


def test_text_of_one_width_shares_a_step(program):
    steps = program.to_json()["steps"]
    loads = {
        tuple(step.get("columns", [step.get("column")])): step["packed"] for step in steps if "packed" in step
    }
    assert loads == {
        ("a", "b"): True,
        ("c",): True,
        ("lists",): True,
        ("raw",): False,
        ("filled",): False,
    }
    assert sum(step["op"] == "encode_text" for step in steps) == 5


@examples(20)
@given(st.data(), st.integers(0, 30))
def test_packed_text_equals_objects(program, data, n):
    columns = {
        name: column_of(data.draw(st.lists(TEXT, min_size=n, max_size=n)))
        for name in ("a", "b", "c", "raw", "filled")
    }
    rows = data.draw(st.lists(st.none() | st.lists(TEXT, max_size=4), min_size=n, max_size=n))
    columns["lists"] = list_column_of(rows, data.draw(st.integers(0, 3)), data.draw(st.integers(0, 3)))
    which = data.draw(st.sets(st.sampled_from(sorted(columns))))
    given_packed = {name: packed(c) if name in which else c for name, c in columns.items()}
    expected, got = program.run(columns, n), program.run(given_packed, n)
    for name, want in expected.items():
        have = got[name]
        assert have.text_offsets is None
        valid = np.ones(len(want.values), bool) if want.valid is None else want.valid
        assert np.array_equal(valid, np.ones(len(valid), bool) if have.valid is None else have.valid)
        assert have.values[valid].tolist() == want.values[valid].tolist()
        assert (have.offsets is None) == (want.offsets is None)
        if want.offsets is not None:
            assert have.offsets.tolist() == want.offsets.tolist()
    tensors = program.packed(columns, n), program.packed(given_packed, n)
    assert all(np.array_equal(tensors[0][name], tensors[1][name]) for name in tensors[0])


def test_packed_text_where_it_does_not_belong(program):
    columns = {name: column_of([b"a", b"b"]) for name in ("a", "b", "c", "raw", "filled")}
    columns["lists"] = list_column_of([[], []], 0, 0)
    with pytest.raises(InvalidRequest, match="'a' has 3 rows, expected 2"):
        program.run(columns | {"a": packed(column_of([b"a", b"b", b"c"]))}, 2)
    with pytest.raises(InvalidRequest, match="'a' must be bytes, but got uint8"):
        program.run(columns | {"a": Column(np.array([1, 2], np.uint8))}, 2)


def test_quiet_silences_this_thread_for_the_time_of_the_block():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with np.errstate(all="raise"):
            with Quiet():
                assert np.isneginf(np.log(np.zeros(1)))[0]
            with pytest.raises(FloatingPointError):
                np.log(np.zeros(1))
            with pytest.raises(KeyError), Quiet():
                raise KeyError
            assert np.geterr()["divide"] == "raise"
