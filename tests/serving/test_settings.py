"""The problems that serving settings report about themselves."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from kind_contracts import ODDITIES
from msgspec.structs import replace

from tiercel_serving.errors import KindUnavailable
from tiercel_serving.kinds import Kind
from tiercel_serving.release.manifest import encode, read_kind
from tiercel_serving.reorder.epsilon_slot import EpsilonSlot
from tiercel_serving.reorder.per_request import PerRequest
from tiercel_serving.reorder.pin_items import PinItems
from tiercel_serving.reorder.score_floor import ScoreFloor
from tiercel_serving.reorder.weighted_sum import WeightedSum
from tiercel_serving.rules.compare import Compare
from tiercel_serving.settings import ServingSettings
from tiercel_serving.sources.index import Index
from tiercel_serving.sources.popular import Popular
from tiercel_serving.sources.table import SOURCES, default_sources

GOOD = ServingSettings(
    sources=(Index("near"), Popular(quota=0)),
    rules=(Compare("fresh", "year", ">", 1990),),
    reorder=(WeightedSum((1.0,)),),
)


def said(**changes: Any) -> str:
    return "\n".join(map(str, replace(GOOD, **changes).problems()))


def test_nothing_is_wrong_with_good_ones() -> None:
    assert said() == ""
    assert said(reorder=(PinItems("year", (1991, 1992), 100), EpsilonSlot(100))) == ""


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"kept": 201}, "kept: 201 is more than are retrieved (candidates is 200); lower it to at most 200"),
        ({"k_max": 101}, "k_max: 101 is more than the candidates that are ranked (kept is 100)"),
        ({"k_default": 0}, "k_default: expected a whole number of at least 1 and at most 1000000, got 0"),
        ({"candidates": True}, "candidates: expected a whole number, got True"),
        ({"allow_seen": 1}, "allow_seen: expected True or False, got 1"),
        ({"seen_again_days": -1}, "seen_again_days: expected a number of at least 0, got -1"),
        (
            {"seen_again_days": 7, "allow_seen": True},
            "seen_again_days: allow_seen lets everything come at once",
        ),
        (
            {"seen_again_days": PerRequest("again", 7.0, -3.0, 9.0)},
            "seen_again_days.low: expected a number of at least 0, got -3.0",
        ),
        (
            {
                "seen_again_days": PerRequest("again", 7.0, 0.0, 9.0),
                "reorder": (ScoreFloor(PerRequest("again", 7.0, 0.0, 8.0)),),
            },
            "seen_again_days: another step's 'again' has other limits",
        ),
        ({"max_excluded": 49}, "max_excluded: 49 is below history_length (50)"),
        (
            {"unknown_users": "popular"},
            "unknown_users: there is no way 'popular' to serve unknown users; use",
        ),
        ({"history_length": 0, "history_columns": ("a",)}, "history_columns: need a history_length above 0"),
        (
            {"history_columns": "topic"},
            "history_columns: expected a tuple of texts, got 'topic'; write a tuple",
        ),
        ({"sources": ()}, "sources: no source serves users of whom nothing is known; add one that needs no"),
        ({"sources": (Index("near"),)}, "sources: no source serves users of whom nothing is known"),
        ({"sources": Popular()}, "a tuple of one needs its comma"),
        ({"sources": ("popular",)}, "sources[0]: expected Popular("),
        ({"sources": (WeightedSum((1.0,)),)}, "sources[0]: expected Popular("),
        ({"sources": (Index("near", 3), Popular("near"))}, "sources: 2 sources are called 'near'; give each"),
        ({"sources": (Index("near"), Popular())}, "sources: more than one source has no quota"),
        ({"sources": (Index("near", 0), Popular())}, "sources[0].quota: the source 'near' has a quota of 0"),
        (
            {"sources": (Index("near", -1), Popular())},
            "sources[0].quota: expected a whole number of at least 0",
        ),
        ({"sources": (Popular(quota=0),)}, "sources: no source has a quota, so nobody gets anything"),
        (
            {"sources": (Index("near", 150), Popular(quota=60))},
            "the quotas add up to 210, more than candidates",
        ),
        ({"sources": (Index("5 near"), Popular(quota=0))}, "sources[0].name: '5 near' cannot name a source"),
        (
            {"sources": (Index("near", factory="HNSW0"), Popular(quota=0))},
            "sources[0].factory: 'HNSW0' asks for too few of something: 'HNSW0'",
        ),
        (
            {"sources": (Index("near", factory="IVF64_HNSW1,Flat"), Popular(quota=0))},
            "asks for too few of something: 'HNSW1'",
        ),
        (
            {"sources": (Index("near", factory="IVF64_HNSW32,PQ4x0"), Popular(quota=0))},
            "asks for too few of something: 'PQ4x0'",
        ),
        (
            {"sources": (Index("near", min_recall=0), Popular(quota=0))},
            "sources[0].min_recall: expected a num",
        ),
        (
            {"sources": (Index("near", parameters={"nprobe": 0}), Popular(quota=0))},
            "parameters['nprobe']: exp",
        ),
        ({"rules": (*GOOD.rules, *GOOD.rules)}, "rules: 2 rules are called 'fresh'"),
        (
            {"rules": (Compare("fresh", "year", "=", 3),)},
            "rules[0].operator: the rule 'fresh' has no known op",
        ),
        (
            {"rules": (Compare(" ", "year", ">", 3),)},
            "rules[0].name: expected a name, got ' '; say what people read",
        ),
        ({"reorder": (WeightedSum(()),)}, "reorder[0].weights: expected a number a task, got ()"),
        (
            {"reorder": (WeightedSum((1.0, float("nan"))),)},
            "reorder[0].weights: expected a number a task, got (1.0, nan)",
        ),
        (
            {"reorder": (EpsilonSlot(101),)},
            "reorder[0].place: nobody sees place 101: an answer has 100 at most (k_max); name one of those",
        ),
        (
            {"k_max": 20, "reorder": (WeightedSum((1.0,)), PinItems("year", (1991,), 21))},
            "reorder[1].place: nobody sees place 21: an answer has 20 at most (k_max); name one of those",
        ),
        ({"related": ("near", "popular")}, "related[1]: the source 'popular' knows no items that are like"),
        ({"added_items": 10**12}, "added_items: expected a whole number of at least 0 and at most 10000000"),
        ({"store": "redis"}, "store: expected a store, got 'redis'; write Redis(…)"),
    ],
)
def test_it_says_what_is_wrong_and_what_to_do(changes: dict[str, Any], expected: str) -> None:
    assert expected in said(**changes)


@pytest.mark.parametrize("field", ServingSettings.__struct_fields__)
def test_nothing_odd_breaks_it(field: str) -> None:
    for value in ODDITIES:
        said(**{field: value})
    for kind in (*GOOD.sources, *GOOD.rules, *GOOD.reorder):
        for own in type(kind).__struct_fields__:
            for value in ODDITIES:
                odd = replace(kind, **{own: value})
                place = next(n for n in ("sources", "rules", "reorder") if kind in getattr(GOOD, n))
                rest = tuple(one for one in getattr(GOOD, place) if one is not kind)
                said(**{place: (odd, *rest)})


def test_default_sources() -> None:
    near, popular = default_sources({"near": "vectors"})
    assert (near, popular) == (Index("near"), Popular(quota=0))
    assert ServingSettings(sources=(near, popular)).problems() == []
    assert default_sources({}) == (Popular(),)
    with pytest.raises(KindUnavailable, match="no source takes the form 'walks' of the retrieval model 'w'"):
        default_sources({"w": "walks"})


def test_default_sources_do_not_need_every_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SOURCES, "rows", {**SOURCES.rows, "far": Kind("no_such_library:Far")})
    assert default_sources({"near": "vectors"}) == (Index("near"), Popular(quota=0))


def test_what_the_others_leave() -> None:
    settings = replace(GOOD, sources=(Index("near", 150), Index("more"), Popular(quota=20)))
    assert settings.quotas() == (150, 30, 20)
    assert settings.fallback == 2
    assert replace(GOOD, title_column="title").raw_columns() == ("year", "title")


def test_numbers_of_numpy_travel() -> None:
    settings = replace(GOOD, candidates=np.int64(200), sources=(Index("near", np.int64(3)), Popular()))
    assert settings.problems() == []
    read = msgspec.json.decode(encode(settings), type=ServingSettings, dec_hook=read_kind)
    assert (type(read.candidates), type(read.sources[0].quota)) == (int, int)
    assert read == settings
