"""Each entry of the operator table: compiled operators equal NVTabular, refused ones raise a clear error."""

from __future__ import annotations

import importlib
import itertools
import pkgutil
from pathlib import Path

import merlin.dag.ops
import numpy as np
import nvtabular as nvt
import pandas as pd
import pytest
from merlin.dag.node import iter_nodes
from merlin.dag.ops import add_metadata as merlin_metadata
from merlin.dag.ops.rename import Rename as MerlinRename
from merlin.dag.ops.subgraph import Subgraph
from merlin.schema import Tags
from nvtabular import ops
from own_operator_cases import OWN_CASES
from parity_helpers import Pair, check, check_rows_alone, pair
from quiet_fits import fit, path
from scipy.sparse import coo_matrix

from tiercel_export import operators as own_operators
from tiercel_export.errors import UnsupportedOperator, WorkflowError
from tiercel_export.lowering.table import COMPILED, DROPS_ROWS, REFUSED, TABLE, TOTAL, key_of, markdown
from tiercel_export.workflow.cut import compile_workflow
from tiercel_export.workflow.frames import columns_from_frame, oracle_frame

FIT = pd.DataFrame(
    {
        "age": [20, 30, 40, 50, 20, 20] * 4,
        "rank": np.array([1, 2, 3, -4, 5, 1] * 4, np.int32),
        "price": [1.5, np.nan, 0.1, 1e6, -3.0, 1.5] * 4,
        "score": np.array([0.1, 0.2, 0.3, -0.4, 0.5, 0.1] * 4, np.float32),
        "flag": [True, False, True, True, False, True] * 4,
        "city": ["Zürich", "", None, "東京", "a", "Zürich"] * 4,
        "town": ["a", "b", "東京", "c", "a", "b"] * 4,
        "words": [["x", "y"], ["y"], [], ["é", "x", "x"], ["x"], ["y"]] * 4,
        "codes": [[1, 2], [2], [], [30, 1], [5], [2]] * 4,
        "tiny": np.array([3, -100, 100, 0, 7, 3] * 4, np.int8),
        "count": np.array([0, 200, 3, 255, 3, 1] * 4, np.uint8),
        "same": [7] * 24,
        "still": np.array([0.25] * 24, np.float32),
        "void": [np.nan] * 24,
        "sizes": [[1.5, 2.0], [-0.0], [], [1e9], [0.5, 1.5, 7.25], [2.0]] * 4,
        "singles": [np.array(row, np.float32) for row in ([1.5, 0.1], [2], [], [0.1], [3], [1])] * 4,
        "left": [0, 1, 2, 3, 4, 0] * 4,
        "right": np.array([2, 2, 3, 0, 1, 0] * 4, np.int32),
    }
)
REQUEST = pd.DataFrame(
    {
        "age": [20, None, 50, 7, -(2**40), 99],
        "rank": [1, None, -4, 100, 2, 3],
        "price": [1.5, None, np.inf, -np.inf, 1e-300, -0.0],
        "score": [0.1, None, np.inf, -0.0, 1e-30, 7.0],
        "flag": [True, False, True, False, True, True],
        "city": ["", None, "東京", "unseen", "Zu\u0308rich", "Zürich"],
        "town": ["b", None, "", "a\0", "東京", "c"],
        "words": [["x", "unseen", "é"], [], ["", "y"], ["x"] * 50, ["é"], [None, "x"]],
        "codes": [[2, 7], [], [30], [1] * 50, [-1, 5], [2**40]],
        "tiny": [100, None, -100, 1, 0, 127],
        "count": [0, None, 255, 7, 200, 1],
        "same": [7, None, 0, -3, 2**40, 5],
        "still": [0.25, None, np.inf, 0.0, 0.1, 3e38],
        "void": [1.5, None, np.inf, 0.0, -1.0, np.nan],
        "sizes": [[1.0, np.inf, 3.0, 4.0], [], [0.25, None], [0.5] * 50, [-0.0], [np.nan, 5e-324]],
        "singles": [[1.0, np.inf, 3.0, 4.0], [], [np.nan, 0.1], [0.5] * 50, [-0.0], [2.0, 1e-30]],
        "left": [4, None, -2, 3, 0, -6],
        "right": [2, 1, 3, None, 3, -1],
    },
    dtype=object,
)
#: A frame on which NVTabular answers for every operator.
WHOLE = REQUEST.iloc[[0, 4]].reset_index(drop=True)


def fitted(node, frame: pd.DataFrame = FIT) -> nvt.Workflow:
    return fit(node, frame)


def select(*names: str):
    return list(names) >> ops.AddMetadata()


