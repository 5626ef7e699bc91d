"""Time of one row through the compiled feature program, against the same row through NVTabular."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from tiercel_export.workflow.cut import compile_workflow, cut_workflow
from tiercel_export.workflow.frames import FrameOracle, columns_from_frame, oracle_frame

if TYPE_CHECKING:
    from tiercel_pipelines.training import TrainedRun

#: How many times faster than ``Workflow.transform`` one row must be.
LIMIT = 100.0
#: Number of interactions that are searched for a row without nulls.
SAMPLE = 1000


@dataclass(frozen=True)
class OneRow:
    """Times of one row through one part of a workflow, by the program and by NVTabular.

    Parameters
    ----------
    part
        ``user``, ``item`` or ``both``.
    columns
        Number of output columns of the part.
    program_us, transform_us
        Median microseconds of the compiled program and of NVTabular's ``Workflow.transform``.
    limit
        How many times faster the program must be; None is no limit.
    """

    part: str
    columns: int
    program_us: float
    transform_us: float
    limit: float | None = LIMIT

    @property
    def ratio(self) -> float:
        """How many times faster the program is."""
        return self.transform_us / self.program_us

    @property
    def ok(self) -> bool:
        """Whether the ratio is within the limit."""
        return self.limit is None or self.ratio >= self.limit

    def to_json(self) -> dict[str, Any]:
        """Return a JSON form."""
        values = {name: round(v, 1) if isinstance(v, float) else v for name, v in asdict(self).items()}
        return {**values, "ratio": round(self.ratio, 1), "ok": self.ok}


def median_us(call: Callable[[], object], seconds: float, at_least: int = 5) -> float:
    """Return the median microseconds of a call, repeated for ``seconds`` after one warm-up."""
    call()
    spent: list[float] = []
    end = time.perf_counter() + seconds
    while len(spent) < at_least or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        spent.append((time.perf_counter() - start) * 1e6)
    return float(np.median(spent))


def measure_one_row(run: TrainedRun, seconds: float = 1.0) -> list[OneRow]:
    """Time one row of a run's workflow by program and NVTabular: the user part, the item part, and both.

    Both sides return the same columns in the same dtypes from a row that is already in memory. The whole
    workflow gets one row of joined interactions, as in the fit.

    Parameters
    ----------
    run
        The run whose workflow and tables are used.
    seconds
        Duration of each of the six measurements.
    """
    cut = cut_workflow(run.load_workflow())
    data = run.record.data
    joined = run.train.head(SAMPLE).merge(run.users, on=data.user_id).merge(run.items, on=data.item_id)
    # NVTabular raises on a categorical column that is null in all rows, and here there is only one row.
    whole_rows = joined.dropna()
    joined = (whole_rows if len(whole_rows) else joined).head(1)
    figures, calls, frames = [], [], []
    for part in ("user", "item"):
        compiled = compile_workflow(cut, part)
        frame = oracle_frame(joined, compiled.inputs)
        call = partial(compiled.program.run, columns_from_frame(frame, compiled.inputs), 1)
        oracle = FrameOracle(cut, part)
        transform = partial(oracle.workflow.transform, frame[oracle.inputs])
        figures.append(_figure(part, len(oracle.outputs), call, transform, seconds))
        calls.append(call)
        frames.append(frame)
    whole = pd.concat(frames, axis=1)
    whole = whole.loc[:, ~whole.columns.duplicated()]
    names = [name for name in cut.workflow.input_schema.column_names if name not in whole.columns]
    whole = whole.join(joined[names].reset_index(drop=True))
    transform = partial(cut.workflow.transform, whole)
    columns = sum(figure.columns for figure in figures)
    figures.append(_figure("both", columns, lambda: [call() for call in calls], transform, seconds))
    return figures


def _figure(
    part: str, columns: int, program: Callable[[], object], transform: Callable[[], object], seconds: float
) -> OneRow:
    return OneRow(part, columns, median_us(program, seconds), median_us(transform, seconds))
