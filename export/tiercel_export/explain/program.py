"""What the optimiser made of a workflow: the plan that ``tiercel explain-features`` prints.

A program by itself, such as a release holds, tells its steps, tables and outputs. With the workflow at hand
(``explain_workflow.py``) the plan also says which operators a step was lowered from, what vanished and what
could not be compiled. A step that this module has never heard of is described by its JSON and its arrays.
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

#: Steps that bring columns in or pick some of a register's, and compute nothing.
MOVING = ("load", "load_list", "load_events", "rows")
#: What a step's JSON says of its name and of what it reads.
PLACES = ("op", "in", "rows", "columns", "column")
#: Each number of rows is timed so many times, or for so long.
TIMES, SECONDS = 300, 1.0


@dataclass(frozen=True)
class StepPlan:
    """One step of a program.

    Parameters
    ----------
    number
        Its place in the order.
    step
        Its name in the artefact.
    columns
        The columns that run together in it, one for each row of its register, under the names that the
        workflow gives them there; of a program by itself, the raw columns that they are made of.
    reads
        The steps whose registers it reads.
    outputs
        The features that are columns of its register.
    lowered_from
        The operators that it came from; empty where the workflow is not at hand, and for a load.
    parameters
        The rest of its JSON.
    dtype
        Of its register.
    table
        Its arrays, if it has any.
    microseconds
        Median by number of rows, where it was timed.
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
        """Whether it does more than to bring or pick columns."""
        return self.step not in MOVING


@dataclass(frozen=True)
class OutputPlan(OutputColumn):
    """One feature, and where it is.

    Parameters
    ----------
    packed
        The tensor that holds it; None for text.
    position
        Its column there; None for a list, which is a tensor by itself.
    path
        The steps that compute it, in order, its load included.
    """

    packed: str | None
    position: int | None
    path: tuple[int, ...]


@dataclass(frozen=True)
class Vanished:
    """A column that the workflow has and the program does not.

    Parameters
    ----------
    column
        Its name where it was made.
    operator
        What made it; None for a raw column or a label.
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
        As in :class:`~tiercel_export.errors.UnsupportedOperator`; operator and remedy are empty where the
        raw column itself can't be served.
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
        How often the workflow applies an operator to a column of this part, those that only choose, rename
        or tag not counted; None where the workflow is not at hand.
    merged
        Columns that the workflow computes more than once, and the program once.
    vanished
        What the part's operators make and no output needs.
    refused
        What can't be compiled; the plan leaves it out.
    total_us
        Median microseconds of the whole program by number of rows, where it was timed.
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
        """How many steps compute something."""
        return sum(step.computes for step in self.steps)

    @property
    def nbytes(self) -> int:
        """Bytes of all tables."""
        return sum(step.table.nbytes for step in self.steps if step.table is not None)

    @property
    def chains(self) -> list[tuple[tuple[str, ...], tuple[int, ...]]]:
        """Features that share all their steps, more than one, and the steps that compute them."""
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
    """Where the columns of a program come from, as far as the workflow tells.

    Parameters
    ----------
    names
        What the workflow calls a column, by its step and its row in the step's register.
    operators
        The operators that a step was lowered from.
    """

    names: Mapping[tuple[int, int], str] = field(default_factory=dict)
    operators: Mapping[int, tuple[str, ...]] = field(default_factory=dict)


#: Nothing is known of a program by itself.
UNKNOWN = Origins()


def explain_program(
    document: Mapping[str, Any], arrays: Mapping[str, Array], origins: Origins = UNKNOWN
) -> PartPlan:
    """Tell what a program does.

    Parameters
    ----------
    document, arrays
        The program, as :class:`~tiercel_serving.features.FeatureProgram` takes it.
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
    """Run the steps on no rows: how many columns each makes, and of which dtype."""
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
        Columns by number of rows.

    Returns
    -------
    The plan with median microseconds. A step's time holds some 0.1 µs of the clock itself.
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
    """Return the median of each of a call's figures."""
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