#: Tables to join.
EXTERNAL = pd.DataFrame(
    {
        "age": [20, 7, 30, 50, 40],
        "label": ["é", None, "", "東京", "é"],
        "size": np.array([1, -2, 3, 4, 3], np.int16),
        "weight": [0.1, np.nan, np.inf, -0.0, 1.0],
        "old": [True, False, True, True, False],
        "parts": [["a", "é"], [], ["b"], ["a"] * 9, ["b"]],
        "numbers": [[1, 2], [], [3], [2**40], [0]],
    }
)
TOWNS = pd.DataFrame({"name": ["a", "b", None, "東京"], "x": np.array([1, 2, 3, 4], np.float32)})
PAIRS = pd.DataFrame(
    {"city": ["Zürich", None, "東京", None], "price": [1.5, 1e6, 0.1, np.nan], "y": [1, 2, 3, 4]}
)


def combo(p: str, **parameters):
    return ops.Categorify(out_path=p, encode_type="combo", **parameters)


#: Features of five rows, for ColumnSimilarity.
MATRIX = coo_matrix((np.arange(1.0, 9), ([0, 0, 1, 2, 2, 3, 3, 3], [0, 2, 1, 0, 1, 0, 1, 2])), shape=(5, 3))


def similarity(**parameters):
    return [["left", "right"]] >> ops.ColumnSimilarity(**{"left_features": MATRIX, **parameters})


def join_groupby(p: str, stats: list[str]):
    return ops.JoinGroupby(cont_cols=["rank", "score"], stats=stats, out_path=p)


