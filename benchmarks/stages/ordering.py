"""Every reorder step on synthetic candidates, in process, interleaved with pyversity for three of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from benchmarks.features.timing import Timed, interleave
from benchmarks.stages.report import Size, StepTimes
from tiercel_serving.columns import Column, with_null_row
from tiercel_serving.reorder.boost_items import BoostItems
from tiercel_serving.reorder.calibration import Calibration
from tiercel_serving.reorder.cap import Cap
from tiercel_serving.reorder.constrained_sum import ConstrainedSum
from tiercel_serving.reorder.dpp import DPP
from tiercel_serving.reorder.epsilon_slot import EpsilonSlot
from tiercel_serving.reorder.fair_shares import FairShares
from tiercel_serving.reorder.freshness import Freshness
from tiercel_serving.reorder.gumbel_top_k import GumbelTopK
from tiercel_serving.reorder.inputs import of_source
from tiercel_serving.reorder.mmr import MMR
from tiercel_serving.reorder.pin_items import PinItems
from tiercel_serving.reorder.popularity_correction import PopularityCorrection
from tiercel_serving.reorder.score_floor import ScoreFloor
from tiercel_serving.reorder.spread import Spread
from tiercel_serving.reorder.weighted_sum import WeightedSum
from tiercel_serving.spec import Array

#: The window of ``Spread`` and of its peer.
WINDOW = 10

#: Name → settings of each measured step.
STEPS: Mapping[str, Any] = {
    "weighted_sum": WeightedSum((1.0, 0.5)),
    "constrained_sum": ConstrainedSum(multiplier=0.5),
    "freshness": Freshness("time", 50.0),
    "popularity_correction": PopularityCorrection(source="popular"),
    "boost_items": BoostItems("kind", (3,)),
    "score_floor": ScoreFloor(0.1),
    "gumbel_top_k": GumbelTopK(),
    "epsilon_slot": EpsilonSlot(),
    "pin_items": PinItems("kind", (3,)),
    "cap": Cap("genres", 12),
    "fair_shares": FairShares("kind", ((1, 0.2), (2, 0.2))),
    "mmr": MMR(source="vectors", strength=0.5),
    "spread": Spread(source="vectors", window=WINDOW, strength=0.5),
    "dpp": DPP(source="vectors", strength=0.5),
    "calibration": Calibration("genres"),
}


@dataclass(frozen=True)
class Made:
    """Item columns, and by batch size B: scores ``[B, K]``, the steps' input, vectors ``[B, K, D]``."""

    columns: Mapping[str, Column]
    batches: Mapping[int, tuple[Array, dict[str, Array], Array]]


def make_up(size: Size) -> Made:
    """Generate items and candidates with a fixed seed."""
    rng = np.random.default_rng(0)
    items, kept = size.items, size.kept
    vectors = rng.normal(size=(items, size.dimension)).astype(np.float32)
    counts = rng.integers(1, 4, items)
    genres = np.concatenate([rng.permutation(18)[:count] for count in counts])
    every = np.arange(items + 1) * size.dimension
    columns = {
        "time": Column(rng.random(items) * 1000),
        "kind": Column(rng.integers(0, 10, items)),
        "genres": Column(genres, None, np.concatenate([[0], np.cumsum(counts)])),
        of_source("popular"): Column(rng.random(items).astype(np.float32)),
        of_source("vectors"): Column(vectors.reshape(-1), None, every),
    }
    batches = {}
    for users in size.users:
        rows = np.stack([rng.permutation(items)[:kept] for _ in range(users)])
        scores = rng.random((users, kept), np.float32)
        arrays = {
            "kept_row": rows,
            "k": np.full((users, 1), size.k, np.int32),
            "rank_score": np.stack([scores, scores[:, ::-1]], axis=2),
            "seed": np.arange(float(users))[:, None],
            "history_row": rng.integers(0, items, (users, 50)),
            "history_length": np.full((users, 1), 50, np.int32),
        }
        batches[users] = scores, arrays, vectors[rows]
    return Made({name: with_null_row(column) for name, column in columns.items()}, batches)


def peers(size: Size, made: Made) -> dict[str, Callable[[], object]]:
    """Return calls of pyversity's equivalents for one user, by step; none if it is not installed."""
    try:
        from pyversity import Strategy, diversify
    except ModuleNotFoundError:
        return {}
    scores, _, vectors = made.batches[1]
    one = vectors[0], scores[0], size.k
    return {
        "mmr": lambda: diversify(*one, Strategy.MMR, diversity=0.5),
        "dpp": lambda: diversify(*one, Strategy.DPP, diversity=0.5),
        "spread": lambda: diversify(*one, Strategy.SSD, diversity=0.5, window=WINDOW),
    }


def measure_steps(
    size: Size, progress: Callable[[str, int, int | None], None] = lambda what, done, total: None
) -> dict[str, StepTimes]:
    """Measure every step of :data:`STEPS`."""
    made = make_up(size)
    other, found = peers(size, made), dict[str, StepTimes]()
    for done, (step, kind) in enumerate(STEPS.items()):
        progress(step, done, len(STEPS) + 3)
        opened = kind.open(made.columns)
        sides: dict[str, list[Callable[[], object]]] = {
            str(users): [partial(opened.apply, *batch[:2])] for users, batch in made.batches.items()
        }
        if step in other:
            sides["peer"] = [other[step]]
        timed: dict[str, Timed] = interleave(sides, rounds=size.rounds, seconds=size.seconds)
        found[step] = StepTimes(
            {users: timed[str(users)].us / users for users in size.users},
            timed["peer"].us if "peer" in timed else None,
        )
    return found
