"""A graph while it becomes loops: what is known of each name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import onnx
from onnx import numpy_helper

from tiercel_serving.spec import Array

from .values import Refused, Value, Writer


class Lowering:
    """A graph while it becomes loops.

    Attributes
    ----------
    writer : Writer
        What is written.
    constants : dict
        Name → what is known without any input.
    values : dict
        Name → what is computed, or comes.
    dense : int
        The weights that are read for every user, rows of tables aside.
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
        """Return what has a name, a weight with ``room`` behind each row."""
        if name not in self.constants:
            return self.values[name]
        if (name, room) not in self._kept:
            self._kept[name, room] = self.writer.constant(self.constants[name], room)
        return self._kept[name, room]

    def floats(self, name: str) -> Value:
        """Return what has a name as float32: inputs of other types are loaded."""
        value = self.value(name)
        return value if value.dtype == "float32" else self.writer.elements(f"load_{value.dtype}", value)

    def known(self, name: str) -> Array:
        """Return a constant."""
        if name not in self.constants:
            raise Refused("what must be known beforehand is computed")
        return self.constants[name]


#: What a node says beside its inputs, by name.
Attributes = Mapping[str, Any]

#: How an operator is written: of the lowering, its node and its attributes.
Write = Callable[[Lowering, onnx.NodeProto, Attributes], "Value | tuple[Value, ...]"]
