"""A small dense model as a list of loops, run by a C function of ours instead of ONNX Runtime.

One user needs little computation. A small model spends most of its time in ONNX Runtime on the fixed cost of
each operator, and the runtime's code evicts that of the other stages from the caches. So the export writes
the graph for one user, if it can, as loops over numbers beside the ONNX file
(``tiercel_export.models.loops``). They run if the functions of :mod:`..native` were built. If not, or with
several threads, ONNX Runtime runs the file. Only the host knows which applies, so both are the row ``onnx``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from ..errors import ArtefactCorrupt
from ..native import library
from ..spec import DTYPES, Array, Arrays
from .bound import check_outputs

#: Suffixes that give the two files' names when appended to the ONNX file's name.
LIST_SUFFIX, WEIGHTS_SUFFIX = ".loops.json", ".loops.npy"

#: Suffix of the text file that says why a model has no loops.
REFUSED_SUFFIX = ".loops.txt"

#: The operations of a loop, in the order of their numbers in ``native/loops.c``.
KINDS = (
    *("load_bool", "load_int32", "load_int64", "copy", "add", "subtract", "multiply", "divide", "lesser"),
    *("greater", "less", "more", "equal", "at_most", "at_least", "choose", "clip", "is_nan", "not", "negate"),
    *("absolute", "root", "logarithm", "exponent", "tangent", "sigmoid", "rectify", "error"),
    *("sum", "highest", "product", "gather_int32", "gather_int64"),
)

#: Numbers of the arrays that operands refer to: weights, work space, the inputs, and the output last.
WEIGHTS, WORK, FIRST_INPUT = 0, 1, 2

#: The axes of a loop, and the int64 numbers that encode it: kind, rows, a size per axis, and four operands,
#: each with its array, first element and a step per axis.
AXES, NUMBERS = 4, 30


class Put(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An input or an output: its name, its dtype and its shape for one user."""

    name: str
    dtype: str
    dims: tuple[int, ...]


