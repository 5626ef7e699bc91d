"""Cutting a workflow by schema tags, reading it from disk, and what is refused on the way."""

from __future__ import annotations

import json
import shutil
import warnings

import numpy as np
import nvtabular as nvt
import pandas as pd
import pytest
from merlin.schema import Tags
from nvtabular import ops

from tiercel_export.errors import ExportInputError, UnsupportedOperator, WorkflowError
from tiercel_export.workflow import compile_workflow, cut_workflow
from tiercel_export.workflow_frames import (
    FrameOracle,
    columns_from_frame,
    frame_oracle,
    golden_inputs,
    oracle_frame,
)

FRAME = pd.DataFrame(
    {
        "user_id": [1, 2, 3, 1],
        "age": [20, 30, 40, 20],
        "hour": [1.0, 2.0, np.nan, 4.0],
        "item_id": [10, 20, 30, 10],
        "year": [1990, 1991, 1992, 1990],
        "genres": [["a"], ["b", "a"], [], ["c"]],
        "clicked": [1, 0, 1, 0],
    }
)


def graph(folder):
    user = (["user_id"] >> ops.Categorify(out_path=str(folder / "u")) >> ops.TagAsUserID()) + (
        ["age"] >> ops.Normalize() >> ops.TagAsUserFeatures()
    )
    context = ["hour"] >> ops.FillMissing() >> ops.AddTags([Tags.CONTEXT])
    item = (["item_id"] >> ops.Categorify(out_path=str(folder / "i")) >> ops.TagAsItemID()) + (
        (["year"] >> ops.Normalize()) + (["genres"] >> ops.Categorify(out_path=str(folder / "g")))
        >> ops.TagAsItemFeatures()
    )
    label = ["clicked"] >> ops.LambdaOp(lambda column: column > 0) >> ops.AddTags([Tags.TARGET])
    return user + context + item + label


def fit(node, frame=FRAME):
    workflow = nvt.Workflow(node)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        workflow.fit(nvt.Dataset(frame))
    return workflow


