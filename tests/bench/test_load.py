"""Open loops, mixed load, the search for the highest rate, and differences between two results."""

import copy
import json
import threading
import time
from concurrent import futures

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc
from typer.testing import CliRunner

from tiercel_serving.bench.compare import compare, format_changes, read_result, to_json
from tiercel_serving.bench.generator import Job, arrivals, send
from tiercel_serving.bench.html_report import html_report
from tiercel_serving.bench.load_curve import LoadCurve, LoadPoint, highest_rate
from tiercel_serving.bench.load_report import format_curves, promises_of
from tiercel_serving.bench.mixes import BATCH, EXCLUDED, MIXES, Material, draw_requests, encode
from tiercel_serving.bench.plots import lines
from tiercel_serving.commands.bench import open_loops
from tiercel_serving.commands.cli import app
from tiercel_serving.commands.shell import Refused
from tiercel_serving.errors import BenchError


def point(rate, p99_us=1000.0, answered=None, **changes):
    made = {
        "rate": rate,
        "seconds": 10.0,
        "answered": rate if answered is None else answered,
        "p50_us": p99_us / 5,
        "p90_us": p99_us / 2,
        "p99_us": p99_us,
        "p999_us": p99_us * 2,
        "max_us": p99_us * 3,
        "late_us": 0.0,
        "failures": {},
        "cpu_s": 1.0,
        "peak_mb": 100.0,
        "stages": {},
    }
    return LoadPoint(**{**made, **changes})


