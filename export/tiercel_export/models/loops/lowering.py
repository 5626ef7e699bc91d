"""The state of lowering a graph to loops: the constant or value of each name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import onnx
from onnx import numpy_helper

from tiercel_serving.spec import Array

from .values import Refused, Value, Writer


class Lowering:
    """The state of lowering a graph to loops.

    Attributes
    ----------
    writer : Writer
        The list of loops.
    constants : dict
        Name → array that depends on no input.
    values : dict
        Name → view of an input or of a computed array.
    dense : int
        The number of weights that are read for every user, excluding rows of embedding tables.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.writer = Writer()
        self.constants: dict[str, Array] = {
            tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer
        }
        self.values: dict[str, Value] = {}
        self._kept: dict[tuple[str, int], Value] = {}
        self.dense = 0

    def value(self, name: str, room: int = 0) -> Value:
        """Return the view of a name; a constant is stored with ``room`` padding after each row."""
        if name not in self.constants:
            return self.values[name]
        if (name, room) not in self._kept:
            self._kept[name, room] = self.writer.constant(self.constants[name], room)
        return self._kept[name, room]

    def floats(self, name: str) -> Value:
        """Return the view of a name as float32; inputs of other types are converted by a loop."""
        value = self.value(name)
        return value if value.dtype == "float32" else self.writer.elements(f"load_{value.dtype}", value)

    def known(self, name: str) -> Array:
        """Return the constant of a name, or refuse if it is computed."""
        if name not in self.constants:
            raise Refused("what must be known beforehand is computed")
        return self.constants[name]


#: A node's attributes by name.
Attributes = Mapping[str, Any]

#: Lowers one operator: ``write(lowering, node, attributes)`` returns the view of each output.
Write = Callable[[Lowering, onnx.NodeProto, Attributes], "Value | tuple[Value, ...]"]
