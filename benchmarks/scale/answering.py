"""Whole answers in this process: one user, a batch, and a batch with one heavy user in it."""

from __future__ import annotations

import time
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


def measure_answers(release: Release, user_ids: Array, size: Size, seed: int = 0) -> dict[str, float]:
    """Measure medians in microseconds.

    Returns
    -------
    dict
        ``one`` (an answer to one user), ``batch`` and ``heavy`` (:data:`BATCH` users, in the second case one
        heavy among them; a user), and the same with ``_retrieval`` for that stage alone.
    """
    chain, random = Chain.open(release), np.random.default_rng(seed)
    heavy = heavy_users(size)
    light = np.setdiff1d(np.arange(size.users), heavy)
    batches = max(size.answers // 5, 5)
    asked = {
        "one": [random.choice(light, 1) for _ in range(size.answers)],
        "batch": [random.choice(light, BATCH) for _ in range(batches)],
    }
    asked["heavy"] = [np.append(rows[1:], random.choice(heavy)) for rows in asked["batch"]]
    spent: dict[str, list[float]] = {f"{name}{part}": [] for name in asked for part in ("", "_retrieval")}
    # Batches with and without take turns. What is measured is a server that has answered before: as many
    # other single users come first, and a batch of each kind.
    turns = [("one", rows) for rows in asked["one"]]
    turns += [
        pair
        for both in zip(asked["batch"], asked["heavy"], strict=True)
        for pair in zip(("batch", "heavy"), both, strict=True)
    ]
    warm = [("one", random.choice(light, 1)) for _ in range(size.answers)] + turns[-2:]
    for name, rows in [*warm, *turns]:
        ids = user_ids[rows][:, None]
        begun = time.perf_counter()
        _, times = chain.run({"user_id": ids})
        whole = (time.perf_counter() - begun) * 1e6
        spent[name].append(whole / len(rows))
        spent[f"{name}_retrieval"].append(times[RETRIEVAL] / len(rows))
    begins = {"one": size.answers, "batch": 1, "heavy": 1}
    return {name: median(values[begins[name.split("_")[0]] :]) for name, values in spent.items()}
