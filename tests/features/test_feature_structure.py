"""Graph structures: operators that select, join, rename, nest and remove columns."""

from __future__ import annotations

import warnings

import numpy as np
import nvtabular as nvt
import pandas as pd
import pytest
from merlin.dag import ColumnSelector
from merlin.dag.ops.subgraph import Subgraph
from merlin.schema import Tags
from nvtabular import ops
from parity_helpers import Pair, check, pair
from test_feature_operators import (
    FIT,
    MATRIX,
    REQUEST,
    WHOLE,
    check_odd_rows,
    fitted,
    path,
    select,
    similarity,
)

from tiercel_export.errors import UnsupportedOperator
from tiercel_export.workflow.cut import compile_workflow, cut_workflow
from tiercel_export.workflow.frames import FrameOracle

#: Graphs in which two columns share a name, or that have groups or nested graphs.
SHAPES = {
    "the later of two columns of one name": lambda p: (["age"] >> ops.LogOp()) + (["age"] >> ops.Normalize()),
    "names that swap": lambda p: (
        (["age"] >> ops.LogOp() >> ops.Rename(name="price")) + (["price"] >> ops.Rename(name="age"))
    ),
    "what - takes away is gone": lambda p: (
        (["rank"] >> ops.Normalize())
        + ((["age", "rank"] >> ops.LogOp()) - (["rank"] >> ops.LogOp()))
        + (["price"] >> ops.LogOp())
    ),
    "raw columns minus a node": lambda p: ["age", "rank", "price"] - (["rank"] >> ops.LogOp()),
    "two nodes minus": lambda p: (
        (["age", "rank", "price"] >> ops.LogOp()) - (["rank"] >> ops.LogOp()) - (["age"] >> ops.Normalize())
    ),
    "what [...] leaves out is gone": lambda p: (
        (["rank"] >> ops.Normalize()) + (["age", "rank"] >> ops.LogOp())["age"]
    ),
    "[...] of [...]": lambda p: (["age", "rank", "price"] >> ops.LogOp())["price", "rank"]["rank"],
    "operators that return their whole frame bring its columns along": lambda p: (
        (["left"] >> ops.LogOp()) + (similarity() >> ops.AddTags(["x"])) + select("age")
    ),
    "a whole frame through the statistics": lambda p: (
        (["right"] >> ops.Normalize()) + (similarity(metric="cosine") >> ops.DataStats())
    ),
    "a whole frame chosen from": lambda p: (
        (["left"] >> ops.LogOp()) + (similarity() >> ops.DataStats())["left_right_sim"]
    ),
    "nested groups keep plain operators as they are": lambda p: (
        [["age", "price"], "rank"] >> ops.Normalize() >> ops.Rename(postfix="_n")
    ),
    "nested groups through FillMissing": lambda p: (
        [["city", "town"], ["city"]] >> ops.FillMissing("né", add_binary_cols=True)
    ),
    "groups by tuple": lambda p: [("age", "rank"), "score"] >> ops.FillMedian() >> ops.LogOp(),
    "nested groups added": lambda p: (
        (["age"] >> ops.LogOp()) + [["rank"] >> ops.LogOp(), ["price"] >> ops.Normalize()]
    ),
    "a selector by name": lambda p: ColumnSelector(["age", "rank"]) >> ops.LogOp(),
    "a selector with a group": lambda p: (
        ColumnSelector(["age"], subgroups=[ColumnSelector(["city", "town"])])
        >> ops.Categorify(out_path=p, encode_type="joint")
    ),
    "one node used three times": lambda p: _diamond(["age", "price"] >> ops.FillMissing()),
    "functions that rename": lambda p: (
        ["age", "price"] >> ops.Rename(f=str.upper) >> ops.LogOp() >> ops.Rename(f=lambda n: n[::-1])
    ),
    "renamed to a raw column's name": lambda p: (
        (["price"] >> ops.FillMissing() >> ops.Rename(name="age"))
        + (["age"] >> ops.LogOp() >> ops.Rename(postfix="_log"))
    ),
    "subgraphs that share an input": lambda p: (
        Subgraph("a", ["age"] >> ops.LogOp() >> ops.Rename(postfix="_a"))
        + Subgraph("b", ["age", "price"] >> ops.Normalize())
    ),
    "a subgraph of a subgraph's output": lambda p: (
        (Subgraph("a", ["price"] >> ops.FillMissing(2.0)) + select("age"))
        >> Subgraph("b", ["price", "age"] >> ops.Normalize())
    ),
    "a subgraph within a diamond": lambda p: (
        Subgraph("a", _diamond(["age", "price"] >> ops.FillMissing())) + select("town")
    ),
    "a subgraph with groups": lambda p: (
        Subgraph("a", [["city", "town"], "age"] >> ops.Categorify(out_path=p, encode_type="combo"))
        + select("score")
    ),
}