#: Table key → graphs that contain the operator. Each is compared on REQUEST and WHOLE.
CASES = {
    "merlin.SelectionOp": [lambda p: select("age", "price", "words")],
    "merlin.GroupingOp": [lambda p: select("age").__add__([select("rank"), select("price")])],
    "merlin.ConcatColumns": [lambda p: (["age"] >> ops.LogOp()) + ["rank"] + (["price"] >> ops.Normalize())],
    "merlin.SubsetColumns": [lambda p: (["age", "rank", "price"] >> ops.Normalize())["rank", "age"]],
    "merlin.SubtractionOp": [
        lambda p: (["age", "rank"] >> ops.LogOp()) - (["rank"] >> ops.LogOp()),
    ],
    "merlin.Subgraph": [
        lambda p: Subgraph("u", (["age"] >> ops.Normalize()) + ["rank"]) + (["price"] >> ops.LogOp()),
        lambda p: (
            Subgraph("a", ["age", "price"] >> ops.FillMissing() >> ops.Normalize())
            + Subgraph("b", ["city", "words"] >> ops.Categorify(out_path=p))
        ),
        lambda p: (
            Subgraph("o", Subgraph("i", ["age"] >> ops.FillMedian()) + select("score")) + select("town")
        ),
        lambda p: ["price"] >> ops.FillMissing(2.0) >> Subgraph("u", ["price"] >> ops.Normalize()),
    ],
    "merlin.Rename": [lambda p: ["age", "rank"] >> MerlinRename(postfix="_m")],
    "merlin.AddMetadata": [lambda p: ["age"] >> merlin_metadata.AddMetadata(tags=["x"])],
    "merlin.AddTags": [lambda p: ["age"] >> merlin_metadata.AddTags(["x"])],
    "merlin.AddProperties": [lambda p: ["age"] >> merlin_metadata.AddProperties({"x": 1})],
    "merlin.TagAsUserID": [lambda p: ["age"] >> merlin_metadata.TagAsUserID()],
    "merlin.TagAsItemID": [lambda p: ["age"] >> merlin_metadata.TagAsItemID()],
    "merlin.TagAsUserFeatures": [lambda p: ["age"] >> merlin_metadata.TagAsUserFeatures()],
    "merlin.TagAsItemFeatures": [lambda p: ["age"] >> merlin_metadata.TagAsItemFeatures()],
    "nvtabular.Rename": [
        lambda p: ["age", "price"] >> ops.Rename(postfix="_r") >> ops.Normalize(),
        lambda p: ["age", "price"] >> ops.Rename(f=lambda name: f"my {name}") >> ops.LogOp(),
        lambda p: ["city"] >> ops.Rename(name="place") >> ops.Categorify(out_path=p),
    ],
    "nvtabular.AddMetadata": [lambda p: ["price"] >> ops.AddMetadata(tags=["x"], properties={"y": 1})],
    "nvtabular.AddTags": [lambda p: ["price"] >> ops.AddTags(["x"])],
    "nvtabular.AddProperties": [lambda p: ["price"] >> ops.AddProperties({"x": 1})],
    "nvtabular.TagAsUserID": [lambda p: ["age"] >> ops.TagAsUserID()],
    "nvtabular.TagAsItemID": [lambda p: ["age"] >> ops.TagAsItemID()],
    "nvtabular.TagAsUserFeatures": [lambda p: ["age"] >> ops.TagAsUserFeatures()],
    "nvtabular.TagAsItemFeatures": [lambda p: ["age"] >> ops.TagAsItemFeatures()],
    "nvtabular.Categorify": [
        lambda p: ["age", "rank", "city", "words", "codes", "price", "flag"] >> ops.Categorify(out_path=p),
        lambda p: ["city", "age"] >> ops.Categorify(out_path=p, freq_threshold=5),
        lambda p: ["city", "age"] >> ops.Categorify(out_path=p, max_size=5, dtype=np.int32),
        lambda p: [["city", "town"], "age"] >> ops.Categorify(out_path=p, encode_type="joint"),
        lambda p: ["city", "town"] >> ops.Categorify(out_path=p, encode_type="combo"),
        lambda p: ["city", "town", "age"] >> ops.Categorify(out_path=p, single_table=True),
        lambda p: ["age", "words"] >> ops.Categorify(out_path=p, cat_cache=None),
        lambda p: ["age", "city"] >> ops.Categorify(out_path=p, split_out=2),
        lambda p: ["age"] >> ops.Categorify(out_path=p, num_buckets=1),
        lambda p: ["age"] >> ops.LogOp() >> ops.Categorify(out_path=p),
        lambda p: ["price"] >> ops.Bucketize([0, 1]) >> ops.Categorify(out_path=p) >> ops.Normalize(),
        lambda p: ["city"] >> ops.Categorify(out_path=p, vocabs={"city": pd.Series(["b", "", "Zürich"])}),
        lambda p: [["city", "town"], "age"] >> ops.Categorify(out_path=p, encode_type="combo"),
        lambda p: [["age", "price"], ["price", "city", "flag"]] >> combo(p, dtype=np.int32, name_sep="+"),
        lambda p: [["score", "town"], "town"] >> combo(p, freq_threshold=5),
        lambda p: [["age", "rank"], "flag"] >> ops.Categorify(out_path=p),
        lambda p: [["codes", "age"]] >> ops.Categorify(out_path=p, dtype=np.int8),
        lambda p: [["city", "town"]] >> ops.Categorify(out_path=p, num_buckets=4, max_size=20),
        lambda p: ["city"] >> ops.Categorify(out_path=p, dtype=np.float32),
    ],
    "nvtabular.JoinGroupby": [
        lambda p: ["age", "city"] >> join_groupby(p, ["sum", "mean", "std", "var", "min", "max"]),
        lambda p: [["city", "town"], "price"] >> join_groupby(p, ["min", "sum", "mean"]),
        lambda p: ["flag"] >> join_groupby(p, ["count", "mean", "max"]),
        lambda p: ["city"] >> ops.Categorify(out_path=p) >> join_groupby(p, ["std"]) >> ops.Normalize(),
    ],
    "nvtabular.TargetEncoding": [
        lambda p: ["age", "city", "flag"] >> ops.TargetEncoding("rank", kfold=1, out_path=p),
        lambda p: (
            [["city", "town"], "price"]
            >> ops.TargetEncoding(["score", "rank"], kfold=1, p_smooth=0.5, out_dtype="float64", out_path=p)
        ),
        lambda p: ["age"] >> ops.TargetEncoding("score", kfold=1, out_dtype="int32", out_path=p),
    ],
    "nvtabular.JoinExternal": [
        lambda p: ["age", "city"] >> ops.JoinExternal(EXTERNAL, on="age"),
        lambda p: ["town"] >> ops.JoinExternal(TOWNS, on="town", on_ext="name", columns_ext=["name", "x"]),
        lambda p: ["city", "rank", "price"] >> ops.JoinExternal(PAIRS, on=["city", "price"]),
        lambda p: (
            (["age"] >> ops.JoinExternal(EXTERNAL, on="age"))["label", "weight"] >> ops.Categorify(out_path=p)
        ),
    ],
    "nvtabular.FillMissing": [
        lambda p: ["age", "price", "score", "rank"] >> ops.FillMissing(),
        lambda p: ["age", "price", "city"] + (["score"] >> ops.FillMissing(0.5, add_binary_cols=True)),
        lambda p: ["age", "price"] >> ops.FillMissing(-1, add_binary_cols=True),
        lambda p: ["city", "town"] >> ops.FillMissing("né", add_binary_cols=True),
        lambda p: ["city"] >> ops.FillMissing("a") >> ops.Categorify(out_path=p),
        lambda p: ["flag"] >> ops.FillMissing(1) >> ops.LogOp(),
        lambda p: ["words"] >> ops.FillMissing("a", add_binary_cols=True),
        lambda p: ["age"] >> ops.FillMissing(0.5),
        lambda p: ["rank"] >> ops.FillMissing(2**40),
        lambda p: ["price"] >> ops.FillMissing(np.inf),
        lambda p: ["score", "still"] >> ops.FillMissing(0.1, add_binary_cols=True),
        lambda p: ["score"] >> ops.FillMissing(1e300) >> ops.Clip(0.25, 0.5) >> ops.LogOp(),
        lambda p: ["score"] >> ops.FillMissing(0.1) >> ops.Bucketize([0.1, 0.5]) >> ops.Normalize(),
        lambda p: ["score"] >> ops.FillMissing(0.1) >> ops.Categorify(out_path=p),
        lambda p: ["tiny", "rank", "score", "price", "flag"] >> ops.FillMissing(1, add_binary_cols=True),
        lambda p: ["tiny", "rank", "age"] >> ops.FillMissing(1000) >> ops.Normalize(),
    ],
    "nvtabular.FillMedian": [
        lambda p: ["age", "rank", "tiny", "count", "price", "score", "still"] >> ops.FillMedian(),
        lambda p: ["age", "rank", "price", "score"] >> ops.FillMedian(add_binary_cols=True),
        lambda p: ["flag", "void"] >> ops.FillMedian(add_binary_cols=True),
        lambda p: ["score", "rank"] >> ops.FillMedian() >> ops.LogOp() >> ops.Normalize(),
        lambda p: ["age", "rank", "price"] >> ops.FillMedian() >> ops.Normalize(),
        lambda p: ["rank", "price", "score"] >> ops.FillMedian() >> ops.Categorify(out_path=p),
        lambda p: ["price"] >> ops.LogOp() >> ops.FillMedian(add_binary_cols=True),
    ],
    "nvtabular.Clip": [
        lambda p: ["age", "price", "rank"] >> ops.Clip(0, 25),
        lambda p: ["price", "score"] >> ops.Clip(min_value=0.0),
        lambda p: ["price"] >> ops.Clip(max_value=0.1) >> ops.Normalize(),
        lambda p: ["age"] >> ops.Clip(30, 10),
        lambda p: ["age", "rank"] >> ops.Clip(min_value=1.5),
        lambda p: ["rank"] >> ops.Clip(max_value=2**40),
        lambda p: ["price", "age"] >> ops.Clip(np.float64(-2.0), np.int64(30)),
        lambda p: ["tiny", "count", "rank", "age", "score", "price"] >> ops.Clip(-50, 1000),
        lambda p: ["flag", "age"] >> ops.Clip(0, 1),
        lambda p: (
            ["age", "price"] >> ops.FillMissing(add_binary_cols=True) >> ops.Clip(min_value=0) >> ops.LogOp()
        ),
    ],
    "nvtabular.LogOp": [
        lambda p: ["age", "price", "score", "rank", "flag", "codes"] >> ops.LogOp(),
        lambda p: ["codes"] >> ops.LogOp() >> ops.LogOp(),
        lambda p: ["tiny", "count", "rank", "age", "score", "price", "flag", "singles"] >> ops.LogOp(),
    ],
    "nvtabular.Normalize": [
        lambda p: ["age", "price", "score", "rank", "flag", "codes"] >> ops.Normalize(),
        lambda p: ["age", "price", "score"] >> ops.Normalize(out_dtype=np.float32) >> ops.Normalize(),
        lambda p: ["codes"] >> ops.Normalize(out_dtype="float32") >> ops.Normalize(),
        lambda p: ["tiny", "count", "rank", "age", "score", "price", "flag", "singles"] >> ops.Normalize(),
        lambda p: ["same", "still", "void"] >> ops.Normalize(),
    ],
    "nvtabular.NormalizeMinMax": [
        lambda p: ["age", "rank"] >> ops.NormalizeMinMax(),
        lambda p: ["tiny", "count", "rank", "age", "score", "price"] >> ops.NormalizeMinMax(),
        lambda p: ["age", "rank"] >> ops.NormalizeMinMax(out_dtype=np.float32) >> ops.NormalizeMinMax(),
        lambda p: ["score"] >> ops.NormalizeMinMax(out_dtype="float32") >> ops.NormalizeMinMax(),
        lambda p: ["same", "still"] >> ops.NormalizeMinMax(),
        lambda p: ["same"] >> ops.NormalizeMinMax(),
        lambda p: ["count"] >> ops.NormalizeMinMax(),
        lambda p: ["age", "price"] >> ops.FillMissing(3) >> ops.NormalizeMinMax() >> ops.Bucketize([0, 0.5]),
        lambda p: ["age"] >> ops.FillMissing(0.5) >> ops.NormalizeMinMax(),
        lambda p: ["rank"] >> ops.FillMissing(2**40) >> ops.NormalizeMinMax(),
        lambda p: ["rank", "price"] >> ops.Bucketize([0, 1, 3]) >> ops.NormalizeMinMax(),
        lambda p: ["price"] >> ops.Clip(-1, 1) >> ops.LogOp() >> ops.NormalizeMinMax(),
    ],
    "nvtabular.Bucketize": [
        lambda p: ["age", "price", "score", "rank"] >> ops.Bucketize([0, 1, 20, 40.5]),
        lambda p: ["age", "price"] >> ops.Bucketize({"age": [40, 20, 0], "price": [0.1]}),
        lambda p: ["age", "price"] >> ops.Bucketize(lambda name: [0, 0, 30]),
        lambda p: ["price", "flag"] >> ops.Bucketize([]),
        lambda p: ["tiny", "count", "rank", "age", "score", "price", "flag"] >> ops.Bucketize([0, 0.1, 7]),
    ],
    "nvtabular.ListSlice": [
        lambda p: ["words", "codes", "sizes", "singles"] >> ops.ListSlice(2),
        lambda p: ["words", "codes", "sizes", "singles"] >> ops.ListSlice(1, 3),
        lambda p: ["words", "codes", "sizes", "singles"] >> ops.ListSlice(-2),
        lambda p: ["words", "codes"] >> ops.ListSlice(-3, -1),
        lambda p: ["words", "codes"] >> ops.ListSlice(-3, 2),
        lambda p: ["words", "codes"] >> ops.ListSlice(0),
        lambda p: ["codes", "sizes", "singles"] >> ops.ListSlice(3, pad=True),
        lambda p: ["codes", "sizes"] >> ops.ListSlice(-3, pad=True, pad_value=-7) >> ops.ListSlice(1, 3),
        lambda p: ["codes"] >> ops.ListSlice(2, pad=True, pad_value=0.5) >> ops.LogOp(),
        lambda p: ["words"] >> ops.ListSlice(1, 4, pad=True, pad_value="né"),
        lambda p: ["words"] >> ops.ListSlice(3, pad=True, pad_value="") >> ops.Categorify(out_path=p),
        lambda p: (
            ["words", "codes"]
            >> ops.Categorify(out_path=p)
            >> ops.ListSlice(3, pad=True, pad_value=7)
            >> ops.Normalize()
        ),
        lambda p: ["codes", "words"] >> ops.ListSlice(-2) >> ops.Categorify(out_path=p),
        lambda p: ["codes", "singles"] >> ops.ListSlice(2) >> ops.LogOp() >> ops.ListSlice(1) >> ops.LogOp(),
        lambda p: ["codes"] >> ops.FillMissing() >> ops.ListSlice(5, pad=True) >> ops.Normalize(),
    ],
    "nvtabular.ColumnSimilarity": [
        lambda p: similarity(),
        lambda p: similarity(metric="cosine", on_device=False),
        lambda p: similarity(metric="inner") >> ops.FillMissing(),
        lambda p: similarity(metric="inner", left_features=MATRIX.astype(np.float32)) >> ops.LogOp(),
        lambda p: similarity(right_features=MATRIX.tocsc()[:, ::-1] * 0.3, metric="cosine"),
        lambda p: similarity(left_features=MATRIX.astype(np.int64)),
        lambda p: [["left", "right"], ["right", "left"]] >> ops.ColumnSimilarity(MATRIX),
        lambda p: (["left"] >> ops.LogOp()) + similarity(),
        lambda p: similarity() + (["left"] >> ops.LogOp()),
    ],
    "nvtabular.ReduceDtypeSize": [
        lambda p: ["age", "rank", "tiny", "same", "price", "score"] >> ops.ReduceDtypeSize(),
        lambda p: ["count", "flag", "town"] >> ops.ReduceDtypeSize(),
        lambda p: ["price", "score"] >> ops.ReduceDtypeSize(np.float64),
        lambda p: ["age", "price"] >> ops.FillMissing() >> ops.ReduceDtypeSize() >> ops.Normalize(),
        lambda p: ["score"] >> ops.FillMedian() >> ops.ReduceDtypeSize() >> ops.Normalize(),
        lambda p: ["age", "town"] >> ops.Categorify(out_path=p) >> ops.ReduceDtypeSize(),
        lambda p: ["price"] >> ops.ReduceDtypeSize() >> ops.Normalize(),
    ],
    "nvtabular.DropLowCardinality": [
        lambda p: ["age", "flag"] >> ops.Categorify(out_path=p) >> ops.DropLowCardinality(1),
        lambda p: ["price"] >> ops.Bucketize([0, 1]) >> ops.DropLowCardinality(),
    ],
    "nvtabular.ValueCount": [
        lambda p: ["words", "codes", "age"] >> ops.ValueCount(),
        lambda p: ["words", "codes"] >> ops.ValueCount() >> ops.Categorify(out_path=p) >> ops.ValueCount(),
    ],
    "nvtabular.DataStats": [
        lambda p: ["age", "price", "town"] >> ops.DataStats(),
        lambda p: ["age", "rank"] >> ops.DataStats() >> ops.Normalize(),
    ],
    **OWN_CASES,
}
#: Without operators that build sessions or drop events; ``test_sessions.py`` compares those.
COMPILED_KEYS = sorted(
    key for key, entry in TABLE.items() if entry.lower is not None and not (entry.keys or entry.drops_rows)
)


