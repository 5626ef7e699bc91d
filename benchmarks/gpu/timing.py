"""Times of calls on a device: of single calls, and of many without a wait between them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch


class Times(NamedTuple):
    """Microseconds of a call that is waited for (median, 99th percentile), and per call without waits."""

    p50_us: float
    p99_us: float
    throughput_us: float


def wait(device: str) -> None:
    """Wait until a device has finished its work."""
    if device == "cuda":
        torch.cuda.synchronize()


def measure(call: Callable[[], Any], device: str, rounds: int) -> Times:
    """Return the times of ``rounds`` calls, after a tenth as many (at least 3) that warm up."""
    for _ in range(max(3, rounds // 10)):
        call()
    wait(device)
    taken = np.empty(rounds)
    for number in range(rounds):
        begun = time.perf_counter_ns()
        call()
        wait(device)
        taken[number] = time.perf_counter_ns() - begun
    begun = time.perf_counter_ns()
    for _ in range(rounds):
        call()
    wait(device)
    each = (time.perf_counter_ns() - begun) / rounds
    p50, p99 = np.percentile(taken, [50, 99]) / 1e3
    return Times(float(p50), float(p99), each / 1e3)
