"""The benchmark on a real server with a tiny release: both layouts, empty models, the bare compute."""

import json
import re
from itertools import pairwise
from xml.etree import ElementTree

import numpy as np
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from tiercel_serving.bench import OpenLoops, PythonClient, find_perf_analyzer, format_report, run_bench
from tiercel_serving.bench.bare import full_requests, measure_bare
from tiercel_serving.bench.html_report import html_report
from tiercel_serving.bench.repository import (
    HOLLOW,
    IDENTITY,
    MODELS,
    known_user_ids,
    write_bench_repository,
    write_requests,
)
from tiercel_serving.bench.run import all_runners, measured_name
from tiercel_serving.errors import BenchError
from tiercel_serving.repository.validate import validate_repository
from tiercel_serving.runtime.chain import Chain


@pytest.mark.parametrize("string_ids", [False, True])
def test_known_users_are_drawn_from_the_store(string_ids, tmp_path):
    from tiny_release import make_tiny

    tiny = make_tiny(tmp_path / "release", string_ids=string_ids)
    assert sorted(known_user_ids(tiny.release, 100).tolist()) == sorted(tiny.user_ids)
    assert len(set(known_user_ids(tiny.release, 3).tolist())) == 3
    assert known_user_ids(tiny.release, 3).tolist() == known_user_ids(tiny.release, 3).tolist()


def test_requests_are_perf_analyzers_json(tmp_path):
    file = tmp_path / "requests.json"
    write_requests(np.array(["é☃".encode(), b""], dtype=object), file)
    expected = {"data": [{"user_id": ["é☃"]}, {"user_id": [""]}]}
    assert json.loads(file.read_text(encoding="utf-8")) == expected


def read(repository, model):
    text = (repository / model / "config.pbtxt").read_text(encoding="utf-8")
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def test_the_repository_holds_both_layouts_and_passes_triton_rules(tiny_release, tmp_path):
    write_bench_repository(tiny_release, tmp_path)
    assert {*MODELS.values(), "chain", "retrieval"} <= {entry.name for entry in tmp_path.iterdir()}
    validate_repository(tmp_path)
    config, ensemble = read(tmp_path, IDENTITY), read(tmp_path, "recommend")
    assert [tensor.name for tensor in config.input] == [tensor.name for tensor in ensemble.input]
    assert list(config.output) == list(ensemble.output)
    assert config.max_batch_size == ensemble.max_batch_size


@pytest.mark.parametrize("string_ids", [False, True])
def test_the_hollow_ensemble_is_the_staged_one_with_stages_that_do_nothing(string_ids, tmp_path):
    from tiny_release import make_tiny

    release = make_tiny(tmp_path / "release", string_ids=string_ids).release
    models = tmp_path / "models"
    write_bench_repository(release, models)
    hollow, staged = read(models, HOLLOW), read(models, MODELS["staged"])
    wiring = re.sub(f'"{HOLLOW}_', '"', str(hollow.ensemble_scheduling))
    assert wiring == str(staged.ensemble_scheduling)
    assert (list(hollow.input), list(hollow.output)) == (list(staged.input), list(staged.output))
    # The empty models pass on tensors of the stages' shapes.
    pipeline = Chain.open(release)
    request = full_requests(pipeline.external_inputs, known_user_ids(release, 1))[0]
    real, _ = pipeline.run(request)
    steps = hollow.ensemble_scheduling.step
    assert len(steps) == len(pipeline.stages)
    for step in steps:
        empty, stage = read(models, step.model_name), read(models, step.model_name.removeprefix(f"{HOLLOW}_"))
        shapes = json.loads(empty.parameters["shapes"].string_value)
        assert shapes == {name: list(real[name].shape[1:]) for name in step.output_map}
        assert list(empty.input) == list(stage.input)
        dtypes = {tensor.name: tensor.data_type for tensor in stage.output}
        assert {tensor.name: tensor.data_type for tensor in empty.output} == {n: dtypes[n] for n in shapes}
        assert "release" not in empty.parameters


def test_bare_compute_is_split_by_stage(tiny_release):
    pipeline = Chain.open(tiny_release)
    requests = full_requests(pipeline.external_inputs, known_user_ids(tiny_release, 5))
    assert len(requests) == 5
    assert all(set(request) == {spec.name for spec in pipeline.external_inputs} for request in requests)
    measured = measure_bare(pipeline, requests, seconds=0.1)
    assert list(measured.stages_us) == [stage.spec.name for stage in pipeline.stages]
    assert sum(measured.stages_us.values()) <= measured.total.p50_us * 1.2
    assert measured.total.p50_us <= measured.total.p99_us


