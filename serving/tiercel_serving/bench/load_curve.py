"""Latency against load: open-loop points of a served model, and the highest rate within a latency limit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from math import sqrt
from typing import Any

import numpy as np

from ..errors import BenchError
from .generator import WARM_UP, Answers, Job, send
from .server_costs import StageTimes, Statistics, cpu_seconds, forget_peak, peak_mb

#: Requests in flight that saturate a server with a few cores.
SATURATING = 16
#: Steps of the search for the highest rate; each halves the remaining range.
SEARCH_STEPS = 5


@dataclass(frozen=True)
class LoadPoint:
    """A server's figures under one load.

    Parameters
    ----------
    rate
        Requests a second that were due; None in a closed loop.
    seconds
        Duration of the load.
    answered
        Requests answered a second.
    p50_us, p90_us, p99_us, p999_us, max_us
        Latency; in an open loop, from when a request was due.
    late_us
        The 99th percentile of how long after they were due requests were sent; 0 in a closed loop.
    failures
        gRPC status, or why requests were not sent → number of requests.
    cpu_s
        Processor seconds of the server per 1,000 answers.
    peak_mb
        Peak resident memory of the server's processes, summed; see :func:`~.server_costs.peak_mb`.
    stages
        Triton model → its mean times and batch.
    """

    rate: float | None
    seconds: float
    answered: float
    p50_us: float
    p90_us: float
    p99_us: float
    p999_us: float
    max_us: float
    late_us: float
    failures: Mapping[str, int]
    cpu_s: float
    peak_mb: float
    stages: Mapping[str, StageTimes]

    @property
    def held(self) -> bool:
        """Whether the server kept up: no failures, and at most four standard deviations below the rate."""
        if self.rate is None or self.failures:
            return not self.failures
        return self.answered >= self.rate - 4 * sqrt(self.rate / self.seconds)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON form."""
        whole = {name: _rounded(value) for name, value in asdict(self).items()}
        stages = {
            name: {k: _rounded(v) for k, v in asdict(times).items()} for name, times in self.stages.items()
        }
        return {**whole, "failures": dict(self.failures), "stages": stages, "held": self.held}


def _rounded(value: Any) -> Any:
    return round(value, 3) if isinstance(value, float) else value


@dataclass(frozen=True)
class LoadCurve:
    """One served model under one mix: a closed loop that saturates it, and open loops.

    ``best`` is the highest rate found whose p99 is within ``limit_us``; None if there is none.
    ``bare_cpu_s`` is the processor seconds of 1,000 answers of the bare compute, at the saturated server's
    batch size; None if that was not measured.
    """

    mix: str
    saturation: LoadPoint
    points: Sequence[LoadPoint]
    limit_us: float
    best: float | None
    bare_cpu_s: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return a JSON form."""
        return {
            "mix": self.mix,
            "saturation": self.saturation.to_json(),
            "points": [point.to_json() for point in self.points],
            "limit_us": self.limit_us,
            "best_rate": None if self.best is None else round(self.best, 1),
            "bare_cpu_s": None if self.bare_cpu_s is None else round(self.bare_cpu_s, 3),
        }


@dataclass(frozen=True)
class Target:
    """The server to load, as its gRPC address and its process group, and the requests for it."""

    url: str
    group: int
    requests: tuple[bytes, ...]


def measure_load(pool: ProcessPoolExecutor, target: Target, job: Job) -> LoadPoint:
    """Run one job, and read the server's statistics before and after.

    Raises
    ------
    BenchError
        No request was answered, or a warm-up request failed.
    """
    before, spent = Statistics(target.url), cpu_seconds(target.group)
    forget_peak(target.group)
    answers: Answers = pool.submit(send, job).result()
    spent = cpu_seconds(target.group) - spent
    count = len(answers.latencies_us)
    if not count:
        raise BenchError(
            f"{target.url}: no request was answered within {job.seconds:g} s: {answers.failures}"
        )
    p50, p90, p99, p999 = np.percentile(answers.latencies_us, (50, 90, 99, 99.9)).tolist()
    return LoadPoint(
        rate=job.rate,
        seconds=job.seconds,
        answered=count / answers.elapsed_s,
        p50_us=p50,
        p90_us=p90,
        p99_us=p99,
        p999_us=p999,
        max_us=float(answers.latencies_us.max()),
        late_us=float(np.percentile(answers.late_us, 99)) if len(answers.late_us) else 0.0,
        failures=answers.failures,
        cpu_s=spent / (count + WARM_UP) * 1000,  # those that warm it up cost as much
        peak_mb=peak_mb(target.group),
        stages=Statistics(target.url).since(before),
    )


def measure_curve(
    pool: ProcessPoolExecutor,
    target: Target,
    *,
    mix: str,
    shares: Sequence[float],
    seconds: float,
    limit_us: float,
    bare: Callable[[int], float] | None = None,
) -> LoadCurve:
    """Saturate a server, load it at shares of that rate, and search for the highest rate within the limit.

    ``bare`` maps a batch size to the processor seconds of 1,000 answers without a server.
    """
    job = Job(target.url, target.requests, seconds, concurrency=SATURATING)
    saturation = measure_load(pool, target, job)
    points: list[LoadPoint] = []

    def at(rate: float) -> LoadPoint:
        point = measure_load(pool, target, replace(job, rate=rate, seed=len(points)))
        points.append(point)
        return point

    for share in shares:
        at(share * saturation.answered)
    best = highest_rate(at, limit_us, points, saturation.answered)
    points.sort(key=lambda point: point.rate or 0)
    batch = max((times.batch for times in saturation.stages.values()), default=1.0)
    alone = None if bare is None else bare(max(1, round(batch)))
    return LoadCurve(mix, saturation, points, limit_us, best, alone)


def highest_rate(
    measure: Callable[[float], LoadPoint], limit_us: float, known: Sequence[LoadPoint], saturation: float
) -> float | None:
    """Return the highest rate at which the server keeps up with p99 within a limit, by bisection, or None.

    Parameters
    ----------
    measure
        Measures a rate.
    limit_us
        Upper limit of p99.
    known
        Points measured already.
    saturation
        Requests answered a second in a closed loop; the search goes up to 1.1 times that.
    """

    def good(point: LoadPoint) -> bool:
        return point.held and point.p99_us <= limit_us

    measured = sorted(known, key=lambda point: point.rate or 0)
    low, high = 0.0, saturation * 1.1
    for point in measured:
        if not good(point):
            high = min(high, point.rate or 0)
            break
        low = point.rate or 0
    for _ in range(SEARCH_STEPS):
        middle = (low + high) / 2
        if good(measure(middle)):
            low = middle
        else:
            high = middle
    return low or None
