"""The bare compute: a release's stages in one process, without Triton, timed as a whole and by stage."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from statistics import median

import numpy as np

from ..runtime.batching import absent
from ..runtime.chain import Chain
from ..spec import Array, TensorSpec
from .measurement import Measurement, median_of

#: Requests answered before the clock starts, to read pages and warm caches.
WARM_UP = 50


@dataclass(frozen=True)
class BareCompute:
    """The time of one user's answer without a server: whole runs, and the median µs of each stage."""

    total: Measurement
    stages_us: Mapping[str, float]

    @property
    def between_us(self) -> float:
        """Microseconds outside the stages: passing arrays between them, and reading the clock."""
        return max(0.0, self.total.p50_us - sum(self.stages_us.values()))


def measure_bare(pipeline: Chain, requests: Sequence[Mapping[str, Array]], seconds: float) -> BareCompute:
    """Run one-user requests (from :func:`full_requests`) one after the other for some seconds."""
    for _, request in zip(range(WARM_UP), cycle(requests), strict=False):
        pipeline.run(request)
    totals: list[float] = []
    stages: dict[str, list[float]] = {}
    end = time.perf_counter() + seconds
    for request in cycle(requests):
        start = time.perf_counter()
        _, times_us = pipeline.run(request)
        stop = time.perf_counter()
        totals.append((stop - start) * 1e6)
        for stage, spent in times_us.items():
            stages.setdefault(stage, []).append(float(spent))
        if stop >= end:
            break
    total = Measurement.from_latencies(totals, sum(totals) / 1e6)
    return BareCompute(total, {stage: median(spent) for stage, spent in stages.items()})


def bare_cpu_seconds(pipeline: Chain, user_ids: Array, batch: int, seconds: float) -> float:
    """Return the processor seconds of 1,000 answers without a server, in batches of ``batch`` users."""
    specs = list(pipeline.external_inputs)
    places = cycle(range(0, max(1, len(user_ids) - batch), batch))
    blank = absent(specs, batch)
    ids = np.resize(user_ids, max(batch, len(user_ids)))

    def run() -> None:
        begin = next(places)
        pipeline.run({**blank, "user_id": ids[begin : begin + batch, None]})

    for _ in range(WARM_UP):
        run()
    spent, users, end = time.process_time(), 0, time.perf_counter() + seconds
    while time.perf_counter() < end or not users:
        run()
        users += batch
    return (time.process_time() - spent) / users * 1000


def median_bare(rounds: Sequence[BareCompute]) -> BareCompute:
    """Return the median of each figure over rounds."""
    stages = {name: median(r.stages_us[name] for r in rounds) for name in rounds[0].stages_us}
    return BareCompute(median_of([r.total for r in rounds]), stages)


def full_requests(inputs: Iterable[TensorSpec], user_ids: Array) -> list[dict[str, Array]]:
    """Return one request per user, with absent optional inputs filled as the Triton adapter fills them.

    ``user_ids`` are raw ids ``[n]``. The arrays of each of the n requests have a user axis of length 1.
    """
    blank = absent(list(inputs), 1)
    return [{**blank, "user_id": user_ids[i : i + 1, None]} for i in range(len(user_ids))]