def test_every_compiled_entry_has_a_parity_test():
    assert sorted(CASES) == COMPILED_KEYS


@pytest.mark.parametrize(
    ("key", "number"), [(key, number) for key, graphs in CASES.items() for number in range(len(graphs))]
)
def test_equals_nvtabular(key, number, tmp_path):
    workflow = fitted(CASES[key][number](path(tmp_path)))
    assert key in {key_of(node.op) for node in iter_nodes([workflow.output_node])}
    part = "item" if "TagAsItem" in key else "user"
    both = pair(workflow, part, anchor=FIT)
    both.wide = frozenset(both.oracle.outputs)
    check(both, FIT, strict=True)
    check(both, WHOLE, strict=True)
    check_odd_rows(both)


def check_odd_rows(both: Pair) -> None:
    """Compare on rows that NVTabular may raise on, alone and together.

    NVTabular is asked with one plain row, one of nulls, and others without nulls. Then our program alone is
    checked: each row by itself must give what it gives beside another row.
    """
    for rows in (REQUEST, REQUEST.iloc[[0]], REQUEST.iloc[[1]], REQUEST.iloc[[2, 3, 5]], REQUEST.iloc[:0]):
        check(both, rows)
    for row in range(len(REQUEST)):
        check_rows_alone(both, REQUEST.iloc[[row, (row + 1) % len(REQUEST)]])


