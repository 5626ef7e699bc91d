"""Regression tests for bugs found by random graphs."""

from __future__ import annotations

import numpy as np
import nvtabular as nvt
import pandas as pd
import pytest
from nvtabular import ops
from parity_helpers import check, pair
from scipy.sparse import coo_matrix
from test_feature_operators import fitted, path, run

from tiercel_export.errors import WorkflowError
from tiercel_export.explain.workflow import explain_workflow
from tiercel_export.operators import Arithmetic
from tiercel_export.workflow.cut import compile_workflow, cut_workflow
from tiercel_export.workflow.frames import FrameOracle, columns_from_frame


def objects(**columns):
    return pd.DataFrame({name: pd.Series(values, dtype=object) for name, values in columns.items()})


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32"])
def test_vocabulary_of_unsigned_integers(dtype, tmp_path):
    # NVTabular writes the vocabulary as uint64, which used to be refused.
    high = int(np.iinfo(dtype).max)
    fit = pd.DataFrame({"code": np.array([5, 7, 7, high], dtype)})
    both = pair(fitted(["code"] >> ops.Categorify(out_path=path(tmp_path)), fit))
    assert check(both, objects(code=[7, 5, high, 6, 0]), strict=True) == "equal"


@pytest.mark.parametrize("values", [[[True], [False, True]], [[True], [True]]])
def test_null_inside_a_list_of_booleans(values, tmp_path):
    # NVTabular casts the elements to bool: a null becomes False, where other vocabularies treat it as unseen.
    workflow = fitted(["flags"] >> ops.Categorify(out_path=path(tmp_path)), objects(flags=values))
    assert check(pair(workflow), objects(flags=[[None, True], [], [False]]), strict=True) == "equal"


def test_single_table_gives_unseen_values_the_id_of_a_category(tmp_path):
    # The second column's ids start where the first one's end; its unseen id is also that of a category.
    far = [2**40 + 7 * i**3 for i in range(40)]
    fit = pd.DataFrame({"city": list("abcd") * 10, "far": far})
    workflow = fitted(["city", "far"] >> ops.Categorify(out_path=path(tmp_path), single_table=True), fit)
    request = pd.DataFrame({"city": ["a", "z"] * 21, "far": [*far, 1, 2]})
    assert check(pair(workflow), request, strict=True) == "equal"


def test_list_rows_that_an_earlier_fill_has_filled_are_not_null():
    node = ["words"] >> ops.FillMissing("a") >> ops.FillMissing("b", add_binary_cols=True)
    workflow = fitted(node, objects(words=[["x"], ["y"]]))
    request = objects(words=[["x"], None])
    both = pair(workflow, anchor=objects(words=[["x"]]))
    assert check(both, request, strict=True) == "equal"
    assert run(workflow, request) == {"words": [[b"x"], []], "words_filled": [False, False]}


@pytest.mark.parametrize("text", ["né", "12", ""])
@pytest.mark.parametrize(
    "reader",
    [
        lambda p: ops.Categorify(out_path=p),
        lambda p: ops.Categorify(out_path=p, freq_threshold=1),
        lambda p: ops.ListSlice(1),
        lambda p: ops.ListSlice(-1, pad=True, pad_value=""),
    ],
)
def test_lists_filled_with_text(text, reader, tmp_path):
    # NVTabular takes the letters of the text for elements, so Categorify gave a null row one id per letter.
    node = ["words"] >> ops.FillMissing(text) >> ops.FillMissing("b") >> reader(path(tmp_path))
    workflow = fitted(node, objects(words=[["n", "12"], ["y"], ["1"]]))
    if text:
        with pytest.raises(WorkflowError, match=rf"'words'.*'{text}'.*letters"):
            pair(workflow)
        return
    request = objects(words=[["n"], None, ["z", "y"], []])
    check(pair(workflow, anchor=request.iloc[:1]), request)


