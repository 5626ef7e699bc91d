"""Half precision by casting the graph: matrix products in FP16 or BF16, everything else in float32.

TensorRT 11 has no precision flags: the graph itself defines the precision of each operator. Inputs, outputs,
embeddings, sums, softmax and normalisation stay float32. Products take factors in half precision, and
element-wise or layout operators on their results (a bias, ReLU) stay in half precision, so that no casts are
needed between layers. A product with few output columns, such as the last layer's score, stays float32. It
costs little, and its rounding would change the ranking.

Micikevicius et al. 2018, "Mixed precision training", keeps the same parts in float32.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from ..errors import ExportError


@dataclass(frozen=True)
class HalfType:
    """A 16-bit float type: its number in ONNX, its NumPy dtype, and its largest finite value."""

    number: int
    dtype: npt.DTypeLike
    largest: float


#: Precision → its type.
HALF_TYPES: Mapping[str, HalfType] = {
    "fp16": HalfType(TensorProto.FLOAT16, np.float16, 65504.0),
    "bf16": HalfType(TensorProto.BFLOAT16, ml_dtypes.bfloat16, 3.38e38),
}

#: Operators that are always computed in half precision, unless narrow.
PRODUCTS = frozenset({"MatMul", "Gemm", "Conv"})

#: Operators that are computed in half precision if all non-constant inputs already are.
FOLLOWS = frozenset(
    {
        "Relu",
        "LeakyRelu",
        "PRelu",
        "Elu",
        "Gelu",
        "Sigmoid",
        "Tanh",
        "Identity",
        "Flatten",
        "Transpose",
        "Concat",
    }
    | {"Reshape", "Squeeze", "Unsqueeze", "Expand", "Slice"}
)

#: A product with fewer output columns than this, the width of a tensor core's tile, stays float32.
NARROW = 16


def cast_graph(model: onnx.ModelProto, precision: str, *, simulate: bool = False) -> onnx.ModelProto:
    """Return a copy of the graph with its products in half precision.

    Parameters
    ----------
    model
        A float32 graph with its weights.
    precision
        A row of :data:`HALF_TYPES`.
    simulate
        Represent each half-precision value as a float32 rounded to it, so that any CPU can run the graph.
        This matches a GPU, which multiplies in half precision and accumulates in float32.

    Raises
    ------
    ExportError
        A weight exceeds the type's largest value, or the graph has control flow.
    """
    refuse_control_flow(model, precision)
    made = onnx.ModelProto()
    made.CopyFrom(model)
    casting = _Casting(made, HALF_TYPES[precision], precision, simulate)
    nodes = list(made.graph.node)
    del made.graph.node[:]
    for node in nodes:
        casting.add(node)
    for output in made.graph.output:
        casting.full(output.name)
    made.graph.node.extend(casting.nodes)
    drop_unused(made)
    del made.graph.value_info[:]
    return made


def refuse_control_flow(model: onnx.ModelProto, precision: str) -> None:
    """Refuse a graph with control flow, which is a node with subgraphs.

    Raises
    ------
    ExportError
        A layer is an `if` or a loop.
    """
    for node in model.graph.node:
        if any(one.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for one in node.attribute):
            raise ExportError(
                f"{node.op_type} at layer {node.name!r}: control flow can't be cast to {precision}; write "
                "the layer without `if` and loops, or export in float32"
            )


def halved(model: onnx.ModelProto) -> int:
    """Return how many products of a cast graph are computed in half precision."""
    half = {tensor.name for tensor in model.graph.initializer if tensor.data_type != TensorProto.FLOAT}
    half |= {
        node.output[0]
        for node in model.graph.node
        if node.op_type == "Cast" and node.attribute[0].i in {one.number for one in HALF_TYPES.values()}
    }
    return sum(node.op_type in PRODUCTS and node.input[1] in half for node in model.graph.node)


@dataclass
class _Casting:
    """A graph that is being rewritten, node by node in order."""

    model: onnx.ModelProto
    half: HalfType
    precision: str
    simulate: bool
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    #: Tensor → the name of its half-precision form; and those tensors whose float32 form is not written yet.
    halves: dict[str, str] = field(default_factory=dict)
    owed: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.weights = {
            tensor.name: tensor
            for tensor in self.model.graph.initializer
            if tensor.data_type == TensorProto.FLOAT
        }
        self.results: set[str] = set()
        self.integers = {tensor.name for tensor in self.model.graph.initializer} - set(self.weights)

    def add(self, node: onnx.NodeProto) -> None:
        """Write one node, in half precision where the rules of this module say so."""
        if node.op_type in PRODUCTS and not self._narrow(node):
            self._in_half(node, list(node.input))
        elif self._follows(node):
            self._in_half(node, [name for name in node.input if name not in self.integers])
        else:
            for name in node.input:
                self.full(name)
            self.nodes.append(node)

    def full(self, name: str) -> None:
        """Make sure that a tensor's float32 form exists."""
        if name in self.owed:
            self.owed.remove(name)
            self.nodes.append(_cast(self.halves[name], name, TensorProto.FLOAT))

    def _narrow(self, node: onnx.NodeProto) -> bool:
        weight = self.weights.get(node.input[1])
        if weight is None or node.op_type == "Conv":
            return False
        turned = node.op_type == "Gemm" and any(one.name == "transB" and one.i for one in node.attribute)
        return int(weight.dims[0 if turned else -1]) < NARROW

    def _follows(self, node: onnx.NodeProto) -> bool:
        read = [name for name in node.input if name and name not in self.integers]
        computed = [name for name in read if name not in self.weights]
        if not computed or not self.results.issuperset(computed):
            return False
        if node.op_type == "Add":  # a bias; a sum of two results stays float32
            return len(computed) == 1
        return node.op_type in FOLLOWS

    def _in_half(self, node: onnx.NodeProto, floats: Iterable[str]) -> None:
        known = {name: self._half(name) for name in floats if name}
        for place, name in enumerate(node.input):
            node.input[place] = known.get(name, name)
        name = node.output[0]
        half = f"{name}_{self.precision}"
        node.output[0] = f"{half}_exact" if self.simulate else half
        self.nodes.append(node)
        if self.simulate:
            self._rounded(node.output[0], half)
        self.halves[name] = half
        self.owed.add(name)
        self.results.add(name)

    def _half(self, name: str) -> str:
        """Return the name of a tensor's half-precision form, creating it if necessary."""
        if name not in self.halves:
            half = f"{name}_{self.precision}"
            if name in self.weights:
                self._weight(self.weights[name], half)
            elif self.simulate:
                self._rounded(name, half)
            else:
                self.nodes.append(_cast(name, half, self.half.number))
            self.halves[name] = half
        return self.halves[name]

    def _rounded(self, name: str, half: str) -> None:
        self.nodes.append(_cast(name, f"{half}_bits", self.half.number))
        self.nodes.append(_cast(f"{half}_bits", half, TensorProto.FLOAT))

    def _weight(self, tensor: onnx.TensorProto, half: str) -> None:
        values = numpy_helper.to_array(tensor)
        if values.size and np.abs(values).max() > self.half.largest:
            raise ExportError(
                f"weight {tensor.name!r}: its largest number is {np.abs(values).max():g}, {self.precision} "
                f"ends at {self.half.largest:g}; export in float32 or bf16, or train with weight decay"
            )
        rounded = values.astype(self.half.dtype)
        if self.simulate:
            self.model.graph.initializer.append(numpy_helper.from_array(rounded.astype(np.float32), half))
            return
        self.model.graph.initializer.append(
            TensorProto(name=half, data_type=self.half.number, dims=tensor.dims, raw_data=rounded.tobytes())
        )


def _cast(name: str, to: str, number: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [name], [to], name=f"cast_{to}", to=number)


def drop_unused(model: onnx.ModelProto) -> None:
    """Remove weights and casts that are no longer read, in place."""
    outputs = {tensor.name for tensor in model.graph.output}
    read = _read(model) | outputs
    for node in [n for n in model.graph.node if n.op_type == "Cast" and n.output[0] not in read]:
        model.graph.node.remove(node)
    read = _read(model)
    for tensor in [one for one in model.graph.initializer if one.name not in read]:
        model.graph.initializer.remove(tensor)


def _read(model: onnx.ModelProto) -> set[str]:
    return {name for node in model.graph.node for name in node.input}
