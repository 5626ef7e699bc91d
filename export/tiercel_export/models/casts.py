"""Half precision by casting the graph: matrix products in FP16 or BF16, everything else in float32.

TensorRT 11 has no precision flags: what is computed how stands in the graph. Inputs, outputs, embeddings,
sums, softmax and normalisation stay float32; products take factors in half precision, and what only moves or
bends their results (a bias, ReLU) stays with them, so that no cast stands between two layers. A product that
gives a handful of columns, such as the last layer's score, stays float32: it costs nothing there, and its
rounding would be the ranking's.

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
    """A type of sixteen bits: ONNX's number, NumPy's dtype, its largest number."""

    number: int
    dtype: npt.DTypeLike
    largest: float


#: Precision → its type.
HALF_TYPES: Mapping[str, HalfType] = {
    "fp16": HalfType(TensorProto.FLOAT16, np.float16, 65504.0),
    "bf16": HalfType(TensorProto.BFLOAT16, ml_dtypes.bfloat16, 3.38e38),
}

#: What is computed in half precision wherever it stands.
PRODUCTS = frozenset({"MatMul", "Gemm", "Conv"})

#: What goes on in half precision if all that it reads, constants aside, is of half precision already.
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

#: A product that gives fewer columns than tensor cores take at once stays float32.
NARROW = 16


def cast_graph(model: onnx.ModelProto, precision: str, *, simulate: bool = False) -> onnx.ModelProto:
    """Return the graph with its products in half precision; the given one stays as it is.

    Parameters
    ----------
    model
        A float32 graph with its weights.
    precision
        A row of :data:`HALF_TYPES`.
    simulate
        Write every number of half precision as a float32 that was rounded to it: what a GPU computes, whose
        products of half precision are added in float32, in a graph that any CPU runs.

    Raises
    ------
    ExportError
        A weight is beyond the type's largest number, or the graph has control flow.
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
    """Refuse a graph whose nodes have graphs of their own.

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
    """Return how many nodes of a cast graph compute products of half precision."""
    half = {tensor.name for tensor in model.graph.initializer if tensor.data_type != TensorProto.FLOAT}
    half |= {
        node.output[0]
        for node in model.graph.node
        if node.op_type == "Cast" and node.attribute[0].i in {one.number for one in HALF_TYPES.values()}
    }
    return sum(node.op_type in PRODUCTS and node.input[1] in half for node in model.graph.node)


@dataclass
class _Casting:
    """The graph while it is rewritten, node by node in its order."""

    model: onnx.ModelProto
    half: HalfType
    precision: str
    simulate: bool
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    #: Tensor → its half-precision form; and those of them whose float32 form is not there as yet.
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
        """Write one node, in half precision if it shall be."""
        if node.op_type in PRODUCTS and not self._narrow(node):
            self._in_half(node, list(node.input))
        elif self._follows(node):
            self._in_half(node, [name for name in node.input if name not in self.integers])
        else:
            for name in node.input:
                self.full(name)
            self.nodes.append(node)

    def full(self, name: str) -> None:
        """See to it that a tensor is there in float32."""
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
        """Return a tensor's half-precision form, making it if it is not there."""
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
    """Drop weights and casts that nobody reads any more."""
    outputs = {tensor.name for tensor in model.graph.output}
    read = _read(model) | outputs
    for node in [n for n in model.graph.node if n.op_type == "Cast" and n.output[0] not in read]:
        model.graph.node.remove(node)
    read = _read(model)
    for tensor in [one for one in model.graph.initializer if one.name not in read]:
        model.graph.initializer.remove(tensor)


def _read(model: onnx.ModelProto) -> set[str]:
    return {name for node in model.graph.node for name in node.input}
