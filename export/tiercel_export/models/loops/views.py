"""ONNX operators that only move elements. They become views, with a copy only where a reshape needs one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx

from tiercel_serving.spec import Array

from .lowering import Attributes, Lowering
from .values import Refused, Value, Writer, dense_steps


def reshape(lowering: Lowering, node: onnx.NodeProto, attributes: Attributes) -> Value:
    """Return the elements in their order in another shape."""
    value, wanted = lowering.value(node.input[0]), lowering.known(node.input[1]).tolist()
    if not attributes.get("allowzero"):
        wanted = [value.shape[at] if size == 0 else size for at, size in enumerate(wanted)]
    others = math.prod(size for size in wanted if size != -1)
    return _reshaped(
        lowering.writer, value, [value.size // others if size == -1 else size for size in wanted]
    )


def _reshaped(writer: Writer, value: Value, shape: Sequence[int]) -> Value:
    if not value.dense and value.dtype != "float32":
        raise Refused("an input that is cut and reshaped")
    return writer.dense(value).seen_as(shape, dense_steps(shape))


def flatten(lowering: Lowering, node: onnx.NodeProto, attributes: Attributes) -> Value:
    """Return a view with two axes: those before the given axis merged, and the others merged."""
    value, axis = lowering.value(node.input[0]), attributes.get("axis", 1)
    shape = math.prod(value.shape[:axis]), math.prod(value.shape[axis:])
    return _reshaped(lowering.writer, value, shape)


def axes_of(lowering: Lowering, node: onnx.NodeProto, attributes: Attributes, rank: int) -> list[int]:
    """Return the axes of a node, as given by its attribute or its second input; refuse a node without any.

    No axes, or an empty list, means all axes to some operators, which includes that of the users; only axes
    of size 1 to Squeeze; and none with ``noop_with_empty_axes``.
    """
    axes: Any = attributes.get("axes")
    if len(node.input) > 1 and node.input[1]:
        axes = lowering.known(node.input[1]).reshape(-1).tolist()
    if not axes:
        raise Refused(f"{node.op_type} without axes")
    return sorted(axis % rank for axis in axes)


def squeeze(lowering: Lowering, node: onnx.NodeProto, attributes: Attributes) -> Value:
    """Return a view without some axes of size 1."""
    value = lowering.value(node.input[0])
    axes = axes_of(lowering, node, attributes, len(value.shape))
    kept = [axis for axis, size in enumerate(value.shape) if axis not in axes or size != 1]
    return value.seen_as([value.shape[axis] for axis in kept], [value.steps[axis] for axis in kept])


def unsqueeze(lowering: Lowering, node: onnx.NodeProto, attributes: Attributes) -> Value:
    """Return a view with further axes of size 1."""
    value = lowering.value(node.input[0])
    more = len(lowering.known(node.input[1]).reshape(-1))
    axes = axes_of(lowering, node, attributes, len(value.shape) + more)
    shape, steps = list(value.shape), list(value.steps)
    for axis in axes:
        shape.insert(axis, 1)
        steps.insert(axis, 0)
    return value.seen_as(shape, steps)


def expand(lowering: Lowering, node: onnx.NodeProto, attributes: Attributes) -> Value:
    """Return a value broadcast to a shape."""
    value = lowering.value(node.input[0])
    return value.broadcast(np.broadcast_shapes(value.shape, tuple(lowering.known(node.input[1]).tolist())))


def transpose(lowering: Lowering, node: onnx.NodeProto, attributes: Attributes) -> Value:
    """Return a view with the axes in another order."""
    value = lowering.value(node.input[0])
    order = attributes.get("perm", range(len(value.shape))[::-1])
    return value.seen_as([value.shape[axis] for axis in order], [value.steps[axis] for axis in order])


def slice_(lowering: Lowering, node: onnx.NodeProto, attributes: Attributes) -> Value:
    """Return a view of ranges of positions along some axes."""
    value = lowering.value(node.input[0])
    begins, ends = (lowering.known(name).tolist() for name in node.input[1:3])
    places, by = [*node.input[3:], "", ""][:2]
    axes = lowering.known(places).tolist() if places else list(range(len(begins)))
    strides = lowering.known(by).tolist() if by else [1] * len(begins)
    for axis, begin, end, stride in zip(axes, begins, ends, strides, strict=True):
        value = cut(value, axis % len(value.shape), range(value.shape[axis])[slice(begin, end, stride)])
    return value


def cut(value: Value, axis: int, places: range) -> Value:
    """Return a view of some positions along an axis."""
    if not len(places):
        raise Refused("a slice of nothing")
    shape, steps = list(value.shape), list(value.steps)
    first, shape[axis], steps[axis] = places[0] * steps[axis], len(places), steps[axis] * places.step
    return value.seen_as(shape, steps, first)


def split(lowering: Lowering, node: onnx.NodeProto, attributes: Attributes) -> tuple[Value, ...]:
    """Return a view of each part of an axis."""
    value, parts = lowering.value(node.input[0]), len(node.output)
    axis = attributes.get("axis", 0) % len(value.shape)
    size = -(-value.shape[axis] // parts)
    sizes = lowering.known(node.input[1]).tolist() if len(node.input) > 1 else [size] * parts
    ends = np.minimum(np.cumsum(sizes), value.shape[axis]).tolist()
    return tuple(cut(value, axis, range(a, b)) for a, b in zip([0, *ends[:-1]], ends, strict=True))


def chosen(value: Value, axis: int, places: Array) -> Value:
    """Return a view of one position, without its axis, or of several evenly spaced positions."""
    if not places.size:
        raise Refused("a gather of nothing")
    axis, flat = axis % len(value.shape), places.reshape(-1) % value.shape[axis]
    stride = int(flat[1] - flat[0]) if len(flat) > 1 else 1
    if places.ndim > 1 or stride == 0 or (np.diff(flat) != stride).any():
        raise Refused("a gather of places that lie unevenly")
    view = cut(value, axis, range(int(flat[0]), int(flat[-1]) + stride, stride))
    if places.ndim:
        return view
    kept = [one for one in range(len(view.shape)) if one != axis]
    return view.seen_as([view.shape[one] for one in kept], [view.steps[one] for one in kept])
