"""The feature program's interface: its columns, and how it runs on a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..columns import Column
from ..errors import ArtefactCorrupt, InvalidRequest, NewerFormat
from ..release.artefacts import Artefact
from ..spec import Array, list_tensor
from .quiet import Quiet
from .registers import Register, Registers
from .steps import STEPS, open_steps

PROGRAM_FORMAT = 1


@dataclass(frozen=True)
class InputColumn:
    """A raw column that the program reads.

    Parameters
    ----------
    name
        Its name in the workflow.
    dtype
        The dtype in requests: ``int64``, ``float32``, ``float64``, ``bool`` or ``bytes``. Integers of any
        width are sent as int64.
    is_list
        Whether each row is a list of such values.
    part
        ``user``, ``context`` or ``item``.
    unit
        For a time, the unit of its int64 values since 1970-01-01 UTC: ``s``, ``ms``, ``us`` or ``ns``.
    is_date
        Whether the workflow was fitted on dates and times, rather than on such numbers.
    """

    name: str
    dtype: str
    is_list: bool
    part: str
    unit: str | None = None
    is_date: bool = False


@dataclass(frozen=True)
class OutputColumn:
    """A feature that the program computes.

    Parameters
    ----------
    name
        Its name in the workflow's output.
    kind
        ``cat`` (a category id or bucket), ``num``, or ``raw`` (text that passes through, for no model and in
        no packed tensor).
    is_list
        Whether each row is a list.
    length
        L of the packed ``[n, L]`` tensor of a list; None packs to the longest row of the batch.
    dtype
        NVTabular's dtype (of the elements, for a list), before the cast of :meth:`FeatureProgram.packed`.
    """

    name: str
    kind: str
    is_list: bool
    length: int | None
    dtype: str


class FeatureProgram:
    """A compiled part of a feature workflow. Rows never influence each other.

    Parameters
    ----------
    program
        The JSON form: ``format``, ``part``, ``inputs``, ``steps``, ``outputs``.
    arrays
        The steps' tables, ``s<step>.<part>``.
    """

    def __init__(self, program: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
        if program["format"] > PROGRAM_FORMAT:
            raise NewerFormat(
                f"feature program: format {program['format']}, but this Tiercel reads up to "
                f"{PROGRAM_FORMAT}; upgrade Tiercel or export again"
            )
        self.part: str = program["part"]
        self.inputs = tuple(InputColumn(**column) for column in program["inputs"])
        self.outputs = tuple(
            OutputColumn(**{key: column[key] for key in ("name", "kind", "is_list", "length", "dtype")})
            for column in program["outputs"]
        )
        #: The inputs that hold a session's events; in each row they have one length.
        self.events = tuple(step["column"] for step in program["steps"] if step["op"] == "load_events")
        self._program = program
        self._steps = open_steps(program["steps"], arrays)
        self._where = [(column["register"], column["row"]) for column in program["outputs"]]
        self._packs = self._plan_packs()
        self._lists = [
            (list_tensor(self.part, column.name), number, column.length, column.kind)
            for column, (number, _) in zip(self.outputs, self._where, strict=True)
            if column.is_list and column.kind != "raw"
        ]

    @classmethod
    def open(cls, artefact: Artefact) -> FeatureProgram:
        """Open the program of an artefact of kind ``features``.

        Raises
        ------
        NewerFormat
            A newer Tiercel wrote it.
        ArtefactCorrupt
            A step is unknown, or an array is missing.
        """
        try:
            return cls(artefact.meta["program"], artefact.arrays)
        except NewerFormat as error:
            raise NewerFormat(f"{artefact.path}: {error}") from error
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise ArtefactCorrupt(
                f"{artefact.path}: not a readable feature program ({error!r}; known steps: "
                f"{', '.join(STEPS)}); export again"
            ) from error

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form that the constructor takes."""
        return dict(self._program)

    def run(self, columns: Mapping[str, Column], n: int) -> dict[str, Column]:
        """Compute every output in NVTabular's own dtype.

        Parameters
        ----------
        columns
            One column of ``n`` rows for each of :attr:`inputs`; others are ignored. int64 accepts integers
            and booleans of any width, and a float dtype any number. Text is an object array of ``bytes``, or
            packed (``Column.text_offsets``), which vocabularies read without unpacking.
        n
            Rows of the batch, possibly 0.

        Returns
        -------
        Column by output name. A null in an integer output (only where nothing fills or encodes it) is
        marked in ``valid``; in a float output it is NaN.

        Raises
        ------
        InvalidRequest
            A column is missing, has another length or dtype, or is a list instead of a scalar or vice versa.
        """
        registers = self._execute(columns, n)
        out: dict[str, Column] = {}
        for column, (number, row) in zip(self.outputs, self._where, strict=True):
            register = registers[number]
            values = register.x[row]
            dtype = np.dtype(np.object_ if column.dtype == "bytes" else column.dtype)
            if values.dtype != dtype:
                values = values.astype(dtype)
            valid = None if register.valid is None else register.valid[row]
            out[column.name] = Column(values, valid, register.offsets, register.row_valid)
        return out

    def packed(self, columns: Mapping[str, Column], n: int) -> dict[str, Array]:
        """Compute the packed tensors that models read.

        Parameters
        ----------
        columns, n
            As for :meth:`run`.

        Returns
        -------
        ``<part>_cat [n, C]`` int64 and ``<part>_num [n, F]`` float32, in the order of :attr:`outputs`
        (absent if there is no such column), and ``<part>_list_<name> [n, L]`` int64 or float32 for each
        list, cut after L elements and padded with 0. A null is 0 in an integer tensor, NaN in a float.
        """
        registers = self._execute(columns, n)
        out: dict[str, Array] = {}
        for name, dtype, width, sources in self._packs:
            if len(sources) == 1:
                _, _, number, rows = sources[0]
                out[name] = _rows_of(registers[number], rows, dtype).T.astype(dtype, order="C")
                continue
            out[name] = tensor = np.empty((n, width), dtype)
            for begin, end, number, rows in sources:
                tensor[:, begin:end] = _rows_of(registers[number], rows, dtype).T
        for name, number, length, kind in self._lists:
            out[name] = pack_list(registers[number], length, kind)
        return out

    def _execute(self, columns: Mapping[str, Column], n: int) -> Registers:
        registers: Registers = []
        try:
            with Quiet():
                for step in self._steps:
                    registers.append(step.run(registers, columns, n))
        except TypeError as error:
            wrong = _not_bytes(self.inputs, columns)
            if wrong is None:
                raise
            raise wrong from error
        return registers

    def _plan_packs(self) -> list[tuple[str, type[Any], int, list[tuple[int, int, int, Any]]]]:
        """Lay out each packed tensor as runs of neighbouring columns that come from one register."""
        packs: list[tuple[str, type[Any], int, list[tuple[int, int, int, Any]]]] = []
        kinds: tuple[tuple[str, type[Any]], ...] = (("cat", np.int64), ("num", np.float32))
        for kind, dtype in kinds:
            wanted = [
                where
                for column, where in zip(self.outputs, self._where, strict=True)
                if column.kind == kind and not column.is_list
            ]
            if wanted:
                packs.append((f"{self.part}_{kind}", dtype, len(wanted), _runs(wanted)))
        return packs


