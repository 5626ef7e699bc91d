"""The compiled program against ``Workflow.transform``, in one process, on the same rows.

Each of the following is timed on rows that are already in memory:

``transform``
    ``Workflow.transform(frame)``: from a pandas frame in the dtypes of the fit to a frame.
``program``
    ``FeatureProgram.packed(columns, n)``: the feature computation itself, from plain arrays to the packed
    tensors of the models. **The limits are on this figure.**
``from tensors``
    ``program`` and the conversion before it in a server: from the arrays of a request, as Triton's Python
    backend gives them, to columns, as the ``user_features`` stage makes them, to packed tensors.
``from frame``
    ``program`` from the frame that ``transform`` gets: ``columns_from_frame`` and then ``packed``.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.features.cases import Case
from benchmarks.features.plan import Plan
from benchmarks.features.timing import Call, Timed, interleave, span
from tiercel_export.workflow.frames import columns_from_frame, oracle_frame
from tiercel_serving.columns import Column
from tiercel_serving.errors import BenchError
from tiercel_serving.features import FeatureProgram, InputColumn
from tiercel_serving.release.artefacts import open_artefact
from tiercel_serving.release.manifest import RequestColumn
from tiercel_serving.spec import Array, Arrays
from tiercel_serving.stages.sent_columns import SentColumn
from tiercel_serving.verify.compare import compare_arrays

#: Rows of a batch → how many times faster than ``Workflow.transform`` the program must be.
LIMITS: Mapping[int, float] = {1: 100.0, 10_000: 10.0}
#: Case → most microseconds that one row may take, on 2 cores.
AIMS_US: Mapping[str, float] = {
    "three": 20.0,
    "three-small": 20.0,
    "criteo-int": 120.0,
    "criteo-text": 250.0,
}

Columns = dict[str, Column]


@dataclass(frozen=True)
class Against:
    """Times of one case at one batch size, by NVTabular and by the compiled program.

    Parameters
    ----------
    case
        The case's name.
    batch
        Rows.
    transform, program, from_tensors, from_frame
        See the module's docstring.
    limit
        How many times faster than ``transform`` the ``program`` must be; None is no limit.
    aim_us
        Most microseconds that the ``program`` may take; None is no limit.
    """

    case: str
    batch: int
    transform: Timed
    program: Timed
    from_tensors: Timed
    from_frame: Timed
    limit: float | None = None
    aim_us: float | None = None

    @property
    def ratio(self) -> float:
        """How many times faster the program is."""
        return self.transform.us / self.program.us

    @property
    def ok(self) -> bool:
        """Whether the program is within its limits."""
        fast_enough = self.limit is None or self.ratio >= self.limit
        return fast_enough and (self.aim_us is None or self.program.us <= self.aim_us)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON form."""
        lowest, highest = span(self.transform, self.program)
        sides = ("transform", "program", "from_tensors", "from_frame")
        return {
            "case": self.case,
            "batch": self.batch,
            **{side: getattr(self, side).to_json() for side in sides},
            "ratio": round(self.ratio, 1),
            "lowest": round(lowest, 1),
            "highest": round(highest, 1),
            "ratio_from_tensors": round(self.transform.us / self.from_tensors.us, 1),
            "ratio_from_frame": round(self.transform.us / self.from_frame.us, 1),
            "limit": self.limit,
            "aim_us": self.aim_us,
            "ok": self.ok,
        }


