"""The documentation of operators: its table is complete, and migrated workflows give equal features."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import numpy as np
import nvtabular as nvt
import pandas as pd
import pytest
from nvtabular import ops
from parity_helpers import check, pair

from tiercel_export import operators
from tiercel_export.errors import UnsupportedOperator
from tiercel_export.lowering.refused import advice_for_lambda
from tiercel_export.lowering.source import source_of
from tiercel_export.workflow.cut import compile_workflow

DOCS = Path(__file__).resolve().parents[2] / "docs"
ROWS = 60


def frames() -> dict[str, pd.DataFrame]:
    """Return synthetic data with nulls for each workflow of the page."""
    random = np.random.default_rng(0)
    checkin = pd.Series(pd.Timestamp("2016-01-01") + pd.to_timedelta(random.integers(0, 400, ROWS), "D"))
    checkin[5] = pd.NaT
    places = np.array(["US>CA>803", "US>NY>501", "CH", None, "DE>BY"], object)
    return {
        "MovieLens": pd.DataFrame(
            {
                "userId": random.integers(0, 9, ROWS),
                "movieId": random.integers(0, 20, ROWS),
                "rating": random.choice([1.0, 3.0, 3.5, 5.0, np.nan], ROWS),
            }
        ),
        "Outbrain: places and times of day": pd.DataFrame(
            {"geo_location": random.choice(places, ROWS), "timestamp": random.integers(0, 10**9, ROWS)}
        ),
        "Booking: parts of dates, length of stay, seasons": pd.DataFrame(
            {
                "checkin": checkin,
                "checkout": checkin + pd.to_timedelta(random.integers(1, 9, ROWS), "D"),
                "booker_country": random.choice(["a", "b", None], ROWS),
                "hotel_country": random.choice(["a", "b", "c"], ROWS),
            }
        ),
    }


def blocks(title: str) -> list[str]:
    """Return the code before and after migration in one section."""
    text = (DOCS / "coming-from-merlin.md").read_text(encoding="utf-8")
    section = text.partition(f"## {title}\n")[2].partition("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", section, re.DOTALL)


def fitted(code: str, frame: pd.DataFrame, folder: Path) -> nvt.Workflow:
    folder.mkdir()
    names = {"folder": str(folder)}
    # In a file, so that a lambda's source can be read.
    place = folder / "workflow.py"
    place.write_text(code, encoding="utf-8")
    exec(compile(code, str(place), "exec"), names)
    workflow = nvt.Workflow(names["features"] >> ops.TagAsUserFeatures())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        workflow.fit(nvt.Dataset(frame))
    return workflow


@pytest.mark.parametrize("title", frames())
def test_a_migrated_workflow_gives_the_same_features_and_is_compiled(title, tmp_path):
    frame = frames()[title]
    before, after = (fitted(code, frame, tmp_path / str(number)) for number, code in enumerate(blocks(title)))
    old, new = (workflow.transform(frame) for workflow in (before, after))
    assert set(old.columns) == set(new.columns)
    for name in old.columns:
        assert np.array_equal(old[name].isna(), new[name].isna()), name
        assert np.array_equal(old[name].astype(float).to_numpy(), new[name].astype(float), equal_nan=True), (
            name
        )
    with pytest.raises(UnsupportedOperator, match=r"tiercel_export\.operators.*by its source"):
        compile_workflow(before, "user")
    both = pair(after, anchor=frame)
    assert check(both, frame) == "equal"
    check(both, frame.iloc[:1])


def test_the_table_names_every_operator():
    text = (DOCS / "operators.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(\w+)\(", text, re.MULTILINE)) == set(operators.__all__)


@pytest.mark.parametrize(
    ("function", "advice"),
    [
        (lambda col: col.dt.month, "DatePart(…)"),
        (lambda col: col.str.slice(0, 2), "TextSlice(start, stop)"),
        (lambda col: (col > 3).astype("int8"), "Compare(operator, value) and Cast(dtype)"),
        (len, "DatePart, TimeDifference, Cyclical"),
    ],
)
def test_a_refused_lambda_is_told_what_to_write(function, advice):
    workflow = nvt.Workflow(["x"] >> ops.LambdaOp(function) >> ops.TagAsUserFeatures())
    workflow.fit_schema(nvt.Dataset(pd.DataFrame({"x": [1]})).schema)
    with pytest.raises(UnsupportedOperator) as caught:
        compile_workflow(workflow, "user")
    assert advice in caught.value.remedy
    assert "before the workflow" in caught.value.remedy


def test_a_lambda_is_advised_by_its_own_source_whatever_stands_on_its_line():
    scale, few = 3, [1]
    # fmt: off
    found = (lambda c: c > 1, lambda c: c + scale, lambda c: c.isin(few), lambda c, f=(lambda x: x): f(c).dt)
    # fmt: on
    sources = ["c > 1", "c + scale", "c.isin(few)", "f(c).dt"]
    assert [source_of(function) for function in found] == sources
    advised = [advice_for_lambda(ops.LambdaOp(function), "") for function in found[:3]]
    for text, operator in zip(advised, ("Compare(", "Arithmetic(", "IsIn("), strict=True):
        assert f"by its source {operator}" in text
        assert " and " not in text
    assert source_of(len) == ""
    assert source_of(eval("lambda c: c > 1")) == ""
