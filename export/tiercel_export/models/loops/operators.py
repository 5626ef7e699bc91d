"""How each ONNX operator is lowered to loops and views: one function and one row in :data:`OPERATORS`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import TensorProto

from . import views
from .lowering import Attributes, Lowering, Write
from .values import LANES, Refused, Value, Writer, collapse
from .views import axes_of, chosen, cut

#: float32's range, for a clip without a limit: it still clips infinities.
_FLOATS = np.finfo(np.float32)


def _elements(kind: str) -> Write:
    def write(lowering: Lowering, node: onnx.NodeProto, attributes: Attributes) -> Value:
        operands = [_number(lowering, name) for name in node.input]
        return lowering.writer.elements(kind, *operands)

    return write


def _number(lowering: Lowering, name: str) -> Value:
    """Return an operand of arithmetic as float32; refuse integers, whose arithmetic differs."""
    if lowering.value(name).dtype not in ("float32", "bool"):
        raise Refused("arithmetic with whole numbers")
    return lowering.floats(name)


def _compared(kind: str) -> Write:
    """Lower a comparison; with integers, one side must be a constant, so that float32 compares exactly."""

    def write(lowering: Lowering, node: onnx.NodeProto, attributes: Attributes) -> Value:
        whole = [name for name in node.input if lowering.value(name).dtype != "float32"]
        if len(whole) == 2:
            raise Refused("a comparison of whole numbers that both are computed")
        return lowering.writer.elements(kind, *map(lowering.floats, node.input))

    return write


def _several(kind: str) -> Write:
    def write(lowering: Lowering, node: onnx.NodeProto, attributes: Attributes) -> Value:
        first, *others = [_number(lowering, name) for name in node.input]
        for other in others:
            first = lowering.writer.elements(kind, first, other)
        return first

    return write


def _power(lowering: Lowering, node: onnx.NodeProto, attributes: Attributes) -> Value:
    base, exponent = _number(lowering, node.input[0]), lowering.known(node.input[1])
    if exponent.size != 1 or exponent.item() not in (2, 0.5):
        raise Refused("a power that is neither square nor root")
    if exponent.item() == 2:
        return lowering.writer.elements("multiply", base, base)
    return lowering.writer.elements("root", base)


def _clip(lowering: Lowering, node: onnx.NodeProto, attributes: Attributes) -> Value:
    limits = [*node.input[1:], "", ""][:2]
    values = [
        lowering.writer.constant(np.array(none)) if not name else lowering.floats(name)
        for name, none in zip(limits, (_FLOATS.min, _FLOATS.max), strict=True)
    ]
    if any(limit.size != 1 for limit in values):
        raise Refused("a clip between more than two numbers")
    return lowering.writer.elements("clip", _number(lowering, node.input[0]), *values)


def _cast(lowering: Lowering, node: onnx.NodeProto, attributes: Attributes) -> Value:
    value, to = lowering.value(node.input[0]), attributes["to"]
    if to == TensorProto.FLOAT:
        return lowering.floats(node.input[0])
    wider = value.dtype == "int32" and to == TensorProto.INT64
    if wider or (value.dtype == "int64" and to == TensorProto.INT64):
        return value
    raise Refused(f"a cast from {value.dtype} to {TensorProto.DataType.Name(to)}")


def _same(lowering: Lowering, node: onnx.NodeProto, attributes: Attributes) -> Value:
    return lowering.value(node.input[0])


def _gather(lowering: Lowering, node: onnx.NodeProto, attributes: Attributes) -> Value:
    axis = attributes.get("axis", 0)
    if node.input[1] in lowering.constants:
        return chosen(lowering.value(node.input[0]), axis, lowering.constants[node.input[1]])
    ids, table = lowering.value(node.input[1]), lowering.known(node.input[0])
    if axis or table.ndim != 2 or table.dtype != np.float32 or ids.dtype not in ("int32", "int64"):
        raise Refused("a gather that is not of a table's rows by ids that come")
    rows, width = table.shape
    out = lowering.writer.room((*ids.shape, width))
    axes = collapse(ids.shape, [out.steps[:-1], ids.steps], 3)
    sizes, by, of = zip(*axes, strict=True)
    operands = ((out, (*by, 1)), (ids, (*of, 0)), (lowering.value(node.input[0]), (width, 0, 0, 1)))
    lowering.writer.add(f"gather_{ids.dtype}", (*sizes, width), operands, rows)
    return out


def _concat(lowering: Lowering, node: onnx.NodeProto, attributes: Attributes) -> Value:
    parts = [_number(lowering, name) for name in node.input]
    axis, shape = attributes["axis"] % len(parts[0].shape), list(parts[0].shape)
    shape[axis] = sum(part.shape[axis] for part in parts)
    out, begin = lowering.writer.room(shape), 0
    for part in parts:
        end = begin + part.shape[axis]
        lowering.writer.elements("copy", part, into=cut(out, axis, range(begin, end)))
        begin = end
    return out


def _matmul(lowering: Lowering, node: onnx.NodeProto, attributes: Attributes) -> Value:
    return _product(lowering, _number(lowering, node.input[0]), node.input[1])


def _gemm(lowering: Lowering, node: onnx.NodeProto, attributes: Attributes) -> Value:
    if attributes.get("alpha", 1.0) != 1 or attributes.get("beta", 1.0) != 1 or attributes.get("transA"):
        raise Refused("a product with factors")
    name = node.input[1]
    if attributes.get("transB"):
        name = f"{name}, transposed"
        lowering.constants[name] = np.ascontiguousarray(lowering.known(node.input[1]).T)
    made = _product(lowering, _number(lowering, node.input[0]), name)
    if len(node.input) < 3 or not node.input[2]:
        return made
    return lowering.writer.elements("add", made, _number(lowering, node.input[2]))


def _product(lowering: Lowering, one: Value, name: str) -> Value:
    """Write a matrix product, batched if the second factor is."""
    writer = lowering.writer
    two = _columns(lowering, name)
    if len(one.shape) < 2 or len(two.shape) < 2:
        raise Refused("a product with a vector")
    rows, depth, columns = one.shape[-2], one.shape[-1], two.shape[-1]
    before = np.broadcast_shapes(one.shape[:-2], two.shape[:-2])
    out = writer.room((*before, rows, columns))
    left, right = (operand.broadcast((*before, *operand.shape[-2:])) for operand in (one, two))
    row: tuple[int, ...]
    if any(right.steps[:-2]):
        (axis,) = collapse(before, [value.steps[:-2] for value in (out, left, right)], 1)
        many, row = axis, (rows, out.steps[-2], left.steps[-2])
    else:  # all products share the second factor, so their rows form one product
        axis, row = collapse((*before, rows), [out.steps[:-1], left.steps[:-1]], 2)
        many = (*axis, 0)
    operands = (
        (out, (many[1], row[1], 1, 0)),
        (left, (many[2], row[2], 0, left.steps[-1])),
        (right, (many[3], 0, 1, right.steps[-2])),
    )
    writer.add("product", (many[0], row[0], columns, depth), operands)
    return out


def _columns(lowering: Lowering, name: str) -> Value:
    """Return a second factor with adjacent columns, its rows padded to a multiple of LANES."""
    if name in lowering.constants:
        array = lowering.constants[name]
        lowering.dense += array.size
        return lowering.value(name, room=-array.shape[-1] % LANES)
    value = _number(lowering, name)
    room = -value.shape[-1] % LANES
    if not room and value.steps[-1] == 1:
        return value
    wide = lowering.writer.room((*value.shape[:-1], value.shape[-1] + room))
    view = wide.seen_as(value.shape, wide.steps)
    return lowering.writer.elements("copy", value, into=view)


def _reduced(kind: str) -> Write:
    def write(lowering: Lowering, node: onnx.NodeProto, attributes: Attributes) -> Value:
        value = _number(lowering, node.input[0])
        axes = axes_of(lowering, node, attributes, len(value.shape))
        return _reduce(lowering.writer, kind, value, axes, bool(attributes.get("keepdims", 1)))

    return write


def _reduce(writer: Writer, kind: str, value: Value, axes: Sequence[int], keep: bool = True) -> Value:
    for axis in axes:
        shape = [1 if one == axis else size for one, size in enumerate(value.shape)]
        out = writer.room(shape)
        sizes, by, of = zip(*collapse(shape, [out.steps, value.steps], 3), strict=True)
        operands = ((out, (*by, 0)), (value, (*of, value.steps[axis])))
        writer.add(kind, (*sizes, value.shape[axis]), operands)
        value = out
    kept = [axis for axis in range(len(value.shape)) if keep or axis not in axes]
    return value.seen_as([value.shape[axis] for axis in kept], [value.steps[axis] for axis in kept])


def _mean(lowering: Lowering, node: onnx.NodeProto, attributes: Attributes) -> Value:
    value = _number(lowering, node.input[0])
    axes = axes_of(lowering, node, attributes, len(value.shape))
    total = _reduce(lowering.writer, "sum", value, axes, bool(attributes.get("keepdims", 1)))
    count = lowering.writer.constant(np.array(math.prod(value.shape[axis] for axis in axes)))
    return lowering.writer.elements("divide", total, count)


def _length(lowering: Lowering, node: onnx.NodeProto, attributes: Attributes) -> Value:
    value = _number(lowering, node.input[0])
    axes, keep = axes_of(lowering, node, attributes, len(value.shape)), bool(attributes.get("keepdims", 1))
    squares = lowering.writer.elements("multiply", value, value)
    return lowering.writer.elements("root", _reduce(lowering.writer, "sum", squares, axes, keep))


def _softmax(lowering: Lowering, node: onnx.NodeProto, attributes: Attributes) -> Value:
    value, writer = _number(lowering, node.input[0]), lowering.writer
    axes = [attributes.get("axis", -1) % len(value.shape)]
    shifted = writer.elements("subtract", value, _reduce(writer, "highest", value, axes))
    raised = writer.elements("exponent", shifted)
    return writer.elements("divide", raised, _reduce(writer, "sum", raised, axes))


def _normalised(lowering: Lowering, node: onnx.NodeProto, attributes: Attributes) -> Value:
    value, writer = _number(lowering, node.input[0]), lowering.writer
    axes = list(range(attributes.get("axis", -1) % len(value.shape), len(value.shape)))
    count = writer.constant(np.array(math.prod(value.shape[axis] for axis in axes)))
    mean = writer.elements("divide", _reduce(writer, "sum", value, axes), count)
    centred = writer.elements("subtract", value, mean)
    squares = writer.elements("multiply", centred, centred)
    variance = writer.elements("divide", _reduce(writer, "sum", squares, axes), count)
    least = writer.constant(np.array(attributes.get("epsilon", 1e-5)))
    made = writer.elements(
        "divide", centred, writer.elements("root", writer.elements("add", variance, least))
    )
    for kind, name in zip(("multiply", "add"), node.input[1:], strict=False):
        made = writer.elements(kind, made, lowering.floats(name))
    return made


#: ONNX operator → what lowers it. A graph with any other operator is run by ONNX Runtime only.
OPERATORS: Mapping[str, Write] = {
    "Abs": _elements("absolute"),
    "Add": _elements("add"),
    "And": _elements("multiply"),
    "Cast": _cast,
    "Clip": _clip,
    "Concat": _concat,
    "Div": _elements("divide"),
    "Equal": _compared("equal"),
    "Erf": _elements("error"),
    "Exp": _elements("exponent"),
    "Expand": views.expand,
    "Flatten": views.flatten,
    "Gather": _gather,
    "Gemm": _gemm,
    "Greater": _compared("more"),
    "GreaterOrEqual": _compared("at_least"),
    "Identity": _same,
    "IsNaN": _elements("is_nan"),
    "LayerNormalization": _normalised,
    "Less": _compared("less"),
    "LessOrEqual": _compared("at_most"),
    "Log": _elements("logarithm"),
    "MatMul": _matmul,
    "Max": _several("greater"),
    "Min": _several("lesser"),
    "Mul": _elements("multiply"),
    "Neg": _elements("negate"),
    "Not": _elements("not"),
    "Or": _elements("greater"),
    "Pow": _power,
    "ReduceL2": _length,
    "ReduceMax": _reduced("highest"),
    "ReduceMean": _mean,
    "ReduceSum": _reduced("sum"),
    "Relu": _elements("rectify"),
    "Reshape": views.reshape,
    "Sigmoid": _elements("sigmoid"),
    "Slice": views.slice_,
    "Softmax": _softmax,
    "Split": views.split,
    "Sqrt": _elements("root"),
    "Squeeze": views.squeeze,
    "Sub": _elements("subtract"),
    "Tanh": _elements("tangent"),
    "Transpose": views.transpose,
    "Unsqueeze": views.unsqueeze,
    "Where": _elements("choose"),
}
