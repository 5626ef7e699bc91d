"""Is a graph ready for TensorRT? Checks, run at every export, for what it refuses or changes silently.

The list of operators holds those of ONNX 1.23 that the parser of TensorRT-RTX 1.7 reports as supported (a
test queries it again). The other checks come from experiments with that parser. It narrows float64 silently,
takes only a constant K of at most 3,840 for TopK, and refuses sequences and shapes that depend on values.
Where the real parser is installed, its verdict is final (:mod:`.tensorrt`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

#: The largest K that TensorRT's TopK accepts.
TOP_K_MOST = 3840

#: ONNX operators that TensorRT's parser supports.
OPERATORS = frozenset(
    """
    Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh Attention AveragePool BatchNormalization
    BlackmanWindow Cast CastLike CausalConvWithState Ceil Celu Clip Concat Constant ConstantOfShape Conv
    ConvTranspose Cos Cosh CumSum DepthToSpace DequantizeLinear Div Dropout Einsum Elu Equal Erf Exp Expand
    EyeLike Flatten Floor GRU Gather GatherElements GatherND Gelu Gemm GlobalAveragePool GlobalLpPool
    GlobalMaxPool Greater GreaterOrEqual GridSample GroupNormalization HammingWindow HannWindow HardSigmoid
    HardSwish Hardmax Identity If InstanceNormalization IsInf IsNaN LRN LSTM LayerNormalization LeakyRelu Less
    LessOrEqual LinearAttention Log LogSoftmax Loop LpNormalization LpPool MatMul Max MaxPool Mean
    MeanVarianceNormalization Min Mish Mod Mul Neg NonMaxSuppression NonZero Not OneHot Or PRelu Pad Pow
    QuantizeLinear RMSNormalization RNN RandomNormal RandomNormalLike RandomUniform RandomUniformLike Range
    Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd
    ReduceSum ReduceSumSquare Relu Reshape Resize ReverseSequence RoiAlign RotaryEmbedding Round STFT Scan
    Scatter ScatterElements ScatterND Selu Shape Shrink Sigmoid Sign Sin Sinh Size Slice Softmax Softplus
    Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Swish Tan Tanh TensorScatter ThresholdedRelu Tile TopK
    Transpose Trilu Unsqueeze Upsample Where Xor
    """.split()  # noqa: SIM905 - a list of 160 quoted names is no easier to read
)

#: Operator that torch's own layers or tree models export to → what to use instead.
REMEDIES: Mapping[str, str] = {
    "SequenceAt": "nn.EmbeddingBag becomes this: take nn.Embedding and a sum over the list",
    "SplitToSequence": "nn.EmbeddingBag becomes this: take nn.Embedding and a sum over the list",
    "Unique": "its shape follows from values: take a mask of constant shape",
    "NonZero": "its shape follows from values: take torch.where with three arguments, or a mask",
    "TreeEnsembleRegressor": "it has no trees: take --engine onnx for this ranker",
    "Compress": "its shape follows from values: take a mask of constant shape",
}

#: Types that TensorRT narrows silently or does not support.
_TYPES: Mapping[int, str] = {
    TensorProto.DOUBLE: "float64, which becomes float32 silently; cast it in forward, or take float32",
    TensorProto.STRING: "text, which TensorRT does not have; encode it in the workflow",
    TensorProto.COMPLEX64: "complex, which TensorRT does not have",
    TensorProto.COMPLEX128: "complex, which TensorRT does not have",
}

_INDEX_TYPES = (TensorProto.INT32, TensorProto.INT64)


@dataclass(frozen=True)
class _Graph:
    """A model with its nodes, constants and element types."""

    model: onnx.ModelProto

    @cached_property
    def nodes(self) -> list[onnx.NodeProto]:
        """Every node, including those of local functions."""
        return [*self.model.graph.node, *(node for f in self.model.functions for node in f.node)]

    @cached_property
    def constants(self) -> dict[str, onnx.TensorProto]:
        """Name → constant tensor."""
        found = {tensor.name: tensor for tensor in self.model.graph.initializer}
        for node in self.nodes:
            if node.op_type == "Constant":
                found.update((node.output[0], one.t) for one in node.attribute if one.name == "value")
        return found

    @cached_property
    def types(self) -> dict[str, int]:
        """Name → element type, as far as ONNX can infer it."""
        try:
            graph = onnx.shape_inference.infer_shapes(self.model).graph
        except Exception:  # an invalid graph, which the checker reports
            graph = self.model.graph
        known = {
            v.name: v.type.tensor_type.elem_type for v in [*graph.value_info, *graph.input, *graph.output]
        }
        return known | {name: tensor.data_type for name, tensor in self.constants.items()}


def graph_problems(model: onnx.ModelProto) -> list[str]:
    """Return a line for each problem that TensorRT would have with a graph; empty if it is ready.

    Parameters
    ----------
    model
        The graph; its weights need not be loaded.
    """
    graph = _Graph(model)
    return [problem for check in CHECKS.values() for problem in check(graph)]


def _layer(node: onnx.NodeProto) -> str:
    return f"{node.op_type} at layer {node.name or node.output[0]!r}"


def _operators(graph: _Graph) -> Iterator[str]:
    local = {(function.domain, function.name) for function in graph.model.functions}
    for node in graph.nodes:
        if (node.domain, node.op_type) in local:
            continue
        if node.op_type not in OPERATORS or node.domain not in ("", "ai.onnx"):
            remedy = REMEDIES.get(node.op_type, "write that layer with other operations")
            yield f"{_layer(node)}: TensorRT has no such operator; {remedy}"
        elif node.op_type in REMEDIES:
            yield f"{_layer(node)}: {REMEDIES[node.op_type]}"


def _input_types(graph: _Graph) -> Iterator[str]:
    for tensor in graph.model.graph.input:
        if (wrong := _TYPES.get(tensor.type.tensor_type.elem_type)) is not None:
            yield f"input {tensor.name!r}: {wrong}"
    for name, constant in graph.constants.items():
        if (wrong := _TYPES.get(constant.data_type)) is not None:
            yield f"constant {name!r}: {wrong}"


def _input_shapes(graph: _Graph) -> Iterator[str]:
    for tensor in graph.model.graph.input:
        for axis, dim in enumerate(tensor.type.tensor_type.shape.dim):
            if axis and not dim.dim_value:
                yield (
                    f"input {tensor.name!r}: axis {axis} is dynamic; expected the batch, axis 0, alone to "
                    "be: write the others as constants"
                )


def _scatter(graph: _Graph) -> Iterator[str]:
    for node in graph.nodes:
        if node.op_type in ("Scatter", "ScatterElements", "ScatterND"):
            found = graph.types.get(node.input[1], 0)
            if found and found not in _INDEX_TYPES:
                kind = helper.tensor_dtype_to_np_dtype(found)
                yield f"{_layer(node)}: its indices are {kind}, expected int32 or int64; cast them"


def _top_k(graph: _Graph) -> Iterator[str]:
    for node in graph.nodes:
        if node.op_type != "TopK":
            continue
        constant = graph.constants.get(node.input[1])
        if constant is None:
            yield f"{_layer(node)}: its K is computed; write it as a number"
            continue
        k = int(np.asarray(numpy_helper.to_array(constant)).reshape(-1)[0])
        if k > TOP_K_MOST:
            yield f"{_layer(node)}: K = {k}, at most {TOP_K_MOST} is possible; search in blocks"


#: Every check, by what it examines.
CHECKS: Mapping[str, Callable[[Any], Iterator[str]]] = {
    "operators": _operators,
    "input types": _input_types,
    "input shapes": _input_shapes,
    "scatter indices": _scatter,
    "top k": _top_k,
}
