"""Half precision by casting the graph: what is cast, what stays float32, and how far the scores move."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from tiercel_export.errors import ExportError
from tiercel_export.models.casts import HALF_TYPES, NARROW, cast_graph, halved
from tiercel_serving.verify.compare import same_top

RNG = np.random.default_rng(0)
WEIGHTS = {
    "table": RNG.normal(size=(50, 32)),
    "w1": RNG.normal(size=(32, 64)) / 6,
    "b1": RNG.normal(size=64),
    "w2": RNG.normal(size=(48, 64)) / 8,
    "b2": RNG.normal(size=48),
    "w3": RNG.normal(size=(48, 1)) / 7,
}


def network(**changes: np.ndarray) -> onnx.ModelProto:
    """Return ids [B, K] → embeddings → two layers with ReLU → softmax + sum → a score [B, K, 1]."""
    weights = {name: array.astype(np.float32) for name, array in {**WEIGHTS, **changes}.items()}
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["e"]),
        helper.make_node("MatMul", ["e", "w1"], ["h1"]),
        helper.make_node("Add", ["h1", "b1"], ["h2"]),
        helper.make_node("Relu", ["h2"], ["h3"]),
        helper.make_node("Reshape", ["h3", "flat"], ["h4"]),
        helper.make_node("Gemm", ["h4", "w2", "b2"], ["h5"], transB=1),
        helper.make_node("Softmax", ["h5"], ["h6"], axis=-1),
        helper.make_node("Add", ["h5", "h6"], ["h7"]),
        helper.make_node("MatMul", ["h7", "w3"], ["s"]),
        helper.make_node("Reshape", ["s", "wide"], ["score"]),
    ]
    shapes = {"flat": np.array([-1, 64]), "wide": np.array([-1, 40, 1])}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", 40])],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["batch", 40, 1])],
        [numpy_helper.from_array(array, name) for name, array in {**weights, **shapes}.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def run(model: onnx.ModelProto, ids: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return np.asarray(session.run(None, {"ids": ids})[0])


IDS = RNG.integers(0, 50, (1000, 40))


@pytest.mark.parametrize("precision", HALF_TYPES)
def test_products_are_cast_and_nothing_else(precision: str) -> None:
    model = network()
    before = model.SerializeToString()
    made = cast_graph(model, precision)
    assert model.SerializeToString() == before
    onnx.checker.check_model(made, full_check=True)
    assert halved(made) == 2
    half = HALF_TYPES[precision].number
    types = {tensor.name: tensor.data_type for tensor in made.graph.initializer}
    assert types["table"] == types["w3"] == TensorProto.FLOAT, "embeddings and the narrow last layer stay"
    kept = {"table", "w3", "flat", "wide"}
    assert {name for name, kind in types.items() if kind == half} == {
        f"{name}_{precision}" for name in ("w1", "b1", "w2", "b2")
    }
    assert set(types) == kept | {f"{name}_{precision}" for name in ("w1", "b1", "w2", "b2")}
    # One cast down before the first layer and one up after the second, but none between them.
    casts = [node.attribute[0].i for node in made.graph.node if node.op_type == "Cast"]
    assert casts == [half, TensorProto.FLOAT]
    inferred = onnx.shape_inference.infer_shapes(made).graph.value_info
    of = {value.name: value.type.tensor_type.elem_type for value in inferred}
    assert of["h6"] == of["h7"] == TensorProto.FLOAT
    for tensor in (*made.graph.input, *made.graph.output):
        assert tensor.type.tensor_type.elem_type in (TensorProto.FLOAT, TensorProto.INT64)


@pytest.mark.parametrize("precision", HALF_TYPES)
def test_the_same_ten_come_out_on_top(precision: str) -> None:
    want = run(network(), IDS)
    got = run(cast_graph(network(), precision, simulate=True), IDS)
    moved = np.abs(got - want).max() / want.std()
    assert 1e-5 < moved < {"fp16": 5e-3, "bf16": 5e-2}[precision]
    # Ids repeat among the candidates, so their scores tie.
    assert same_top(got, want).mean() >= {"fp16": 0.99, "bf16": 0.95}[precision]


def test_the_simulation_is_what_float16_computes() -> None:
    simulated = run(cast_graph(network(), "fp16", simulate=True), IDS[:50])
    # ONNX Runtime computes float16 on the CPU as the simulation: float32, rounded after each operator.
    np.testing.assert_allclose(run(cast_graph(network(), "fp16"), IDS[:50]), simulated, atol=2e-3)


def test_bfloat16_is_rounded_as_ml_dtypes_rounds() -> None:
    made = cast_graph(network(), "bf16", simulate=True)
    (w1,) = [tensor for tensor in made.graph.initializer if tensor.name == "w1_bf16"]
    want = WEIGHTS["w1"].astype(np.float32).astype(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(numpy_helper.to_array(w1), want)


def test_a_weight_beyond_the_type() -> None:
    large = WEIGHTS["w1"].copy()
    large[0, 0] = 1e6
    with pytest.raises(ExportError, match=r"weight 'w1': its largest number is 1e\+06, fp16 ends at 65504"):
        cast_graph(network(w1=large), "fp16")
    assert halved(cast_graph(network(w1=large), "bf16")) == 2


def test_control_flow_is_refused() -> None:
    model = network()
    body = helper.make_graph([], "b", [], [helper.make_tensor_value_info("o", TensorProto.FLOAT, [1])])
    model.graph.node.append(
        helper.make_node("If", ["c"], ["o"], name="fork", then_branch=body, else_branch=body)
    )
    with pytest.raises(ExportError, match="If at layer 'fork': control flow"):
        cast_graph(model, "fp16")


def test_the_same_top() -> None:
    oracle = np.array([[[5.0], [4.0], [4.0], [1.0], [np.nan]]])
    for scores, same in (
        ([5, 4, 3, 2, 0], True),
        ([4, 3, 5, 2, 0], True),  # two equal items may swap
        ([5, 1, 1, 4, 0], False),
        ([np.nan, 4, 3, 2, 0], False),
    ):
        got = np.array(scores, float).reshape(1, 5, 1)
        assert same_top(got, oracle, 2).tolist() == [[same]], scores
    assert same_top(oracle, oracle, 10).all(), "fewer candidates than the top"
    assert NARROW > 1