def test_dtypes_are_nvtabulars_own(tmp_path):
    node = (["age", "rank"] >> ops.Clip(0, 30)) + ["score", "flag"] + (["price"] >> ops.Bucketize([1]))
    node = node + (["city"] >> ops.Categorify(out_path=path(tmp_path), dtype="int32"))
    both = pair(fitted(node))
    check(both, WHOLE, strict=True)  # without ``wide``: dtypes are compared too
    dtypes = {output.name: output.dtype for output in both.program.outputs}
    assert dtypes == {
        "age": "int64",
        "rank": "int32",
        "score": "float32",
        "flag": "bool",
        "price": "int32",
        "city": "int32",
    }


# --------------------------------------------------------------------------------------------- refusals

REFUSALS = {
    "merlin.UDF": lambda p: ["age"] >> ops.LambdaOp(lambda column: column + 1),
    "nvtabular.HashBucket": lambda p: ["city"] >> ops.HashBucket(8),
    "nvtabular.HashedCross": lambda p: [["city", "town"]] >> ops.HashedCross(8),
    "nvtabular.DifferenceLag": lambda p: ["age"] >> ops.DifferenceLag("rank"),
    "nvtabular.Dropna": lambda p: ["age"] >> ops.Dropna(),
    "nvtabular.Filter": lambda p: ["age"] >> ops.Filter(lambda frame: frame["age"] > 0),
}


