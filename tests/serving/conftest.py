"""Tiny releases, each written once a session."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from own_kinds import Beside, EvenYears, own_kinds
from tiny_release import Tiny, make_tiny

from tiercel_serving.errors import StoreUnavailable
from tiercel_serving.reorder.per_request import PerRequest
from tiercel_serving.reorder.weighted_sum import WeightedSum
from tiercel_serving.rules.compare import Compare
from tiercel_serving.rules.expression import Expression
from tiercel_serving.runtime.chain import Chain
from tiercel_serving.sources.index import Index
from tiercel_serving.sources.popular import Popular
from tiercel_serving.stores.bloom import SeenFilter
from tiercel_serving.stores.server import StoreServer

#: Every variant of a recommender that the stages must serve.
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "strings": {"string_ids": True},
    "ties": {"tied": True, "items": 40},
    "no history": {"settings": {"history_length": 0, "history_columns": ()}},
    "quotas": {
        "seed": 3,
        "settings": {"sources": (Popular("hot", 2), Index("near", 4), Index("more", 3))},
    },
    "rules": {
        "seed": 4,
        "settings": {
            "rules": (
                Compare("recent", "year", ">=", 1995),
                Compare("not one", "label", "not in", ["Film № 7", "Film № 8"]),
                Compare("genre", "genres", "not in", ["пилот"]),
            )
        },
    },
    "asking rules": {
        "seed": 13,
        "items": 60,
        "settings": {
            "rules": (
                Compare("recent", "year", ">=", 1992),
                Expression("for the age", "item.year - 1980 > user.age or user.age is None"),
                Expression("later", "not item.year <= 1995 + request.hour or item.genres is None"),
                Expression("other", "item.label in ('Film № 12', 'x') or item.year != user.person"),
                Expression("tags", "item.year not in user.tags or any(item.genres, ('artist',))"),
            )
        },
    },
    "ranked unknowns": {
        "seed": 5,
        "tasks": 2,
        "settings": {"unknown_users": "rank", "reorder": (WeightedSum((0.5, -2.0)),)},
    },
    "scarce": {"items": 8, "most_seen": 8, "settings": {"candidates": 10, "kept": 9, "k_max": 9}},
    "no users": {"users": 0},
    "no ranker": {"seed": 9, "ranked": False, "settings": {"rules": (Compare("old", "year", "<", 2015),)}},
    "reordered": {
        "seed": 10,
        "tasks": 2,
        "settings": {"reorder": (WeightedSum((1.0, -0.5)), EvenYears(), EvenYears(0.25))},
    },
    "reordered without a ranker": {"ranked": False, "settings": {"reorder": (EvenYears(),)}},
    "seen may come": {"seed": 12, "most_seen": 12, "settings": {"allow_seen": True}},
    "seen again": {
        "seed": 14,
        "items": 25,
        "settings": {"seen_again_days": PerRequest("again_days", 5.0, 0.0, 30.0)},
    },
    "seen filter": {
        "seed": 15,
        "string_ids": True,
        "items": 40,
        "settings": {"seen_filter": SeenFilter(beyond=4, false_positives=0.001)},
    },
    "popular alone": {"settings": {"sources": (Popular(),)}},
    "no scale": {"settings": {"sources": (Beside("next", 5), Popular(quota=0))}},
    "no scale, one share": {"settings": {"sources": (Popular(quota=0), Beside("next"))}},
    "ivf": {"factory": "IVF4,Flat", "items": 60},
    "ivf of ties": {"factory": "IVF3,Flat", "tied": True, "items": 60, "seed": 7},
    "ivf, most seen": {"factory": "IVF4,Flat", "items": 60, "most_seen": 60, "seed": 11},
    "plain, by a scan": {"items": 200, "seed": 6},
    "ties, by a scan": {"tied": True, "items": 60, "seed": 7},
    "quotas, by a scan": {
        "seed": 8,
        "items": 50,
        "settings": {"sources": (Index("near", 4), Popular("hot", 3))},
    },
    "scarce, by a scan": {"items": 8, "most_seen": 8, "settings": {"candidates": 10, "kept": 9}},
}


# Module scope, because tests in other folders read these tables too.
@pytest.fixture(scope="module", autouse=True)
def _kinds_of_the_tests() -> Iterator[None]:
    with own_kinds():
        yield


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
def chain_of(tiny_of: Callable[[str], Tiny]) -> Callable[[str], Chain]:
    made: dict[str, Chain] = {}

    def get(variant: str) -> Chain:
        if variant not in made:
            with pytest.MonkeyPatch.context() as patch:
                if variant.endswith("by a scan"):
                    # Catalogues as small as these are otherwise sorted for all users at once, without a scan.
                    patch.setattr("tiercel_serving.sources.scan.SCAN_ITEMS", 0)
                    patch.setattr("tiercel_serving.sources.scan.BLOCK_NUMBERS", 0)
                made[variant] = Chain.open(tiny_of(variant).release)
        return made[variant]

    return get


@pytest.fixture(params=list(VARIANTS))
def variant(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def tiny(variant: str, tiny_of: Callable[[str], Tiny]) -> Tiny:
    return tiny_of(variant)


@pytest.fixture
def chain(variant: str, chain_of: Callable[[str], Chain]) -> Chain:
    return chain_of(variant)


@pytest.fixture
def plain(tiny_of: Callable[[str], Tiny]) -> Tiny:
    return tiny_of("plain")


@pytest.fixture
def plain_chain(chain_of: Callable[[str], Chain]) -> Chain:
    return chain_of("plain")


@pytest.fixture(scope="session")
def valkey() -> Iterator[StoreServer]:
    """Start a Valkey or Redis server on loopback, empty at first; each test uses its own key prefix."""
    try:
        server = StoreServer()
    except StoreUnavailable as error:
        pytest.skip(str(error))
    with server:
        yield server
