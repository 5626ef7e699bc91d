"""The stages benchmark: its tiny form end to end, and that it covers every reorder step."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from benchmarks.stages.__main__ import app
from benchmarks.stages.ordering import STEPS
from benchmarks.stages.report import LIMITS_US, READS, StagesReport, StepTimes
from benchmarks.stages.tradeoff import AT, STRENGTHS, compared, figures, recipe
from tiercel_pipelines.offline.metrics import Relevance
from tiercel_serving.columns import Column
from tiercel_serving.reorder.per_request import per_request
from tiercel_serving.reorder.table import REORDER


def test_every_step_is_measured_and_has_a_limit() -> None:
    # Other tests in this process may have added kinds to the table.
    ours = {name for name, row in REORDER.rows.items() if row.path.startswith("tiercel_serving.")}
    assert set(STEPS) == set(LIMITS_US) == ours


@pytest.mark.slow
def test_tiny_runs_from_end_to_end_and_saves_json_and_a_plot(tmp_path: Path) -> None:
    saved = tmp_path / "deep" / "stages.json"
    done = CliRunner().invoke(app, ["--size", "tiny", "--json", "--save", str(saved)])
    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout)
    assert document == json.loads(saved.read_text(encoding="utf-8"))
    assert saved.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert set(document["steps"]) == set(STEPS)
    assert all(us > 0 for step in document["steps"].values() for us in step["us"].values())
    assert document["rules_us"] > 0
    assert all(one["exact"] for one in document["filters"].values())
    assert set(READS) <= set(document["users"])
    assert document["figures"] == [], "too small for any limit"


def test_figures_are_held_to_their_limits() -> None:
    report = StagesReport({}, "full", {"mmr": StepTimes({1: 500.0, 64: 100.0}, 1000.0)}, rules_us=101.0)
    assert [(round(figure.value), figure.ok) for figure in report.figures()] == [
        (500, False),
        (2, True),
        (10, True),
        (101, False),
    ]


def test_curves_are_compared_at_the_same_diversity() -> None:
    def point(diversity: float, ndcg: float) -> tuple[dict[str, float], np.ndarray]:
        return {"diversity": diversity}, np.array([ndcg, ndcg])

    found = compared([point(0.3, 0.5), point(0.9, 0.5)], [point(0.2, 0.6), point(0.4, 0.4)])
    assert found == [{"diversity": 0.3, "above": 0.0, "error": 0.0}]
    named = {one.name: one for one in per_request(recipe().serving.reorder)}
    for name, strengths in STRENGTHS.values():
        assert all(named[name].low <= strength <= named[name].high for strength in strengths)


def test_figures_of_lists_and_of_none() -> None:
    genres = Column(np.array([0, 1, 0, 2]), None, np.array([0, 1, 2, 3, 4, 4]))
    relevance = Relevance.from_pairs([0], [1], 1)
    lists = np.full((1, AT), 4)
    assert figures(lists, {"genres": genres}, relevance, 4)["gini"] == 0
    lists[0, :2] = 1, 3
    assert figures(lists, {"genres": genres}, relevance, 4)["gini"] == 0.5
