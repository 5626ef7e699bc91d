"""A refused operator affects only its own columns: it neither passes its inputs through nor stops others."""

from __future__ import annotations

import warnings

import numpy as np
import nvtabular as nvt
import pandas as pd
import pytest
from merlin.dag import Node, Operator
from merlin.dag.node import iter_nodes
from merlin.dag.ops.subgraph import Subgraph
from nvtabular import ops
from parity_helpers import check, pairs_of_compiled

from tiercel_export.errors import UnsupportedOperator, WorkflowError
from tiercel_export.lowering.expressions import REFUSED
from tiercel_export.lowering.table import TABLE
from tiercel_export.workflow.cut import compile_workflow, cut_workflow
from tiercel_export.workflow.frames import columns_from_frame
from tiercel_export.workflow.trace import trace

FRAME = pd.DataFrame(
    {"price": [1, 2, 4], "brand": ["a", "b", "a"], "age": [1, 2, 3], "lists": [[1], [2], [3]]}
)
GOOD = {
    "price": lambda p: ["price"] >> ops.LogOp(),
    "brand": lambda p: ["brand"] >> ops.Categorify(out_path=p),
    "age": lambda p: ["age"] >> ops.Normalize(),
}


class Own(Operator):
    """Returns a column that was not requested."""

    def transform(self, col_selector, df):
        return df.assign(price=0)


class Unruly(Operator):
    """Only works on frames of three rows."""

    def transform(self, col_selector, df):
        return {3: df.assign(price=0)}[len(df)]


def both(p):
    return [["brand", "price"]] >> ops.Categorify(out_path=p, encode_type="combo")


#: Refused operators on columns that others also use, and which of these columns they stop.
REFUSALS = {
    "HashedCross": (lambda p: ["brand", "age"] >> ops.HashedCross(10), set()),
    "HashBucket": (lambda p: ["brand"] >> ops.HashBucket(3), {"brand"}),
    "HashBucket of more": (
        lambda p: both(p) >> ops.HashBucket({"brand_price": 3, "brand": 3}),
        {"brand"},
    ),
    "DifferenceLag": (lambda p: ["price"] >> ops.DifferenceLag(["brand"], 1), set()),
    "Groupby": (
        lambda p: ["price", "brand", "age"] >> ops.Groupby(["brand", "age"], aggs="sum"),
        {"brand", "age"},
    ),
    "Groupby of a dependency": (
        lambda p: ["price"] >> ops.Groupby(["brand", "age"], aggs="sum"),
        {"brand", "age"},
    ),
    "LambdaOp": (lambda p: ["age"] >> ops.LambdaOp(lambda c: c + 1), {"age"}),
    "LambdaOp of several": (
        lambda p: ["age", "price"] >> ops.LambdaOp(lambda c, df: c + 1, dependency=["price"]),
        {"age", "price"},
    ),
    "LambdaOp, renamed": (
        lambda p: ["price"] >> ops.LambdaOp(lambda c: c > 1) >> ops.Rename(name="dear"),
        set(),
    ),
    "LambdaOp, with a tail": (
        lambda p: (
            ["price"]
            >> ops.LambdaOp(lambda c: c + 1)
            >> ops.FillMissing()
            >> ops.Clip(0, 5)
            >> ops.Rename(postfix="_x")
        ),
        set(),
    ),
    "Dropna": (lambda p: ["age"] >> ops.Dropna(), {"age"}),
    "Dropna of a frame": (lambda p: both(p) >> ops.Dropna(), {"brand", "price"}),
    "HashBucket of a frame": (lambda p: both(p) >> ops.HashBucket(3), set()),
    "Filter": (lambda p: ["age"] >> ops.Filter(lambda df: df["age"] > 0), {"age"}),
    "one's own": (lambda p: ["age"] >> Own(), {"price", "age"}),
    "one's own, with a tail": (lambda p: ["age"] >> Own() >> ops.AddTags(["x"]), {"price", "age"}),
    "one's own, not to be tried": (lambda p: ["age"] >> Unruly(), {"price", "brand", "age"}),
    "one's own, chosen": (lambda p: (["age"] >> Own())["age"], {"age"}),
    "one's own, renamed": (lambda p: ["age"] >> Own() >> ops.Rename(postfix="_x"), set()),
    "a parameter, in a frame": (lambda p: both(p) >> ops.FillMissing("x"), set()),
    "nested": (
        lambda p: Node.construct_from(Subgraph("n", ["age"] >> ops.LambdaOp(lambda c: c))),
        {"age"},
    ),
}


