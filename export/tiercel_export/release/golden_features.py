"""Query NVTabular at export: rows of both parts of the workflow with NVTabular's own answers."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pandas as pd

from tiercel_serving.columns import take_rows
from tiercel_serving.features import InputColumn
from tiercel_serving.verify.checks import FeatureRows
from tiercel_serving.verify.golden import FEATURE_ROWS, Golden

from ..errors import ExportInputError
from ..workflow.cut import CompiledProgram
from ..workflow.frames import FrameOracle, columns_from_frame, golden_rows, oracle_columns, oracle_frame
from ..workflow.sessions import SessionOracle, oracle_of
from .parts import Inputs, Programs
from .programs import session_examples

#: Number of rows that are compared with NVTabular at export.
FRESH_ROWS = 2000

#: Number of a table's first rows that known values of each column are taken from.
EXAMPLES = 1000


def ask_nvtabular(
    golden: Golden, inputs: Inputs, programs: Programs, random: np.random.Generator
) -> dict[str, FeatureRows]:
    """Add golden rows of each program, and return other, random rows for the verification."""
    fresh = {}
    for artefact, program, frame in (
        ("user_features", programs.user, _user_frame(inputs, programs, random)),
        ("item_features", programs.item, inputs.items),
    ):
        if not program.inputs or frame is None:
            continue
        ask = oracle_of(programs.parts, program.part, _known_values(inputs))
        few = _few_rows(ask, program, frame)
        golden.add_features(artefact, few.inputs, few.outputs, few.rows)
        picked = random.choice(len(frame), min(FRESH_ROWS, len(frame)), replace=False)
        fresh[artefact] = _real_rows(ask, program, frame.iloc[picked])
    return fresh


def _known_values(inputs: Inputs) -> dict[str, pd.Series]:
    """Return some non-null values of each raw column of the tables."""
    known = {}
    for frame in (inputs.items, inputs.users, inputs.interactions):
        if frame is not None:
            few = frame.head(EXAMPLES)
            for name in few.columns:
                real = few[name].dropna()
                if len(real):
                    known[name] = real
    return known


def _asked(ask: FrameOracle | SessionOracle, program: CompiledProgram, frame: pd.DataFrame) -> FeatureRows:
    """Return the rows that NVTabular answers, which excludes sessions without events."""
    rows, answers = ask.answers(frame)
    given = columns_from_frame(frame, program.inputs)
    inputs = {name: take_rows(column, rows) for name, column in given.items()}
    return FeatureRows(inputs, oracle_columns(answers, program.outputs), len(rows))


def _few_rows(ask: FrameOracle | SessionOracle, program: CompiledProgram, frame: pd.DataFrame) -> FeatureRows:
    """Query some real rows and one with as many nulls as NVTabular accepts.

    NVTabular raises on some nulls, such as one in an integer id. Then only the columns that accept a null are
    null. They are found by bisection, because most columns accept one and each query takes about 0.1 s.
    """
    full = golden_rows(frame, program.inputs, FEATURE_ROWS)
    real, nulls = full.iloc[:-1], full.iloc[-1]
    taken: list[str] = []
    answer: FeatureRows | None = None
    left = [[column.name for column in program.inputs]]
    with _silent("merlin"):
        while left:
            group = left.pop()
            row = full.iloc[0].copy()
            for name in [*taken, *group]:
                row[name] = nulls[name]
            try:
                answer = _asked(ask, program, _with_row(real, row, program))
            except Exception:
                middle = len(group) // 2
                left += [part for part in (group[middle:], group[:middle]) if middle]
            else:
                taken += group
    return answer if answer is not None else _real_rows(ask, program, real)


def _real_rows(
    ask: FrameOracle | SessionOracle, program: CompiledProgram, frame: pd.DataFrame
) -> FeatureRows:
    """Query rows as they are; if NVTabular raises, perhaps on a null, query only rows without nulls.

    Raises
    ------
    ExportInputError
        NVTabular raises on these too, or no rows remain.
    """
    names = [column.name for column in program.inputs]
    whole = frame[frame[names].notna().all(axis=1)]
    try:
        with _silent("merlin"):
            return _asked(ask, program, oracle_frame(frame, program.inputs))
    except Exception as error:
        if 0 < len(whole) < len(frame):
            return _real_rows(ask, program, whole)
        raise ExportInputError(
            f"{program.part}s: NVTabular raises on columns {', '.join(map(repr, names))} ({error}); "
            "transform this table with the fitted workflow, and correct what it can't take"
        ) from error


def _with_row(frame: pd.DataFrame, row: pd.Series, program: CompiledProgram) -> pd.DataFrame:
    return oracle_frame(pd.concat([frame, row.to_frame().T], ignore_index=True), program.inputs)


@contextmanager
def _silent(name: str) -> Iterator[None]:
    """Keep a library from logging failures that are expected here."""
    library = logging.getLogger(name)
    disabled, library.disabled = library.disabled, True
    try:
        yield
    finally:
        library.disabled = disabled


def _user_frame(inputs: Inputs, programs: Programs, random: np.random.Generator) -> pd.DataFrame | None:
    """Return raw user rows with examples of the context columns; None without users or sessions."""
    sessions = session_examples(programs.parts, inputs)
    frame = inputs.users if inputs.users is not None else sessions
    if frame is None:
        return None
    context = [column for column in programs.user.inputs if column.part != "user"]
    if context:
        frame = frame.copy()
    if sessions is not None:
        # Keep the key and the events of a session together.
        picked = random.integers(0, len(sessions), len(frame))
        for name in sessions:
            frame[name] = sessions[name].iloc[picked].to_numpy()
        context = [column for column in context if column.name not in sessions]
    for column in context:
        source = inputs.interactions
        if source is not None and column.name in source.columns and len(source):
            picked = source[column.name].iloc[random.integers(0, len(source), len(frame))]
            frame[column.name] = picked.to_numpy()
        else:
            frame[column.name] = _made_up(column, len(frame), random)
    return frame


def _made_up(column: InputColumn, rows: int, random: np.random.Generator) -> pd.Series:
    """Return random values for a column without examples."""
    if column.dtype == "bytes":
        values = [f"value {number}" for number in random.integers(0, 5, rows)]
    elif column.dtype == "bool":
        values = (random.random(rows) < 0.5).tolist()
    elif column.dtype == "int64":
        values = random.integers(0, 50, rows).tolist()
    else:
        values = random.normal(size=rows).astype(column.dtype).tolist()
    return pd.Series([[value] for value in values] if column.is_list else values)
