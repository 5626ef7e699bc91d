"""Tiny releases, each written once a session."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tiny_release import Tiny, make_tiny

from tiercel_serving.runtime.chain import Pipeline
from tiercel_serving.settings import Rule, Source

#: Every shape of a recommender that the stages must serve.
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "strings": {"string_ids": True},
    "ties": {"tied": True, "items": 40},
    "no history": {"settings": {"history_length": 0, "history_columns": ()}},
    "quotas": {
        "seed": 3,
        "settings": {
            "sources": (Source("hot", "popular", 2), Source("near", "index", 4), Source("more", "index", 3))
        },
    },
    "rules": {
        "seed": 4,
        "settings": {
            "rules": (
                Rule("recent", "year", ">=", 1995),
                Rule("not one", "label", "not in", ["Film № 7", "Film № 8"]),
                Rule("genre", "genres", "not in", ["пилот"]),
            )
        },
    },
    "ranked unknowns": {
        "seed": 5,
        "tasks": 2,
        "settings": {"unknown_users": "rank", "task_weights": (0.5, -2.0)},
    },
    "scarce": {"items": 8, "most_seen": 8, "settings": {"candidates": 10, "kept": 9, "k_max": 20}},
    "no users": {"users": 0},
    "ivf": {"factory": "IVF4,Flat", "items": 60},
    "plain, by index": {"items": 200, "seed": 6},
    "ties, by index": {"tied": True, "items": 60, "seed": 7},
    "quotas, by index": {
        "seed": 8,
        "items": 50,
        "settings": {"sources": (Source("near", "index", 4), Source("hot", "popular", 3))},
    },
    "scarce, by index": {"items": 8, "most_seen": 8, "settings": {"candidates": 10, "kept": 9}},
}


@pytest.fixture(scope="session")
def tiny_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Tiny]:
    made: dict[str, Tiny] = {}

    def get(variant: str) -> Tiny:
        if variant not in made:
            path = tmp_path_factory.mktemp("tiny") / "release"
            made[variant] = make_tiny(path, **VARIANTS[variant])
        return made[variant]

    return get


@pytest.fixture(scope="session")
def pipeline_of(tiny_of: Callable[[str], Tiny]) -> Callable[[str], Pipeline]:
    made: dict[str, Pipeline] = {}

    def get(variant: str) -> Pipeline:
        if variant not in made:
            with pytest.MonkeyPatch.context() as patch:
                if variant.endswith("by index"):
                    # Catalogues as small as these are otherwise searched without their index.
                    patch.setattr("tiercel_serving.sources.search.SCAN_ITEMS", 0)
                made[variant] = Pipeline.open(tiny_of(variant).release)
        return made[variant]

    return get


@pytest.fixture(params=list(VARIANTS))
def variant(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def tiny(variant: str, tiny_of: Callable[[str], Tiny]) -> Tiny:
    return tiny_of(variant)


@pytest.fixture
def pipeline(variant: str, pipeline_of: Callable[[str], Pipeline]) -> Pipeline:
    return pipeline_of(variant)


@pytest.fixture
def plain(tiny_of: Callable[[str], Tiny]) -> Tiny:
    return tiny_of("plain")


@pytest.fixture
def plain_pipeline(pipeline_of: Callable[[str], Pipeline]) -> Pipeline:
    return pipeline_of("plain")
