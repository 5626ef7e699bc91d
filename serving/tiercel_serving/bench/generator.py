"""A load generator in a separate process: closed loop, or open loop with Poisson arrivals.

An open loop sends each request when it is due, whether or not earlier ones are answered, and measures its
latency from that time. So a stalled server cannot hide the requests that would have arrived meanwhile, which
a closed loop never sends ("coordinated omission"; Tene 2013, "How NOT to measure latency"). The gaps between
arrivals are exponential, like those of many independent callers.

Requests are encoded before the clock starts, and responses are not decoded, so a latency consists of the
server, the network, and about 0.1 ms of gRPC's Python library.
"""

from __future__ import annotations

import collections
import multiprocessing
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt

from ..errors import BenchError

METHOD = "/inference.GRPCInferenceService/ModelInfer"

#: A request that is not answered within this time counts as failed.
TIMEOUT_S = 10.0

#: Requests sent one after the other before the measurement.
WARM_UP = 20

#: Requests in flight at which an open loop gives up, because the server is far below the rate.
MOST_IN_FLIGHT = 4096

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
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        yield pool


def send(job: Job) -> Answers:
    """Send a job's requests and return the outcome.

    Raises
    ------
    BenchError
        A warm-up request fails.
    """
    with grpc.insecure_channel(job.url, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        # Without (de)serialisers: requests and responses are bytes.
        call = channel.unary_unary(METHOD)
        try:
            for number in range(WARM_UP):
                call(job.requests[number % len(job.requests)], timeout=TIMEOUT_S)
        except grpc.RpcError as error:
            raise BenchError(f"{job.url}: a request failed: {error.details()}") from error
        return _closed(call, job) if job.rate is None else _open(call, job, job.rate)


def arrivals(rate: float, seconds: float, seed: int) -> Floats:
    """Return when requests are due, in seconds from the start: a Poisson process of this rate."""
    draw = np.random.default_rng(seed)
    due = np.cumsum(draw.exponential(1 / rate, int(rate * seconds * 1.5) + 50))
    due = due[due < seconds]
    return due if len(due) else np.zeros(1)


class _Book:
    """Records the outcome of requests, from gRPC's threads or the callers'."""

    def __init__(self) -> None:
        self.latencies_s: list[float] = []
        self.failures: collections.Counter[str] = collections.Counter()
        self.last = 0.0
        self.done = 0
        self._lock = threading.Lock()

    def close(self, since: float, call: Any) -> None:
        """Record a finished call that was due, or sent, at ``since``."""
        now = time.perf_counter()
        code = call.code()
        with self._lock:
            if code is grpc.StatusCode.OK:
                self.latencies_s.append(now - since)
            else:
                self.failures[code.name] += 1
            self.last = max(self.last, now)
            self.done += 1  # last, because the thread that polls it then reads the rest


def _open(call: Any, job: Job, rate: float) -> Answers:
    due = arrivals(rate, job.seconds, job.seed)
    book, late = _Book(), np.zeros(len(due))
    start = time.perf_counter() + 0.05
    sent = 0
    for number, offset in enumerate((start + due).tolist()):
        wait = offset - time.perf_counter()
        if wait > 0:
            # time.sleep is accurate to about 60 µs, an event loop's timer to 1 ms.
            time.sleep(wait)
        late[number] = time.perf_counter() - offset
        if sent - book.done >= MOST_IN_FLIGHT:
            book.failures["not sent, too many in flight"] += len(due) - number
            late = late[:number]
            break
        future = call.future(job.requests[number % len(job.requests)], timeout=TIMEOUT_S)
        future.add_done_callback(lambda done, since=offset: book.close(since, done))
        sent += 1
    while book.done < sent:
        time.sleep(0.002)
    elapsed = max(book.last - start, job.seconds)
    return Answers(np.array(book.latencies_s) * 1e6, late * 1e6, elapsed, dict(book.failures))


def _closed(call: Any, job: Job) -> Answers:
    book = _Book()
    start = time.perf_counter()
    end = start + job.seconds

    def caller(requests: Sequence[bytes]) -> None:
        for request in cycle(requests):
            if (since := time.perf_counter()) >= end:
                return
            try:
                _, done = call.with_call(request, timeout=TIMEOUT_S)
            except grpc.RpcError as error:
                done = error  # which is the call, too
            book.close(since, done)

    threads = [
        threading.Thread(target=caller, args=(job.requests[n :: job.concurrency] or job.requests,))
        for n in range(job.concurrency)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    elapsed = max(book.last - start, job.seconds)
    return Answers(np.array(book.latencies_s) * 1e6, np.zeros(0), elapsed, dict(book.failures))
