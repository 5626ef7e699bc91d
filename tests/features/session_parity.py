"""Compare a compiled program whose rows are sessions with NVTabular."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import nvtabular as nvt
import pandas as pd
from parity_helpers import compare, rows_of

from tiercel_export.workflow.cut import CompiledProgram, compile_workflow, cut_workflow
from tiercel_export.workflow.frames import columns_from_frame, oracle_frame
from tiercel_export.workflow.sessions import SessionOracle
from tiercel_serving.columns import Column


class Both:
    """A compiled graph and its NVTabular oracle."""

    def __init__(self, node: Any, fit: pd.DataFrame) -> None:
        self.workflow = fitted(node, fit)
        self.cut = cut_workflow(self.workflow)
        self.compiled: CompiledProgram = compile_workflow(self.cut, "user")
        self.oracle = SessionOracle(self.cut, "user")

    def check(self, sessions: pd.DataFrame) -> int:
        """Compare on whole sessions, one per row; return how many NVTabular answered."""
        return same_sessions(self.compiled, self.oracle, sessions)


def same_sessions(compiled: CompiledProgram, oracle: SessionOracle, sessions: pd.DataFrame) -> int:
    """Compare on whole sessions, one per row; return how many NVTabular answered."""
    frame = oracle_frame(sessions, compiled.inputs)
    columns = columns_from_frame(frame, compiled.inputs)
    got = compiled.program.run(columns, len(frame))
    answered, expected = oracle.answers(frame)
    kept = np.isin(np.arange(len(frame)), answered)
    assert set(got) == set(oracle.outputs)
    for name, column in got.items():
        assert len(column) == len(frame)
        same(name, expected[name], rows_of(column, kept))
    return len(answered)


def same(name: str, expected: pd.Series, got: Column) -> None:
    """Compare scalars, or the elements of lists; NVTabular makes integers floats beside a null."""
    if got.is_list:
        assert np.diff(got.offsets).tolist() == [len(row) for row in expected], name
        expected = pd.Series([value for row in expected for value in row])
        got = Column(got.values, got.valid)
    if len(expected):
        compare(name, expected, got, np.zeros(len(expected), bool), flexible=True)


def fitted(node: Any, fit: pd.DataFrame) -> Any:
    workflow = nvt.Workflow(node)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        workflow.fit(nvt.Dataset(fit, cpu=True))
    return workflow