def _not_bytes(inputs: Sequence[InputColumn], columns: Mapping[str, Column]) -> InvalidRequest | None:
    """Return the error for a text column with values other than ``bytes``, or None.

    This runs only after a step has failed, because checking each string of each request would cost more than
    the steps.
    """
    for column in inputs:
        if column.dtype == "bytes" and columns[column.name].values.dtype == np.object_:
            given = columns[column.name]
            valid = np.ones(len(given.values), np.bool_) if given.valid is None else given.valid
            for value in given.values[valid].tolist():
                if not isinstance(value, bytes):
                    return InvalidRequest(
                        f"features: column {column.name!r} must be bytes, but got {type(value).__name__}: "
                        f"{value!r}; encode text as UTF-8, and mark nulls in 'valid'"
                    )
    return None


def _rows_of(register: Register, rows: Any, dtype: type[Any]) -> Array:
    """Return columns of a register, with nulls as 0 (int64) or NaN."""
    x: Array = register.x[rows]
    if register.valid is None:
        return x
    return np.where(register.valid[rows], x, 0 if dtype is np.int64 else np.nan)


def _runs(wanted: Sequence[tuple[int, int]]) -> list[tuple[int, int, int, Any]]:
    runs: list[tuple[int, int, int, Any]] = []
    begin = 0
    while begin < len(wanted):
        end = begin + 1
        number = wanted[begin][0]
        while end < len(wanted) and wanted[end][0] == number:
            end += 1
        rows = [row for _, row in wanted[begin:end]]
        neighbours = rows == list(range(rows[0], rows[0] + len(rows)))
        runs.append((begin, end, number, slice(rows[0], rows[-1] + 1) if neighbours else np.array(rows)))
        begin = end
    return runs


def pack_list(register: Register, length: int | None, kind: str) -> npt.NDArray[Any]:
    """Pad a list column to a rectangle.

    Parameters
    ----------
    register
        A list column's register.
    length
        L, or None for the longest row.
    kind
        ``cat`` gives int64, ``num`` float32.

    Returns
    -------
    ``[n, L]``, padded with 0; a longer row keeps its first L elements. A null is 0 (int64) or NaN (float32).
    """
    offsets = register.offsets
    assert offsets is not None
    values = register.x[0]
    dtype = np.int64 if kind == "cat" else np.float32
    if register.valid is not None:
        values = np.where(register.valid[0], values, 0 if kind == "cat" else np.nan)
    lengths = np.diff(offsets)
    width = int(lengths.max(initial=0)) if length is None else length
    out = np.zeros((len(lengths), width), dtype)
    if len(lengths) == 1:
        kept = min(len(values), width)
        out[0, :kept] = values[:kept]
        return out
    position = np.arange(width)
    inside = position < lengths[:, None]
    out[inside] = values[(offsets[:-1, None] + position)[inside]].astype(dtype)
    return out
