"""What became of one item, for every item of a catalogue, in this process: against what each stage made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tiny_release import Tiny

from tiercel_client import ANONYMOUS, InvalidInput, NotFound, Recommender, RequestRefused, Why
from tiercel_client.testing import FakeTransport
from tiercel_serving.runtime.local import LocalTransport
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


def test_what_cannot_be_asked(tiny_of: Callable[[str], Tiny]) -> None:
    tiny = tiny_of("plain")
    recommender = recommender_of(tiny)
    with pytest.raises(InvalidInput, match="item_id: expected"):
        recommender.why(10, "x")
    with pytest.raises(InvalidInput, match="k: expected 1 to 8 items"):
        recommender.why(10, 1, k=9)
    transport = LocalTransport(tiny.release)
    many = {"user_id": np.array([[10]]), "explain_item_ids": np.zeros((1, 101), np.int64)}
    with pytest.raises(RequestRefused, match="explain_item_ids may hold 100 ids at most, came 101"):
        recommender._drive(_asked(recommender, many))
    assert transport.server_metadata(timeout_s=1, headers={})[0] == "local"
    with pytest.raises(NotFound, match="says what became of an item"):
        # `recommend` takes no item to be told of: as an explaining model of an older release.
        Recommender(transport=FakeTransport(), explain_model="recommend").why(1, 1)


def _asked(recommender: Recommender, inputs: dict[str, np.ndarray]) -> Any:
    context = recommender._context()
    return (yield [context.infer("recommend_explain", inputs, ["explain_reason"])])
