"""Small models as native loops: each operator equals ONNX Runtime's, which runs unsupported graphs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from native_build import open_compiled, run_sanitized
from onnx import TensorProto, helper, numpy_helper

from tiercel_export.models.loops.lower import lower
from tiercel_export.models.loops.operators import OPERATORS
from tiercel_export.models.onnx import EXTERNAL_DATA_SUFFIX, save_onnx
from tiercel_serving.engines.loops import LIST_SUFFIX, LoopsEngine, open_loops
from tiercel_serving.engines.onnx import Onnx, OnnxEngine
from tiercel_serving.errors import ArtefactCorrupt
from tiercel_serving.spec import Array

RANDOM = np.random.default_rng(3)
TABLE = RANDOM.normal(size=(7, 12)).astype(np.float32)
WIDE, NARROW = (RANDOM.normal(size=shape).astype(np.float32) for shape in ((5, 19), (5, 3)))

#: The inputs that every graph may read, for one user.
INPUTS = {
    "x": ("float32", (6, 5)),
    "y": ("float32", (6, 5)),
    "row": ("float32", (5,)),
    "ids": ("int64", (4, 3)),
    "short": ("int32", (2,)),
    "flag": ("bool", (6, 5)),
}


def node(operator: str, inputs: str, output: str = "out", **attributes: Any) -> onnx.NodeProto:
    """Return a node; ``inputs`` are names separated by spaces, and ``-`` stands for an absent input."""
    names = ["" if name == "-" else name for name in inputs.split()]
    return helper.make_node(operator, names, output.split(), name=f"{operator}_{output}", **attributes)


def ints(*values: int) -> Array:
    """Return axes, sizes or indices as int64."""
    return np.array(values, np.int64)


def model(
    nodes: Sequence[onnx.NodeProto], constants: dict[str, Any], shape: Sequence[int]
) -> onnx.ModelProto:
    """Return a graph with one output ``[B, …]``, whose inputs are those that its nodes read."""
    read = {name for one in nodes for name in one.input}
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), ["B", *dims])
        for name, (dtype, dims) in INPUTS.items()
        if name in read
    ]
    output = helper.make_tensor_value_info("out", TensorProto.FLOAT, ["B", *shape])
    weights = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(list(nodes), "g", inputs, [output], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def batch(users: int) -> dict[str, Array]:
    """Return every input, including a NaN, infinities and the smallest and largest table rows."""
    arrays: dict[str, Array] = {}
    for name, (dtype, dims) in INPUTS.items():
        shape = (users, *dims)
        arrays[name] = RANDOM.normal(size=shape).astype(dtype)
        if dtype != "float32":
            arrays[name] = RANDOM.integers(0, 2 if dtype == "bool" else 7, shape).astype(dtype)
    arrays["x"][0, 0, :3] = np.nan, np.inf, -np.inf
    return arrays


def cast(to: int = TensorProto.FLOAT) -> onnx.NodeProto:
    """Return a cast of the tensor ``made`` to a type, float32 by default."""
    return node("Cast", "made", to=to)


HALF, ONE = np.float32(0.5), np.float32(1)
SAME: tuple[int, ...] = (6, 5)

#: Operator → graphs: nodes, constants, and the output's shape for one user.
GRAPHS: dict[str, list[tuple[list[onnx.NodeProto], dict[str, Any], tuple[int, ...]]]] = {
    **{
        name: [([node(name, "x")], {}, SAME)]
        for name in ("Abs", "Neg", "Exp", "Tanh", "Erf", "Sigmoid", "Relu")
    },
    **{
        name: [
            ([node(name, "x y")], {}, SAME),
            ([node("Unsqueeze", "row one", "m"), node(name, "m x")], {"one": ints(1)}, SAME),
        ]
        for name in ("Add", "Sub", "Mul", "Div")
    },
    **{name: [([node(name, "x y row2")], {"row2": WIDE[:, 0]}, SAME)] for name in ("Max", "Min")},
    **{
        name: [
            ([node(name, "x y", "made"), cast()], {}, SAME),
            ([node(name, "ids two", "made"), cast()], {"two": ints(2)}, (4, 3)),
        ]
        for name in ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")
    },
    **{
        name: [([node("Less", "x y", "less"), node(name, "less flag", "made"), cast()], {}, SAME)]
        for name in ("And", "Or")
    },
    "Cast": [
        ([node("Cast", "flag", to=TensorProto.FLOAT)], {}, SAME),
        ([node("Cast", "short", "made", to=TensorProto.INT64), cast()], {}, (2,)),
    ],
    "Clip": [
        ([node("Clip", "x low high")], {"low": -HALF, "high": ONE}, SAME),
        ([node("Clip", "x low")], {"low": HALF}, SAME),
        ([node("Clip", "x - high")], {"high": HALF}, SAME),
    ],
    "Concat": [
        ([node("Concat", "x y", axis=-1)], {}, (6, 10)),
        ([node("Concat", "x y x", axis=1)], {}, (18, 5)),
    ],
    "Expand": [
        (
            [node("Unsqueeze", "row one", "m"), node("Expand", "m to")],
            {"one": ints(1), "to": ints(1, 4, 5)},
            (4, 5),
        )
    ],
    "Flatten": [([node("Flatten", "x")], {}, (30,))],
    "Gather": [
        ([node("Gather", "t ids")], {"t": TABLE}, (4, 3, 12)),
        (
            [node("Gather", "ids one", "m", axis=2), node("Gather", "t m")],
            {"one": np.int64(1), "t": TABLE},
            (4, 12),
        ),
        ([node("Gather", "t short")], {"t": TABLE[:, :3]}, (2, 3)),
        ([node("Gather", "x at", axis=1)], {"at": ints(4, 2, 0)}, (3, 5)),
    ],
    "Gemm": [
        ([node("Gemm", "row w c", transB=1)], {"w": np.ascontiguousarray(WIDE.T), "c": WIDE[0]}, (19,)),
        ([node("Gemm", "row w")], {"w": NARROW}, (3,)),
    ],
    "Identity": [([node("Identity", "x")], {}, SAME)],
    "IsNaN": [([node("IsNaN", "x", "made"), cast()], {}, SAME)],
    "LayerNormalization": [
        ([node("LayerNormalization", "y s b", axis=-1)], {"s": WIDE[:, 0], "b": WIDE[:, 1]}, SAME)
    ],
    "Log": [([node("Abs", "x", "a"), node("Log", "a")], {}, SAME)],
    "MatMul": [
        ([node("MatMul", "y w")], {"w": WIDE}, (6, 19)),
        ([node("MatMul", "y w")], {"w": NARROW[:, :1]}, (6, 1)),
        ([node("Transpose", "x", "t", perm=[0, 2, 1]), node("MatMul", "y t")], {}, (6, 6)),
        ([node("Transpose", "y", "t", perm=[0, 2, 1]), node("MatMul", "t y")], {}, (5, 5)),
        (
            [
                node("Gather", "t ids", "rows"),
                node("Gather", "w ids", "weights"),
                node("Unsqueeze", "row two", "tall"),
                node("Squeeze", "tall two", "flat"),
                node("Slice", "flat a b two2", "three"),
                node("Unsqueeze", "three places", "factors"),
                node("MatMul", "factors rows", "sums"),
                node("Squeeze", "sums two"),
            ],
            {
                "t": TABLE,
                "w": TABLE,
                "two": ints(2),
                "a": ints(0),
                "b": ints(3),
                "two2": ints(1),
                "places": ints(1, 2),
            },
            (4, 12),
        ),
    ],
    "Not": [([node("Not", "flag", "made"), cast()], {}, SAME)],
    "Pow": [
        ([node("Pow", "x two")], {"two": np.float32(2)}, SAME),
        ([node("Abs", "y", "a"), node("Pow", "a half")], {"half": HALF}, SAME),
    ],
    "ReduceL2": [([node("ReduceL2", "y a", keepdims=1)], {"a": ints(-1)}, (6, 1))],
    "ReduceMax": [([node("ReduceMax", "x a", keepdims=0)], {"a": ints(1)}, (5,))],
    "ReduceMean": [([node("ReduceMean", "y a", keepdims=0)], {"a": ints(1, 2)}, ())],
    "ReduceSum": [
        ([node("ReduceSum", "x a", keepdims=0)], {"a": ints(2)}, (6,)),
        ([node("ReduceSum", "y a", keepdims=1)], {"a": ints(1)}, (1, 5)),
    ],
    "Reshape": [
        ([node("Reshape", "x to")], {"to": ints(0, 3, -1)}, (3, 10)),
        ([node("Transpose", "x", "t", perm=[0, 2, 1]), node("Reshape", "t to")], {"to": ints(-1, 30)}, (30,)),
    ],
    "Slice": [
        (
            [node("Slice", "x a b axis by")],
            {"a": ints(5), "b": ints(-7), "axis": ints(1), "by": ints(-2)},
            (3, 5),
        ),
        ([node("Slice", "x a b axis")], {"a": ints(1), "b": ints(99), "axis": ints(-1)}, (6, 4)),
        (
            [node("Slice", "x a b - by")],
            {"a": ints(0, 0, 1), "b": ints(99, 99, 5), "by": ints(1, 2, 1)},
            (3, 4),
        ),
    ],
    "Softmax": [([node("Softmax", "y", axis=-1)], {}, SAME), ([node("Softmax", "y", axis=1)], {}, SAME)],
    "Split": [
        (
            [node("Split", "x sizes", "a b", axis=2), node("Concat", "b a", axis=2)],
            {"sizes": ints(2, 3)},
            SAME,
        )
    ],
    "Sqrt": [([node("Abs", "x", "a"), node("Sqrt", "a")], {}, SAME)],
    "Squeeze": [([node("Unsqueeze", "x a", "m"), node("Squeeze", "m a")], {"a": ints(1, 3)}, SAME)],
    "Transpose": [([node("Transpose", "x", perm=[0, 2, 1])], {}, (5, 6))],
    "Unsqueeze": [([node("Unsqueeze", "row a")], {"a": ints(1, -1)}, (1, 5, 1))],
    "Where": [
        ([node("Where", "flag x c")], {"c": HALF}, SAME),
        ([node("Where", "flag c row2")], {"c": HALF, "row2": WIDE[:, 0]}, SAME),
    ],
}


def opened(made: onnx.ModelProto, folder: Path, monkeypatch: pytest.MonkeyPatch) -> LoopsEngine:
    """Lower a graph, and open it with freshly compiled functions."""
    monkeypatch.setattr("tiercel_serving.engines.loops.library", open_compiled)
    save_onnx(made, folder / Onnx.file)
    assert lower(folder / Onnx.file) == ""
    engine = open_loops(folder / Onnx.file, ["out"])
    assert engine is not None
    return engine


def test_there_is_a_graph_for_every_operator() -> None:
    assert set(GRAPHS) == set(OPERATORS)


@pytest.mark.parametrize("operator", sorted(GRAPHS))
def test_an_operator_equals_onnx_runtimes(
    operator: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for nodes, constants, shape in GRAPHS[operator]:
        loops = opened(model(nodes, constants, shape), tmp_path, monkeypatch)
        reference = OnnxEngine(tmp_path / Onnx.file, ["out"], 1)
        assert (loops.inputs, loops.outputs) == (reference.inputs, reference.outputs)
        for users in (1, 3):
            arrays = batch(users)
            got, wanted = loops.run(arrays)["out"], reference.run(arrays)["out"]
            assert (got.shape, got.dtype) == (wanted.shape, wanted.dtype)
            np.testing.assert_allclose(got, wanted, rtol=2e-6, atol=2e-6)


def test_weights_that_lie_beside_the_graph_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = RANDOM.normal(size=(30_000, 12)).astype(np.float32)
    loops = opened(model([node("Gather", "t ids")], {"t": table}, (4, 3, 12)), tmp_path, monkeypatch)
    assert (tmp_path / f"{Onnx.file}{EXTERNAL_DATA_SUFFIX}").is_file()
    arrays = {"ids": RANDOM.integers(0, len(table), (2, 4, 3))}
    assert np.array_equal(loops.run(arrays)["out"], table[arrays["ids"]])


#: Graphs that are not lowered, by the reason that is given.
REFUSED: dict[str, tuple[list[onnx.NodeProto], dict[str, Any], tuple[int, ...]]] = {
    "the operator Softplus": ([node("Softplus", "x")], {}, SAME),
    "arithmetic with whole numbers": ([node("Add", "ids ids", "made"), cast()], {}, (4, 3)),
    "both are computed": ([node("Equal", "ids ids", "made"), cast()], {}, (4, 3)),
    "not float32": ([node("Less", "ids many", "made"), cast()], {"many": ints(1 << 25)}, (4, 3)),
    "lie unevenly": ([node("Gather", "x at", axis=1)], {"at": ints(0, 1, 3)}, (3, 5)),
    "a gather of nothing": (
        [node("Gather", "x at", "none", axis=1), node("ReduceSum", "none one", keepdims=0)],
        {"at": ints(), "one": ints(1)},
        (5,),
    ),
    "a cast from float32 to INT64": ([node("Cast", "x", "made", to=TensorProto.INT64), cast()], {}, SAME),
    "neither square nor root": ([node("Pow", "x three")], {"three": np.float32(3)}, SAME),
    "3 outputs of LayerNormalization": (
        [node("LayerNormalization", "x scale", "out mean deviation")],
        {"scale": WIDE[:, 0]},
        SAME,
    ),
    "2 outputs of LayerNormalization": (
        [helper.make_node("LayerNormalization", ["x", "scale"], ["out", ""])],
        {"scale": WIDE[:, 0]},
        SAME,
    ),
    "the operator RandomNormal": (
        [node("RandomNormal", "", "made", shape=[1, 6, 5]), node("Add", "made x")],
        {},
        SAME,
    ),
    "dense weights": ([node("Gemm", "row w")], {"w": np.zeros((5, 15_000), np.float32)}, (15_000,)),
    "multiplications": (
        [node("Unsqueeze", "x one", "m"), node("Expand", "m to", "many"), node("MatMul", "many w")],
        {"one": ints(1), "to": ints(1, 200, 6, 5), "w": np.zeros((5, 2_000), np.float32)},
        (200, 6, 2_000),
    ),
}


@pytest.mark.parametrize("said", REFUSED)
def test_what_loops_cannot_do_stays_onnx_runtimes(said: str, tmp_path: Path) -> None:
    onnx.save(model(*REFUSED[said]), tmp_path / Onnx.file)
    assert said in lower(tmp_path / Onnx.file)
    assert isinstance(Onnx.open(tmp_path / Onnx.file, ["out"]), OnnxEngine)


@pytest.mark.parametrize("absent", [True, False])
@pytest.mark.parametrize("noop", [0, 1])
@pytest.mark.parametrize("operator", ["ReduceSum", "ReduceMean", "ReduceMax", "ReduceL2"])
def test_a_reduction_without_axes_is_onnx_runtimes(
    operator: str, noop: int, absent: bool, tmp_path: Path
) -> None:
    """ONNX Runtime reduces over all axes, users too, or over none."""
    reduced = node(operator, "y" if absent else "y a", "all", noop_with_empty_axes=noop)
    constants = {} if absent else {"a": ints()}
    onnx.save(model([reduced, node("Sub", "y all")], constants, SAME), tmp_path / Onnx.file)
    assert lower(tmp_path / Onnx.file) == f"{operator} without axes"
    arrays = {"y": batch(3)["y"]}
    got = OnnxEngine(tmp_path / Onnx.file, ["out"], 1).run(arrays)["out"]
    reduce = {"ReduceSum": np.sum, "ReduceMean": np.mean, "ReduceMax": np.max, "ReduceL2": np.linalg.norm}
    if not noop:
        np.testing.assert_allclose(got, arrays["y"] - reduce[operator](arrays["y"]), rtol=1e-4, atol=1e-4)
    elif operator != "ReduceL2":  # of which some versions of ONNX Runtime return the magnitude
        assert not got.any()


@pytest.mark.parametrize("absent", [True, False])
def test_a_squeeze_without_axes_is_onnx_runtimes(absent: bool, tmp_path: Path) -> None:
    squeezed = node("Squeeze", "m" if absent else "m a")
    constants = {"two": ints(2)} if absent else {"two": ints(2), "a": ints()}
    onnx.save(model([node("Unsqueeze", "y two", "m"), squeezed], constants, SAME), tmp_path / Onnx.file)
    assert lower(tmp_path / Onnx.file) == "Squeeze without axes"
    arrays = {"y": batch(3)["y"]}
    got = OnnxEngine(tmp_path / Onnx.file, ["out"], 1).run(arrays)["out"]
    np.testing.assert_array_equal(got, arrays["y"])


def test_loops_run_where_they_were_built_with_one_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(model(*GRAPHS["Add"][0]), tmp_path, monkeypatch)
    assert isinstance(Onnx.open(tmp_path / Onnx.file, ["out"]), LoopsEngine)
    assert isinstance(Onnx.open(tmp_path / Onnx.file, ["out"], threads=2), OnnxEngine)
    monkeypatch.setattr("tiercel_serving.engines.loops.library", lambda: None)
    assert isinstance(Onnx.open(tmp_path / Onnx.file, ["out"]), OnnxEngine)


@pytest.mark.parametrize("wrong", [-1, 7, 1 << 40])
def test_an_id_beyond_its_table_is_refused(
    wrong: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loops = opened(model(*GRAPHS["Gather"][0]), tmp_path, monkeypatch)
    arrays = batch(2)
    arrays["ids"][1, 3, 2] = wrong
    with pytest.raises(ValueError, match="1 ids are beyond"):
        loops.run(arrays)
    arrays["ids"][1, 3, 2] = 6
    assert np.array_equal(loops.run(arrays)["out"], TABLE[arrays["ids"]])


@pytest.mark.parametrize("wrong", [np.zeros((2, 6, 5)), np.zeros((2, 6, 4), np.float32)])
def test_a_tensor_of_another_dtype_or_size_is_refused(
    wrong: Array, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loops = opened(model(*GRAPHS["Add"][0]), tmp_path, monkeypatch)
    with pytest.raises(ValueError, match="expected"):
        loops.run({**batch(2), "y": wrong})


def test_tensors_need_not_lie_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loops = opened(model(*GRAPHS["Add"][0]), tmp_path, monkeypatch)
    arrays = batch(3)
    turned = np.asfortranarray(arrays["y"])
    assert np.array_equal(loops.run({**arrays, "y": turned})["out"], loops.run(arrays)["out"], equal_nan=True)


#: Changes to the first loop of a lowered model: index of a number, and its new value.
CHANGED = {
    "no such kind": (0, 99),
    "a size": (5, 31),
    "no size": (5, 0),
    "written over weights": (6, 0),
    "no such array": (12, 7),
    "behind its array": (13, 1),
    "before its array": (13, -1),
    "far apart": (17, 1 << 40),
}


@pytest.mark.parametrize("what", CHANGED)
def test_a_list_that_goes_beyond_its_arrays_is_refused(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(model(*GRAPHS["Add"][0]), tmp_path, monkeypatch)
    listed, (place, number) = tmp_path / f"{Onnx.file}{LIST_SUFFIX}", CHANGED[what]
    whole = json.loads(listed.read_text())
    whole["loops"][0][place] = number
    listed.write_text(json.dumps(whole))
    with pytest.raises(ArtefactCorrupt, match="beyond its arrays"):
        Onnx.open(tmp_path / Onnx.file, ["out"])


@pytest.mark.parametrize("rows", [-1, 16, 1 << 50])
def test_a_table_has_no_more_rows_than_were_written(
    rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(model(*GRAPHS["Gather"][0]), tmp_path, monkeypatch)
    listed = tmp_path / f"{Onnx.file}{LIST_SUFFIX}"
    whole = json.loads(listed.read_text())
    assert whole["loops"][0][1] == len(TABLE)
    whole["loops"][0][1] = rows
    listed.write_text(json.dumps(whole))
    with pytest.raises(ArtefactCorrupt, match="beyond its arrays"):
        Onnx.open(tmp_path / Onnx.file, ["out"])


def test_a_damaged_list_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened(model(*GRAPHS["Add"][0]), tmp_path, monkeypatch)
    listed = tmp_path / f"{Onnx.file}{LIST_SUFFIX}"
    whole = json.loads(listed.read_text())
    for damaged in (listed.read_text()[:-9], json.dumps({**whole, "loops": [[1, 2]]})):
        listed.write_text(damaged)
        with pytest.raises(ArtefactCorrupt, match=listed.name):
            Onnx.open(tmp_path / Onnx.file, ["out"])
    listed.write_text(json.dumps(whole))
    with pytest.raises(ArtefactCorrupt, match="other"):
        Onnx.open(tmp_path / Onnx.file, ["other"])


_SANITIZED = """
import sys
from pathlib import Path
import numpy as np
from tiercel_serving import native
from tiercel_serving.engines import loops
functions = native.open_library(Path(sys.argv[1]))
loops.library = lambda: functions
lists = Path(sys.argv[2])
for file in sorted(lists.glob("*.onnx")):
    engine = loops.open_loops(file, ["out"])
    for users in (1, 3):
        engine.run(np.load(lists / f"{users}.npz"))
"""


@pytest.mark.slow
def test_no_loop_goes_beyond_its_arrays(tmp_path: Path) -> None:
    for operator, graphs in GRAPHS.items():
        for at, graph in enumerate(graphs):
            file = tmp_path / f"{operator}-{at}.onnx"
            onnx.save(model(*graph), file)
            assert lower(file) == ""
    for users in (1, 3):
        np.savez(tmp_path / f"{users}.npz", **batch(users))
    run_sanitized(_SANITIZED, str(tmp_path))
