"""Whole answers in this process: one user, a batch, and a batch with one heavy user in it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.scale.made_up import heavy_users
from benchmarks.scale.sizes import Size
from tiercel_serving.release.opened import Release
from tiercel_serving.runtime.chain import Chain
from tiercel_serving.spec import Array
from tiercel_serving.stages.specs import RETRIEVAL

#: Number of users in a large batch.
BATCH = 64


@dataclass(frozen=True)
class Asked:
    """A release to send requests to, with its users and size.

    Parameters
    ----------
    path, release
        The release's folder, and the opened release.
    user_ids
        Raw ids of all users, in the order of the synthetic data.
    size
        Its size.
    """

    path: Path
    release: Release
    user_ids: Array
    size: Size

    def light(self) -> Array:
        """Return the positions of the users who are not heavy."""
        return np.setdiff1d(np.arange(self.size.users), heavy_users(self.size))


def measure_answers(asked: Mapping[str, Asked], seed: int = 0) -> dict[str, dict[str, float]]:
    """Measure the time of answers in each release.

    Requests for single users alternate between the releases, so that a slow phase of the machine affects all.

    Returns
    -------
    dict
        Name → medians in microseconds per user: ``one`` (a request for one user), ``batch`` and ``heavy``
        (:data:`BATCH` users, one of them heavy for ``heavy``), and each name with the suffix ``_retrieval``
        for that stage alone.
    """
    chains = {name: Chain.open(one.release) for name, one in asked.items()}
    random = np.random.default_rng(seed)
    measured = {name: _batches(chains[name], one, random) for name, one in asked.items()}
    light = {name: one.light() for name, one in asked.items()}
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in asked}
    turns = max(one.size.answers for one in asked.values())
    # The first half warms up.
    for _ in range(2 * turns):
        for name, one in asked.items():
            spent[name].append(_spent(chains[name], one, random.choice(light[name], 1)))
    for name, times in spent.items():
        measured[name]["one"], measured[name]["one_retrieval"] = _medians(times[turns:])
    return measured


def _batches(chain: Chain, one: Asked, random: np.random.Generator) -> dict[str, float]:
    """Measure batches with and without one heavy user, alternating; the first of each warms up."""
    light, heavy = one.light(), heavy_users(one.size)
    spent: dict[str, list[tuple[float, float]]] = {"batch": [], "heavy": []}
    for _ in range(max(one.size.answers // 5, 5) + 1):
        rows = random.choice(light, BATCH)
        spent["batch"].append(_spent(chain, one, rows))
        spent["heavy"].append(_spent(chain, one, np.append(rows[1:], random.choice(heavy))))
    measured = {}
    for kind, times in spent.items():
        measured[kind], measured[f"{kind}_retrieval"] = _medians(times[1:])
    return measured


def _spent(chain: Chain, one: Asked, rows: Array) -> tuple[float, float]:
    """Return the microseconds per user of one answer, and of its retrieval stage."""
    ids = one.user_ids[rows][:, None]
    begun = time.perf_counter()
    _, times = chain.run({"user_id": ids})
    return (time.perf_counter() - begun) * 1e6 / len(rows), times[RETRIEVAL] / len(rows)


def _medians(times: Sequence[tuple[float, float]]) -> tuple[float, float]:
    whole, retrieval = zip(*times, strict=True)
    return median(whole), median(retrieval)
