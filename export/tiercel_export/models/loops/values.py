"""What lies between two loops: views of arrays, and the list that is written from them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from tiercel_serving.engines.loops import AXES, FIRST_INPUT, KINDS, WEIGHTS, WORK, LoopList, Put
from tiercel_serving.spec import Array

#: The numbers that a product takes at once: columns of a second factor have room up to a multiple of it.
LANES = 8

#: Whole numbers beyond this are not all float32.
WHOLE = 1 << 24


class Refused(Exception):
    """The graph has something that the loops can't do; it says what."""


@dataclass(frozen=True)
class Value:
    """Elements of an array: where they begin, and how many elements apart they lie along each axis.

    ``array`` is a number of :mod:`tiercel_serving.engines.loops`; of the work space, ``buffer`` says which
    part. What is computed is float32, truth being 0 or 1.
    """

    array: int
    first: int
    shape: tuple[int, ...]
    steps: tuple[int, ...]
    dtype: str = "float32"
    buffer: int = 0

    @property
    def size(self) -> int:
        """How many elements it has."""
        return math.prod(self.shape)

    @property
    def dense(self) -> bool:
        """Whether its elements lie one after the other."""
        along = zip(self.shape, self.steps, dense_steps(self.shape), strict=True)
        return all(size == 1 or step == wanted for size, step, wanted in along)

    def seen_as(self, shape: Sequence[int], steps: Sequence[int], first: int = 0) -> Value:
        """Return another view of the same array, that begins ``first`` elements later."""
        return replace(self, shape=tuple(shape), steps=tuple(steps), first=self.first + first)

    def broadcast(self, shape: Sequence[int]) -> Value:
        """Return it as NumPy broadcasts it."""
        more = len(shape) - len(self.shape)
        sizes, steps = (1,) * more + self.shape, (0,) * more + self.steps
        for size, wanted in zip(sizes, shape, strict=True):
            if size not in (1, wanted):
                raise Refused(f"a broadcast of {self.shape} to {tuple(shape)}")
        return self.seen_as(
            shape, [0 if size == 1 else step for size, step in zip(sizes, steps, strict=True)]
        )


def dense_steps(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the steps of elements one after the other."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def collapse(shape: Sequence[int], steps: Sequence[Sequence[int]], most: int) -> list[tuple[int, ...]]:
    """Put axes together along which all of some operands go on evenly, and those of size 1 away.

    Returns
    -------
    ``most`` axes, those that are not needed first: size, and the step of each operand.

    Raises
    ------
    Refused
        More axes are left.
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
    """The list while it is written."""

    weights: list[Array] = field(default_factory=lambda: [np.zeros(LANES, np.float32)])
    buffers: list[int] = field(default_factory=list)
    loops: list[tuple[str, int, list[int], list[tuple[Value, list[int]]]]] = field(default_factory=list)

    def constant(self, array: Array, room: int = 0) -> Value:
        """Keep a weight, with so many numbers behind each of its rows that nobody reads."""
        if array.dtype.kind in "iu" and array.size and np.abs(array).max() >= WHOLE:
            raise Refused("whole numbers that are not float32")
        held = np.asarray(array, np.float32)
        padded = np.pad(held, [(0, 0)] * (held.ndim - 1) + [(0, room)]) if room else held
        first = sum(map(len, self.weights))
        # Every weight begins at a multiple of LANES.
        flat = padded.reshape(-1)
        self.weights.append(np.pad(flat, (0, -len(flat) % LANES)))
        return Value(WEIGHTS, first, held.shape, dense_steps(padded.shape))

    def room(self, shape: Sequence[int]) -> Value:
        """Return work space for an array."""
        self.buffers.append(math.prod(shape))
        return Value(WORK, 0, tuple(shape), dense_steps(shape), buffer=len(self.buffers) - 1)

    def add(
        self, kind: str, sizes: Sequence[int], operands: Iterable[tuple[Value, Sequence[int]]], rows: int = 0
    ) -> None:
        """Write a loop: its sizes, and each operand (the first is what it makes) with its steps."""
        self.loops.append((kind, rows, list(sizes), [(value, list(steps)) for value, steps in operands]))

    def elements(self, kind: str, *operands: Value, into: Value | None = None) -> Value:
        """Write a loop element by element over broadcast operands, and return what it makes."""
        shape = np.broadcast_shapes(*(operand.shape for operand in operands))
        out = self.room(shape) if into is None else into
        values = [out, *(operand.broadcast(shape) for operand in operands)]
        axes = collapse(shape, [value.steps for value in values], AXES)
        sizes, *steps = zip(*axes, strict=True)
        self.add(kind, sizes, zip(values, steps, strict=True))
        return out

    def dense(self, value: Value) -> Value:
        """Return a value whose elements lie one after the other."""
        return value if value.dense else self.elements("copy", value)

    @property
    def multiplications(self) -> int:
        """How many all products of matrices take."""
        return sum(math.prod(sizes) for kind, _, sizes, _ in self.loops if kind == "product")

    def listed(self, inputs: Sequence[Put], output: Put, result: Value) -> tuple[LoopList, Array]:
        """Return the whole list with its weights: ``result`` goes to the output."""
        dims = (1, *output.dims)
        made = Value(FIRST_INPUT + len(inputs), 0, dims, dense_steps(dims))
        self.elements("copy", result, into=made)
        places, work = self._placed()
        loops = tuple(self._numbers(*loop, places) for loop in self.loops)
        return LoopList(tuple(inputs), output, work, loops), np.concatenate(self.weights)

    def _placed(self) -> tuple[list[int], int]:
        """Return where each buffer begins, and the size of all: those never needed together share room."""
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
        # What a kind does not have is the first weight, of which nothing is made.
        numbers += [WEIGHTS, 0, *[0] * AXES] * (4 - len(operands))
        return tuple(numbers)
