"""A load loop in Python, for machines without perf_analyzer.

Its latencies include the cost of the synchronous Python client, about half a millisecond a request, and the
callers share one interpreter. They are higher than perf_analyzer's, and must not be compared with them.
"""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as triton_grpc
from tritonclient.utils import triton_to_np_dtype

from ..errors import BenchError
from .measurement import Measurement

TIMEOUT_S = 10.0
WARM_UP_S = 0.2


class PythonClient:
    """Load from threads of this process with ``tritonclient``; same interface as ``PerfAnalyzer``."""

    def version(self) -> str:
        """Return the client's name, for the report."""
        return "tritonclient (latencies include the Python client)"

    def run(self, model: str, url: str, *, concurrency: int, seconds: float, data: Path) -> Measurement:
        """Load one model and measure it; parameters and errors are those of ``PerfAnalyzer.run``."""
        requests = json.loads(data.read_text(encoding="utf-8"))["data"]
        start = time.perf_counter() + WARM_UP_S
        with ThreadPoolExecutor(concurrency) as pool:
            callers = [
                pool.submit(_call, model, url, requests[number::concurrency] or requests, start, seconds)
                for number in range(concurrency)
            ]
        try:
            latencies = np.concatenate([caller.result() for caller in callers])
        except Exception as error:
            raise BenchError(f"model {model!r} at {url}: a request failed: {error}") from error
        if not len(latencies):
            raise BenchError(f"model {model!r} at {url}: no request was answered within {seconds} s")
        return Measurement.from_latencies(latencies, seconds)


def _call(model: str, url: str, requests: list[dict[str, Any]], start: float, seconds: float) -> list[float]:
    """Send one request after the other; return latencies (µs) of those within ``seconds`` from ``start``."""
    latencies_us: list[float] = []
    with triton_grpc.InferenceServerClient(url) as client:
        metadata = client.get_model_metadata(model)
        dtypes = {tensor.name: tensor.datatype for tensor in metadata.inputs}
        prepared = cycle([request_inputs(request, dtypes) for request in requests])
        while (before := time.perf_counter()) < start + seconds:
            client.infer(model, next(prepared), client_timeout=TIMEOUT_S)
            after = time.perf_counter()
            if before >= start and after <= start + seconds:
                latencies_us.append((after - before) * 1e6)
    return latencies_us


def request_inputs(request: dict[str, Any], dtypes: dict[str, str]) -> list[Any]:
    """Build the input tensors of one request: ``[1, width]``, unless it gives a ``shape``."""
    tensors = []
    for name, values in request.items():
        if isinstance(values, dict):
            array = _array(values["content"], dtypes[name]).reshape(values["shape"])
        else:
            array = _array(values, dtypes[name])
        tensor = triton_grpc.InferInput(name, list(array.shape), dtypes[name])
        tensor.set_data_from_numpy(array)
        tensors.append(tensor)
    return tensors


def _array(values: list[Any], dtype: str) -> np.ndarray[Any, Any]:
    if dtype == "BYTES":
        values = [value.encode("utf-8") for value in values]
    return np.array([values], triton_to_np_dtype(dtype))