def test_every_refused_entry_has_a_test():
    # Operators that drop rows are compiled only on request.
    assert set(REFUSALS) == {key for key, entry in TABLE.items() if entry.lower is None or entry.drops_rows}


@pytest.mark.parametrize("key", REFUSALS)
def test_refusal_names_operator_column_reason_and_remedy(key, tmp_path):
    workflow = nvt.Workflow(REFUSALS[key](path(tmp_path)) >> ops.AddTags([Tags.USER]))
    try:
        workflow.fit(nvt.Dataset(FIT))
    except Exception:
        workflow.fit_schema(nvt.Dataset(FIT).schema)
    with pytest.raises(UnsupportedOperator) as caught:
        compile_workflow(workflow, "user")
    error = caught.value
    assert error.operator == key.split(".")[1]
    assert error.column
    assert error.reason == (DROPS_ROWS if TABLE[key].drops_rows else TABLE[key].note)
    assert TABLE[key].remedy in error.remedy
    for word in (error.operator, repr(error.column), error.reason, error.remedy):
        assert word in str(error)


@pytest.mark.parametrize(
    ("graph", "reason"),
    [
        (lambda p: ["age"] >> ops.Categorify(out_path=p, num_buckets=4, max_size=9), "num_buckets=4"),
        (lambda p: [["city", "town"]] >> combo(p, num_buckets=4, max_size=9), "row's position"),
        (lambda p: ["age"] >> ops.TargetEncoding("rank", out_path=p), "folds at transform"),
        (lambda p: ["age"] >> ops.JoinExternal(EXTERNAL, on="age", how="inner"), "drops rows"),
        (lambda p: ["codes"] >> ops.Clip(0, 1), "on lists"),
        (lambda p: ["codes"] >> ops.Bucketize([0]), "on lists"),
        (lambda p: ["flag"] >> ops.Clip(0.5, 1), "booleans"),
        (lambda p: ["flag"] >> ops.Clip(max_value=0), "booleans"),
        (lambda p: ["city"] >> ops.Clip(0, 1), "bytes"),
        (lambda p: ["city"] >> ops.Bucketize([0]), "text"),
        (lambda p: ["city"] >> ops.FillMissing(0), "mixed types"),
        (lambda p: ["flag"] >> ops.FillMissing(7), "not a boolean"),
        (lambda p: ["age"] >> ops.FillMissing("x"), "not a number"),
        (lambda p: ["price"] >> ops.FillMissing(np.nan), "NaN"),
        (lambda p: ["score"] >> ops.FillMissing(0.1) >> ops.Normalize(), "float32 can't hold"),
        (lambda p: ["score"] >> ops.FillMedian() >> ops.NormalizeMinMax(), "float32 can't hold"),
        (
            lambda p: ["score"] >> ops.FillMissing(0.1) >> ops.Clip(0.2) >> ops.Normalize(),
            "float32 can't hold",
        ),
        (lambda p: ["score"] >> ops.Clip(max_value=0.1), "float32 can't hold"),
        (lambda p: ["score"] >> ops.FillMissing(0.1) >> ops.Clip(max_value=0.1), "float32 can't hold"),
        (lambda p: ["codes"] >> ops.FillMedian(), "never fitted"),
        (lambda p: ["age"] >> ops.Normalize(out_dtype="int32"), "not float32 or float64"),
        (lambda p: ["age"] >> ops.NormalizeMinMax(out_dtype="int32"), "not float32 or float64"),
        (lambda p: ["age"] >> ops.NormalizeMinMax(out_dtype="float16"), "not float32 or float64"),
        (lambda p: ["tiny"] >> ops.NormalizeMinMax(), "range is -100 to 100, on which NVTabular raises"),
        (lambda p: ["tiny", "age"] >> ops.NormalizeMinMax(), "x - min in int8, which wraps round"),
        (lambda p: ["tiny", "age"] >> ops.FillMissing(500) >> ops.NormalizeMinMax(), "in int8, which wraps"),
        (lambda p: ["tiny"] >> ops.Clip(7, 7) >> ops.NormalizeMinMax(), r"2 \* x in int8, which wraps"),
        (lambda p: ["tiny", "score"] >> ops.NormalizeMinMax(), "int8 in float32, unless a row"),
        (lambda p: ["count", "score"] >> ops.FillMissing(0.5) >> ops.NormalizeMinMax(), "uint8 in float32"),
        (lambda p: ["flag"] >> ops.NormalizeMinMax(), "raises on booleans"),
        (lambda p: ["codes"] >> ops.NormalizeMinMax(), "raises on lists"),
        (lambda p: ["codes"] >> ops.ListSlice(0, pad=True), "an end that is not given"),
        (lambda p: ["words"] >> ops.ListSlice(2, pad=True), "mixed types"),
        (lambda p: ["codes"] >> ops.ListSlice(2, pad=True, pad_value="x"), "not a number"),
        (lambda p: ["town"] >> ops.ListSlice(2), "does not hold lists"),
        (
            lambda p: (
                (["age"] >> ops.JoinExternal(EXTERNAL, on="age"))["numbers"] >> ops.ListSlice(2, pad=True)
            ),
            "joined lists",
        ),
        (lambda p: similarity(metric="inner", left_features=MATRIX.astype(np.int64)), "holds int64"),
        (lambda p: [["left", "flag"]] >> ops.ColumnSimilarity(MATRIX), "the column holds bool"),
        (lambda p: ["price"] >> ops.ReduceDtypeSize(np.float16), "can't become float16"),
        (lambda p: ["tiny"] >> ops.FillMissing(1000) >> ops.ReduceDtypeSize(), "or int8, by the batch"),
        (
            lambda p: Subgraph("u", ["age"] >> ops.LogOp(), loop_until=lambda df: True) + select("price"),
            "loop_until",
        ),
        (lambda p: Subgraph("u", ["age"] >> ops.LambdaOp(lambda c: c)) + select("price"), "arbitrary Python"),
        (lambda p: ["age"] >> ops.Categorify(out_path=p, dtype=np.float16), "float16"),
        (lambda p: ["age"] >> ops.Bucketize([3, 1, 2]), "not in order"),
    ],
)
def test_what_an_operator_refuses(graph, reason, tmp_path):
    workflow = nvt.Workflow(graph(path(tmp_path)) >> ops.AddTags([Tags.USER]))
    try:
        workflow.fit(nvt.Dataset(FIT))
    except Exception:
        workflow.fit_schema(nvt.Dataset(FIT).schema)
    with pytest.raises(UnsupportedOperator, match=reason):
        compile_workflow(workflow, "user")


