"""A load generator in a separate process: closed loop, or open loop with Poisson arrivals.

An open loop sends each request when it is due, whether or not earlier ones are answered, and measures its
latency from that time. So a stalled server cannot hide the requests that would have arrived meanwhile, which
a closed loop never sends ("coordinated omission"; Tene 2013, "How NOT to measure latency"). The gaps between
arrivals are exponential, like those of many independent callers.

Requests are encoded before the clock starts, and responses are not decoded, so a latency consists of the
server and the network. All calls share one connection, as those of one application do.
"""

from __future__ import annotations

import collections
import ctypes
import gc
import multiprocessing
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from math import inf

import numpy as np
import numpy.typing as npt

from ..errors import BenchError
from .calls import Calls, Ended

METHOD = "/inference.GRPCInferenceService/ModelInfer"

#: A request that is not answered within this time counts as failed.
TIMEOUT_S = 10.0

#: Requests sent one after the other before the measurement.
WARM_UP = 20

#: Requests in flight at which an open loop gives up, because the server is far below the rate.
MOST_IN_FLIGHT = 4096

#: Linux may wake a thread so many ns late, 50,000 by default, to wake it together with others (prctl(2)).
_PR_SET_TIMERSLACK = 29

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Job:
    """The load to generate.

    Parameters
    ----------
    url
        ``host:port`` of gRPC.
    requests
        Serialised ``ModelInferRequest`` messages, sent cyclically.
    seconds
        Duration of the load.
    rate
        Requests a second in an open loop; None is a closed loop.
    concurrency
        Requests in flight in a closed loop.
    seed
        Seed of the arrival times.
    """

    url: str
    requests: tuple[bytes, ...]
    seconds: float
    rate: float | None = None
    concurrency: int = 1
    seed: int = 0


@dataclass(frozen=True)
class Answers:
    """The outcome of a job.

    Parameters
    ----------
    latencies_us
        Latency of each answered request; in an open loop, from when it was due.
    late_us
        How long after it was due each request was sent; empty in a closed loop.
    elapsed_s
        Time from the start to the last response, at least the job's ``seconds``.
    failures
        gRPC status, or why requests were not sent → number of requests.
    """

    latencies_us: Floats
    late_us: Floats
    elapsed_s: float
    failures: dict[str, int]


@contextmanager
def generator() -> Iterator[ProcessPoolExecutor]:
    """Yield an executor with one process, which runs jobs one at a time: ``.submit(send, job)``."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=_be_punctual) as pool:
        yield pool


def _be_punctual() -> None:
    """Keep this thread from what would make it send late: collected garbage, and timers' default slack."""
    gc.disable()
    ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)


def send(job: Job) -> Answers:
    """Send a job's requests and return the outcome.

    Raises
    ------
    BenchError
        The server cannot be reached, or a warm-up request fails.
    """
    with Calls[tuple[float, int]](job.url, METHOD, TIMEOUT_S) as calls:
        for number in range(WARM_UP):
            calls.begin(job.requests[number % len(job.requests)], (0.0, 0))
            (ended,) = calls.ended(inf)
            if ended.status != "OK":
                raise BenchError(f"{job.url}: a request failed: {ended.details or ended.status}")
        return _closed(calls, job) if job.rate is None else _open(calls, job, job.rate)


def arrivals(rate: float, seconds: float, seed: int) -> Floats:
    """Return when requests are due, in seconds from the start: a Poisson process of this rate."""
    draw = np.random.default_rng(seed)
    due = np.cumsum(draw.exponential(1 / rate, int(rate * seconds * 1.5) + 50))
    due = due[due < seconds]
    return due if len(due) else np.zeros(1)


class _Book:
    """Records the outcome of requests, by when they were due or sent."""

    def __init__(self) -> None:
        self.latencies_s: list[float] = []
        self.failures: collections.Counter[str] = collections.Counter()
        self.last = 0.0

    def note(self, ended: Ended[tuple[float, int]]) -> None:
        """Record a call that ended."""
        if ended.status == "OK":
            self.latencies_s.append(ended.at - ended.mark[0])
        else:
            self.failures[ended.status] += 1
        self.last = ended.at

    def answers(self, job: Job, start: float, late: Floats) -> Answers:
        """Return the outcome of a job that started at ``start``."""
        elapsed = max(self.last - start, job.seconds)
        return Answers(np.array(self.latencies_s) * 1e6, late * 1e6, elapsed, dict(self.failures))


def _open(calls: Calls[tuple[float, int]], job: Job, rate: float) -> Answers:
    due = arrivals(rate, job.seconds, job.seed)
    book, late = _Book(), np.zeros(len(due))
    start = time.perf_counter() + 0.05
    for number, offset in enumerate((start + due).tolist()):
        while time.perf_counter() < offset:
            for ended in calls.ended(offset):
                book.note(ended)
        late[number] = time.perf_counter() - offset
        if len(calls) >= MOST_IN_FLIGHT:
            book.failures["not sent, too many in flight"] += len(due) - number
            late = late[:number]
            break
        calls.begin(job.requests[number % len(job.requests)], (offset, 0))
    while len(calls):
        for ended in calls.ended(inf):
            book.note(ended)
    return book.answers(job, start, late)


def _closed(calls: Calls[tuple[float, int]], job: Job) -> Answers:
    callers = [cycle(job.requests[n :: job.concurrency] or job.requests) for n in range(job.concurrency)]
    book = _Book()
    start = time.perf_counter()
    for caller, requests in enumerate(callers):
        calls.begin(next(requests), (start, caller))
    while len(calls):
        for ended in calls.ended(inf):
            book.note(ended)
            if (now := time.perf_counter()) < start + job.seconds:
                calls.begin(next(callers[ended.mark[1]]), (now, ended.mark[1]))
    return book.answers(job, start, np.zeros(0))
