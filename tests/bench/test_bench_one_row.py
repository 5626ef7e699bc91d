"""One row of a run's workflow through the compiled program and through NVTabular."""

import json
from types import SimpleNamespace

import pytest

pytest.importorskip("nvtabular")

from benchmarks.features import run as run_module
from benchmarks.features.one_row import LIMIT, OneRow, measure_one_row, median_us
from benchmarks.features.plan import QUICK
from benchmarks.features.report import FeatureReport, format_features
from benchmarks.features.run import run_features


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return the parts of a trained run that the measurement needs."""
    from small_release import small_frames, small_workflow

    users, items, interactions = small_frames()
    workflow = small_workflow(users, items, interactions, tmp_path_factory.mktemp("one-row"))
    return SimpleNamespace(
        load_workflow=lambda: workflow,
        users=users,
        items=items,
        train=interactions,
        record=SimpleNamespace(data=SimpleNamespace(user_id="user_id", item_id="item_id")),
    )


def test_both_ways_are_timed_on_the_same_workflow(trained):
    figures = measure_one_row(trained, seconds=0.05)
    assert [figure.part for figure in figures] == ["user", "item", "both"]
    user, item, both = figures
    assert both.columns == user.columns + item.columns
    assert both.columns == len(trained.load_workflow().output_schema.column_names)
    # The limit itself needs an idle machine; even a busy one stays far above a fifth of it.
    assert all(figure.ratio > LIMIT / 5 for figure in figures)


def test_a_run_is_measured_where_it_is_named(trained, monkeypatch, tmp_path):
    monkeypatch.setattr(run_module.TrainedRun, "open", lambda path: trained)
    report = run_features(QUICK, cases=(), parts=(), trained=tmp_path)
    document = json.loads(json.dumps(report.to_json()))
    assert [row["part"] for row in document["one_row"]] == ["user", "item", "both"]
    assert {row["limit"] for row in document["one_row"]} == {None}
    assert "One row of the run's workflow" in format_features(report)


def test_its_limit_is_printed_and_held():
    figures = [OneRow("user", 6, 30.0, 15_000.0), OneRow("item", 3, 200.0, 15_000.0)]
    report = FeatureReport({}, one_row=figures)
    user, item = (line for line in format_features(report).splitlines() if "at least 100 times" in line)
    assert " ".join(user.split()) == "user 6 30.0 µs 15.00 ms 500 at least 100 times: pass"
    assert item.endswith("FAIL")
    assert not report.ok


def test_a_call_is_timed_at_least_five_times():
    calls = []
    assert median_us(lambda: calls.append(1), seconds=0) > 0
    assert len(calls) == 6  # with the warm-up
