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

#: Users of a large batch.
BATCH = 64


@dataclass(frozen=True)
class Asked:
    """A release that is asked: where it is, whose it is, and of what size.

    Parameters
    ----------
    path, release
        Its folder, and the same opened.
    user_ids
        All users' raw ids; position = place in the made-up data.
    size
        Its size.
    """

    path: Path
    release: Release
    user_ids: Array
    size: Size

    def light(self) -> Array:
        """Return the places of users who have had little."""
        return np.setdiff1d(np.arange(self.size.users), heavy_users(self.size))


def measure_answers(asked: Mapping[str, Asked], seed: int = 0) -> dict[str, dict[str, float]]:
    """Measure medians in microseconds, by name.

    Single users of all releases are asked in turn: a machine that is slower for a while is so for each.

    Returns
    -------
    dict
        By name, ``one`` (an answer to one user), ``batch`` and ``heavy`` (:data:`BATCH` users, in the second
        case one heavy among them; a user), and the same with ``_retrieval`` for that stage alone.
    """
    chains = {name: Chain.open(one.release) for name, one in asked.items()}
    random = np.random.default_rng(seed)
    measured = {name: _batches(chains[name], one, random) for name, one in asked.items()}
    light = {name: one.light() for name, one in asked.items()}
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in asked}
    turns = max(one.size.answers for one in asked.values())
    # As many come before: what is measured is a server that has answered.
    for _ in range(2 * turns):
        for name, one in asked.items():
            spent[name].append(_spent(chains[name], one, random.choice(light[name], 1)))
    for name, times in spent.items():
        measured[name]["one"], measured[name]["one_retrieval"] = _medians(times[turns:])
    return measured


def _batches(chain: Chain, one: Asked, random: np.random.Generator) -> dict[str, float]:
    """Measure batches with and without one heavy user, in turn; the first of each warms up."""
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
    """Return the microseconds a user of one answer, and of its retrieval."""
    ids = one.user_ids[rows][:, None]
    begun = time.perf_counter()
    _, times = chain.run({"user_id": ids})
    return (time.perf_counter() - begun) * 1e6 / len(rows), times[RETRIEVAL] / len(rows)


def _medians(times: Sequence[tuple[float, float]]) -> tuple[float, float]:
    whole, retrieval = zip(*times, strict=True)
    return median(whole), median(retrieval)