class Programs:
    """A case's compiled programs, memory-mapped as in a stage, and the conversions to their input.

    Parameters
    ----------
    case
        The case.
    scratch
        A directory for the artefacts; it must outlive this object.
    """

    def __init__(self, case: Case, scratch: Path) -> None:
        self._programs: list[FeatureProgram] = []
        for compiled in case.compiled:
            place = scratch / f"{case.name}-{compiled.part}"
            compiled.write(place, "bench")
            self._programs.append(FeatureProgram.open(open_artefact(place, "features")))
        self._requests = [_request_columns(program.inputs) for program in self._programs]
        self.inputs: tuple[InputColumn, ...] = tuple(
            {column.name: column for program in self._programs for column in program.inputs}.values()
        )

    def frame(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Return rows as NVTabular's input frame."""
        return oracle_frame(rows, self.inputs)

    def columns(self, frame: pd.DataFrame) -> list[Columns]:
        """Return each program's input columns."""
        return [columns_from_frame(frame, program.inputs) for program in self._programs]

    def packed(self, columns: Sequence[Columns], n: int) -> None:
        """Run every program; this call is timed as ``program``."""
        for program, own in zip(self._programs, columns, strict=True):
            program.packed(own, n)

    def run(self, columns: Sequence[Columns], n: int) -> Columns:
        """Return every output in NVTabular's dtype."""
        out: Columns = {}
        for program, own in zip(self._programs, columns, strict=True):
            out |= program.run(own, n)
        return out

    def columns_of_tensors(self, tensors: Arrays) -> list[Columns]:
        """Return each program's input columns, converted as in the ``user_features`` stage."""
        nobody: Any = None  # all columns are context columns, so no store is read
        return [
            {column.name: column.column(tensors, nobody, column.sent(tensors)) for column in request}
            for request in self._requests
        ]

    def from_tensors(self, tensors: Arrays, n: int) -> None:
        """Run every program on a request's arrays; this call is timed as ``from_tensors``."""
        self.packed(self.columns_of_tensors(tensors), n)

    def from_frame(self, frame: pd.DataFrame) -> None:
        """Run every program on a frame; this call is timed as ``from_frame``."""
        self.packed(self.columns(frame), len(frame))


def _request_columns(inputs: Sequence[InputColumn]) -> list[SentColumn]:
    made = []
    for column in inputs:
        dtype: Any = column.dtype  # one of a request's dtypes
        companion = companion_of(column)
        name, is_list = column.name, column.is_list
        made.append(SentColumn(RequestColumn(name, dtype, is_list, "context", name, companion)))
    return made


def companion_of(column: InputColumn) -> str | None:
    """Return the name of a column's tensor of list lengths, or of valid values; None for plain floats."""
    if column.is_list:
        return f"{column.name}__length"
    return None if column.dtype.startswith("float") else f"{column.name}__valid"


def tensors_of(columns: Mapping[str, Column], inputs: Sequence[InputColumn]) -> dict[str, Array]:
    """Return columns as a request's tensors: ``[n, 1]``, or ``[n, L]`` and ``[n, 1]`` lengths."""
    tensors: dict[str, Array] = {}
    for column in inputs:
        name, values = column.name, columns[column.name].values
        offsets, valid = columns[name].offsets, columns[name].valid
        if offsets is not None:
            lengths = np.diff(offsets)
            padded = np.zeros((len(lengths), max(int(lengths.max(initial=0)), 1)), values.dtype)
            padded[np.arange(padded.shape[1]) < lengths[:, None]] = values
            says: Array = lengths[:, None].astype(np.int32)
        else:
            padded = values[:, None]
            says = np.ones((len(values), 1), np.bool_) if valid is None else valid[:, None]
        tensors[name] = padded
        if (companion := companion_of(column)) is not None:
            tensors[companion] = says
    return tensors


def measure_against(
    case: Case, plan: Plan, scratch: Path, progress: Callable[[int, int], None] | None = None
) -> list[Against]:
    """Time a case at every batch size, after checking that both sides give equal outputs.

    Parameters
    ----------
    case
        The case.
    plan
        Sizes and repeats.
    scratch
        A directory for the compiled artefacts.
    progress
        Called as ``progress(done, total)``.

    Raises
    ------
    BenchError
        The outputs of the program and NVTabular differ, so their times must not be compared.
    """
    programs = Programs(case, scratch)
    figures = []
    for done, batch in enumerate(plan.batches):
        if progress is not None:
            progress(done, len(plan.batches))
        frames = [programs.frame(rows) for rows in _batches(case.rows, batch, plan)]
        columns = [programs.columns(frame) for frame in frames]
        check_same(case, programs, frames[0])
        tensors = [tensors_of(_merged(own), programs.inputs) for own in columns]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            timed = interleave(
                {
                    "transform": _calls(case.workflow.transform, frames),
                    "program": _calls(programs.packed, columns, batch),
                    "from_tensors": _calls(programs.from_tensors, tensors, batch),
                    "from_frame": _calls(programs.from_frame, frames),
                },
                rounds=plan.rounds,
                slow_rounds=plan.slow_rounds,
                seconds=plan.seconds,
            )
        limit = None if plan.quick else LIMITS.get(batch)
        aim = AIMS_US.get(case.name) if batch == 1 and not plan.quick else None
        figures.append(Against(case.name, batch, **timed, limit=limit, aim_us=aim))
    if progress is not None:
        progress(len(plan.batches), len(plan.batches))
    return figures


def _batches(rows: pd.DataFrame, size: int, plan: Plan) -> list[pd.DataFrame]:
    """Return distinct batches of one size."""
    first, count = (0, plan.singles) if size == 1 else (plan.singles, plan.pool // size)
    return [rows.iloc[first + i * size : first + (i + 1) * size] for i in range(count)]


def _calls(call: Callable[..., object], inputs: Sequence[Any], *more: object) -> list[Call]:
    return [partial(call, one, *more) for one in inputs]


def _merged(columns: Sequence[Columns]) -> Columns:
    return {name: column for own in columns for name, column in own.items()}


def check_same(case: Case, programs: Programs, frame: pd.DataFrame) -> None:
    """Compare the program with NVTabular on a batch, bit for bit.

    Raises
    ------
    BenchError
        They differ.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = case.workflow.transform(frame)
    for name, got in programs.run(programs.columns(frame), len(frame)).items():
        series = expected[name]
        if got.offsets is not None:
            lengths = np.array([len(row) for row in series], np.int64)
            pairs = [(np.diff(got.offsets), lengths), (got.values, np.concatenate(series.tolist()))]
        else:
            pairs = [(got.values, series.to_numpy())]
        for ours, theirs in pairs:
            found = compare_arrays(np.asarray(ours), np.asarray(theirs), name=name)
            if not found.ok:
                raise BenchError(
                    f"case {case.name}: the program and Workflow.transform differ on the rows to be timed "
                    f"({found.where}); this is a defect of Tiercel: run the tests of tests/features"
                )
