"""Medians, ratios, limits, and what is printed and saved."""

import dataclasses
import json

import numpy as np
import pytest

from tiercel_serving.bench.bare import BareCompute, median_bare
from tiercel_serving.bench.measurement import Measurement, median_of
from tiercel_serving.bench.report import BenchReport, format_report, format_table
from tiercel_serving.commands.bench import concurrencies, write_whole
from tiercel_serving.commands.shell import Refused


def at(p50):
    return Measurement(p50, p50 + 10, p50 + 20, 1e6 / p50)


def bare(total, **stages):
    return BareCompute(at(total), stages)


@pytest.fixture
def report():
    served = {
        1: {
            "identity": [at(300), at(310), at(900)],
            "hollow": [at(2100), at(1900), at(2000)],
            "fused": [at(900), at(910), at(920)],
            "staged": [at(3000), at(2500), at(2600)],
        },
        8: {"identity": [at(1300)], "hollow": [at(7000)], "fused": [at(3000)], "staged": [at(9000)]},
    }
    computed = [
        bare(400, tower=100.0, ranking=250.0),
        bare(410, tower=110.0, ranking=260.0),
        bare(390, tower=90.0, ranking=240.0),
    ]
    facts = {"client": "perf", "release": {"kept": 100}, "command": "tiercel bench"}
    return BenchReport(facts, served, computed)


def test_latencies_become_percentiles_and_throughput():
    measured = Measurement.from_latencies(np.arange(1, 101), seconds=2)
    assert (measured.p50_us, measured.p90_us) == pytest.approx((50.5, 90.1))
    assert measured.p99_us == pytest.approx(99.01)
    assert measured.throughput == 50


def test_one_disturbed_round_does_not_move_the_median():
    assert median_of([at(300), at(900), at(310)]).p50_us == 310
    with pytest.raises(ValueError, match="no median"):
        median_of([])


def test_medians_of_the_bare_compute_go_by_stage(report):
    merged = median_bare(report.bare)
    assert merged.stages_us == {"tower": 100.0, "ranking": 250.0}
    assert merged.between_us == 50.0


def test_ratios_are_of_medians_and_know_their_limits(report):
    fused, staged, _, _ = report.ratios()
    assert fused.ratio == pytest.approx(910 / (310 + 400))
    assert fused.ok
    assert (fused.lowest, fused.highest) == pytest.approx((920 / (900 + 390), 900 / (300 + 400)))
    assert staged.ratio == pytest.approx(2600 / 710)
    assert not staged.ok
    assert not report.ok


def test_the_hops_are_compared_but_have_no_limit(report):
    _, _, hollow, stages = report.ratios()
    assert hollow.ratio == pytest.approx(2000 / 710)
    assert hollow.against_us == (310, 400)
    assert stages.ratio == pytest.approx(2600 / 2000)
    assert (stages.lowest, stages.highest) == pytest.approx((2600 / 2000, 3000 / 2100))
    slow = {1: {**report.served[1], "hollow": [at(99_000)] * 3, "staged": [at(2400)] * 3}}
    assert dataclasses.replace(report, served=slow).ok


def test_a_report_is_ok_if_every_limit_holds(report):
    served = {1: {**report.served[1], "staged": [at(2400)] * 3}}
    assert dataclasses.replace(report, served=served).ok


def test_without_concurrency_1_there_are_no_ratios(report):
    assert dataclasses.replace(report, served={8: report.served[8]}).ratios() == []


def test_what_is_printed(report):
    text = format_report(report)
    lines = text.splitlines()
    at_1 = lines[lines.index("p50 at concurrency 1, K = 100:") + 1 :]
    assert at_1[:5] == [
        "  fused / (identity + bare)   910 / (310 + 400) = 1.28 (rounds 0.71 to 1.29), limit 1.4: pass",
        "  staged / (identity + bare)  2600 / (310 + 400) = 3.66 (rounds 2.02 to 4.29), limit 3.5: FAIL",
        "  hollow / (identity + bare)  2000 / (310 + 400) = 2.82 (rounds 1.55 to 3.00)",
        "  staged / hollow             2600 / 2000 = 1.30 (rounds 1.30 to 1.43)",
        "  (hollow is staged with stages that do nothing: "
        "of staged, Triton's hops are 77% and the bare compute is 15%)",
    ]
    assert any(line.split() == ["1", "hollow", "2000", "2020", "500"] for line in lines)
    assert any(line.split() == ["1", "identity", "310", "330", "3226"] for line in lines)
    assert any(line.split() == ["ranking", "250.0", "62%"] for line in lines)
    assert any(line.split() == ["between", "stages", "50.0", "12%"] for line in lines)
    assert "stated for K" not in text
    assert not any(line.endswith(" ") for line in lines)


def test_another_k_is_said(report):
    other = dataclasses.replace(report, facts={**report.facts, "release": {"kept": 20}})
    assert "the limits are stated for K = 100; this release has K = 20" in format_report(other)


def test_what_is_saved(report, tmp_path):
    file = tmp_path / "deep" / "bench.json"
    write_whole(file, report.to_json())
    document = json.loads(file.read_text())
    assert document["command"] == "tiercel bench"
    assert document["served"]["1"]["fused"]["p50_us"] == 910
    assert len(document["served"]["1"]["fused"]["rounds"]) == 3
    assert document["bare"]["stages_us"] == {"tower": 100.0, "ranking": 250.0}
    assert document["served"]["1"]["hollow"]["p99_us"] == 2020
    assert [ratio["measured"] for ratio in document["ratios"]] == ["fused", "staged", "hollow", "staged"]
    assert [ratio["ok"] for ratio in document["ratios"]] == [True, False, None, None]
    assert document["ratios"][0]["limit"] == 1.4
    assert document["ratios"][3]["against"] == ["hollow"]
    assert document["ratios"][3]["against_us"] == [2000]
    assert document["ok"] is False
    assert [entry.name for entry in file.parent.iterdir()] == ["bench.json"]


def test_columns_are_aligned():
    assert format_table(["name", "µs"], [["a", "1"], ["long", "100"]], left=(0,)).splitlines() == [
        "  name   µs",
        "  ----  ---",
        "  a       1",
        "  long  100",
    ]


@pytest.mark.parametrize("text", ["", "0", "1,x", "1,1", "-2"])
def test_concurrencies_that_cannot_be_are_refused(text):
    assert concurrencies("1,8") == (1, 8)
    with pytest.raises(Refused, match="different whole numbers"):
        concurrencies(text)