@pytest.fixture(scope="module")
def workflow(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cut")
    for name in "uig":
        (folder / name).mkdir()
    return fit(graph(folder))


def test_parts_by_tags(workflow):
    cut = cut_workflow(workflow)
    assert cut.outputs == {
        "user_id": "user",
        "age": "user",
        "hour": "context",
        "item_id": "item",
        "year": "item",
        "genres": "item",
        "clicked": "label",
    }
    assert cut.output_names("user") == ["user_id", "age", "hour"]
    assert cut.output_names("item") == ["item_id", "year", "genres"]
    assert cut.input_names("item") == ["item_id", "year", "genres"]
    assert [cut.input_part(name, "user") for name in ("age", "hour")] == ["user", "context"]


def test_label_operators_do_not_matter(workflow):
    user = compile_workflow(workflow, "user")
    assert [(column.name, column.part) for column in user.inputs] == [
        ("user_id", "user"),
        ("age", "user"),
        ("hour", "context"),
    ]
    assert [(column.name, column.kind) for column in user.outputs] == [
        ("user_id", "cat"),
        ("age", "num"),
        ("hour", "num"),
    ]
    item = compile_workflow(workflow, "item", list_lengths={"genres": 3})
    assert {column.part for column in item.inputs} == {"item"}
    assert item.outputs[-1].length == 3


def test_packed_tensors(workflow):
    item = compile_workflow(workflow, "item", list_lengths={"genres": 1}).program
    packed = item.packed(columns_from_frame(FRAME, item.inputs), 4)
    expected = frame_oracle(workflow, "item", FRAME)
    assert packed["item_cat"].tolist() == [[v] for v in expected["item_id"]]
    assert packed["item_num"].dtype == np.float32
    assert np.array_equal(packed["item_num"][:, 0], expected["year"].to_numpy().astype(np.float32))
    assert packed["item_list_genres"].tolist() == [[*row, 0][:1] for row in expected["genres"].map(list)]
    whole = compile_workflow(workflow, "item").program.packed(columns_from_frame(FRAME, item.inputs), 4)
    assert whole["item_list_genres"].shape == (4, 2)


def test_input_tags_count_where_outputs_have_none(tmp_path):
    schema = nvt.Dataset(FRAME[["age", "year"]]).schema
    schema["age"] = schema["age"].with_tags([Tags.USER])
    schema["year"] = schema["year"].with_tags([Tags.ITEM])
    workflow = nvt.Workflow(["age", "year"] >> ops.LogOp())
    workflow.fit(nvt.Dataset(FRAME[["age", "year"]], schema=schema))
    assert cut_workflow(workflow).outputs == {"age": "user", "year": "item"}


def test_column_without_tags_is_named():
    workflow = fit(["age"] >> ops.LogOp())
    with pytest.raises(WorkflowError, match=r"'age' has none of the tags USER, ITEM.*TagAsUserFeatures"):
        cut_workflow(workflow)
    assert cut_workflow(workflow, parts={"age": "item"}).outputs == {"age": "item"}


def test_one_input_on_both_sides():
    user = ["year"] >> ops.Rename(postfix="_user") >> ops.TagAsUserFeatures()
    item = ["year"] >> ops.LogOp() >> ops.TagAsItemFeatures()
    workflow = fit(user + item)
    cut = cut_workflow(workflow)
    assert cut.outputs == {"year_user": "user", "year": "item"}
    assert compile_workflow(cut, "user").inputs[0].name == "year"
    assert compile_workflow(cut, "item").inputs[0].name == "year"


def test_never_fitted():
    with pytest.raises(WorkflowError, match="never fitted"):
        cut_workflow(nvt.Workflow(["age"] >> ops.LogOp()))
    with pytest.raises(WorkflowError, match=r"expected an nvtabular\.Workflow.*dict"):
        cut_workflow({})


def test_part_must_be_user_or_item(workflow):
    with pytest.raises(WorkflowError, match="'user' or 'item', came 'label'"):
        compile_workflow(workflow, "label")


def test_unsupported_operator_on_a_served_column():
    workflow = fit(["age"] >> ops.LambdaOp(lambda column: column) >> ops.TagAsUserFeatures())
    with pytest.raises(UnsupportedOperator, match=r"'age'.*arbitrary Python"):
        compile_workflow(workflow, "user")


def test_refused_operator_of_one_side_does_not_block_the_other():
    user = ["year"] >> ops.LambdaOp(lambda column: column) >> ops.Rename(postfix="_user")
    item = ["year"] >> ops.LogOp() >> ops.TagAsItemFeatures()
    workflow = fit((user >> ops.LogOp() >> ops.TagAsUserFeatures()) + item)
    assert [column.name for column in compile_workflow(workflow, "item").outputs] == ["year"]
    with pytest.raises(UnsupportedOperator, match=r"on column 'year'.*arbitrary Python"):
        compile_workflow(workflow, "user")


def test_saved_workflow(workflow, tmp_path):
    saved = tmp_path / "saved"
    node = ["genres"] >> ops.Categorify(out_path=str(tmp_path)) >> ops.TagAsItemFeatures()
    original = fit(node)
    original.save(saved)
    moved = tmp_path / "moved"
    shutil.move(saved, moved)
    program = compile_workflow(moved, "item").program
    columns = columns_from_frame(FRAME, program.inputs)
    expected = frame_oracle(str(moved), "item", FRAME)["genres"]
    assert program.run(columns, 4)["genres"].values.tolist() == [v for row in expected for v in row]

    (moved / "metadata.json").write_text(
        json.dumps({"versions": {"nvtabular": "1.2.0", "pandas": pd.__version__, "python": "3.11.0"}})
    )
    with pytest.raises(WorkflowError, match=r"nvtabular version 1\.2\.0.*fit and save it again"):
        compile_workflow(moved, "item")
    (moved / "workflow.pkl").write_bytes(b"no pickle")
    with pytest.raises(WorkflowError, match="not a readable workflow"):
        compile_workflow(moved, "item")
    (moved / "workflow.pkl").unlink()
    with pytest.raises(WorkflowError, match=r"has no workflow\.pkl"):
        compile_workflow(moved, "item")


def test_list_column_whose_first_row_was_empty(tmp_path):
    frame = pd.DataFrame({"tags": [[], ["b"], ["a", "b"]]})
    workflow = fit(["tags"] >> ops.Categorify(out_path=str(tmp_path)) >> ops.TagAsItemFeatures(), frame)
    (column,) = compile_workflow(workflow, "item").inputs
    assert (column.dtype, column.is_list) == ("bytes", True)


def test_dead_columns_vanish_and_shared_chains_run_as_one_step():
    user = (["age", "year", "item_id"] >> ops.LogOp() >> ops.Normalize())["age", "year"]
    compiled = compile_workflow(fit(user >> ops.TagAsUserFeatures()), "user")
    assert [column.name for column in compiled.inputs] == ["age", "year"]
    assert [step["op"] for step in compiled.document["steps"]] == ["load", "log", "normalize"]


def test_frames(workflow):
    inputs = compile_workflow(workflow, "user").inputs
    frame = pd.DataFrame(
        {"user_id": [1, None], "age": pd.array([5, None], "Int64"), "hour": [None, 2]}, dtype=object
    )
    oracle = oracle_frame(frame, inputs)
    assert oracle.dtypes.astype(str).to_dict() == dict.fromkeys(["user_id", "age", "hour"], "float64")
    columns = columns_from_frame(oracle, inputs)
    assert columns["age"].values.tolist() == [5, 0]
    assert columns["age"].valid.tolist() == [True, False]
    assert columns_from_frame(frame, inputs)["user_id"].valid.tolist() == [True, False]
    assert len(FrameOracle(workflow, "user")(FRAME)) == 4


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("age", "old", "column 'age': expected int64"),
        ("age", 1.5, r"column 'age': expected whole numbers, found 1\.5"),
        ("hour", "late", "column 'hour': expected float64"),
    ],
)
def test_frames_that_do_not_fit(workflow, column, value, message):
    inputs = compile_workflow(workflow, "user").inputs
    frame = pd.DataFrame({**{name: [1.0] for name in ("user_id", "age", "hour")}, column: [value]})
    with pytest.raises(ExportInputError, match=message):
        columns_from_frame(frame, inputs)
    with pytest.raises(ExportInputError, match=rf"columns \['{column}'\] are missing"):
        columns_from_frame(frame.drop(columns=column), inputs)


def test_lists_and_text_that_do_not_fit(workflow):
    inputs = compile_workflow(workflow, "item").inputs
    frame = pd.DataFrame({"item_id": [1], "year": [1], "genres": ["a"]})
    with pytest.raises(ExportInputError, match="column 'genres': expected lists, found 'a'"):
        columns_from_frame(frame, inputs)
    frame["genres"] = [[1]]
    with pytest.raises(ExportInputError, match="column 'genres': expected text, found 1"):
        columns_from_frame(frame, inputs)


def test_golden_inputs(workflow):
    inputs = compile_workflow(workflow, "item").inputs
    rows = golden_inputs(FRAME, inputs, rows=2)
    assert rows["year"].tolist()[:2] == [1990, 1990]
    assert np.isnan(rows["year"].iloc[-1])
    assert rows["genres"].tolist() == [["a"], ["c"], []]
