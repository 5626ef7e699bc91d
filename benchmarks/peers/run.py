"""Interleaved rounds of Tiercel's fused layout on each runner, the service, and the stages in process."""

from __future__ import annotations

import json
import os
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from tiercel_client import Recommender
from tiercel_serving.bench.bare import full_requests, measure_bare
from tiercel_serving.bench.generator import Job, generator, send
from tiercel_serving.bench.machine import describe_machine, installed_versions
from tiercel_serving.bench.measurement import Measurement, median_of
from tiercel_serving.bench.mixes import Material, draw_requests, encode
from tiercel_serving.bench.run import all_runners
from tiercel_serving.bench.server_costs import cpu_seconds
from tiercel_serving.errors import BenchError
from tiercel_serving.release.opened import Release
from tiercel_serving.runtime.chain import Chain
from tiercel_serving.supervise import start_server
from tiercel_serving.supervise.guard import kill_group
from tiercel_serving.supervise.ports import held_ports

from .http_load import HttpJob, send_http

SERVICE, BARE = "handwritten", "stages in one process"
CONCURRENCIES = (1, 8)
#: Number of different requests, and of users for whom answers are compared before measuring.
REQUESTS, COMPARED = 500, 20
START_S = 120.0

#: Requests in flight → server → its rounds; and server → CPU milliseconds per answer, at 8 in flight.
Rounds = dict[int, dict[str, list[Measurement]]]
Costs = dict[str, list[float]]


@contextmanager
def handwritten(python: Path, prepared: Path, workers: int) -> Iterator[tuple[int, int]]:
    """Run the service; yield its port and its process group."""
    with held_ports("127.0.0.1", {"http": None}) as held:
        port = held["http"]
    command = [str(python), "-m", "uvicorn", "handwritten:app", "--port", str(port)]
    process = subprocess.Popen(
        [*command, "--workers", str(workers), "--log-level", "warning"],
        cwd=Path(__file__).parent,
        env={**os.environ, "PREPARED": str(prepared)},
        start_new_session=True,
    )
    try:
        _wait(port, process)
        yield port, process.pid
    finally:
        kill_group(process.pid, grace_s=5.0)  # with its workers, even busy ones
        process.wait()


def _wait(port: int, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + START_S
    while time.monotonic() < end and process.poll() is None:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/openapi.json", timeout=2).read()
            return
        except OSError:  # noqa: PERF203 - it is not up yet
            time.sleep(0.2)
    raise BenchError("the hand-written service did not start; its words are above")


def ask(port: int, user: int, k: int = 10) -> list[int]:
    """Return the service's items for one user."""
    body = json.dumps({"user_id": user, "k": k}).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/recommend", body, {"Content-Type": "application/json"}
    )
    items: list[int] = json.loads(urllib.request.urlopen(request, timeout=30).read())["item_id"]
    return items


def agreement(url: str, port: int, users: Sequence[int]) -> float:
    """Return the share of users' ten best items that Tiercel and the service have in common."""
    with Recommender(url) as recommender:
        shared = [
            len({item.item_id for item in recommender.recommend(user, k=10).items} & set(ask(port, user)))
            for user in users
        ]
    return sum(shared) / (10 * len(users))


def run_peers(
    release: Release, prepared: Path, python: Path, *, seconds: float, rounds: int, workers: int
) -> dict[str, Any]:
    """Measure all servers, and return the result as a JSON object.

    Raises
    ------
    BenchError
        The service does not start, or shares less than 90% of the compared items with Tiercel.
    """
    drawn = draw_requests(Material.of(release), "users", REQUESTS)
    users = [int(tensors["user_id"].item()) for tensors in drawn]
    requests = tuple(encode("recommend", tensors) for tensors in drawn)
    bodies = tuple(json.dumps({"user_id": user, "k": release.settings.k_default}).encode() for user in users)
    pipeline = Chain.open(release)
    alone = full_requests(pipeline.external_inputs, Material.of(release).users[:256])
    measured: Rounds = {level: {} for level in CONCURRENCIES}
    costs: Costs = {}
    with ExitStack() as stack:
        servers = {
            f"tiercel, runner {runner}": stack.enter_context(start_server(release, runner=runner))
            for runner in all_runners()
        }
        groups = {name: server.pid for name, server in servers.items()}
        port, groups[SERVICE] = stack.enter_context(handwritten(python, prepared, workers))
        same = agreement(next(iter(servers.values())).grpc_url, port, users[:COMPARED])
        if same < 0.9:
            raise BenchError(f"the hand-written service names {same:.0%} of the items that Tiercel does")
        pool = stack.enter_context(generator())
        for number in range(rounds + 1):
            for level in CONCURRENCIES:
                for name, group in groups.items():
                    if name == SERVICE:
                        job: Any = HttpJob("127.0.0.1", port, "/recommend", bodies, seconds, level)
                    else:
                        job = Job(servers[name].grpc_url, requests, seconds, concurrency=level)
                    one, spent_ms = _measure(pool, job, group)
                    if number:  # the first round warms up
                        measured[level].setdefault(name, []).append(one)
                        costs.setdefault(name, []).extend([spent_ms] if level == CONCURRENCIES[-1] else [])
            if number:
                measured[1].setdefault(BARE, []).append(measure_bare(pipeline, alone, seconds).total)
    return _document(release, measured, costs, same, workers)


def _measure(pool: ProcessPoolExecutor, job: Any, group: int) -> tuple[Measurement, float]:
    """Return the measurement, and the server's CPU milliseconds per answer."""
    spent = cpu_seconds(group)
    if isinstance(job, HttpJob):
        found: Measurement = pool.submit(send_http, job).result()
    else:
        answers = pool.submit(send, job).result()
        found = Measurement.from_latencies(answers.latencies_us, answers.elapsed_s)
    return found, (cpu_seconds(group) - spent) * 1000 / (found.throughput * job.seconds)


def _document(release: Release, measured: Rounds, costs: Costs, same: float, workers: int) -> dict[str, Any]:
    medians = {
        level: {name: median_of(all_) for name, all_ in found.items()} for level, found in measured.items()
    }
    fastest = max(
        (name for name in medians[8] if name != SERVICE), key=lambda name: medians[8][name].throughput
    )
    ratios = {
        "answers a second at 8": medians[8][fastest].throughput / medians[8][SERVICE].throughput,
        "p50 at 1": medians[1][fastest].p50_us / medians[1][SERVICE].p50_us,
        "processor time of an answer": median(costs[fastest]) / median(costs[SERVICE]),
    }
    return {
        "release": {
            "name": release.manifest.name,
            "build_id": release.build_id,
            "kept": release.settings.kept,
        },
        "machine": describe_machine(),
        "versions": installed_versions(("tiercel", "numpy", "torch", "faiss-cpu", "onnxruntime", "pandas")),
        "workers": workers,
        "same_items": round(same, 3),
        "processor_ms_of_an_answer": {name: round(median(spent), 3) for name, spent in costs.items()},
        "measured": {
            str(level): {
                name: {**medians[level][name].to_json(), "rounds": [one.to_json() for one in all_]}
                for name, all_ in found.items()
            }
            for level, found in measured.items()
        },
        "set_against_the_service": {"what": fastest, **{name: round(v, 2) for name, v in ratios.items()}},
        "ok": ratios["answers a second at 8"] >= 4 and ratios["p50 at 1"] <= 0.5,
    }
