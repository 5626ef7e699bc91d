"""Latency against load: open-loop points of a served model, and the highest rate that keeps a promise."""

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

#: Requests in flight that saturate a server of a few cores.
SATURATING = 16
#: Steps of the search for the highest rate; each halves what is left of the range.
SEARCH_STEPS = 5


@dataclass(frozen=True)
class LoadPoint:
    """What a server did under one load.

    Parameters
    ----------
    rate
        Requests a second that were due; None in a closed loop.
    answered
        Requests answered a second.
    p50_us, p90_us, p99_us, p999_us, max_us
        Latency, in an open loop from when a request was due.
    late_us
        99 of 100 requests were sent at most so long after they were due.
    failures
        gRPC status → how many requests it met.
    cpu_s
        Processor seconds of the server for 1,000 answers.
    peak_mb
        The server's largest resident memory.
    stages
        Triton model → its means.
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
        """Whether the rate was answered: nothing failed, nor is less answered than chance explains."""
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
    """One served model under one mix: a closed loop that saturates it, and open loops below.

    ``best`` is the highest rate found whose p99 is within ``limit_us``, None if even the lowest was not.
    ``bare_cpu_s`` are the processor seconds of 1,000 answers of the bare compute, in batches as large as
    those of the saturated server; None where that was not measured.
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
    """What is loaded: a server, by its gRPC address and its process group."""

    url: str
    group: int
    requests: tuple[bytes, ...]


def measure_load(pool: ProcessPoolExecutor, target: Target, job: Job) -> LoadPoint:
    """Run one job, and look at the server before and after.

    Raises
    ------
    BenchError
        No request was answered.
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
    """Saturate a server, load it with shares of that, and search for the highest rate within the limit.

    ``bare`` returns the processor seconds of 1,000 answers without a server, in batches of so many users.
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
    """Return the highest rate that is answered with p99 within a limit, by bisection.

    Parameters
    ----------
    measure
        Measures a rate.
    limit_us
        What p99 may be.
    known
        Rates measured already.
    saturation
        What a closed loop was answered; no open loop does better for long.
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
