"""Answers end to end: one caller, over gRPC, to a real Triton that serves the release."""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.scale.made_up import heavy_users
from benchmarks.scale.sizes import Size
from tiercel_client import Recommender
from tiercel_serving.spec import Array
from tiercel_serving.supervise.process import start_server


def measure_served(
    release: Path, user_ids: Array, item_ids: Array, size: Size, seed: int = 2
) -> dict[str, float]:
    """Ask for users who have had little, in turn without and with many items excluded.

    Returns
    -------
    dict
        Medians in microseconds: ``one`` (an answer), and ``excluded`` (one with as many items excluded as the
        size hides at most).
    """
    random = np.random.default_rng(seed)
    light = np.setdiff1d(np.arange(size.users), heavy_users(size))
    users = _plain(user_ids[random.choice(light, 2 * size.answers)])
    many = min(size.hidden[1], size.items // 2)
    excluded = [_plain(item_ids[random.choice(size.items, many, replace=False)]) for _ in range(8)]
    spent: dict[str, list[float]] = {"one": [], "excluded": []}
    with start_server(release) as server, Recommender(server.grpc_url) as client:
        for turn, user in enumerate(users):
            for kind, ids in (("one", None), ("excluded", excluded[turn % len(excluded)])):
                begun = time.perf_counter()
                client.recommend(user, exclude=ids, titles=False)
                spent[kind].append((time.perf_counter() - begun) * 1e6)
    # The first half warms up.
    return {kind: median(times[size.answers :]) for kind, times in spent.items()}


def _plain(ids: Array) -> list[Any]:
    return [one.decode() if isinstance(one, bytes) else one for one in ids.tolist()]
