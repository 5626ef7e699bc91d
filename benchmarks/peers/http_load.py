"""A closed-loop load over plain HTTP, in its own process, with a connection per caller and ready bodies."""

from __future__ import annotations

import http.client
import socket
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from tiercel_serving.bench.measurement import Measurement


@dataclass(frozen=True)
class HttpJob:
    """The endpoint, the request bodies, the duration in seconds, and the number of callers."""

    host: str
    port: int
    path: str
    bodies: tuple[bytes, ...]
    seconds: float
    concurrency: int


def send_http(job: HttpJob) -> Measurement:
    """Send the requests and return latencies and throughput; RuntimeError if a status is not 200."""
    start = time.perf_counter()
    with ThreadPoolExecutor(job.concurrency) as pool:
        parts = [
            pool.submit(_caller, job, job.bodies[number :: job.concurrency], start + job.seconds)
            for number in range(job.concurrency)
        ]
    latencies = [one for part in parts for one in part.result()]
    return Measurement.from_latencies(latencies, job.seconds)


def _caller(job: HttpJob, bodies: Sequence[bytes], end: float) -> list[float]:
    connection = http.client.HTTPConnection(job.host, job.port, timeout=30)
    headers, latencies_us, number = {"Content-Type": "application/json"}, [], 0
    while (begun := time.perf_counter()) < end:
        connection.request("POST", job.path, bodies[number % len(bodies)], headers)
        # uvicorn's workers send an answer in two parts without TCP_NODELAY; without this option, the second
        # part waits 40 ms for the acknowledgement of the first.
        connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        answer = connection.getresponse()
        body = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"{job.host}:{job.port}{job.path}: {answer.status} {body[:200]!r}")
        latencies_us.append((time.perf_counter() - begun) * 1e6)
        number += 1
    connection.close()
    return latencies_us
