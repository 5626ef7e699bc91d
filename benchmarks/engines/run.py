"""Interleaved measurements, in process and served, of releases that differ only in their engine.

Each round calls every release once in a random order, so that other load on the machine affects all of them
alike. Results are medians over rounds.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from tritonclient.grpc import InferenceServerClient

from tiercel_client import Recommender
from tiercel_serving.bench.machine import describe_machine, installed_versions
from tiercel_serving.bench.perf_analyzer import PerfAnalyzer
from tiercel_serving.bench.repository import write_requests
from tiercel_serving.commands.serve import example_user
from tiercel_serving.commands.shell import Refused
from tiercel_serving.release.opened import Release, open_release
from tiercel_serving.stages.engine import model_of, open_engine
from tiercel_serving.stages.specs import RANKING
from tiercel_serving.supervise import start_server
from tiercel_serving.verify.golden import StoredGolden

#: Batch sizes.
BATCHES = (1, 8, 64)

#: Name of the Triton model.
MODEL = "recommend"


def median_us(
    calls: Mapping[str, Callable[[], Any]], rounds: int, warm: int, in_a_row: int = 1
) -> dict[str, float]:
    """Return each call's median in microseconds; a round makes ``in_a_row`` calls of each in random order."""
    names, taken = list(calls), {name: np.empty((rounds, in_a_row)) for name in calls}
    rng = np.random.default_rng(0)
    for number in range(-warm, rounds):
        for place in rng.permutation(len(names)):
            name = names[place]
            for again in range(in_a_row):
                begun = time.perf_counter_ns()
                calls[name]()
                if number >= 0:
                    taken[name][number, again] = time.perf_counter_ns() - begun
    return {name: float(np.median(times)) / 1e3 for name, times in taken.items()}


def ranker_us(releases: Mapping[str, Release], batch: int, rounds: int) -> dict[str, float]:
    """Return the median microseconds of each release's ranker for a batch of users."""
    with contextlib.ExitStack() as stack:
        calls: dict[str, Callable[[], Any]] = {}
        for name, release in releases.items():
            engine = stack.enter_context(contextlib.closing(open_engine(RANKING, release)))
            inputs, _ = StoredGolden(release).tensors("engines", RANKING)
            arrays = {tensor: np.resize(array, (batch, *array.shape[1:])) for tensor, array in inputs.items()}
            calls[name] = partial(engine.run, arrays)
        return median_us(calls, rounds, warm=max(3, rounds // 10))


@dataclass(frozen=True)
class Served:
    """A served release's gRPC address, and a user to request."""

    url: str
    user: Any


@contextlib.contextmanager
def serve_all(paths: Mapping[str, Path]) -> Iterator[dict[str, Served]]:
    """Serve each release on its own server until the block ends."""
    with contextlib.ExitStack() as stack:
        servers = {}
        for name, path in paths.items():
            server = stack.enter_context(start_server(path, grpc_port=0, http_port=0, metrics_port=0))
            servers[name] = Served(server.grpc_url, example_user(open_release(path)))
        yield servers


def ask_all(
    servers: Mapping[str, Served], rounds: int, seconds: float, in_a_row: int = 1
) -> dict[str, dict[str, float]]:
    """Return each server's median latency in microseconds for one caller, and answers/s for eight."""
    with contextlib.ExitStack() as stack:
        calls = {}
        for name, one in servers.items():
            client = stack.enter_context(Recommender(one.url, timeout_s=60.0))
            calls[name] = partial(client.recommend, user_id=one.user, k=10)
        p50 = median_us(calls, rounds, max(3, rounds // 10), in_a_row)
    # Two measurements of each, since a single one varies more.
    rates = {name: [answers_per_s(one, seconds) for _ in (0, 1)] for name, one in servers.items()}
    return {
        name: {"p50_us": p50[name], "answers_per_s_at_8": float(np.mean(rates[name]))} for name in servers
    }


def analyse_all(
    servers: Mapping[str, Served], analyzer: PerfAnalyzer, seconds: float, rounds: int = 5
) -> dict[str, dict[str, float]]:
    """Return perf_analyzer's p50 with one caller, and the model's compute time by Triton, for each server.

    Both are in microseconds, as medians over rounds that alternate between the servers.
    """
    p50s, parts = ({name: list[float]() for name in servers} for _ in range(2))
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        data = Path(folder) / "requests.json"
        clients = {name: stack.enter_context(InferenceServerClient(one.url)) for name, one in servers.items()}
        for _ in range(rounds):
            for name, one in servers.items():
                user = one.user.encode() if isinstance(one.user, str) else one.user
                write_requests(np.array([user]), data)
                begun = _model_time(clients[name])
                measured = analyzer.run(
                    MODEL, one.url, concurrency=1, seconds=max(seconds / rounds, 1.0), data=data
                )
                ended = _model_time(clients[name])
                p50s[name].append(measured.p50_us)
                parts[name].append((ended[0] - begun[0]) / max(ended[1] - begun[1], 1) / 1e3)
    return {
        name: {"perf_analyzer_p50_us": median(p50s[name]), "model_us": median(parts[name])}
        for name in servers
    }


def _model_time(client: InferenceServerClient) -> tuple[int, int]:
    """Return the model's total compute time so far in nanoseconds, and the number of runs."""
    [stats] = client.get_inference_statistics(MODEL).model_stats
    return stats.inference_stats.compute_infer.ns, stats.inference_stats.compute_infer.count


def answers_per_s(server: Served, seconds: float, callers: int = 8) -> float:
    """Return the answers per second that ``callers`` concurrent callers get in total."""
    counts = [0] * callers
    until = time.perf_counter() + seconds

    def ask(place: int) -> None:
        with Recommender(server.url, timeout_s=60.0) as client:
            while time.perf_counter() < until:
                client.recommend(user_id=server.user, k=10)
                counts[place] += 1

    threads = [threading.Thread(target=ask, args=(place,)) for place in range(callers)]
    begun = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - begun)


def measure(paths: Sequence[Path], *, rounds: int, seconds: float, command: str) -> dict[str, Any]:
    """Return all figures of releases by engine; raise Refused if two have the same engine."""
    opened = [open_release(path) for path in paths]
    names = [model_of(RANKING, release).engine for release in opened]
    if len(set(names)) < len(names):
        raise Refused(f"RELEASE: expected releases of different engines, got {', '.join(names)}")
    releases, folders = dict(zip(names, opened, strict=True)), dict(zip(names, paths, strict=True))
    first = opened[0].manifest
    figures: dict[str, Any] = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": command,
        "machine": describe_machine(),
        "load_average": os.getloadavg(),
        "versions": installed_versions(("torch", "onnxruntime", "numpy", "nvidia-pytriton")),
        "recommender": first.name,
        "kept": first.settings.kept,
        "parameters": 0 if first.ranking is None else first.ranking.parameters,
        "rounds": rounds,
    }
    figures["ranker_us"] = {
        str(batch): ranker_us(releases, batch, max(rounds // max(batch // 4, 1), 30)) for batch in BATCHES
    }
    with serve_all(folders) as servers:
        figures["served"] = ask_all(servers, rounds, seconds)
    return figures
