"""Hundreds of passed deadlines. Cancelled calls crash the embedded Triton, so they are not sent to it."""

from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tiercel_client import DeadlineExceeded, InferRequest, TritonTransport
from tiercel_serving.supervise import start_server

pytestmark = pytest.mark.slow

SECONDS, CALLERS = 30.0, 16


def test_a_server_outlives_them(repository: Path, canary: Any) -> None:
    with start_server(repository, canary=canary) as server:
        transport = TritonTransport(server.grpc_url)
        assert transport.model_config("identity", timeout_s=5, headers={}).max_batch_size == 8
        ends = time.monotonic() + SECONDS

        def call(caller: int) -> tuple[int, int]:
            chance, answered, passed = random.Random(caller), 0, 0
            while time.monotonic() < ends:
                hasty = chance.random() < 1 / 3
                sent = np.array([[chance.randrange(1 << 40)]])
                timeout_s = chance.uniform(1e-4, 5e-3) if hasty else 20.0
                try:
                    came = transport.infer(InferRequest("identity", {"x": sent}, ["y"], timeout_s, "r", {}))
                except DeadlineExceeded:
                    passed += 1
                    assert hasty
                else:
                    answered += 1
                    assert came["y"].tolist() == sent.tolist()  # and not a late answer to another call
            return answered, passed

        with ThreadPoolExecutor(CALLERS) as pool:
            answered, passed = np.array(list(pool.map(call, range(CALLERS)))).sum(0)
        assert answered > 1000
        assert passed > 1000
        canary(server.grpc_url, 5.0)
        transport.close()
