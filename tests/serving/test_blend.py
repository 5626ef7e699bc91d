"""The blend: a weighted sum of several sources' scores gives the scale, as in the plain reference."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from tiercel_serving.ranked.masks import make_mask
from tiercel_serving.release.artefacts import Artefact
from tiercel_serving.settings import ServingSettings
from tiercel_serving.sources.item_weights import ItemWeights
from tiercel_serving.sources.merged import MergedSources
from tiercel_serving.sources.popular import Popular
from tiercel_serving.sources.table import Material
from tiercel_serving.verify import reference

ITEMS, USERS, LENGTH = 30, 12, 4
SOURCES = (ItemWeights("near", quota=5), ItemWeights("far", quota=4), Popular(quota=2))


def settings_of(*blend: tuple[str, float], sources: Any = SOURCES) -> ServingSettings:
    return ServingSettings(candidates=11, kept=8, k_max=8, k_default=8, sources=sources, blend=blend)


def weights(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Weights with few digits, so that sums are exact and scores tie."""
    dense = rng.integers(-1, 4, (ITEMS, ITEMS)) * (rng.random((ITEMS, ITEMS)) < 0.3) / 4
    rows, columns = np.nonzero(dense)
    offsets = np.append(0, np.cumsum(np.bincount(rows, minlength=ITEMS)))
    return {"offsets": offsets, "columns": columns, "weights": dense[rows, columns]}


@dataclass
class World:
    """Artefacts of every source, and the users' histories."""

    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(3))

    def __post_init__(self) -> None:
        users, rows = self.rng.integers(0, USERS, 60), self.rng.integers(0, ITEMS, 60)
        self.arrays = []
        for kind in SOURCES:
            form = weights(self.rng) if kind.form else {}
            self.arrays.append(dict(kind.make(Material(ITEMS, users, rows, form=form)).arrays))
        self.history = self.rng.integers(0, ITEMS + 1, (USERS, LENGTH))

    def merged(self, settings: ServingSettings) -> MergedSources:
        opened = [
            kind.open(Artefact.in_memory("source", arrays), ITEMS, 1)
            for kind, arrays in zip(SOURCES, self.arrays, strict=True)
        ]
        return MergedSources(settings, opened, ITEMS)


@pytest.fixture(scope="module")
def world() -> World:
    return World()


@pytest.mark.parametrize(
    "blend", [(), (("far", 1.0),), (("near", 2.0),), (("near", 1.0), ("far", 0.5))], ids=str
)
def test_candidates_are_sorted_by_the_blend(world: World, blend: tuple[tuple[str, float], ...]) -> None:
    settings = settings_of(*blend)
    merged, sources = world.merged(settings), world.arrays
    had = [np.unique(row[row < ITEMS]) for row in world.history]
    mask = make_mask(USERS, ITEMS, np.concatenate(had), np.array([len(one) for one in had]))
    scores, rows, codes = merged.personal({"history_row": world.history}, mask)
    named = np.tile(np.arange(ITEMS)[::-1], (USERS, 1))
    asked = merged.ranked(
        {"history_row": world.history}, make_mask(USERS, ITEMS, rows[:0, 0], np.zeros(USERS, np.int64)), named
    )
    for user in range(USERS):
        tensors = {"history_row": world.history[user]}
        allowed = ~np.isin(np.arange(ITEMS), had[user])
        found = reference.retrieve(settings, sources, tensors, allowed).candidates
        assert rows[user, : len(found)].tolist() == [c.row for c in found]
        assert codes[user, : len(found)].tolist() == [c.source for c in found]
        assert scores[user, : len(found)].tolist() == [c.score for c in found]
        listed = reference.listed(settings, sources, tensors, named[user].tolist(), np.ones(ITEMS, np.bool_))
        assert asked[1][user].tolist() == [c.row for c in listed]
        assert asked[2][user].tolist() == [c.source for c in listed]


def test_a_source_alone_whose_scores_are_not_the_scale_is_sorted_by_the_blend(world: World) -> None:
    sources = (ItemWeights("near"), ItemWeights("far", quota=1), Popular(quota=0))
    merged = world.merged(settings_of(("far", 1.0), sources=sources))
    arrays = {"history_row": world.history}
    mask = make_mask(USERS, ITEMS, world.history[:0, 0], np.zeros(USERS, np.int64))
    scores, rows, _ = merged.personal(arrays, mask)
    np.testing.assert_array_equal(
        np.where(rows < ITEMS, scores, 0), np.where(rows < ITEMS, merged.scores(arrays, rows), 0)
    )


@pytest.mark.parametrize(
    ("blend", "words"),
    [
        ((("nar", 1.0),), "blend[0]: there is no source 'nar'; use 'near', 'far', 'popular'"),
        ((("popular", 1.0),), "blend[0]: the source 'popular' scores its own items alone"),
        ((("near", 0.0),), "blend[0]: expected a weight"),
        ((("near", 1.0), ("near", 2.0)), "blend"),
        ((("near",),), "blend[0]: expected (text, a number), got ('near',)"),
        ("near", "blend: expected a tuple of (text, a number), got 'near'"),
    ],
)
def test_mistakes_are_told(blend: Any, words: str) -> None:
    problems = (
        settings_of(*blend) if isinstance(blend, tuple) else ServingSettings(sources=SOURCES, blend=blend)
    )
    assert any(words in str(problem) for problem in problems.problems()), problems.problems()
