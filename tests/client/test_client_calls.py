"""How a recommender handles answers and errors, in both flavours, without a server."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from both_flavours import FLAVOURS

import tiercel_client
from tiercel_client import (
    ANONYMOUS,
    TLS,
    AsyncRecommender,
    ClientError,
    Closed,
    DeadlineExceeded,
    InvalidInput,
    Item,
    KeepAlive,
    NotFound,
    ProtocolMismatch,
    Recommendation,
    Recommender,
    RequestColumn,
    RequestRefused,
    Retry,
    ServerFault,
    ServerFull,
    ServerUnavailable,
    Status,
)
from tiercel_client.testing import AsyncFakeTransport, FakeTransport
from tiercel_client.titles import TitleCache

FILMS = {1: "Heat", 2: "Fargo", 3: "Alien", 4: None}
COLUMNS = (RequestColumn("age", "int64", False, "user"), RequestColumn("device", "bytes", False, "context"))
QUICK = Retry(attempts=3, first_delay_s=0.001)

Make = Callable[..., tuple[Any, Any]]


@pytest.fixture(params=FLAVOURS)
def make(request: pytest.FixtureRequest) -> Iterator[Make]:
    """Make a recommender and its fake transport; ``fake`` holds options of the transport."""
    made: list[Any] = []
    recommender_class, fake_class = FLAVOURS[request.param]

    def build(fake: dict[str, Any] | None = None, **options: Any) -> tuple[Any, Any]:
        defaults = {"items": FILMS, "users": {42: [3, 1, 4]}, "columns": COLUMNS}
        transport = fake_class(**{**defaults, **(fake or {})})
        recommender = recommender_class(transport=transport, **{"retry": QUICK, **options})
        made.append(recommender)
        return recommender, transport

    yield build
    for recommender in made:
        recommender.__exit__(None, None, None)


def asked(transport: Any, model: str) -> list[Any]:
    return [request for request in transport.requests if request.model == model]


def test_a_typed_answer(make: Make) -> None:
    recommender, _ = make()
    answer = recommender.recommend(42, k=2, request_id="r-1")
    assert answer == Recommendation(
        42, Status.KNOWN, (Item(3, 1.0, "Alien", 1), Item(1, 0.5, "Heat", 2)), "r-1"
    )
    assert (answer.count, len(answer), answer.item_ids) == (2, 2, (3, 1))
    assert [item.title for item in answer] == ["Alien", "Heat"]
    assert answer.request_id == "r-1"
    assert json.loads(json.dumps(answer.to_json()))["items"][0] == {
        "item_id": 3,
        "score": 1.0,
        "title": "Alien",
        "rank": 1,
    }


def test_status_of_users(make: Make) -> None:
    recommender, _ = make()
    assert recommender.recommend(42).status is Status.KNOWN
    assert recommender.recommend(7).status is Status.UNKNOWN
    assert recommender.recommend(7, features={"age": 3}).status is Status.UNKNOWN_WITH_FEATURES
    assert recommender.recommend(7, features={"device": "web"}).status is Status.UNKNOWN
    assert recommender.recommend(ANONYMOUS, history=[1]).status is Status.UNKNOWN_WITH_FEATURES
    assert recommender.recommend(ANONYMOUS).user_id is None


def test_fewer_items_than_k_is_an_answer(make: Make) -> None:
    recommender, _ = make()
    answer = recommender.recommend(42, exclude=[1, 3, 4], k=5)
    assert (answer.count, answer.items) == (0, ())


def test_what_was_had_may_come_if_it_is_allowed(make: Make) -> None:
    for default in (False, True):
        recommender, _ = make({"allow_seen": default})
        assert recommender.server_info().allow_seen is default
        everything = recommender.recommend(42).item_ids
        rest = tuple(item for item in everything if item != 3)
        ask = {"history": [3], "timeout_s": 5}
        assert recommender.recommend(42, **ask).item_ids == (everything if default else rest)
        assert recommender.recommend(42, allow_seen=True, **ask).item_ids == everything
        assert recommender.recommend(42, allow_seen=True, exclude=[3], **ask).item_ids == rest
        assert recommender.recommend(42, allow_seen=False, **ask).item_ids == rest
        assert recommender.explain(42, allow_seen=False, **ask).recommendation.item_ids == rest
        answers = recommender.recommend_many([42] * 3, history=[[3]] * 3, allow_seen=[None, True, False])
        assert [answer.item_ids for answer in answers] == [everything if default else rest, everything, rest]


def test_text_ids(make: Make) -> None:
    recommender, _ = make({"items": {"ítem\x00": "Ünïcode ✓", "": None}, "users": {"ü": ["", "ítem\x00"]}})
    assert recommender.recommend("ü").items == (Item("", 1.0, None, 1), Item("ítem\x00", 0.5, "Ünïcode ✓", 2))
    assert recommender.recommend("ü", exclude=["ítem\x00"]).item_ids == ("",)
    assert recommender.recommend("ü", exclude=["ítem\x00", "\x00"] * 50).item_ids == ("",)
    assert [a.item_ids for a in recommender.recommend_many(["ü", "v"], history=[None, [""] * 50])] == [
        ("", "ítem\x00"),
        ("ítem\x00",),
    ]


def test_many_users_are_split_and_stay_in_order(make: Make) -> None:
    recommender, transport = make({"max_batch_size": 3, "users": {n: [1 + n % 4] for n in range(20)}})
    answers = recommender.recommend_many(list(range(20)), k=1, request_id="r")
    assert [answer.user_id for answer in answers] == list(range(20))
    assert [answer.item_ids for answer in answers] == [(1 + n % 4,) for n in range(20)]
    requests = asked(transport, "recommend")
    assert sorted(len(request.inputs["user_id"]) for request in requests) == [2] + [3] * 6
    assert {request.request_id for request in requests} == {f"r/{n}" for n in range(7)}


def test_nothing_is_sent_if_one_user_is_wrong(make: Make) -> None:
    recommender, transport = make({"max_batch_size": 2})
    with pytest.raises(InvalidInput, match=r"user_ids\[6\]"):
        recommender.recommend_many([1, 2, 3, 4, 5, 6, "7"])
    assert transport.requests == []


def test_requests_run_side_by_side_and_not_too_many(make: Make) -> None:
    recommender, _ = make({"max_batch_size": 1, "latency_s": 0.5}, max_concurrency=5)
    begun = time.perf_counter()
    recommender.recommend_many(list(range(10)), titles=False)
    took = time.perf_counter() - begun
    assert 1.0 <= took < 4.0  # two rounds, not ten


def test_the_first_error_ends_the_call(make: Make) -> None:
    recommender, transport = make({"max_batch_size": 1})
    transport.fail(RequestRefused("no"))
    with pytest.raises(RequestRefused, match="no"):
        recommender.recommend_many(list(range(8)))
    assert recommender.recommend(1).count == 4  # the next request is answered


def test_similar_items_of_a_fake(make: Make) -> None:
    recommender, _ = make({"related": {3: [1, 4, 2], 1: [3, 2]}})
    assert [(one.item_id, one.title) for one in recommender.related(3, k=2)] == [(1, "Heat"), (4, None)]
    assert [one.item_id for one in recommender.related([3, 1], exclude=[4])] == [2]
    assert [one.item_id for one in recommender.related(np.int64(3))] == [1, 4, 2]
    assert recommender.related(99) == ()
    with pytest.raises(NotFound, match=r"ServingSettings\(related=…\)"):
        make()[0].related(3)


# Titles


def test_titles_are_remembered(make: Make) -> None:
    recommender, transport = make()
    recommender.recommend(42, k=2)
    recommender.recommend(42, k=3)  # 3 and 1 are known, 4 is new
    recommender.recommend(42, k=3)  # that 4 has no title is cached too
    sent = [request.inputs["item_id"].tolist() for request in asked(transport, "describe_items")]
    assert sent == [[[3, 1]], [[4]]]


def test_that_an_item_is_not_known_yet_is_not_remembered(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    recommender, transport = make()
    describe = transport._describe
    with monkeypatch.context() as patch:
        patch.setattr(
            transport, "_describe", lambda inputs: {**describe(inputs), "found": np.zeros((1, 1), bool)}
        )
        assert recommender.recommend(42, k=1).items[0].title is None
    for _ in range(2):
        assert recommender.recommend(42, k=1).items[0].title == "Alien"
    assert len(asked(transport, "describe_items")) == 2


def test_titles_are_asked_for_once_in_a_batch(make: Make) -> None:
    recommender, transport = make({"max_batch_size": 2})
    recommender.recommend_many([42, 42, 7, 8])
    [request] = asked(transport, "describe_items")
    assert request.inputs["item_id"].tolist() == [[3, 1, 4, 2]]


def test_titles_can_be_left_out(make: Make) -> None:
    recommender, transport = make()
    assert recommender.recommend(42, titles=False).items[0].title is None
    assert asked(transport, "describe_items") == []


def test_a_server_without_titles(make: Make) -> None:
    recommender, transport = make({"titles": False})
    assert [item.title for item in recommender.recommend(42)] == [None] * 3
    reads = transport.config_reads
    recommender.recommend(42)
    assert transport.config_reads == reads  # that there is no model of titles is cached
    assert asked(transport, "describe_items") == []


def test_the_cache_of_titles_is_bounded(make: Make) -> None:
    recommender, transport = make(title_cache_size=2)
    for user in (42, 42):
        recommender.recommend(user, k=3)
    assert len(asked(transport, "describe_items")) == 2
    nothing, transport = make(title_cache_size=0)
    assert nothing.recommend(42).items[0].title == "Alien"


def test_titles_that_are_asked_for_stay() -> None:
    cache = TitleCache(4)
    for number in range(20):
        cache.remember("a", {number: str(number)})
        titles, missing = cache.find("a", {0: None, number: None})
        assert (titles[0], titles[number], missing) == ("0", str(number), [])
    _, missing = cache.find("a", dict.fromkeys(range(20)))
    assert 2 <= 20 - len(missing) <= 4
    assert cache.find("b", {0: None}) == ({}, [0])


def test_titles_of_another_release_are_asked_again(make: Make) -> None:
    recommender, transport = make(refresh_s=0.02)
    assert recommender.recommend(42, k=1).items[0].title == "Alien"
    transport.build_id, transport.items[3] = "next", "Aliens"
    time.sleep(0.03)
    assert recommender.recommend(42, k=1).items[0].title == "Aliens"


# Server information


def test_the_configuration_is_read_once(make: Make) -> None:
    recommender, transport = make()
    assert transport.config_reads == 0  # nothing before the first call
    for _ in range(3):
        recommender.recommend(42, titles=False)
    assert transport.config_reads == 1


@pytest.mark.parametrize("error", [RequestRefused("other limits"), NotFound("gone")])
def test_it_is_read_again_after_a_refusal(make: Make, error: ClientError) -> None:
    recommender, transport = make()
    recommender.recommend(42, titles=False)
    transport.fail(error, model="recommend")
    with pytest.raises(type(error)):
        recommender.recommend(42, titles=False)
    transport.k_max = 1000
    recommender.recommend(42, k=500, titles=False)
    assert transport.config_reads == 2


def test_server_info(make: Make) -> None:
    recommender, _ = make()
    info = recommender.server_info()
    assert (info.server, info.build_id, info.k_max, info.user_id_dtype) == ("fake", "fake", 100, "int64")
    assert [column.name for column in info.request_columns] == [column.name for column in COLUMNS]
    assert info.request_columns[0].tensor == "age"
    assert info.reorder_reasons == ()
    assert info.filter_reasons[0] == "kept"
    json.dumps(info.to_json())


def test_a_missing_model(make: Make) -> None:
    recommender, _ = make(model="other")
    with pytest.raises(NotFound, match="'other'"):
        recommender.recommend(42)


# Health


def test_health_is_one_inference(make: Make) -> None:
    recommender, transport = make()
    health = recommender.health(timeout_s=5.0)
    assert health.build_id == "fake"
    assert 0 < health.latency_s < 5.0
    [request] = transport.requests
    assert request.inputs["user_id"].tolist() == [[-(2**63)]]
    assert request.timeout_s <= 5.0


def test_health_does_not_try_again(make: Make) -> None:
    recommender, transport = make()
    transport.fail(ServerFull("full"), model="recommend")
    with pytest.raises(ServerFull):
        recommender.health()
    recommender.health()


# Explanations


def test_an_explanation(make: Make) -> None:
    recommender, transport = make()
    explained = recommender.explain(42, k=2)
    assert explained.recommendation == recommender.recommend(42, k=2)
    assert (explained.user_id, explained.status) == (42, Status.KNOWN)
    first, second, third = explained.candidates
    assert (first.position, first.item_id, first.title, first.source) == (1, 3, "Alien", "fake")
    assert (first.reason, first.kept, first.rank, first.score) == ("kept", True, 1, 1.0)
    assert second.rank_scores == (0.5,)
    assert (third.item_id, third.rank, third.score) == (4, None, None)
    assert explained.kept == explained.candidates
    assert explained.dropped == ()
    assert list(explained.times_us) == list(explained.stages)
    assert [candidate.reorder_reason for candidate in explained.candidates] == [None] * 3
    json.dumps(explained.to_json())
    assert recommender.explain(7).status is Status.UNKNOWN
    assert asked(transport, "describe_items")[0].inputs.keys() == {"item_row"}


def test_an_explanation_of_another_graph(make: Make) -> None:
    """An explanation without ranker and history, with stages that this client does not know."""
    recommender, transport = make()
    for name in ("rank_score", "history_row", "history_length", "reorder_reason"):
        del transport.explain_outputs[name]
    transport.stages = ("user_features", "query_near", "query_far", "retrieval", "filtering", "ordering")
    explained = recommender.explain(42)
    assert [candidate.rank_scores for candidate in explained.candidates] == [()] * 3
    assert [candidate.rank for candidate in explained.candidates] == [1, 2, 3]
    assert explained.history == ()
    assert explained.stages == transport.stages
    assert list(explained.times_us) == [
        "user_features",
        "query_near",
        "query_far",
        "retrieval",
        "filtering",
        "ordering",
    ]


def test_why_an_item_comes_or_does_not(make: Make) -> None:
    films = {1: "Heat", 2: "Fargo", 3: None, 4: "Alien"}
    recommender, _ = make({"items": films, "users": {42: [3, 1, 2]}})
    said = recommender.why(42, 1, exclude=[2])
    assert (said.stage, said.rank, said.title, said.reason) == ("answer", 2, "Heat", "place 2 of the answer")
    assert recommender.why(42, 1, k=1).stage == "ordering"
    assert recommender.why(42, 2, exclude=[2]).reason.startswith("the request rules it out")
    assert recommender.why(42, 2, history=[2]).needed.startswith("allow_seen=True")
    assert recommender.why(42, 2, history=[2], allow_seen=True).stage == "answer"
    assert recommender.why(42, 2, include=[1]).reason == "it is not in the request's set or list"
    assert recommender.why(42, 2, candidates=[1, 3]).reason == "it is not in the request's set or list"
    deep = recommender.why(42, 4)
    assert (deep.stage, deep.title, deep.reason) == ("retrieval", "Alien", "not among the 3 candidates")
    assert (recommender.why(42, 9).stage, recommender.why(42, 9).title) == ("catalogue", None)
    texts, _ = make({"items": {"a": None, "b": None}, "users": {"v": ["a"]}})
    assert texts.why("u", "b", candidates=["b"]).rank == 1


def test_why_a_step_moved_a_candidate(make: Make) -> None:
    recommender, transport = make()
    transport.reorder_reasons = ("too many of one kind", "seen lately")
    explain = transport._explained

    def moved(answer: Any) -> dict[str, Any]:
        arrays = explain(answer)
        arrays["filter_reason"][0, 1] = 7  # dropped before any step
        arrays["kept_index"] = np.array([[0, 2, 0, 0]])
        arrays["reorder_reason"] = np.array([[2, 0, 0, 0]], np.int32)
        return arrays

    transport._explained = moved
    first, second, third = recommender.explain(42).candidates
    assert (first.reorder_reason, second.reorder_reason, third.reorder_reason) == ("seen lately", None, None)
    assert not second.kept
    assert recommender.server_info().reorder_reasons == transport.reorder_reasons
    transport._explained = lambda answer: {
        **moved(answer),
        "reorder_reason": np.array([[3, 1, 0, 0]], np.int32),
    }
    first, _, third = recommender.explain(42).candidates
    assert (first.reorder_reason, third.reorder_reason) == ("reason 3", "too many of one kind")
    transport._explained = lambda answer: {**moved(answer), "reorder_reason": np.zeros((1, 1), np.int32)}
    with pytest.raises(ProtocolMismatch, match="one for each of the kept, got fewer"):
        recommender.explain(42)


def test_an_explanation_without_titles(make: Make) -> None:
    recommender, _ = make({"titles": False})
    explained = recommender.explain(42)
    assert [candidate.item_id for candidate in explained.candidates] == [None] * 3
    assert explained.recommendation.item_ids == (3, 1, 4)


def test_a_server_that_does_not_explain(make: Make) -> None:
    recommender, transport = make(explain_model="other")
    with pytest.raises(NotFound, match="explain_model"):
        recommender.explain(42)
    assert transport.requests == []


@pytest.mark.parametrize(
    ("model", "explains"),
    [("recommend", "recommend_explain"), ("recommend_staged", "recommend_explain_staged")],
)
def test_the_name_of_the_ensemble_that_explains(model: str, explains: str) -> None:
    assert Recommender(transport=FakeTransport(), model=model)._explain_model == explains


# Deadlines and retries


@pytest.mark.parametrize("error", [ServerFull("full"), ServerUnavailable("refused", retryable=True)])
def test_what_may_pass_is_tried_again(make: Make, error: ClientError) -> None:
    recommender, transport = make()
    transport.fail(error, times=2, model="recommend")
    assert recommender.recommend(42, titles=False).count == 3
    transport.fail(error, times=3)
    with pytest.raises(type(error)):
        recommender.recommend(42, titles=False)
    assert recommender.recommend(42, titles=False).count == 3  # all three were used up


@pytest.mark.parametrize(
    "error",
    [
        DeadlineExceeded("late"),
        RequestRefused("no"),
        ServerFault("broken"),
        NotFound("gone"),
        ServerUnavailable("broke off", retryable=False),
        ProtocolMismatch("what"),
    ],
)
def test_what_will_not_pass_is_not(make: Make, error: ClientError) -> None:
    recommender, transport = make()
    recommender.recommend(42)
    transport.fail(error, model="recommend")
    with pytest.raises(type(error)):
        recommender.recommend(42)
    assert recommender.recommend(42).count == 3


def test_a_retry_has_the_same_request_id_and_less_time(make: Make) -> None:
    recommender, transport = make(retry=Retry(attempts=2, first_delay_s=0.02, jitter=0))
    recommender.recommend(42)
    transport.requests.clear()
    transport.fail(ServerFull("full"))
    recommender.recommend(42, titles=False, request_id="r", timeout_s=1)
    first, second = transport.requests
    assert (first.request_id, second.request_id) == ("r", "r")
    assert second.timeout_s <= first.timeout_s - 0.02


def test_no_retry_that_would_be_late(make: Make) -> None:
    recommender, transport = make(retry=Retry(attempts=5, first_delay_s=100.0, max_delay_s=100.0, jitter=0))
    recommender.recommend(42)
    transport.fail(ServerFull("full"))
    begun = time.perf_counter()
    with pytest.raises(ServerFull):
        recommender.recommend(42, timeout_s=50.0)
    assert time.perf_counter() - begun < 40


def test_the_deadline_covers_titles(make: Make) -> None:
    recommender, transport = make()
    recommender.recommend(7, k=1)
    transport.latency_s = 0.3
    with pytest.raises(DeadlineExceeded):
        recommender.recommend(42, timeout_s=0.5)
    transport.requests.clear()
    recommender.recommend(43, timeout_s=60.0)
    answer, titles = transport.requests
    assert (answer.model, titles.model) == ("recommend", "describe_items")
    assert titles.timeout_s <= answer.timeout_s - 0.3


def test_more_requests_have_more_time_by_default(make: Make) -> None:
    recommender, transport = make({"max_batch_size": 1, "latency_s": 0.1}, timeout_s=20.0, max_concurrency=2)
    recommender.recommend(42)
    for timeout_s, expected_s in ((None, 60.0), (20.0, 20.0)):  # three rounds of two
        transport.requests.clear()
        recommender.recommend_many(list(range(6)), titles=False, timeout_s=timeout_s)
        assert len(transport.requests) == 6
        # The margin of 19 s tolerates a machine that pauses.
        assert expected_s - 19.0 < max(request.timeout_s for request in transport.requests) <= expected_s
    with pytest.raises(DeadlineExceeded):
        recommender.recommend_many(list(range(6)), titles=False, timeout_s=0.25)


def test_delays_grow_and_are_bounded() -> None:
    retry = Retry(attempts=10, first_delay_s=0.1, factor=2, max_delay_s=0.5, jitter=0)
    full = ServerFull("full")
    assert [retry.delay(n, full, 60) for n in (1, 2, 3, 4, 9, 10)] == [0.1, 0.2, 0.4, 0.5, 0.5, None]
    delays = {Retry(jitter=0.5).delay(1, full, 60) for _ in range(50)}
    assert len(delays) > 1
    assert all(delay is not None and 0.025 <= delay <= 0.05 for delay in delays)


# Options


def test_headers_and_ids(make: Make) -> None:
    recommender, transport = make(headers={"Authorization": "Bearer a", "x-team": "t"})
    recommender.recommend(42, headers={"AUTHORIZATION": "Bearer b", "trace-bin": b"\x00"}, request_id="é")
    for request in transport.requests:
        assert request.headers == {"authorization": "Bearer b", "x-team": "t", "trace-bin": b"\x00"}
    assert [request.request_id for request in transport.requests] == ["é", "é/titles"]
    first, second = recommender.recommend(42), recommender.recommend(42)
    assert len(first.request_id) == 32
    assert first.request_id != second.request_id


@pytest.mark.parametrize(
    "options",
    [
        {"timeout_s": 0},
        {"timeout_s": -1},
        {"timeout_s": float("nan")},
        {"timeout_s": float("inf")},
        {"timeout_s": "1"},
        {"timeout_s": True},
        {"request_id": ""},
        {"request_id": 3},
        {"request_id": "\ud800"},
        {"headers": {"a b": "c"}},
        {"headers": {"grpc-timeout": "1"}},
        {"headers": {"a": "b\nc"}},
        {"headers": {"a": "é"}},
        {"headers": {"a": b"b"}},
        {"headers": {"a-bin": "b"}},
        {"headers": {1: "b"}},
        {"headers": "a"},
        {"titles": np.array([True, False])},
        {"titles": "no"},
    ],
)
def test_options_of_a_call(make: Make, options: dict[str, Any]) -> None:
    recommender, transport = make()
    with pytest.raises(InvalidInput, match=next(iter(options))):
        recommender.recommend(42, **options)
    assert transport.requests == []
    assert recommender.recommend(42).count == 3


@pytest.mark.parametrize(
    "options",
    [
        {"timeout_s": 0},
        {"max_concurrency": 0},
        {"max_concurrency": True},
        {"title_cache_size": -1},
        {"refresh_s": 0},
        {"model": ""},
        {"describe_model": None},
        {"headers": {"": "x"}},
    ],
)
@pytest.mark.parametrize("kind", [Recommender, AsyncRecommender])
def test_options_of_a_recommender(kind: Any, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match=next(iter(options))):
        kind("localhost:1", **options)


@pytest.mark.parametrize("url", ["", " ", "http://localhost:8001", 8001, None])
@pytest.mark.parametrize("kind", [Recommender, AsyncRecommender])
def test_addresses(kind: Any, url: Any) -> None:
    with pytest.raises(InvalidInput, match="host:port"):
        kind(url)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (Retry, {"attempts": 0}),
        (Retry, {"attempts": 1.5}),
        (Retry, {"attempts": True}),
        (Retry, {"jitter": 2}),
        (Retry, {"first_delay_s": -1}),
        (Retry, {"factor": 0.5}),
        (Retry, {"max_delay_s": float("nan")}),
        (KeepAlive, {"time_s": 0}),
        (TLS, {"private_key": "key.pem"}),
    ],
)
def test_options_of_options(kind: Any, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        kind(**options)


def test_secrets_are_not_shown() -> None:
    with pytest.raises(InvalidInput) as error:
        Recommender(headers={"authorization": "Bearer s3cret\n"}, transport=FakeTransport())
    assert "s3cret" not in str(error.value)


# Closing


def test_closing(make: Make) -> None:
    recommender, transport = make({"max_batch_size": 1})
    recommender.recommend_many([1, 2, 3])
    recommender.close()
    recommender.close()
    assert transport.closed
    for call in (
        lambda: recommender.recommend(1),
        lambda: recommender.recommend_many([1, 2]),
        recommender.health,
    ):
        with pytest.raises(Closed):
            call()


def test_threads_share_a_recommender() -> None:
    transport = FakeTransport(items=FILMS, users={n: [1 + n % 4] for n in range(50)})
    wrong: list[int] = []

    def ask(start: int) -> None:
        users = range(start, 50, 8)
        wrong.extend(user for user in users if recommender.recommend(user).item_ids != (1 + user % 4,))

    with Recommender(transport=transport) as recommender:
        threads = [threading.Thread(target=ask, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


class Slow(AsyncFakeTransport):
    """Answers nobody for a minute, and counts who waits."""

    waiting = 0

    async def infer(self, request: Any) -> Any:
        self.waiting += 1
        return await super().infer(request)


async def test_a_cancelled_call_leaves_nothing_running() -> None:
    transport = Slow(max_batch_size=1, latency_s=60.0)
    async with AsyncRecommender(transport=transport, timeout_s=100, max_concurrency=3) as recommender:
        call = asyncio.ensure_future(recommender.recommend_many([1, 2, 3, 4]))
        while transport.waiting < 3:
            await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert asyncio.all_tasks() == {asyncio.current_task()}


# Malformed answers


class Lying(FakeTransport):
    """Changes one output."""

    name, value = "", None

    def infer(self, request: Any) -> Any:
        arrays = dict(super().infer(request))
        if self.name in arrays:
            if self.value is None:
                del arrays[self.name]
            else:
                arrays[self.name] = self.value
        return arrays


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("item_id", None),
        ("status", None),
        ("item_id", np.zeros((2, 3), np.int64)),
        ("item_id", np.zeros((1, 3), np.float32)),
        ("item_id", np.array([[b"a"]], object)),
        ("item_id", np.zeros(3, np.int64)),
        ("score", np.zeros((1, 2), np.float32)),
        ("score", np.zeros((1, 10), np.int64)),
        ("count", np.array([[11]], np.int32)),
        ("count", np.array([[-1]], np.int32)),
        ("count", np.zeros((1, 2), np.int32)),
        ("status", np.array([[3]], np.int32)),
        ("status", np.array([[-1]], np.int32)),
        ("title", np.zeros((1, 3), np.int64)),
        ("title", np.array([[b"x"]], object)),
        ("found", None),
    ],
)
def test_answers_are_not_believed(name: str, value: Any) -> None:
    transport = Lying(items=FILMS, users={42: [3, 1, 4]})
    with Recommender(transport=transport, retry=QUICK) as recommender:
        assert recommender.recommend(42).count == 3
        transport.build_id, transport.name, transport.value = "next", name, value
        recommender._known = None
        with pytest.raises(ProtocolMismatch, match=name):
            recommender.recommend(42)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("filter_reason", np.array([[0, 1, 0, 0]], np.int32)),
        ("kept_index", np.array([[0, 1, 9, 0]], np.int64)),
        ("kept_index", np.array([[0, 1, -1, 0]], np.int64)),
        ("rank_score", np.zeros((1, 4), np.float32)),
        ("retrieved_row", np.zeros((1, 5), np.int64)),
        ("source", None),
    ],
)
def test_explanations_are_not_believed(name: str, value: Any) -> None:
    transport = Lying(items=FILMS, users={42: [3, 1, 4]})
    transport.name, transport.value = name, value
    with Recommender(transport=transport) as recommender, pytest.raises(ProtocolMismatch):
        recommender.explain(42)


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        ("build_id", None, "build_id"),
        ("k_max", "many", "k_max"),
        ("k_max", "0", "k_max"),
        ("item_id_dtype", "uint8", "item_id_dtype"),
        ("sources", "[", "sources"),
        ("sources", "3", "sources"),
        ("filter_reasons", '{"a": "b"}', "filter_reasons"),
        ("request_columns", "[1]", "request_columns"),
        ("request_columns", '[{"name":"x","dtype":"int64","list":false,"part":"user"}]', "'x'"),
        ("request_columns", '[{"name":"age","dtype":"bytes","list":false,"part":"user"}]', "'age'"),
    ],
)
def test_configurations_are_not_believed(key: str, value: str | None, match: str) -> None:
    class Other(FakeTransport):
        def _parameters(self) -> dict[str, str]:
            parameters = super()._parameters()
            if value is None:
                del parameters[key]
            else:
                parameters[key] = value
            return parameters

    with Recommender(transport=Other(columns=COLUMNS)) as recommender:
        with pytest.raises(ProtocolMismatch, match=match) as error:
            recommender.recommend(1)
    assert "recommend" in str(error.value)


def test_reasons_may_be_a_list() -> None:
    class Listed(FakeTransport):
        def _parameters(self) -> dict[str, str]:
            return {**super()._parameters(), "filter_reasons": '["kept", "empty"]'}

    with Recommender(transport=Listed()) as recommender:
        assert recommender.server_info().filter_reasons == {0: "kept", 1: "empty"}


def test_the_tree_is_the_one_that_is_drawn() -> None:
    errors = tiercel_client.errors
    drawn = [
        line.split()[1]
        for line in (errors.__doc__ or "").splitlines()
        if line.lstrip().startswith(("├", "└"))
    ]
    defined = [
        name for name, kind in vars(errors).items() if isinstance(kind, type) and kind is not ClientError
    ]
    assert drawn == defined
    assert all(issubclass(getattr(errors, name), ClientError) for name in defined)
    assert all(hasattr(tiercel_client, name) for name in [*defined, *tiercel_client.__all__])


def test_fakes_want_one_type_of_id() -> None:
    with pytest.raises(InvalidInput):
        FakeTransport(items={1: "a", "b": "c"})


def test_one_face() -> None:
    """The two flavours have the same methods with the same arguments."""
    import inspect

    for name, method in inspect.getmembers(Recommender, inspect.isfunction):
        if name.startswith("_") and name != "__init__":
            continue
        other = inspect.signature(getattr(AsyncRecommender, name))
        mine = inspect.signature(method)
        assert list(mine.parameters) == list(other.parameters), name
        for parameter in mine.parameters.values():
            if parameter.name != "transport":
                assert other.parameters[parameter.name] == parameter
