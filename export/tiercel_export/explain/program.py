"""The plan of a compiled program, which ``tiercel explain-features`` prints.

From a program alone, such as one in a release, the plan has its steps, tables and outputs. With the workflow
(``workflow.py``) it also has the operators that each step was lowered from, dropped columns and refused
outputs. A step that this module does not know is described by its JSON and its arrays.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from tiercel_serving.columns import Column, null_column
from tiercel_serving.features import FeatureProgram, InputColumn, OutputColumn
from tiercel_serving.features.steps import open_steps
from tiercel_serving.spec import Array, list_tensor

from .arrays import StepTable, describe_arrays
from .registers import path_to, places_of, raw_columns

#: Steps that load columns or select rows of a register, and compute nothing.
MOVING = ("load", "load_list", "load_events", "rows")
#: The keys of a step's JSON for its name and what it reads; all others are parameters.
PLACES = ("op", "in", "rows", "columns", "column")
#: Each batch size is timed up to this many times, or for this many seconds.
TIMES, SECONDS = 300, 1.0


@dataclass(frozen=True)
class StepPlan:
    """One step of a program.

    Parameters
    ----------
    number
        Its position in the program.
    step
        Its name in the artefact.
    columns
        The columns that it processes together, one for each row of its register, by their names in the
        workflow; without the workflow, the raw columns that they are computed from.
    reads
        The steps whose registers it reads.
    outputs
        The features that are rows of its register.
    lowered_from
        The operators that it was lowered from; empty without the workflow, and for a load.
    parameters
        The rest of its JSON.
    dtype
        dtype of its register.
    table
        A summary of its arrays, if it has any.
    microseconds
        Number of rows → median time, if it was timed.
    """

    number: int
    step: str
    columns: tuple[str, ...]
    reads: tuple[int, ...]
    outputs: tuple[str, ...]
    lowered_from: tuple[str, ...]
    parameters: Mapping[str, Any]
    dtype: str
    table: StepTable | None
    microseconds: Mapping[int, float] = field(default_factory=dict)

    @property
    def computes(self) -> bool:
        """Whether it does more than load or select columns."""
        return self.step not in MOVING


@dataclass(frozen=True)
class OutputPlan(OutputColumn):
    """One feature, and where it is packed.

    Parameters
    ----------
    packed
        The tensor that holds it; None for text and dates, which are not packed.
    position
        Its column in that tensor; None for a list, which is its own tensor.
    path
        The steps that compute it, in order, including its load.
    """

    packed: str | None
    position: int | None
    path: tuple[int, ...]


@dataclass(frozen=True)
class Vanished:
    """A column of the workflow that the program does not compute.

    Parameters
    ----------
    column
        Its name where it was made.
    operator
        The operator that made it; None for a raw column or a label.
    reason
        Why it is not needed.
    """

    column: str
    operator: str | None
    reason: str


@dataclass(frozen=True)
class Refusal:
    """A feature that can't be compiled.

    Parameters
    ----------
    output
        The feature.
    operator, column, reason, remedy
        As in :class:`~tiercel_export.errors.UnsupportedOperator`; operator and remedy are empty if the raw
        column itself can't be served.
    """

    output: str
    operator: str
    column: str
    reason: str
    remedy: str


@dataclass(frozen=True)
class PartPlan:
    """The plan of one part.

    Parameters
    ----------
    part
        ``user`` or ``item``.
    inputs
        The raw columns.
    steps, outputs
        In order.
    applications
        The number of times that the workflow applies an operator to a column of this part, not counting
        operators that only select, rename or tag; None without the workflow.
    merged
        Columns that the workflow computes more than once, but the program only once.
    vanished
        Columns that the part's operators make and no output needs.
    refused
        Outputs that can't be compiled; the plan leaves them out.
    total_us
        Number of rows → median microseconds of the whole program, if it was timed.
    """

    part: str
    inputs: tuple[InputColumn, ...]
    steps: tuple[StepPlan, ...]
    outputs: tuple[OutputPlan, ...]
    applications: int | None = None
    merged: tuple[str, ...] = ()
    vanished: tuple[Vanished, ...] = ()
    refused: tuple[Refusal, ...] = ()
    total_us: Mapping[int, float] = field(default_factory=dict)

    @property
    def computing(self) -> int:
        """The number of steps that compute something."""
        return sum(step.computes for step in self.steps)

    @property
    def nbytes(self) -> int:
        """Bytes of all tables."""
        return sum(step.table.nbytes for step in self.steps if step.table is not None)

    @property
    def chains(self) -> list[tuple[tuple[str, ...], tuple[int, ...]]]:
        """Groups of several features that share all of their computing steps, with those steps."""
        sharing: dict[tuple[int, ...], list[str]] = {}
        for output in self.outputs:
            computing = tuple(number for number in output.path if self.steps[number].computes)
            if computing:
                sharing.setdefault(computing, []).append(output.name)
        return [(tuple(names), path) for path, names in sharing.items() if len(names) > 1]

    @property
    def fused(self) -> list[int]:
        """The steps that look up several columns at once."""
        return [
            step.number
            for step in self.steps
            if step.table is not None and step.table.entries is not None and len(step.columns) > 1
        ]

    def to_json(self) -> dict[str, Any]:
        """Return a JSON form."""
        return {
            **asdict(self),
            "computing": self.computing,
            "nbytes": self.nbytes,
            "chains": [{"outputs": list(names), "steps": list(path)} for names, path in self.chains],
            "fused": self.fused,
        }


@dataclass(frozen=True)
class Origins:
    """Where the columns of a program come from in the workflow.

    Parameters
    ----------
    names
        (step, row in its register) → the column's name in the workflow.
    operators
        Step → the operators that it was lowered from.
    """

    names: Mapping[tuple[int, int], str] = field(default_factory=dict)
    operators: Mapping[int, tuple[str, ...]] = field(default_factory=dict)


#: The origins of a program without its workflow.
UNKNOWN = Origins()


def explain_program(
    document: Mapping[str, Any], arrays: Mapping[str, Array], origins: Origins = UNKNOWN
) -> PartPlan:
    """Return the plan of a program.

    Parameters
    ----------
    document, arrays
        The program, as for :class:`~tiercel_serving.features.FeatureProgram`.
    origins
        Where its columns come from.
    """
    program = FeatureProgram(document, arrays)
    registers = _empty_registers(program, document["steps"], arrays)
    reads = [places_of(step) for step in document["steps"]]
    raw = raw_columns(document["steps"], reads, [len(register.x) for register in registers])
    steps = []
    for number, step in enumerate(document["steps"]):
        own = {name.partition(".")[2]: array for name, array in arrays.items() if _owner(name) == number}
        names = [origins.names.get((number, row), name) for row, name in enumerate(raw[number])]
        outputs = [column["name"] for column in document["outputs"] if column["register"] == number]
        dtype = registers[number].x.dtype
        plan = StepPlan(
            number,
            step["op"],
            tuple(names),
            tuple(dict.fromkeys(place for place, _ in reads[number])),
            tuple(outputs),
            origins.operators.get(number, ()),
            {key: value for key, value in step.items() if key not in PLACES},
            "bytes" if dtype == np.object_ else dtype.name,
            describe_arrays(own) if own else None,
        )
        steps.append(plan)
    paths = [path_to(column["register"], reads) for column in document["outputs"]]
    return PartPlan(program.part, program.inputs, tuple(steps), tuple(_outputs(program, paths)))


def _owner(array: str) -> int:
    """Return the number of the step that owns an array named ``s<number>.<part>``."""
    return int(array[1:].partition(".")[0])


def _empty_registers(
    program: FeatureProgram, steps: Sequence[Mapping[str, Any]], arrays: Mapping[str, Array]
) -> Any:
    """Return the registers of a run on zero rows, which show each step's number of columns and dtype."""
    columns = {column.name: null_column(column.dtype, column.is_list, 0) for column in program.inputs}
    registers: list[Any] = []
    with np.errstate(all="ignore"):
        for step in open_steps(steps, arrays):
            registers.append(step.run(registers, columns, 0))
    return registers