def fitted(node, frame=FRAME):
    workflow = nvt.Workflow(node)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        workflow.fit(nvt.Dataset(frame))
    return workflow


@pytest.mark.parametrize("after", [True, False])
@pytest.mark.parametrize("case", REFUSALS)
def test_a_refused_operator_stops_what_it_overwrites_and_nothing_else(case, after, tmp_path):
    node, stopped = REFUSALS[case]
    price, brand, age = (make(str(tmp_path / name)) for name, make in GOOD.items())
    refused = node(str(tmp_path / "refused"))
    good = price + brand + age
    workflow = fitted(good + refused if after else refused + good)
    traced = trace(workflow)
    assert {name for name in GOOD if traced[name].op == REFUSED} == (stopped if after else set())
    parts = dict.fromkeys(workflow.output_schema.column_names, "user")
    pairs, _ = pairs_of_compiled(workflow, FRAME, parts)
    for pair in pairs:
        assert check(pair, FRAME, strict=True) == "equal"
    assert pairs or stopped == set(GOOD)


@pytest.mark.parametrize(
    ("good", "refused", "values"),
    [
        ("brand", lambda: ["brand", "age"] >> ops.HashedCross(10), [3, 4, 3]),
        ("price", lambda: ["price"] >> ops.DifferenceLag(["brand"], 1), [0.6931472, 1.0986123, 1.609438]),
        (
            "price",
            lambda: (
                ["price"]
                >> ops.LambdaOp(lambda c: c > 1)
                >> ops.Rename(name="dear")
                >> ops.AddTags(["target"])
            ),
            [0.6931472, 1.0986123, 1.609438],
        ),
    ],
)
@pytest.mark.parametrize("after", [True, False])
def test_the_values_of_a_good_column_beside_a_refused_one(good, refused, values, after, tmp_path):
    made = GOOD[good](str(tmp_path)) >> ops.TagAsUserFeatures()
    workflow = fitted(made + refused() if after else refused() + made)
    parts = dict.fromkeys(workflow.output_schema.column_names, "label") | {good: "user"}
    program = compile_workflow(workflow, "user", parts=parts).program
    got = program.run(columns_from_frame(FRAME, program.inputs), len(FRAME))
    assert got[good].values.tolist() == pytest.approx(values)


def test_every_refused_operator_is_tried():
    refused = {key.partition(".")[2] for key, entry in TABLE.items() if entry.lower is None}
    tried = " ".join(REFUSALS).replace("LambdaOp", "UDF")
    assert all(name in tried for name in refused)


def test_a_label_of_a_good_column_leaves_it_alone():
    label = ["price"] >> ops.LambdaOp(lambda c: c > 1) >> ops.Rename(name="dear") >> ops.AddTags(["target"])
    workflow = fitted((["price"] >> ops.LogOp() >> ops.TagAsUserFeatures()) + label)
    assert cut_workflow(workflow).outputs == {"price": "user", "dear": "label"}
    assert [column.name for column in compile_workflow(workflow, "user").outputs] == ["price"]


def test_what_one_s_own_operator_may_overwrite_is_refused_with_a_remedy():
    workflow = fitted((["price"] >> ops.LogOp()) + (["age"] >> Unruly()) >> ops.TagAsUserFeatures())
    with pytest.raises(
        UnsupportedOperator, match=r"Unruly on column 'price'.*of that name, too.*\(… >> it\)\["
    ):
        compile_workflow(workflow, "user")


@pytest.mark.parametrize("second", ["target", "statistics"])
def test_two_statistics_by_one_key_stop_no_other_use_of_the_key(second, tmp_path):
    # A saved workflow keeps both in one file.
    folders = [str(tmp_path / name) for name in "abc"]
    encoding = ["brand"] >> ops.TargetEncoding("price", kfold=1, out_path=folders[0])
    other = {
        "target": ["brand"] >> ops.TargetEncoding("age", kfold=1, out_path=folders[1]),
        "statistics": ["brand"] >> ops.JoinGroupby(["age"], stats=["mean"], out_path=folders[1]),
    }[second]
    key = ["brand"] >> ops.Categorify(out_path=folders[2]) >> ops.TagAsUserFeatures()
    workflow = fitted(((encoding + other) >> ops.TagAsItemFeatures()) + key)
    workflow.save(tmp_path / "saved")
    saved = str(tmp_path / "saved")
    assert [column.name for column in compile_workflow(saved, "user").outputs] == ["brand"]
    with pytest.raises(UnsupportedOperator, match=r"TargetEncoding on 'brand' and .* in one file"):
        compile_workflow(saved, "item")