def test_operator_of_another_package_is_refused():
    class Mine(ops.LogOp):
        pass

    with pytest.raises(UnsupportedOperator, match=r"Mine.*not an operator of NVTabular"):
        compile_workflow(fitted(["age"] >> Mine()), "user")


def classes_of(package) -> set[type]:
    """Return every operator defined in the modules of a package."""
    found = set()
    for info in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        module = importlib.import_module(info.name)
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, ops.Operator) and value.__module__ == info.name:
                found.add(value)
    return found - {ops.StatOperator}


def test_table_names_every_operator_of_nvtabular():
    operators = classes_of(ops) | classes_of(merlin.dag.ops)
    values = [*vars(ops).values(), *vars(merlin.dag.ops).values()]
    exported = {value for value in values if isinstance(value, type) and issubclass(value, ops.Operator)}
    assert exported - {ops.Operator, ops.StatOperator} <= operators
    own = {key_of(getattr(own_operators, name)) for name in own_operators.__all__}
    assert {key_of(operator) for operator in operators} | own == set(TABLE)
    for key, entry in TABLE.items():
        assert entry.outcome in (COMPILED, TOTAL, REFUSED)
        assert (entry.lower is None) == (entry.outcome == REFUSED)
        assert entry.lower or (entry.note and entry.remedy), key
        assert entry.outcome != TOTAL or entry.note, f"{key}: say where it is more than NVTabular"