def _outputs(program: FeatureProgram, paths: Sequence[tuple[int, ...]]) -> list[OutputPlan]:
    position = {"cat": 0, "num": 0}
    plans = []
    for output, path in zip(program.outputs, paths, strict=True):
        packed, place = None, None
        if output.is_list and output.kind in position:
            packed = list_tensor(program.part, output.name)
        elif output.kind in position:
            packed, place = f"{program.part}_{output.kind}", position[output.kind]
            position[output.kind] += 1
        plans.append(OutputPlan(**asdict(output), packed=packed, position=place, path=path))
    return plans


# ---------------------------------------------------------------------------------------------- timing


def time_plan(
    plan: PartPlan,
    document: Mapping[str, Any],
    arrays: Mapping[str, Array],
    batches: Mapping[int, Mapping[str, Column]],
) -> PartPlan:
    """Time each step, and the whole program, on given rows.

    Parameters
    ----------
    plan
        The plan of the program.
    document, arrays
        The program.
    batches
        Number of rows → the program's input columns.

    Returns
    -------
    The plan with median microseconds. A step's time includes about 0.1 µs for reading the clock.
    """
    program, steps = FeatureProgram(document, arrays), open_steps(document["steps"], arrays)
    of_steps: list[dict[int, float]] = [{} for _ in steps]
    total: dict[int, float] = {}
    for n, columns in batches.items():
        spent = _repeat(lambda: _timed_steps(steps, columns, n))  # noqa: B023 (called at once)
        for own, microseconds in zip(of_steps, spent, strict=True):
            own[n] = microseconds
        (total[n],) = _repeat(lambda: [_microseconds(lambda: program.run(columns, n))[0]])  # noqa: B023
    timed = [replace(step, microseconds=own) for step, own in zip(plan.steps, of_steps, strict=True)]
    return replace(plan, steps=tuple(timed), total_us=total)


def _repeat(call: Callable[[], list[float]]) -> list[float]:
    """Return the median of each figure that repeated calls return, after one warm-up call."""
    call()
    spent, end = [call()], time.perf_counter() + SECONDS
    while len(spent) < TIMES and time.perf_counter() < end:
        spent.append(call())
    medians: list[float] = np.median(spent, axis=0).tolist()
    return medians


def _timed_steps(steps: Sequence[Any], columns: Mapping[str, Column], n: int) -> list[float]:
    registers: list[Any] = []
    spent: list[float] = []
    with np.errstate(all="ignore"):
        for step in steps:
            microseconds, register = _microseconds(lambda: step.run(registers, columns, n))  # noqa: B023
            spent.append(microseconds)
            registers.append(register)
    return spent


def _microseconds(call: Callable[[], Any]) -> tuple[float, Any]:
    begun = time.perf_counter_ns()
    result = call()
    return (time.perf_counter_ns() - begun) / 1000, result