def test_a_benchmark_of_nothing_is_refused(tiny_release):
    with pytest.raises(BenchError, match="at least one round"):
        run_bench(tiny_release, PythonClient(), rounds=0)


NAMES = ["identity", "hollow", "fused", "staged"]


def check(report, rounds, concurrencies, runners=("python",)):
    assert set(report.served) == set(concurrencies)
    for models in report.served.values():
        assert list(models) == [measured_name(runner, name) for runner in runners for name in NAMES]
        for measured in models.values():
            assert len(measured) == rounds
            assert all(0 < m.p50_us <= m.p99_us and m.throughput > 0 for m in measured)
    assert len(report.bare) == rounds
    assert [ratio.label for ratio in report.ratios()][:4] == [
        "fused / (identity + bare)",
        "staged / (identity + bare)",
        "hollow / (identity + bare)",
        "staged / hollow",
    ]
    document = json.loads(json.dumps(report.to_json()))
    assert document["triton"].startswith("2.")
    assert document["machine"]["cores"] >= 1
    assert document["versions"]["numpy"] == np.__version__
    text = format_report(report)
    assert "Bare compute" in text
    assert "Triton's hops are" in text


def test_the_python_client_measures_real_servers_and_open_loops_load_them(tiny_release, monkeypatch):
    monkeypatch.setattr("tiercel_serving.bench.load_curve.SEARCH_STEPS", 1)
    monkeypatch.setattr("tiercel_serving.bench.run.WARM_UP_S", 0.5)
    monkeypatch.setattr("tiercel_serving.bench.python_client.WARM_UP_S", 0.1)
    steps, runners = [], all_runners()
    report = run_bench(
        tiny_release,
        PythonClient(),
        seconds=0.2,
        rounds=1,
        concurrencies=(1, 8),
        runners=runners,
        loops=OpenLoops((0.5,)),
        command="tiercel bench tiny",
        progress=lambda what, done, total: steps.append((what, done, total)),
    )
    check(report, 1, (1, 8), runners)
    rounds = [step[1:] for step in steps if step[0] == "rounds"]
    assert (rounds[0], rounds[-1]) == ((0, 2), (2, 2))
    assert all(before[0] < after[0] for before, after in pairwise(rounds))
    text = format_report(report)
    assert "Python client" in text
    assert list(report.curves) == [measured_name(runner, name) for runner in runners for name in NAMES[2:]]
    for curve in report.curves.values():
        assert curve.saturation.answered > 0
        assert curve.saturation.cpu_s > 0
        assert curve.saturation.peak_mb > 50
        assert curve.bare_cpu_s > 0
        assert {"ordering", "recommend", "chain"} & set(curve.saturation.stages)
        for point in curve.points:
            assert 0 < point.p50_us <= point.p99_us <= point.p999_us <= point.max_us
            assert not point.failures
    assert "highest rate with p99 within 20 ms" in text
    assert "p99 / p50 at half of saturation" in text
    page = html_report(json.loads(json.dumps(report.to_json())))
    assert page.count("<svg") == 4
    # The page loads nothing, and is well-formed.
    assert ElementTree.fromstring(page.removeprefix("<!doctype html>")).find("body") is not None
    assert "http" not in page


def test_the_python_client_reports_what_failed(tmp_path):
    file = tmp_path / "requests.json"
    write_requests(np.array([1]), file)
    with pytest.raises(BenchError, match=r"'recommend' at 127[.]0[.]0[.]1:1: a request failed"):
        PythonClient().run("recommend", "127.0.0.1:1", concurrency=1, seconds=0.1, data=file)


@pytest.mark.bench
def test_perf_analyzer_measures_a_real_server(tiny_release, tmp_path):
    """Fetch the real perf_analyzer with pip, as on a new machine."""
    load = find_perf_analyzer(tmp_path / "cache")
    report = run_bench(tiny_release, load, seconds=0.6, rounds=1, concurrencies=(1, 8))
    check(report, 1, (1, 8))
    at_1, at_8 = report.served[1], report.served[8]
    assert at_1["identity"][0].p50_us < at_1["hollow"][0].p50_us
    assert at_1["identity"][0].p50_us < at_1["staged"][0].p50_us
    assert at_8["identity"][0].throughput > at_1["identity"][0].throughput * 0.8
