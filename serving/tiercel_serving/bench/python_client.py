"""A load loop in Python, for machines without perf_analyzer.

Its figures include the cost of the synchronous Python client, about half a millisecond a request, and
the callers share one interpreter: they are above perf_analyzer's and must not stand beside them.
"""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as triton_grpc
from tritonclient.utils import np_to_triton_dtype

from ..errors import BenchError
from .measurement import Measurement

TIMEOUT_S = 10.0
WARM_UP_S = 0.2


@dataclass(frozen=True)
class PythonClient:
    """Measures with ``tritonclient`` from threads of this process; the same face as ``PerfAnalyzer``."""

    source: str = "tritonclient (latencies include the Python client)"

    def version(self) -> str:
        """Return what measured, for the report."""
        return self.source

    def run(self, model: str, url: str, *, concurrency: int, seconds: float, data: Path) -> Measurement:
        """Load one model and return what was measured; parameters as in ``PerfAnalyzer.run``."""
        requests = json.loads(data.read_text(encoding="utf-8"))["data"]
        start = time.perf_counter() + WARM_UP_S
        callers = [
            _Caller(model, url, requests[number::concurrency] or requests, start, start + seconds)
            for number in range(concurrency)
        ]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        for caller in callers:
            if caller.error is not None:
                raise BenchError(f"model {model!r} at {url}: a request failed: {caller.error}")
        latencies = np.concatenate([caller.latencies_us for caller in callers])
        if not len(latencies):
            raise BenchError(f"model {model!r} at {url}: no request was answered within {seconds} s")
        return Measurement.from_latencies(latencies, seconds)


class _Caller(threading.Thread):
    """One caller with one connection: sends the next request when the last is answered."""

    def __init__(self, model: str, url: str, requests: list[dict[str, Any]], start: float, end: float):
        super().__init__(daemon=True)
        self._model, self._url, self._start, self._end = model, url, start, end
        self._requests = requests
        self.latencies_us: list[float] = []
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            with triton_grpc.InferenceServerClient(self._url) as client:
                metadata = client.get_model_metadata(self._model)
                dtypes = {tensor.name: tensor.datatype for tensor in metadata.inputs}
                self._loop(client, [request_inputs(request, dtypes) for request in self._requests])
        except Exception as error:  # Any failure ends this caller; the measurement reports it.
            self.error = error

    def _loop(self, client: Any, prepared: list[list[Any]]) -> None:
        number = 0
        while (before := time.perf_counter()) < self._end:
            client.infer(self._model, prepared[number % len(prepared)], client_timeout=TIMEOUT_S)
            after = time.perf_counter()
            number += 1
            if before >= self._start and after <= self._end:
                self.latencies_us.append((after - before) * 1e6)


def request_inputs(request: dict[str, Any], dtypes: dict[str, str]) -> list[Any]:
    """Build the input tensors of one request: ``[1, width]``, unless it says ``shape``."""
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
        return np.array([[value.encode("utf-8") for value in values]], dtype=np.object_)
    array = np.array([values])
    for candidate in (np.int32, np.int64, np.float32, np.float64, np.bool_):
        if np_to_triton_dtype(candidate) == dtype:
            return array.astype(candidate)
    raise BenchError(f"no NumPy dtype for Triton's {dtype}")
