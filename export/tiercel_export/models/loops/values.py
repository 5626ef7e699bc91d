"""The operands of loops, which are views of arrays, and the writer of the list of loops."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from tiercel_serving.engines.loops import AXES, FIRST_INPUT, KINDS, WEIGHTS, WORK, LoopList, Put
from tiercel_serving.spec import Array

#: The SIMD width of a product: rows of its second factor are padded to a multiple of this.
LANES = 8

#: float32 represents all integers below this exactly.
WHOLE = 1 << 24


class Refused(Exception):
    """The graph needs something that loops can't do; the message says what."""


@dataclass(frozen=True)
class Value:
    """A strided view of an array: its first element, its shape, and its steps (strides in elements).

    ``array`` is an array number of :mod:`tiercel_serving.engines.loops`; within the work space, ``buffer`` is
    the index of its buffer. Computed values are float32, with booleans as 0 and 1.
    """

    array: int
    first: int
    shape: tuple[int, ...]
    steps: tuple[int, ...]
    dtype: str = "float32"
    buffer: int = 0

    @property
    def size(self) -> int:
        """The number of its elements."""
        return math.prod(self.shape)

    @property
    def dense(self) -> bool:
        """Whether its elements are contiguous, in C order."""
        along = zip(self.shape, self.steps, dense_steps(self.shape), strict=True)
        return all(size == 1 or step == wanted for size, step, wanted in along)

    def seen_as(self, shape: Sequence[int], steps: Sequence[int], first: int = 0) -> Value:
        """Return another view of its array that begins ``first`` elements later."""
        return replace(self, shape=tuple(shape), steps=tuple(steps), first=self.first + first)

    def broadcast(self, shape: Sequence[int]) -> Value:
        """Return a view broadcast to a shape, by NumPy's rules."""
        more = len(shape) - len(self.shape)
        sizes, steps = (1,) * more + self.shape, (0,) * more + self.steps
        for size, wanted in zip(sizes, shape, strict=True):
            if size not in (1, wanted):
                raise Refused(f"a broadcast of {self.shape} to {tuple(shape)}")
        return self.seen_as(
            shape, [0 if size == 1 else step for size, step in zip(sizes, steps, strict=True)]
        )