@pytest.mark.parametrize("text", ["né", "12"])
@pytest.mark.parametrize("reader", [ops.LogOp, ops.Normalize, lambda: ops.Categorify()])
def test_lists_of_numbers_filled_with_text(text, reader, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # Categorify keeps its vocabulary in the working directory
    node = ["codes"] >> ops.FillMissing(text, add_binary_cols=True)
    workflow = nvt.Workflow((node["codes"] >> reader() >> ops.AddTags(["item"])) + node["codes_filled"])
    workflow.fit(nvt.Dataset(objects(codes=[[1.0, 2.0], [3.0]])))
    parts = {"codes": "item", "codes_filled": "user"}
    with pytest.raises(WorkflowError, match=r"'codes'.*letters"):
        compile_workflow(workflow, "item", parts=parts)
    program = compile_workflow(workflow, "user", parts=parts).program
    request = columns_from_frame(objects(codes=[[1.0], None]), program.inputs)
    assert program.run(request, 2)["codes_filled"].values.tolist() == [0, 1]


@pytest.mark.parametrize("operator", [ops.LogOp, ops.Normalize])
def test_null_list_rows_stay_null_through_arithmetic(operator):
    # NVTabular raises on a null list beside others; where all are null it answers, and they stay null.
    node = ["codes"] >> operator() >> ops.FillMissing(0, add_binary_cols=True)
    workflow = fitted(node, objects(codes=[[1, 2], [3]]))
    assert check(pair(workflow), objects(codes=[None, None]), strict=True) == "equal"
    assert run(workflow, objects(codes=[None, [1]]))["codes_filled"] == [True, False]


def test_columns_that_an_operator_leaves_in_its_frame_overwrite_others(tmp_path):
    # Categorify of a combination leaves the single columns in its frame, and tagging does not remove them.
    fit = pd.DataFrame({"a": [1, 2, 3], "b": ["x", "y", "x"]})
    clipped = ["a"] >> ops.Clip(min_value=2) >> ops.AddMetadata()
    combined = [["a", "b"]] >> ops.Categorify(out_path=path(tmp_path), encode_type="combo")
    both = pair(fitted(clipped + (combined >> ops.AddMetadata()), fit))
    assert set(both.oracle.outputs) == {"a", "a_b"}
    assert check(both, fit, strict=True) == "equal"
    assert both.oracle(fit)["a"].tolist() == [1, 2, 3]


def test_remove_inputs_takes_what_is_made_of_a_second_column_that_is_a_node():
    fit = pd.DataFrame({"a": [1, 2], "b": [0, 1], "c": [3.0, 5.0]})
    ratio = ["a"] >> Arithmetic("/", column=["b"] >> Arithmetic("+", 1)) >> ops.Rename(name="ratio")
    workflow = fitted(ratio + (["c"] >> ops.Normalize()), fit)
    workflow.remove_inputs(["a", "b"])
    assert workflow.transform(fit[["c"]]).columns.tolist() == ["c"]
    assert check(pair(workflow), fit[["c"]], strict=True) == "equal"


def broken(node):
    """Return a workflow from which ``b`` is removed, and check that NVTabular fails to run it."""
    fit = pd.DataFrame({"a": [1, 2], "b": [0, 1], "c": ["x", "y"]})
    workflow = nvt.Workflow(node)
    workflow.fit(nvt.Dataset(fit))
    workflow.remove_inputs(["b"])
    with pytest.raises((KeyError, ValueError)):
        workflow.transform(fit)
    return workflow


def test_graph_that_remove_inputs_has_left_an_output_that_nothing_makes():
    node = (["b", "c"] >> ops.AddMetadata()) + [["a", "b", "c"] >> ops.AddMetadata()]
    workflow = broken(node >> ops.Rename(postfix="_1") >> ops.TagAsUserFeatures())
    for attempt in (
        lambda: compile_workflow(workflow, "user"),
        lambda: explain_workflow(cut_workflow(workflow)),
    ):
        with pytest.raises(
            WorkflowError, match=r"no operator .* makes its output columns \['a_1'\].*remove_inputs"
        ):
            attempt()


def test_key_of_a_join_that_remove_inputs_has_taken():
    table = pd.DataFrame({"b": [0, 1], "x": [5, 6]})
    workflow = broken(["a", "b"] >> ops.JoinExternal(table, on="b") >> ops.TagAsUserFeatures())
    with pytest.raises(WorkflowError, match=r"no operator .* output columns \['x'\].*remove_inputs"):
        compile_workflow(workflow, "user")


def test_group_of_which_remove_inputs_has_taken_a_column():
    similar = [["a", "b"]] >> ops.ColumnSimilarity(coo_matrix(np.eye(3)))
    workflow = broken(similar + (["c"] >> ops.AddMetadata()) >> ops.TagAsUserFeatures())
    with pytest.raises(
        WorkflowError, match=r"ColumnSimilarity on \['a'\].*remove_inputs took a column of a group"
    ):
        compile_workflow(workflow, "user")


def test_operator_of_another_part_lends_none_of_its_columns():
    # The output ``a`` is the raw column: FillMedian's own ``a`` is not selected, and its ``b`` is not needed.
    fit = pd.DataFrame({"a": [1.5, 2.0], "b": [1.0, 2.0]})
    chosen = (["a", "b"] >> ops.FillMedian())["b"]
    workflow = nvt.Workflow(((["a", "b"] >> ops.AddMetadata()) + chosen)["a"] >> ops.TagAsUserFeatures())
    workflow.fit(nvt.Dataset(fit))
    assert run(workflow, objects(a=[None, 1.0])) == {"a": [pytest.approx(np.nan, nan_ok=True), 1.0]}


def test_columns_beside_a_join_overwrite_others(tmp_path):
    # JoinExternal returns the whole frame, including columns that a combination left in it.
    fit = pd.DataFrame({"a": [1, 2, 2], "b": [-1, 0, 1]})
    combined = [["a", "b"]] >> ops.Categorify(out_path=path(tmp_path), encode_type="combo")
    joined = combined >> ops.JoinExternal(pd.DataFrame({"a_b": [3, 4, 5], "x": [5, 6, 7]}), on="a_b")
    both = pair(fitted((["b"] >> ops.Clip(min_value=0)) + joined, fit))
    assert check(both, fit, strict=True) == "equal"
    assert both.oracle(fit)["b"].tolist() == [-1, 0, 1]


def test_oracle_of_a_part_whose_graph_remove_inputs_breaks():
    # Without ``a`` the group claims to have ``b`` but has only ``c``, so the oracle runs the whole graph.
    fit = pd.DataFrame({"a": [1, 2], "b": [1.0, 2.0], "c": ["x", "y"]})
    group = (["a", "c"] >> ops.AddMetadata()) + [["a", "b", "c"], ["a", "b", "c"]]
    workflow = nvt.Workflow(group >> ops.Rename(postfix="_0"))
    workflow.fit(nvt.Dataset(fit))
    parts = {"a_0": "user", "b_0": "item", "c_0": "item"}
    got = FrameOracle(workflow, "item", parts=parts)(fit)
    assert got.to_dict("list") == {"c_0": ["x", "y"], "b_0": [1.0, 2.0]}
    program = compile_workflow(workflow, "item", parts=parts).program
    assert program.run(columns_from_frame(fit, program.inputs), 2)["b_0"].values.tolist() == [1.0, 2.0]
