"""The table of what TensorRT refuses or changes silently: each row, compared with the real parser."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.defs
import pytest
from onnx import TensorProto, helper, numpy_helper

from tiercel_export.models.readiness import OPERATORS, graph_problems


def graph(
    *nodes: onnx.NodeProto,
    dims: tuple[Any, ...] = ("batch", 4),
    dtype: int = TensorProto.FLOAT,
    constants: dict[str, np.ndarray] | None = None,
    out: tuple[int, tuple[Any, ...]] = (TensorProto.FLOAT, ("batch", 4)),
) -> onnx.ModelProto:
    """Return a graph from ``x`` to ``y``."""
    made = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("x", dtype, dims)],
        [helper.make_tensor_value_info("y", out[0], out[1])],
        [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def node(kind: str, *inputs: str, outputs: tuple[str, ...] = ("y",), **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, list(inputs), list(outputs), name=f"the {kind}", **attributes)


K = {"k": np.array([3], np.int64)}
GRAPHS: dict[str, tuple[onnx.ModelProto, str]] = {
    "an operator that is not there": (
        graph(node("Unique", "x")),
        "Unique at layer 'the Unique': TensorRT has no such operator; its shape follows from values",
    ),
    "what nn.EmbeddingBag becomes": (
        graph(node("SplitToSequence", "x", outputs=("s",)), node("SequenceAt", "s", "k"), constants=K),
        "nn.EmbeddingBag becomes this: take nn.Embedding and a sum",
    ),
    "an operator of another domain": (graph(node("Magic", "x", domain="my.own")), "Magic at layer"),
    "a shape that follows from values": (graph(node("NonZero", "x")), "take torch.where"),
    "float64": (graph(node("Cast", "x", to=1), dtype=TensorProto.DOUBLE), "float64, which becomes float32"),
    "text": (graph(node("Identity", "x"), dtype=TensorProto.STRING), "input 'x': text"),
    "a constant of float64": (
        graph(
            node("Cast", "c", outputs=("d",), to=1),
            node("Add", "x", "d"),
            constants={"c": np.array([1.5])},
        ),
        "constant 'c': float64",
    ),
    "another dynamic axis": (graph(node("Relu", "x"), dims=("batch", "k")), "input 'x': axis 1 is dynamic"),
    "scatter by other integers": (
        graph(
            node("Cast", "i", outputs=("j",), to=TensorProto.UINT8),
            node("ScatterElements", "x", "j", "u", axis=1),
            constants={"i": np.zeros((1, 1), np.int64), "u": np.zeros((1, 1), np.float32)},
        ),
        "its indices are uint8, expected int32 or int64",
    ),
    "a large K": (
        graph(node("TopK", "x", "k", outputs=("y", "i")), constants={"k": np.array([5000])}),
        "TopK at layer 'the TopK': K = 5000, at most 3840",
    ),
    "a computed K": (
        graph(node("Shape", "x", outputs=("k",)), node("TopK", "x", "k", outputs=("y", "i"))),
        "its K is computed; write it as a number",
    ),
}


@pytest.mark.parametrize("what", GRAPHS)
def test_what_is_not_ready_is_told_with_its_layer(what: str) -> None:
    model, words = GRAPHS[what]
    problems = graph_problems(model)
    assert any(words in problem for problem in problems), problems


def test_what_is_ready_is_not_told() -> None:
    top = node("TopK", "x", "k", outputs=("y", "i"))
    assert graph_problems(graph(top, constants=K)) == []
    scatter = node("ScatterElements", "x", "i", "u", axis=1)
    arrays = {"i": np.zeros((1, 1), np.int64), "u": np.zeros((1, 1), np.float32)}
    assert graph_problems(graph(scatter, constants=arrays)) == []


@pytest.mark.tensorrt
def test_the_operators_are_those_that_the_real_parser_has() -> None:
    from tiercel_serving.engines.trt.build import make_logger
    from tiercel_serving.engines.trt.flavours import FLAVOURS, load

    trt = load(FLAVOURS["tensorrt_rtx"])
    logger = make_logger(trt, [])
    network = trt.Builder(logger).create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    known = {schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ""}
    there = {name for name in known if parser.supports_operator(name)}
    # A later parser may support more operators; then the table must be updated.
    assert OPERATORS & known == there


@pytest.mark.tensorrt
@pytest.mark.parametrize(
    ("what", "words"),
    [
        (
            "an operator that is not there",
            r"Unique at layer 'the Unique' is not supported \(.*; write that layer with other operations",
        ),
        ("a large K", r"could not build it: .*the TopK.*; change that layer"),
        ("scatter by other integers", r"Cast at layer 'the Cast' is not supported .*with --engine onnx"),
    ],
)
def test_the_real_parser_or_builder_refuses_it_too(what: str, words: str, tmp_path: Any) -> None:
    from tiercel_serving.engines.trt.build import build_plan, network_sha256
    from tiercel_serving.engines.trt.flavours import FLAVOURS, load
    from tiercel_serving.engines.trt.specification import BuildSpecification
    from tiercel_serving.errors import EngineBuildFailed

    dims = ("batch", 6000) if what == "a large K" else ("batch", 4)
    model = GRAPHS[what][0]
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = dims[1]
    file = tmp_path / "model.onnx"
    onnx.save(model, str(file))
    specification = BuildSpecification(file.name, network_sha256(file), (1, 2, 4))
    with pytest.raises(EngineBuildFailed, match=r"model\.onnx: .*" + words):
        build_plan(load(FLAVOURS["tensorrt_rtx"]), FLAVOURS["tensorrt_rtx"], tmp_path, specification)
