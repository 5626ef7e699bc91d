"""Answers end to end, by one caller over gRPC from real Tritons that serve the releases."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack
from statistics import median
from typing import Any

import numpy as np

from benchmarks.scale.answering import Asked
from tiercel_client import Recommender
from tiercel_serving.spec import Array
from tiercel_serving.supervise.process import start_server


def measure_served(asked: Mapping[str, Asked], seed: int = 2) -> dict[str, dict[str, float]]:
    """Send requests to the servers of all releases, alternating, without and with many excluded items.

    Returns
    -------
    dict
        Name → medians in microseconds: ``one`` (an answer to a light user), and ``excluded`` (the same with
        the size's largest number of excluded items, ``max(hidden)``).
    """
    random = np.random.default_rng(seed)
    turns = max(one.size.answers for one in asked.values())
    spent: dict[str, dict[str, list[float]]] = {name: {"one": [], "excluded": []} for name in asked}
    with ExitStack() as stack:
        clients = {}
        for name, one in asked.items():
            server = stack.enter_context(start_server(one.path))
            clients[name] = stack.enter_context(Recommender(server.grpc_url))
        users = {
            name: _plain(one.user_ids[random.choice(one.light(), 2 * turns)]) for name, one in asked.items()
        }
        excluded = {name: _excluded(one, random) for name, one in asked.items()}
        for turn in range(2 * turns):
            for name, client in clients.items():
                for kind, ids in (("one", None), ("excluded", excluded[name][turn % len(excluded[name])])):
                    begun = time.perf_counter()
                    client.recommend(users[name][turn], exclude=ids, titles=False)
                    spent[name][kind].append((time.perf_counter() - begun) * 1e6)
    # The first half warms up.
    return {
        name: {kind: median(times[turns:]) for kind, times in kinds.items()} for name, kinds in spent.items()
    }


def _excluded(one: Asked, random: np.random.Generator) -> list[list[Any]]:
    """Return eight lists of random item ids, each as long as the size's largest exclusion."""
    items = one.size.items
    many = min(max(one.size.hidden), items // 2)
    return [_plain(one.release.items.ids(random.choice(items, many, replace=False))) for _ in range(8)]


def _plain(ids: Array) -> list[Any]:
    return [one.decode() if isinstance(one, bytes) else one for one in ids.tolist()]
