"""Explanations for every item of a catalogue, run in this process, against what each stage returned."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_release import DAY_S, Tiny, make_tiny

from tiercel_client import ANONYMOUS, InvalidInput, NotFound, Recommender, RequestRefused, Why
from tiercel_client.testing import FakeTransport
from tiercel_serving.reorder.boost_items import BoostItems
from tiercel_serving.reorder.calibration import Calibration
from tiercel_serving.reorder.cap import Cap
from tiercel_serving.reorder.dpp import DPP
from tiercel_serving.reorder.epsilon_slot import EpsilonSlot
from tiercel_serving.reorder.fair_shares import FairShares
from tiercel_serving.reorder.gumbel_top_k import GumbelTopK
from tiercel_serving.reorder.mmr import MMR
from tiercel_serving.reorder.pin_items import PinItems
from tiercel_serving.reorder.score_floor import ScoreFloor
from tiercel_serving.reorder.spread import Spread
from tiercel_serving.reorder.table import ReorderKind
from tiercel_serving.runtime.local import LocalTransport
from tiercel_serving.sources.index import Index
from tiercel_serving.sources.popular import Popular
from tiercel_serving.sources.table import open_source


def recommender_of(tiny: Tiny) -> Recommender:
    return Recommender(transport=LocalTransport(tiny.release), timeout_s=60.0)


def text(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value


@pytest.mark.parametrize("variant", ["strings", "rules", "no scale", "asking rules"])
def test_every_item_has_a_stage_where_it_fell(tiny_of: Callable[[str], Tiny], variant: str) -> None:
    tiny = tiny_of(variant)
    recommender, user = recommender_of(tiny), text(tiny.user_ids[3])
    answer, explained = recommender.recommend(user, k=2), recommender.explain(user, k=8)
    found = {one.item_id: one for one in explained.candidates}
    for row, raw in list(enumerate(tiny.item_ids))[::2]:
        item = text(raw)
        why = recommender.why(user, item, k=2)
        assert (why.user_id, why.item_id) == (user, item)
        assert (why.stage == "answer") == (item in answer.item_ids) == (why.needed == "")
        if item in found:
            assert why.stage == ("answer" if why.rank and why.rank <= 2 and found[item].kept else why.stage)
            assert why.stage in ("answer", "ordering") if found[item].kept else why.stage == "filtering"
            assert why.title == found[item].title
        else:
            assert why.stage == "retrieval"
            assert ("already had" in why.reason) == (row in tiny.seen[3]), why


def test_a_place_is_that_among_what_may_come(tiny_of: Callable[[str], Tiny]) -> None:
    tiny = tiny_of("plain")
    recommender, user = recommender_of(tiny), tiny.user_ids[2]
    kind = tiny.settings.sources[0]
    source: Any = open_source(kind, tiny.release.artefact("source_near", "source"), len(tiny.item_ids), 1)
    chain = LocalTransport(tiny.release)._chains["recommend"]
    query = chain.run({"user_id": np.array([[user]])})[0]
    scores = source.score(query, np.arange(len(tiny.item_ids))[None])[0]
    free = [row for row in np.lexsort((np.arange(len(scores)), -scores)) if row not in tiny.seen[2]]
    for place, row in enumerate(free, 1):
        why = recommender.why(user, tiny.item_ids[row], k=8)
        if place > tiny.settings.candidates:
            assert (why.stage, why.rank) == ("retrieval", place)
            assert why.score == pytest.approx(float(scores[row]))
            assert f"at least {place} candidates" in why.needed


def test_what_the_request_says_and_what_a_rule_saw(tiny_of: Callable[[str], Tiny]) -> None:
    tiny = tiny_of("asking rules")
    recommender, user, items = recommender_of(tiny), tiny.user_ids[3], tiny.item_ids

    def why(item: int, **asked: Any) -> Why:
        return recommender.why(user, item, **asked)

    free = next(row for row in range(40, 60) if row not in tiny.seen[3])
    assert "rules it out" in why(items[free], exclude=[items[free]]).reason
    assert "not in the request's set" in why(items[free], include=[items[free + 1]]).reason
    assert "not in the request's set" in why(items[free], candidates=[items[free + 1]]).reason
    late = why(items[free], features={"hour": 200})
    if tiny.genres[free] is not None:
        assert late.reason.startswith("later: not (not item.year <= 1995 + request.hour")
        assert (late.stage, late.seen["request.hour"]) == ("retrieval", 200)
        assert "request.hour is 200" in late.needed
    assert why(987_654).stage == "catalogue"
    had = next(row for row in tiny.seen[3])
    assert "already had" in why(items[had]).reason
    assert "already had" not in why(items[had], allow_seen=True).reason
    assert recommender.why(ANONYMOUS, items[0]).user_id is None


#: A step of each kind that moves items out of the top, and the inputs that a request sends for it.
STEPS: Mapping[str, tuple[ReorderKind, dict[str, Any]]] = {
    "boost": (BoostItems("year", (1995, 1996), 9.0), {}),
    "floor": (ScoreFloor(-21.69), {}),
    "mmr": (MMR(source="near", strength=0.7), {}),
    "dpp": (DPP(source="near", strength=0.5), {}),
    "spread": (Spread(source="near", strength=0.6), {}),
    "calibration": (Calibration("genres", 0.8), {}),
    "fair shares": (FairShares("label", (("Film № 5", 0.9),)), {}),
    "cap": (Cap("genres", 1), {}),
    "gumbel": (GumbelTopK(1.0), {"seed": 7}),
    "epsilon": (EpsilonSlot(place=2, share=1.0), {"seed": 7}),
    "pin": (PinItems("year", (1995,)), {}),
}


@pytest.mark.parametrize("name", STEPS)
def test_what_a_reorder_step_displaced(name: str, tmp_path: Path) -> None:
    step, sent = STEPS[name]
    tiny = make_tiny(tmp_path / "stepped", seed=3, settings={"reorder": (step,)})
    bare = make_tiny(tmp_path / "bare", seed=3)
    recommender, user = recommender_of(tiny), tiny.user_ids[3]

    def answer(k: int) -> tuple[Any, ...]:
        return recommender.recommend(user, k=k, features=sent).item_ids

    order = recommender_of(bare).recommend(user, k=8).item_ids
    displaced = set(order[:3]) - set(answer(3))
    assert displaced, "the step changes nothing here"
    for item in order:
        why = recommender.why(user, item, k=3, features=sent)
        if why.stage == "answer":
            assert why.rank
            assert answer(3)[why.rank - 1] == item
            continue
        assert why.stage == "ordering"
        if why.rank is None:
            assert why.reason in step.reasons
            assert why.reason in why.needed
            assert item not in answer(8)
        else:
            assert answer(why.rank)[-1] == item
            assert f"k of {why.rank}" in why.needed
            place = order.index(item) + 1
            assert (f"leave it at place {place}," in why.needed) == (item in displaced)
            assert ("a final score above" in why.needed) == (item not in displaced)


def test_a_source_without_a_share_for_it(tmp_path: Path) -> None:
    sources = (Popular("hot", 2), Index("near", 4), Index("more", 3))
    tiny = make_tiny(tmp_path / "release", seed=3, settings={"sources": sources, "candidates": 9})
    recommender, user = recommender_of(tiny), tiny.user_ids[3]
    found = recommender.explain(user, k=8).candidates
    deep = 0
    for row, item in enumerate(tiny.item_ids):
        why = recommender.why(user, item, k=8)
        if why.stage != "retrieval" or row in tiny.seen[3]:
            continue
        deep += 1
        assert why.score is not None
        assert "a larger quota of a source that gives it" in why.needed
        above = re.search(r"a retrieval score above (\S+),", why.needed)
        # It never asks for a score that the item already has.
        assert above is None or why.score <= float(above[1]) + 1e-5
    assert deep
    assert len(found) == 9


def test_a_stranger_is_not_searched_for(tiny_of: Callable[[str], Tiny]) -> None:
    tiny = tiny_of("ties")
    recommender = recommender_of(tiny)
    whys = [recommender.why(99_999, item, k=3) for item in tiny.item_ids]
    missed = [why for why in whys if why.stage == "retrieval"]
    assert missed
    assert {(why.rank, why.score) for why in missed} == {(None, None)}
    assert {why.reason for why in missed} == {f"not among the {tiny.settings.candidates} candidates"}
    for why in whys:
        assert (why.stage == "answer") == (why.item_id in recommender.recommend(99_999, k=3).item_ids)


@pytest.mark.parametrize("variant", ["seen filter", "seen again"])
def test_what_was_had_long_ago(tiny_of: Callable[[str], Tiny], variant: str) -> None:
    tiny = tiny_of(variant)
    recommender = recommender_of(tiny)
    number = max(range(2, len(tiny.user_ids)), key=lambda one: len(tiny.history[one]))
    user, mine = text(tiny.user_ids[number]), tiny.history[number]
    asked = {"now": DAY_S * (len(mine) + 1)} if variant == "seen again" else {}
    for place, row in enumerate(mine):
        why = recommender.why(user, text(tiny.item_ids[row]), k=8, features=asked)
        # The filter holds all but the latest four items; items of the last five days do not come again.
        gone = variant == "seen filter" or place >= len(mine) - 5 + 1
        assert (why.reason == "the user already had it") == gone, (place, why)
        if gone:
            assert why.stage == "retrieval"
            again = recommender.why(user, text(tiny.item_ids[row]), k=8, features=asked, allow_seen=True)
            assert again.reason != why.reason


def test_what_cannot_be_asked(tiny_of: Callable[[str], Tiny]) -> None:
    tiny = tiny_of("plain")
    recommender = recommender_of(tiny)
    with pytest.raises(InvalidInput, match="item_id: expected"):
        recommender.why(10, "x")
    with pytest.raises(InvalidInput, match="k: expected 1 to 8 items"):
        recommender.why(10, 1, k=9)
    transport = LocalTransport(tiny.release)
    many = {"user_id": np.array([[10]]), "explain_item_ids": np.zeros((1, 101), np.int64)}
    with pytest.raises(RequestRefused, match="explain_item_ids may hold 100 ids at most, got 101"):
        recommender._drive(_asked(recommender, many))
    assert transport.server_metadata(timeout_s=1, headers={})[0] == "local"
    with pytest.raises(NotFound, match="says what became of an item"):
        # `recommend` has no input for items to explain, as an explaining model of an older release.
        Recommender(transport=FakeTransport(), explain_model="recommend").why(1, 1)


def _asked(recommender: Recommender, inputs: dict[str, np.ndarray]) -> Any:
    context = recommender._context()
    return (yield [context.infer("recommend_explain", inputs, ["explain_reason"])])
