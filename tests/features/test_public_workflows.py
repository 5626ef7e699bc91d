"""Public workflows, compiled and equal to NVTabular to the bit, and the table of them in the guide."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from parity_helpers import Pair, check
from public_sessions import SESSIONS
from public_workflows import FLAT, Example
from session_parity import fitted, same_sessions

from tiercel_export.lowering.expressions import REFUSED
from tiercel_export.workflow.cut import (
    LABEL_TAGS,
    PART_TAGS,
    WorkflowParts,
    compile_workflow,
    cut_workflow,
    trace,
)
from tiercel_export.workflow.frames import FrameOracle
from tiercel_export.workflow.lineage import tags_of
from tiercel_export.workflow.sessions import SessionOracle

#: The share of the workflows that must serve all of their features.
AT_LEAST = 0.9
#: The workflows that run without ``--slow``.
CORE = ("Rossmann, dates", "YOOCHOOSE")
EXAMPLES = FLAT | SESSIONS
GUIDE = Path(__file__).resolve().parents[2] / "docs" / "coming-from-merlin.md"


def cut_of(example: Example, folder: Path) -> tuple[WorkflowParts, pd.DataFrame]:
    """Return the fitted and cut workflow of an example, and the frame that it was fitted on."""
    folder.mkdir()
    frame = pd.DataFrame(example.columns(400, np.random.default_rng(1)))
    workflow = fitted(example.graph(str(folder)), frame)
    untagged = [
        column.name for column in workflow.output_schema if not tags_of(column) & {*LABEL_TAGS, *PART_TAGS}
    ]
    parts = dict.fromkeys(untagged, "user")
    return cut_workflow(workflow, parts=parts, target_encoding="no_fold", rows="keep"), frame


def features_of(cut: WorkflowParts) -> tuple[list[str], dict[str, str]]:
    """Return the names of an example's features, and the refusals by name."""
    traced = trace(cut.workflow, target_encoding="no_fold", rows="keep")
    names = [name for name, part in cut.outputs.items() if part != "label"]
    refused = {name: str(dict(traced[name].own)["error"]) for name in names if traced[name].op == REFUSED}
    return names, refused


def asked_rows(example: Example, size: int) -> pd.DataFrame:
    """Return request rows, with nulls where the fit has some, and with unseen values."""
    frame = pd.DataFrame(example.columns(size, np.random.default_rng(size)))
    for name in frame.columns.drop(example.key or []):
        values = frame[name]
        if values.dtype.kind in "if":
            frame.loc[values.index % 11 == 10, name] += 7
        elif values.map(lambda value: isinstance(value, str)).any():
            frame.loc[values.index % 13 == 12, name] = "never seen"
    return frame


def as_sessions(events: pd.DataFrame, key: str, size: int) -> pd.DataFrame:
    """Return one row per session, with a list for each column of its events."""
    rows = []
    for of_key, own in list(events.groupby(key, sort=False))[:size]:
        rows.append({key: of_key, **{name: own[name].tolist() for name in events.columns.drop(key)}})
    return pd.DataFrame(rows)


def compare_sessions(example: Example, cut: WorkflowParts, size: int) -> None:
    assert example.key is not None
    compiled, oracle = compile_workflow(cut, "user"), SessionOracle(cut, "user")
    sessions = as_sessions(asked_rows(example, size * 8), example.key, size)
    assert len(sessions) == size
    assert same_sessions(compiled, oracle, sessions) == size


def compare_rows(example: Example, cut: WorkflowParts, fit: pd.DataFrame, size: int) -> None:
    lineage = {name: of.inputs for name, of in trace(cut.workflow, target_encoding="no_fold").items()}
    asked = asked_rows(example, size)
    for part in ("user", "item"):
        outputs = cut.output_names(part)
        if outputs:
            oracle = FrameOracle(cut, part)
            check(Pair(compile_workflow(cut, part), oracle, lineage, frozenset(outputs), fit, cut), asked)


@pytest.mark.parametrize(
    "name", [name if name in CORE else pytest.param(name, marks=pytest.mark.slow) for name in EXAMPLES]
)
def test_a_public_workflow_is_served_to_the_bit(name: str, tmp_path: Path) -> None:
    example = EXAMPLES[name]
    cut, fit = cut_of(example, tmp_path / "fitted")
    names, refused = features_of(cut)
    assert not refused
    assert set(names) == {*cut.output_names("user"), *cut.output_names("item")}
    for size in (1, 7, 1000):
        if example.key is None:
            compare_rows(example, cut, fit, size)
        else:
            compare_sessions(example, cut, size)


@pytest.mark.slow
def test_the_guides_table(tmp_path: Path) -> None:
    """Check the guide's table, and print it for updating the guide when an example is added."""
    lines, whole = [], 0
    for number, (name, example) in enumerate(EXAMPLES.items()):
        names, refused = features_of(cut_of(example, tmp_path / str(number))[0])
        reasons: Any = [example.instead] if example.instead else []
        reasons += [f"`{column}` refused: {why}" for column, why in refused.items()]
        lines.append(f"| {name} | {len(names)} | {len(names) - len(refused)} | {'; '.join(reasons)} |")
        whole += not refused
    print("\n".join(lines), f"\n{whole} of {len(EXAMPLES)} workflows serve all of their features")
    assert whole >= AT_LEAST * len(EXAMPLES)
    table = GUIDE.read_text(encoding="utf-8").partition("<!-- examples: a test compares -->")[2]
    assert re.findall(r"^\| (?!example|-).*\|$", table, re.MULTILINE) == lines