class LoopList(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A model as loops.

    Parameters
    ----------
    inputs, output
        The model's inputs and output.
    work
        The size of the work space for intermediate results, in float32 elements.
    loops
        :data:`NUMBERS` numbers for each loop.
    """

    inputs: tuple[Put, ...]
    output: Put
    work: int
    loops: tuple[tuple[int, ...], ...]

    def write(self, file: Path, weights: Array) -> None:
        """Write it and its weights (float32, one axis) beside an ONNX file."""
        listed_beside(file).write_bytes(msgspec.json.encode(self) + b"\n")
        np.save(file.with_name(file.name + WEIGHTS_SUFFIX), weights)


def listed_beside(file: Path) -> Path:
    """Return the path of an ONNX file's list of loops, whether or not it exists."""
    return file.with_name(file.name + LIST_SUFFIX)


def refused_beside(file: Path) -> Path:
    """Return the path of the text that says why an ONNX file has no list of loops."""
    return file.with_name(file.name + REFUSED_SUFFIX)


def open_loops(file: Path, outputs: Sequence[str]) -> LoopsEngine | None:
    """Open the loops beside an ONNX file; None if there are none, or the native library was not built.

    Raises
    ------
    ArtefactCorrupt
        They can't be read, reach beyond their arrays, or lack an output.
    """
    listed, functions = listed_beside(file), library()
    if functions is None or not listed.is_file():
        return None
    try:
        read = msgspec.json.decode(listed.read_bytes(), type=LoopList)
        weights = np.load(file.with_name(file.name + WEIGHTS_SUFFIX), mmap_mode="r")
    except (ValueError, OSError) as error:
        raise ArtefactCorrupt(f"{listed}: {error}; it was changed or damaged: export again") from error
    if any(len(loop) != NUMBERS for loop in read.loops) or not _within(read, weights):
        raise ArtefactCorrupt(f"{listed}: a loop goes beyond its arrays; it was changed: export again")
    check_outputs(listed, tuple(outputs), (read.output.name,))
    return LoopsEngine(read, weights, functions)


def _within(listed: LoopList, weights: Array) -> bool:
    """Return whether all loops read arrays of the right dtype within bounds, and write only where allowed."""
    if weights.dtype != np.float32 or weights.ndim != 1 or not listed.loops:
        return False
    puts = (*listed.inputs, listed.output)
    capacities = np.array([len(weights), listed.work, *(math.prod(put.dims) for put in puts)], np.float64)
    loops = np.array(listed.loops, np.int64)
    kinds, rows, sizes = loops[:, 0], loops[:, 1], loops[:, 2:6].astype(np.float64)
    arrays, *numbers = np.moveaxis(loops[:, 6:].reshape(-1, 4, 2 + AXES), 2, 0)
    known = ((kinds >= 0) & (kinds < len(KINDS))).all() and ((arrays >= 0) & (arrays < len(capacities))).all()
    if not known or (sizes < 1).any() or not np.isin(arrays[:, 0], (WORK, len(capacities) - 1)).all():
        return False
    names = np.array(KINDS)[kinds]
    spans = np.repeat(sizes[:, None] - 1, 4, axis=1)
    product, gather = names == "product", np.char.startswith(names, "gather")
    if (rows[gather] < 1).any():
        return False
    # A product reads its columns up to a multiple of eight; a gather may read any row of its table.
    spans[product, 2, 2] = np.ceil(sizes[product, 2] / 8) * 8 - 1
    spans[gather, 2, 0] = rows[gather] - 1
    reach = spans * np.stack(numbers[1:], axis=-1)
    first = numbers[0] + np.minimum(reach, 0).sum(-1)
    last = numbers[0] + np.maximum(reach, 0).sum(-1)
    wanted = np.full(arrays.shape, "float32", object)
    wanted[:, 1] = [
        name.split("_")[1] if name.startswith(("load", "gather")) else "float32" for name in names
    ]
    types = np.array(["float32", "float32", *(put.dtype for put in puts)], object)[arrays]
    return bool((first >= 0).all() and (last < capacities[arrays]).all() and (types == wanted).all())


class LoopsEngine:
    """One opened list; ``functions`` are those of :func:`tiercel_serving.native.library`."""

    def __init__(self, listed: LoopList, weights: Array, functions: Any) -> None:
        self.inputs = tuple(put.name for put in listed.inputs)
        self.outputs = (listed.output.name,)
        self._puts = [(put.name, DTYPES[put.dtype], math.prod(put.dims)) for put in listed.inputs]
        self._dims, self._width = listed.output.dims, math.prod(listed.output.dims)
        self._weights, self._work = weights, listed.work
        self._loops, self._many = np.array(listed.loops, np.int64), len(listed.loops)
        of_inputs = [size * dtype.itemsize for _, dtype, size in self._puts]
        self._distances = np.array([0, 0, *of_inputs, 4 * self._width], np.int64)
        self._run = functions.run_loops
        # Each run borrows a work space, so that concurrent threads have one each.
        self._spare: list[Array] = []

    def run(self, arrays: Arrays) -> dict[str, Array]:
        """Run the model on tensors ``[B, …]``.

        Raises
        ------
        ValueError
            A tensor's size or dtype differs from the model's, or an id is beyond its table.
        """
        given = [arrays[name] for name in self.inputs]
        users = len(given[0])
        for array, (name, dtype, size) in zip(given, self._puts):  # noqa: B905 - as many, and called often
            if array.size != users * size or (array.dtype is not dtype and array.dtype != dtype):
                raise ValueError(
                    f"{name}: expected {size} numbers of {dtype} a user, got {array.dtype} {array.shape}"
                )
        out = np.empty((users, *self._dims), np.float32)
        try:
            work = self._spare.pop()
        except IndexError:  # a check beforehand would race with other threads
            work = np.zeros(self._work, np.float32)
        loops, distances = self._loops, self._distances
        sizes = users, self._many, 3 + len(given)
        try:
            beyond = self._run(*sizes, loops, (self._weights, work, *given, out), distances)
        except ValueError:  # an array is not contiguous
            given = [np.ascontiguousarray(array) for array in given]
            beyond = self._run(*sizes, loops, (self._weights, work, *given, out), distances)
        self._spare.append(work)
        if beyond:
            raise ValueError(f"{beyond} ids are beyond the tables of the model that they are for")
        return {self.outputs[0]: out}

    def close(self) -> None:
        """Release the work spaces."""
        self._spare.clear()