class Slow(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Answers after 1 ms, one request at a time, stalls once for 0.2 s, and refuses the model `no`."""

    def __init__(self):
        self.count, self.lock = 0, threading.Lock()

    def ModelInfer(self, request, context):
        if request.model_name == "no":
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "not this one")
        with self.lock:
            self.count += 1
            time.sleep(0.2 if self.count == 60 else 0.001)
        return service_pb2.ModelInferResponse()


@pytest.fixture
def slow_url():
    server = grpc.server(futures.ThreadPoolExecutor(40))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Slow(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(0)


def test_arrivals_are_a_poisson_process():
    due = arrivals(1000, 20, seed=3)
    assert len(due) == pytest.approx(20_000, rel=0.03)
    gaps = np.diff(due)
    assert gaps.mean() == pytest.approx(gaps.std(), rel=0.03)
    assert (arrivals(1000, 20, seed=3) == due).all()
    assert len(arrivals(0.001, 1, seed=0)) == 1


def test_an_open_loop_counts_what_a_stall_does_to_those_who_come_meanwhile(slow_url):
    job = Job(slow_url, (b"",), 0.6)
    closed = send(job)
    assert np.percentile(closed.latencies_us, 90) < 100_000, "one request met the stall, and none waited"
    opened = send(Job(slow_url, (b"",), 0.4, rate=100, seed=1))
    assert not opened.failures
    assert len(opened.latencies_us) == len(opened.late_us) == len(arrivals(100, 0.4, 1))
    assert opened.elapsed_s >= 0.4


def test_latencies_begin_when_a_request_is_due(slow_url, monkeypatch):
    monkeypatch.setattr("tiercel_serving.bench.generator.WARM_UP", 1)
    opened = send(Job(slow_url, (b"",), 1.0, rate=200, seed=1))
    # The stall of 200 ms delays some 40 requests, each for the rest of it.
    assert np.count_nonzero(opened.latencies_us > 50_000) > 15


def test_failures_are_counted_and_a_server_that_refuses_all_is_named(slow_url, monkeypatch):
    monkeypatch.setattr("tiercel_serving.bench.generator.WARM_UP", 1)
    good, bad = encode("yes", {}), encode("no", {})
    mixed = send(Job(slow_url, (good, bad, good, good), 0.2))
    assert mixed.failures["INVALID_ARGUMENT"] >= 1
    # Those after a failed one have their turn too.
    assert abs(len(mixed.latencies_us) - 3 * mixed.failures["INVALID_ARGUMENT"]) <= 3
    with pytest.raises(BenchError, match="a request failed: not this one"):
        send(Job(slow_url, (bad,), 0.2))


@pytest.mark.parametrize("string_ids", [False, True])
def test_mixes_are_drawn_from_the_release(string_ids, tmp_path):
    from tiny_release import make_tiny

    tiny = make_tiny(tmp_path / "release", string_ids=string_ids)
    material = Material.of(tiny.release)
    known, items = set(tiny.user_ids), set(tiny.item_ids)
    for mix in MIXES:
        drawn = draw_requests(material, mix, 40, seed=1)
        users = [user for request in drawn for user in request["user_id"].ravel().tolist()]
        if mix == "cold":
            assert not known & set(users)
        elif mix != "mixed":
            assert set(users) <= known
        for request in drawn:
            assert len(request["user_id"]) == (BATCH if mix == "batches" else len(request["user_id"]))
            excluded = request.get("exclude_item_ids")
            if excluded is not None:
                assert set(excluded.ravel().tolist()) <= items
                assert excluded.shape[1] == min(EXCLUDED, len(items) // 2)
            message = service_pb2.ModelInferRequest.FromString(encode("recommend", request))
            assert [tensor.name for tensor in message.inputs] == list(request)
        again = draw_requests(material, mix, 40, seed=1)
        assert str(again) == str(drawn)
    often = [r["user_id"].item() for r in draw_requests(material, "zipf", 400, seed=1)]
    most = material.users[0]
    assert often.count(most) > 400 / len(known)


@pytest.mark.parametrize(("knee", "expected"), [(700, 700), (5000, 1100), (1, None)])
def test_the_highest_rate_is_found(knee, expected):
    measured = []

    def measure(rate):
        measured.append(rate)
        return point(rate, p99_us=1000 if rate <= knee else 50_000)

    known = [point(rate, p99_us=1000 if rate <= knee else 50_000) for rate in (250, 500, 900)]
    found = highest_rate(measure, 10_000, known, saturation=1000)
    if expected is None:
        assert found is None
    else:
        assert found == pytest.approx(expected, rel=0.05)
        assert found <= expected
    assert len(measured) == 5


def test_a_rate_that_is_not_answered_is_not_held():
    assert point(1000, answered=960).held
    assert not point(1000, answered=900).held
    assert not point(1000, failures={"UNAVAILABLE": 1}).held
    assert point(None, answered=5).held


def test_what_curves_are_held_to_and_how_they_are_shown():
    points = [point(500, 3000), point(900, 90_000, answered=700, late_us=20_000)]
    curve = LoadCurve("zipf", point(None, answered=1000, cpu_s=2.0), points, 20_000, 640.0, bare_cpu_s=1.0)
    tail, cpu = promises_of("fused", curve)
    assert (tail.value, tail.ok) == (5.0, False)
    assert (cpu.value, cpu.ok) == (2.0, True)
    text = format_curves({"fused": curve}, [tail, cpu])
    assert "highest rate with p99 within 20 ms: 640 a second" in text
    assert "not held; sent up to 20000 µs late: this machine cannot offer the rate evenly" in text
    assert "limit 4.0: FAIL" in text
    assert lines({"a": []}, "x", "y") == ""


@pytest.fixture
def result():
    rounds = [{"p50_us": 100.0 + n, "p99_us": 200.0 + n, "throughput": 9000.0 - n} for n in range(5)]
    return {
        "served": {
            "1": {"fused": {"p50_us": 102.0, "p99_us": 202.0, "throughput": 8998.0, "rounds": rounds}}
        },
        "bare": {"stages_us": {"retrieval": 30.0}, "between_stages_us": 4.0, "rounds": copy.deepcopy(rounds)},
        "machine": {"cpu": "a", "cores": 2},
        "client": "c",
    }


def test_what_changed_beyond_noise_is_told(result, tmp_path):
    after = copy.deepcopy(result)
    for one in after["served"]["1"]["fused"]["rounds"]:
        one["p50_us"] *= 1.3
        one["p99_us"] += 2
    changes = {one.figure: one for one in compare(result, after)}
    assert changes["fused, 1 in flight: p50_us"].real
    assert changes["fused, 1 in flight: p50_us"].ratio == pytest.approx(1.3)
    assert not changes["fused, 1 in flight: p99_us"].real
    assert not changes["bare: p50_us"].real
    assert "1 of 4 figures changed beyond noise" in format_changes(list(changes.values()))
    del after["served"]["1"]["fused"]["rounds"][1:]
    one = compare(result, after)[0]
    assert not one.real
    assert to_json([one])[0]["interval"] is None
    file = tmp_path / "a.json"
    file.write_text(json.dumps(result))
    assert read_result(file) == result
    assert "<svg" in html_report(result)


def test_results_that_cannot_be_compared_are_refused(result, tmp_path):
    other = {**result, "machine": {"cpu": "b", "cores": 2}}
    with pytest.raises(BenchError, match="the machine: a, 2 before, b, 2 after; measure both on one machine"):
        compare(result, other)
    assert len(compare(result, other, force=True)) == 4
    file = tmp_path / "other.json"
    for text, said in (("{}", "it lacks bare, machine, served"), ("nothing", "tiercel bench --save")):
        file.write_text(text)
        with pytest.raises(BenchError, match=said):
            read_result(file)
    with pytest.raises(BenchError, match="tiercel bench --save"):
        read_result(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("rates", "mix", "said"),
    [("0", "zipf", "shares"), ("x", "zipf", "shares"), ("", "zipf", "shares"), ("0.5", "all", "use users, ")],
)
def test_loops_that_cannot_be_are_refused(rates, mix, said):
    with pytest.raises(Refused, match=said):
        open_loops(rates, mix, 10.0)
    assert open_loops("none", "zipf", 10.0).shares == ()
    assert open_loops("0.5,0.9", "mixed", 10.0).limit_us == 10_000


@pytest.mark.parametrize("option", ["--seconds", "--p99-ms"])
@pytest.mark.parametrize("value", ["inf", "nan", "1e300", "-1"])
def test_a_length_or_limit_without_end_is_refused_before_anything_is_measured(option, value):
    result = CliRunner().invoke(app, ["bench", "no-release", option, value])
    assert (result.exit_code, "Invalid value" in result.output) == (2, True), result.output