def _diamond(node):
    return (
        (node >> ops.LogOp())
        + (node >> ops.Rename(postfix="_raw"))
        + (node >> ops.Normalize() >> ops.Rename(postfix="_n"))
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_of_graphs(shape, tmp_path):
    both = pair(fitted(SHAPES[shape](path(tmp_path))), anchor=FIT)
    check(both, WHOLE, strict=True)  # dtypes are compared too
    check(both, FIT, strict=True)
    check_odd_rows(both)


def test_lineage_follows_the_column_that_counts():
    # The output ``age`` is made of ``price``; the raw column ``age`` is only an input of another output.
    node = (["price"] >> ops.FillMissing() >> ops.Rename(name="age")) + (
        ["age"] >> ops.LogOp() >> ops.Rename(postfix="_log")
    )
    cut = cut_workflow(fitted(node))
    assert cut.lineage == {"age": {"price"}, "age_log": {"age"}}


def test_drop_low_cardinality_drops(tmp_path):
    # With 4, 5 and 2 values: the last is dropped from the outputs and from the program's inputs.
    node = (
        ["age", "town", "flag"]
        >> ops.AddTags([Tags.USER])
        >> ops.Categorify(out_path=path(tmp_path))
        >> ops.DropLowCardinality(6)
    )
    workflow = nvt.Workflow(node)
    workflow.fit(nvt.Dataset(FIT))
    both = pair(workflow, anchor=FIT)
    assert [output.name for output in both.program.outputs] == ["age", "town"]
    assert [column.name for column in both.program.inputs] == ["age", "town"]
    check(both, WHOLE, strict=True)
    check(both, REQUEST)


@pytest.mark.parametrize(
    ("node", "removed", "left"),
    [
        (
            lambda p: (
                (["age", "rank"] >> ops.FillMissing(add_binary_cols=True) >> ops.Normalize())
                + (["town"] >> ops.Categorify(out_path=p))
            ),
            ["rank"],
            ["age", "age_filled", "town"],
        ),
        (lambda p: (["age", "rank"] >> ops.FillMedian()) + (["town"] >> ops.AddTags(["x"])), ["town"], None),
        (
            lambda p: (
                Subgraph("a", ["age", "rank"] >> ops.Normalize())
                + Subgraph("b", ["town"] >> ops.Categorify(out_path=p))
            ),
            ["town"],
            ["age", "rank"],
        ),
        (
            lambda p: [["city", "town"], ["age", "rank"]] >> ops.Categorify(out_path=p, encode_type="combo"),
            ["city"],
            ["age_rank"],
        ),
        (lambda p: [["left", "right"], ["right", "rank"]] >> ops.ColumnSimilarity(MATRIX), ["rank"], None),
        (
            lambda p: ["age", "rank"] >> ops.LogOp() >> ops.Rename(postfix="_l"),
            ["age", "nothing"],
            ["rank_l"],
        ),
        (
            lambda p: (
                (["price"] >> ops.LambdaOp(lambda c, df: c * df["age"], dependency=["age"]))
                + (["rank"] >> ops.LogOp())
            ),
            ["price"],
            ["rank"],
        ),
        (
            lambda p: (["codes", "words"] >> ops.ListSlice(2)) + (["age"] >> ops.LogOp()),
            ["words", "age"],
            ["codes"],
        ),
    ],
)
def test_remove_inputs(node, removed, left, tmp_path):
    frame = FIT.assign(left=FIT["left"] % 4, rank=FIT["rank"].abs().astype(np.int64) % 4)
    workflow = fitted(node(path(tmp_path)), frame)
    workflow.remove_inputs(removed)
    both = pair(workflow, anchor=frame)
    outputs = [output.name for output in both.program.outputs]
    assert outputs == both.oracle.outputs == workflow.output_schema.column_names
    assert left is None or sorted(outputs) == sorted(left)
    assert not {column.name for column in both.program.inputs} & set(removed)
    request = REQUEST.assign(rank=[1, None, 0, 2, 2, 3])
    check(both, frame, strict=True)
    check(both, request.iloc[[0, 4]], strict=True)
    check(both, request)


def test_remove_inputs_inside_a_subgraph():
    # NVTabular's remove_inputs does not change the nested graph, so its transform fails on the column.
    node = Subgraph("a", ["age", "rank"] >> ops.Normalize() >> ops.ReduceDtypeSize()) + select("town")
    workflow = fitted(node)
    workflow.remove_inputs(["rank"])
    with pytest.raises(KeyError, match="rank"):
        workflow.transform(FIT.drop(columns="rank"))
    both = pair(workflow, anchor=FIT)
    assert [output.name for output in both.program.outputs] == ["age", "town"]
    check(both, WHOLE, strict=True)
    check(both, REQUEST)


def test_one_subgraph_for_both_sides():
    node = Subgraph(
        "both",
        (["age", "price"] >> ops.FillMissing() >> ops.Normalize() >> ops.ReduceDtypeSize())
        + Subgraph("inner", ["rank", "town"] >> ops.AddTags(["x"])),
    ) + select("score")
    workflow = nvt.Workflow(node)
    workflow.fit(nvt.Dataset(FIT))
    sides = {"age": "user", "price": "item", "rank": "item", "town": "user", "score": "user"}
    cut = cut_workflow(workflow, parts=sides)
    for part in ("user", "item"):
        lineage = dict(cut.lineage)
        both = Pair(compile_workflow(cut, part), FrameOracle(cut, part), lineage, anchor=FIT)
        assert {output.name for output in both.program.outputs} == {
            n for n, side in sides.items() if side == part
        }
        check(both, WHOLE, strict=True)
        check(both, REQUEST)


def test_refusal_inside_a_subgraph_stops_its_column_alone():
    inner = (["age"] >> ops.LogOp() >> ops.TagAsUserFeatures()) + (
        ["town"] >> ops.HashBucket(3) >> ops.TagAsItemFeatures()
    )
    workflow = nvt.Workflow(Subgraph("a", inner) + (["rank"] >> ops.TagAsUserFeatures()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        workflow.fit(nvt.Dataset(FIT))
    assert [column.name for column in compile_workflow(workflow, "user").outputs] == ["age", "rank"]
    with pytest.raises(UnsupportedOperator, match="HashBucket on column 'town'"):
        compile_workflow(workflow, "item")


def test_saved_subgraphs(tmp_path):
    place = tmp_path / "categories"
    place.mkdir()
    node = Subgraph("a", ["city", "words"] >> ops.Categorify(out_path=str(place))) + select("age")
    fitted(node).save(tmp_path / "saved")
    both = pair(str(tmp_path / "saved"), anchor=FIT)
    check(both, WHOLE, strict=True)
    check(both, REQUEST)


def test_list_whose_first_row_was_empty_inside_a_subgraph(tmp_path):
    frame = pd.DataFrame({"tags": [[], ["b"], ["a", "b"]], "age": [1, 2, 3]})
    node = Subgraph("a", ["tags"] >> ops.Categorify(out_path=path(tmp_path))) + select("age")
    (column,) = [c for c in compile_workflow(fitted(node, frame), "user").inputs if c.name == "tags"]
    assert (column.dtype, column.is_list) == ("bytes", True)