def test_a_lost_file_stops_its_own_columns_alone(tmp_path):
    keys = ["brand"] >> ops.Categorify(out_path=str(tmp_path)) >> ops.TagAsItemFeatures()
    workflow = fitted(keys + (["price"] >> ops.LogOp() >> ops.TagAsUserFeatures()))
    (tmp_path / "categories" / "unique.brand.parquet").unlink()
    parts = {"brand": "label", "price": "user"}
    assert [column.name for column in compile_workflow(workflow, "user", parts=parts).outputs] == ["price"]
    with pytest.raises(WorkflowError, match=r"unique\.brand\.parquet: expected the vocabulary of 'brand'"):
        compile_workflow(workflow, "item")


def test_a_nested_graph_that_lacks_the_flag_of_its_fit(tmp_path):
    # Under a Dask client the flag is set on a copy, so the flags of the inner operators decide.
    inner = Subgraph("deep", ["age"] >> ops.Normalize()) + (
        ["brand"] >> ops.Categorify(out_path=str(tmp_path))
    )
    workflow = fitted(Node.construct_from(Subgraph("n", inner)) >> ops.TagAsUserFeatures())
    nested = [node.op for node in iter_nodes([workflow.output_node], flatten_subgraphs=True)]
    for op in nested:
        if op is not None and op.is_subgraph:
            op.fitted = False
    program = compile_workflow(workflow, "user").program
    got = program.run(columns_from_frame(FRAME, program.inputs), len(FRAME))
    assert got["brand"].values.tolist() == [3, 4, 3]
    assert np.array_equal(got["age"].values, workflow.transform(FRAME)["age"])
    for op in nested:
        if isinstance(op, ops.Normalize):
            op.fitted = False
    with pytest.raises(UnsupportedOperator, match=r"Normalize on column 'age'.*never fitted"):
        compile_workflow(workflow, "user")


#: Encodings of a graph: key, target, folds, and the folder of their statistics. Those with equal key and
#: folder overwrite each other's file.
ENCODINGS = {
    "two targets": [("brand", "price", 1, "a"), ("brand", "age", 1, "a")],
    "two targets of two keys": [(["brand", "age"], "price", 1, "a"), (["brand", "age"], "cost", 1, "a")],
    "other folds": [("brand", "price", 1, "a"), ("brand", "age", 3, "a")],
    "a key and a wider one": [("brand", "price", 1, "a"), (["brand", "age"], "price", 1, "a")],
    "three, of which one is alone": [
        ("brand", "price", 1, "a"),
        ("brand", "cost", 1, "a"),
        ("age", "price", 1, "a"),
    ],
    "folders of their own": [("brand", "price", 1, "a"), ("brand", "age", 1, "b")],
}


@pytest.mark.parametrize("name", ENCODINGS)
def test_encodings_that_overwrite_each_other_stop_themselves_alone(name, tmp_path):
    encodings = ENCODINGS[name]
    frame = FRAME.drop(columns="lists").assign(cost=[7.0, 1.0, 3.0])
    node, made, places = None, [], []
    for key, target, kfold, folder in encodings:
        encoding = [key] >> ops.TargetEncoding(
            target, kfold=kfold, out_path=str(tmp_path / folder), p_smooth=2
        )
        node = encoding if node is None else node + encoding
        made.append("_".join(["TE", *np.atleast_1d(key), target]))
        places.append((tuple(np.atleast_1d(key)), folder))
    good = (["brand"] >> ops.Categorify(out_path=str(tmp_path / "c"))) + (["price"] >> ops.LogOp())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        workflow = nvt.Workflow((node + good) >> ops.TagAsUserFeatures())
        workflow.fit(nvt.Dataset(frame))
    refused = [column for column, place in zip(made, places, strict=True) if places.count(place) > 1]
    for column in refused:
        parts = {other: "label" for other in [*made, "brand", "price"] if other != column}
        with pytest.raises(UnsupportedOperator, match="in one file"):
            compile_workflow(workflow, "user", parts=parts, target_encoding="no_fold")
    kept = [column for column in [*made, "brand", "price"] if column not in refused]
    parts = dict.fromkeys(refused, "label")
    compiled = compile_workflow(workflow, "user", parts=parts, target_encoding="no_fold")
    assert sorted(column.name for column in compiled.outputs) == sorted(kept)
    columns = columns_from_frame(frame, compiled.program.inputs)
    answers, expected = compiled.program.run(columns, len(frame)), workflow.transform(frame)
    for column in kept:
        assert np.array_equal(answers[column].values, expected[column].to_numpy())