@pytest.mark.parametrize(
    "node",
    [
        lambda: ["town"] >> ops.HashBucket(1000),
        lambda: ["town", "age"] >> ops.HashBucket({"town": 1000, "age": 1000}),
        lambda: [["town", "age"]] >> ops.HashedCross(1000),
        lambda: [["town", "age"]] >> ops.HashedCross({("town", "age"): 1000}),
    ],
)
def test_hashes_on_cpu_include_the_rows_position(node):
    # The reason they are refused: equal rows get different buckets.
    workflow = fitted(node())
    hashed = workflow.transform(pd.DataFrame({"town": ["a"] * 8, "age": [20] * 8}))
    for name in hashed:
        assert hashed[name].nunique() > 4
    with pytest.raises(UnsupportedOperator, match="row's position"):
        compile_workflow(workflow, "user")


# ------------------------------------------------------------------- answers where NVTabular has none


def run(workflow: nvt.Workflow, frame: pd.DataFrame) -> dict[str, list]:
    program = compile_workflow(workflow, "user").program
    columns = columns_from_frame(oracle_frame(frame, program.inputs), program.inputs)
    out = {}
    for name, column in program.run(columns, len(frame)).items():
        values = column.values.tolist()
        if column.is_list:
            values = [values[a:b] for a, b in itertools.pairwise(column.offsets.tolist())]
        out[name] = values
    return out


def test_categorify_is_total(tmp_path):
    workflow = fitted(["age", "price", "city", "codes", "words"] >> ops.Categorify(out_path=path(tmp_path)))
    frame = pd.DataFrame(
        {
            "age": [None, None],
            "price": [np.inf, None],
            "city": [None, None],
            "codes": [None, [None, 2]],
            "words": [None, [None]],
        },
        dtype=object,
    )
    both = pair(workflow)
    with pytest.raises(RuntimeError):
        both.oracle(oracle_frame(frame, both.program.inputs))
    assert run(workflow, frame) == {
        "age": [1, 1],
        "price": [2, 1],
        "city": [1, 1],
        "codes": [[], [2, 3]],
        "words": [[], [2]],
    }


def test_infinity_and_fractions_into_an_integer_vocabulary(tmp_path):
    # LogOp's floats meet an int64 vocabulary given by the caller; they are cast as by astype, so 5.5 is 5.
    vocabulary = {"age": pd.Series([5, 3, 0])}
    node = ["age"] >> ops.FillMissing(5.5) >> ops.Categorify(out_path=path(tmp_path), vocabs=vocabulary)
    workflow = fitted(node)
    frame = pd.DataFrame({"age": [None, 3, 5, 4]}, dtype=object)
    both = pair(workflow, wide=frozenset(["age"]))
    assert check(both, frame, strict=True) == "equal"
    first = int(both.oracle(oracle_frame(frame, both.program.inputs))["age"][0])
    assert run(workflow, frame)["age"] == [first, first + 1, first, 2]


def test_null_list_is_an_empty_list_for_lists_of_numbers():
    workflow = fitted((["codes"] >> ops.LogOp()) + (["age"] >> ops.LogOp()))
    assert run(workflow, pd.DataFrame({"codes": [None, [0]], "age": [0, 0]}))["codes"] == [[], [0.0]]


def test_fill_missing_twice_with_binary_columns():
    # Found by random graphs: the second FillMissing overwrites the first one's <column>_filled.
    node = ["price"] >> ops.FillMissing(3, add_binary_cols=True) >> ops.FillMissing(1, add_binary_cols=True)
    assert check(pair(fitted(node)), REQUEST[["price"]], strict=True) == "equal"


def test_lists_compute_in_their_own_dtype():
    # Found by random graphs: after Normalize(float32) a second Normalize of a list computes in float32.
    node = ["codes"] >> ops.Normalize(out_dtype="float32") >> ops.Normalize(out_dtype="float32")
    assert check(pair(fitted(node)), FIT, strict=True) == "equal"


def test_float_column_into_integer_vocabulary(tmp_path):
    # Found by random graphs: a filled int8 column is float64 here, and its vocabulary int64.
    node = ["rank"] >> ops.FillMissing(2.25) >> ops.Categorify(out_path=path(tmp_path))
    frame = pd.DataFrame({"rank": [None, 1, 2, 77]}, dtype=object)
    assert check(pair(fitted(node), wide=frozenset(["rank"])), frame, strict=True) == "equal"


def test_missing_vocabulary_file_is_named(tmp_path):
    place = path(tmp_path)
    workflow = fitted(["city"] >> ops.Categorify(out_path=place))
    file = next(Path(place).rglob("unique.city.parquet"))
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(WorkflowError, match=r"unique\.city\.parquet: not a readable vocabulary"):
        compile_workflow(workflow, "user")
    file.unlink()
    with pytest.raises(WorkflowError, match=r"unique\.city\.parquet: expected the vocabulary"):
        compile_workflow(workflow, "user")


def test_the_guide_shows_the_table():
    guide = Path(__file__).parents[2] / "docs" / "features.md"
    assert guide.read_text(encoding="utf-8").endswith("\n\n" + markdown())