def dense_steps(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the steps of a contiguous array in C order."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def collapse(shape: Sequence[int], steps: Sequence[Sequence[int]], most: int) -> list[tuple[int, ...]]:
    """Merge adjacent axes whose steps are compatible in every operand, and drop axes of size 1.

    Returns
    -------
    ``most`` axes, each with its size and the step of each operand; unused axes come first, with size 1.

    Raises
    ------
    Refused
        More than ``most`` axes remain.
    """
    axes: list[tuple[int, ...]] = []
    for size, *own in zip(shape, *steps, strict=True):
        if size == 1:
            continue
        if axes and all(outer == size * inner for outer, inner in zip(axes[-1][1:], own, strict=True)):
            axes[-1] = (axes[-1][0] * size, *own)
        else:
            axes.append((size, *own))
    if len(axes) > most:
        raise Refused(f"a loop over the axes {[axis[0] for axis in axes]}")
    return [(1,) + (0,) * len(steps)] * (most - len(axes)) + axes


@dataclass
class Writer:
    """The list of loops that is being written, with its weights and buffers."""

    weights: list[Array] = field(default_factory=lambda: [np.zeros(LANES, np.float32)])
    buffers: list[int] = field(default_factory=list)
    loops: list[tuple[str, int, list[int], list[tuple[Value, list[int]]]]] = field(default_factory=list)

    def constant(self, array: Array, room: int = 0) -> Value:
        """Store a weight as float32, with ``room`` padding numbers after each of its rows."""
        if array.dtype.kind in "iu" and array.size and np.abs(array).max() >= WHOLE:
            raise Refused("whole numbers that are not float32")
        held = np.asarray(array, np.float32)
        padded = np.pad(held, [(0, 0)] * (held.ndim - 1) + [(0, room)]) if room else held
        first = sum(map(len, self.weights))
        # Every weight starts at a multiple of LANES.
        flat = padded.reshape(-1)
        self.weights.append(np.pad(flat, (0, -len(flat) % LANES)))
        return Value(WEIGHTS, first, held.shape, dense_steps(padded.shape))

    def room(self, shape: Sequence[int]) -> Value:
        """Return a new buffer of the work space for an array."""
        self.buffers.append(math.prod(shape))
        return Value(WORK, 0, tuple(shape), dense_steps(shape), buffer=len(self.buffers) - 1)

    def add(
        self, kind: str, sizes: Sequence[int], operands: Iterable[tuple[Value, Sequence[int]]], rows: int = 0
    ) -> None:
        """Write a loop with its sizes, and each operand (the first is its output) with its steps."""
        self.loops.append((kind, rows, list(sizes), [(value, list(steps)) for value, steps in operands]))

    def elements(self, kind: str, *operands: Value, into: Value | None = None) -> Value:
        """Write an element-wise loop over broadcast operands, and return its output."""
        shape = np.broadcast_shapes(*(operand.shape for operand in operands))
        out = self.room(shape) if into is None else into
        values = [out, *(operand.broadcast(shape) for operand in operands)]
        axes = collapse(shape, [value.steps for value in values], AXES)
        sizes, *steps = zip(*axes, strict=True)
        self.add(kind, sizes, zip(values, steps, strict=True))
        return out

    def dense(self, value: Value) -> Value:
        """Return the value, or a contiguous copy of it."""
        return value if value.dense else self.elements("copy", value)

    @property
    def multiplications(self) -> int:
        """The number of multiplications in all matrix products."""
        return sum(math.prod(sizes) for kind, _, sizes, _ in self.loops if kind == "product")

    def listed(self, inputs: Sequence[Put], output: Put, result: Value) -> tuple[LoopList, Array]:
        """Return the whole list and its weights, after copying ``result`` to the output."""
        dims = (1, *output.dims)
        made = Value(FIRST_INPUT + len(inputs), 0, dims, dense_steps(dims))
        self.elements("copy", result, into=made)
        places, work = self._placed()
        loops = tuple(self._numbers(*loop, places) for loop in self.loops)
        return LoopList(tuple(inputs), output, work, loops), np.concatenate(self.weights)

    def _placed(self) -> tuple[list[int], int]:
        """Return each buffer's offset and the total size; buffers that are never live together overlap."""
        life: dict[int, tuple[int, int]] = {}
        for at, (_, _, _, operands) in enumerate(self.loops):
            for value, _ in operands:
                if value.array == WORK:
                    life[value.buffer] = (life.get(value.buffer, (at, at))[0], at)
        begins = [0] * len(self.buffers)
        placed: list[int] = []
        for buffer, (born, gone) in sorted(life.items(), key=lambda one: one[1]):
            beside = [one for one in placed if life[one][1] >= born and life[one][0] <= gone]
            for one in sorted(beside, key=lambda one: begins[one]):
                if begins[buffer] + self._size(buffer) <= begins[one]:
                    break
                begins[buffer] = max(begins[buffer], begins[one] + self._size(one))
            placed.append(buffer)
        return begins, max((begins[one] + self._size(one) for one in placed), default=LANES)

    def _size(self, buffer: int) -> int:
        return -(-self.buffers[buffer] // LANES) * LANES

    @staticmethod
    def _numbers(
        kind: str,
        rows: int,
        sizes: list[int],
        operands: list[tuple[Value, list[int]]],
        places: Sequence[int],
    ) -> tuple[int, ...]:
        numbers = [KINDS.index(kind), rows, *sizes]
        for value, steps in operands:
            begins = places[value.buffer] if value.array == WORK else 0
            numbers += [value.array, begins + value.first, *steps]
        # Operands that a kind does not have point to the first weight, which is not read.
        numbers += [WEIGHTS, 0, *[0] * AXES] * (4 - len(operands))
        return tuple(numbers)
