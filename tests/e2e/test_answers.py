"""Unusual but valid input: each case has a defined answer, not an error."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from e2e.raw import raw_infer
from e2e.served import LAYOUTS, Served
from reference import Question, assert_same
from tiercel_client import InvalidInput, Recommendation, Recommender, Status
from tiercel_serving.runtime.local import LocalTransport
from tiercel_serving.settings import STATUS_NAMES

UNICODE_IDS = ["", " ", "é", "e\u0301", "誰も", "🦅", "a\x00b", "a\x00", "\u200f", "x" * 10_000]


@pytest.fixture(params=LAYOUTS)
def recommender(request: pytest.FixtureRequest, served: Served) -> Any:
    with Recommender(served.server.grpc_url, model=LAYOUTS[request.param], timeout_s=60.0) as client:
        yield client


def assert_right(served: Served, question: Question, answer: Recommendation) -> None:
    [expected] = served.reference.answer([question])
    ids, scores = [i.item_id for i in answer.items], [i.score for i in answer.items]
    assert_same(expected, ids, scores, STATUS_NAMES.index(answer.status.value))


def all_items(served: Served) -> list[Any]:
    return served.run.items[served.dataset.item_id].tolist()


def test_unknown_user_gets_popular_items_that_pass_the_filters(
    served: Served, recommender: Recommender
) -> None:
    answer = recommender.recommend(served.unknown_user)
    assert answer.status is Status.UNKNOWN
    passing = [row for row in served.reference.popular if served.reference.failed_rule[row]]
    assert [item.item_id for item in answer.items] == [all_items(served)[row] for row in passing[:10]]


def test_unknown_user_with_features_goes_through_the_models(served: Served, recommender: Recommender) -> None:
    column = next(c for c in served.release.manifest.request_columns if c.part == "user").name
    value = served.run.users[column].iloc[3]
    features = {column: value.tolist() if isinstance(value, np.generic | np.ndarray) else value}
    question = Question(served.unknown_user, features=features)
    answer = recommender.recommend(served.unknown_user, features=features)
    assert answer.status is Status.UNKNOWN_WITH_FEATURES
    assert_right(served, question, answer)


def test_unknown_user_with_a_history(served: Served, recommender: Recommender) -> None:
    history = all_items(served)[3:40]
    answer = recommender.recommend(served.unknown_user, history=history)
    assert answer.status is Status.UNKNOWN_WITH_FEATURES
    assert not {item.item_id for item in answer.items} & set(history)
    assert_right(served, Question(served.unknown_user, history=history), answer)


def test_an_empty_history_overrides_the_store(served: Served, recommender: Recommender) -> None:
    answer = recommender.recommend(served.known_user, history=[])
    assert_right(served, served.question(history=[]), answer)


def test_excluded_ids_unknown_repeated_and_thousands(served: Served, recommender: Recommender) -> None:
    first = [item.item_id for item in recommender.recommend(served.known_user).items]
    strange: list[Any] = UNICODE_IDS[:4] if isinstance(first[0], str) else [-1, 2**62, -(2**63), 0]
    exclude = (first[:5] * 500 + strange * 300)[:5_000]
    answer = recommender.recommend(served.known_user, exclude=exclude)
    assert not {item.item_id for item in answer.items} & set(exclude)
    assert_right(served, served.question(exclude=exclude), answer)


def test_what_a_user_already_had_may_come_if_the_request_allows_it(
    served: Served, recommender: Recommender
) -> None:
    user, history = served.known_user, all_items(served)[3:40]
    had = {served.reference.raw_ids[row] for row in served.reference.history[user]}
    exclude = sorted(had, key=str)[::2]
    k = served.release.settings.k_max
    again = recommender.recommend(user, k=k, allow_seen=True)
    assert {item.item_id for item in again.items} & had
    assert_right(served, served.question(k=k, allow_seen=True), again)
    assert recommender.recommend(user, k=k, allow_seen=False).items == recommender.recommend(user, k=k).items
    without = recommender.recommend(user, k=k, allow_seen=True, exclude=exclude)
    assert not {item.item_id for item in without.items} & set(exclude)
    assert_right(served, served.question(k=k, allow_seen=True, exclude=exclude), without)
    for asked in (user, served.unknown_user):
        sent = recommender.recommend(asked, k=k, allow_seen=True, history=history)
        assert_right(served, Question(asked, k=k, allow_seen=True, history=history), sent)
    # In one request, where each user has its own setting.
    users, allowed = [user, user, served.unknown_user], [True, False, True]
    answers = recommender.recommend_many(users, k=k, allow_seen=allowed)
    for asked, allow, answer in zip(users, allowed, answers, strict=True):
        assert_right(served, Question(asked, k=k, allow_seen=allow), answer)


def test_a_set_of_what_may_come(served: Served, recommender: Recommender) -> None:
    """Including a set equals excluding all other items: its best items come, however low their rank."""
    items, user = all_items(served), served.known_user
    for step in (2, 7, 40):
        include, rest = items[::step], [item for row, item in enumerate(items) if row % step]
        answer = recommender.recommend(user, include=[*include, *include[:3]])
        assert_right(served, served.question(exclude=rest), answer)
        unknown = recommender.recommend(served.unknown_user, include=include)
        assert_right(served, Question(served.unknown_user, exclude=rest), unknown)
    assert recommender.recommend(user, include=[]).items == ()
    strange: list[Any] = UNICODE_IDS[:4] if isinstance(items[0], str) else [-1, 2**62]
    assert recommender.recommend(user, include=strange).items == ()
    # In one request, where each user has its own set.
    both = recommender.recommend_many([user] * 3, include=[items[::7], None, []])
    assert_right(served, served.question(exclude=[i for row, i in enumerate(items) if row % 7]), both[0])
    assert_right(served, served.question(), both[1])
    assert both[2].items == ()


def test_a_given_list_is_ranked(served: Served, recommender: Recommender) -> None:
    items, user, k = all_items(served), served.known_user, served.release.settings.k_max
    had = {served.reference.raw_ids[row] for row in served.reference.history[user]}
    passing = [item for row, item in enumerate(items) if served.reference.failed_rule[row]]
    chosen = passing[3::17][:40]
    strange: list[Any] = UNICODE_IDS[:4] if isinstance(items[0], str) else [-1, 2**62]
    sent = [*strange, *chosen, *chosen[:5]] * 3
    answer = recommender.recommend(user, k=k, candidates=sent)
    left = {item for item in chosen if item not in had}
    assert {item.item_id for item in answer.items} == left
    again = recommender.recommend(user, k=k, candidates=chosen, allow_seen=True, exclude=chosen[:1])
    assert {item.item_id for item in again.items} == set(chosen[1:])
    many = recommender.recommend(user, k=k, candidates=(items * 40)[:10_000])
    assert len(many.items) == min(k, served.release.settings.kept)
    unknown = recommender.recommend(served.unknown_user, k=k, candidates=sent)
    assert {item.item_id for item in unknown.items} == set(chosen)
    assert recommender.recommend(user, candidates=[]).items == ()


def test_everything_excluded(served: Served, recommender: Recommender) -> None:
    answer = recommender.recommend(served.known_user, exclude=all_items(served))
    assert answer.items == ()
    assert answer.status is Status.KNOWN


def test_a_user_who_has_seen_everything(served: Served, recommender: Recommender) -> None:
    for user in (served.known_user, served.unknown_user):
        answer = recommender.recommend(user, history=all_items(served))
        assert answer.items == ()
    assert recommender.recommend(served.known_user).count == 10


def test_everything_excluded_for_an_unknown_user(served: Served, recommender: Recommender) -> None:
    answer = recommender.recommend(served.unknown_user, exclude=all_items(served))
    assert answer.items == ()


def test_k_above_what_is_left(served: Served, recommender: Recommender) -> None:
    seen = {served.reference.raw_ids[row] for row in served.reference.history[served.known_user]}
    passing = {
        item
        for row, item in enumerate(all_items(served))
        if served.reference.failed_rule[row] and item not in seen
    }
    left = set(sorted(passing, key=str)[:3])
    exclude = [item for item in all_items(served) if item not in left]
    answer = recommender.recommend(served.known_user, k=served.release.settings.k_max, exclude=exclude)
    assert {item.item_id for item in answer.items} == left
    dtype = object if isinstance(served.known_user, str) else np.int64
    raw = raw_infer(
        served.client,
        {
            "user_id": np.array([[served.known_user]], dtype),
            "exclude_item_ids": np.array([exclude], dtype=dtype),
            "k": np.array([[20]], np.int32),
        },
    )
    assert raw["count"].tolist() == [[3]]
    assert raw["item_id"].shape == (1, 20)


def test_nan_means_null(served: Served, recommender: Recommender) -> None:
    columns = [c for c in served.release.manifest.request_columns if c.part == "user" and not c.is_list]
    plain = recommender.recommend(served.known_user)
    for column in columns:
        null = float("nan") if column.dtype.startswith("float") else None
        answer = recommender.recommend(served.known_user, features={column.name: null})
        assert [i.item_id for i in answer.items] == [i.item_id for i in plain.items], column.name
        assert answer.status is Status.KNOWN


def test_ids_at_the_ends_of_what_there_is(served: Served, recommender: Recommender) -> None:
    if not isinstance(served.known_user, str):
        assert recommender.recommend(1 - 2**63).status is Status.UNKNOWN
        with pytest.raises(InvalidInput, match="stands for whoever has no id"):
            recommender.recommend(-(2**63))
        return
    answers = recommender.recommend_many(UNICODE_IDS, exclude=[UNICODE_IDS] * len(UNICODE_IDS))
    assert [answer.user_id for answer in answers] == UNICODE_IDS
    assert all(answer.status is Status.UNKNOWN and len(answer.items) == 10 for answer in answers)
    nonascii = [u for u in served.run.users[served.dataset.user_id] if not u.isascii()]
    assert nonascii
    assert recommender.recommend(nonascii[0]).status is Status.KNOWN


def test_titles_come_with_the_answer(served: Served, recommender: Recommender) -> None:
    answer = recommender.recommend(served.known_user)
    title_of = dict(zip(all_items(served), served.run.items["title"].tolist(), strict=True))
    assert [item.title for item in answer.items] == [title_of[item.item_id] for item in answer.items]


def test_explain_accounts_for_every_candidate(served: Served) -> None:
    with Recommender(served.server.grpc_url, timeout_s=60.0) as client:
        explained = client.explain(served.known_user, k=5)
        answer = client.recommend(served.known_user, k=5)
    [expected] = served.reference.answer([served.question(k=5)])
    assert len(explained.candidates) == len(expected.retrieved)
    final = [c for c in explained.candidates if c.rank is not None]
    assert [c.item_id for c in sorted(final, key=lambda c: c.rank)] == [i.item_id for i in answer.items]
    assert set(explained.times_us) == set(served.release.stages) - {"describe_items"}
    assert all(time > 0 for time in explained.times_us.values())


def test_why_over_the_wire_is_why_in_process(served: Served) -> None:
    items = all_items(served)
    asked: list[dict[str, Any]] = [
        {},
        {"exclude": items[:40], "allow_seen": True},
        {"include": items[::3]},
        {"candidates": items[:150]},
        {"history": items[20:24]},
    ]
    local, stages = Recommender(transport=LocalTransport(served.release), timeout_s=60.0), set()
    with local, Recommender(served.server.grpc_url, timeout_s=60.0) as client:
        for user in (served.known_user, served.unknown_user):
            for number, request in enumerate(asked):
                for item in items[number :: len(items) // 4]:
                    why = client.why(user, item, k=5, **request)
                    assert why == local.why(user, item, k=5, **request)
                    stages.add(why.stage)
    assert {"retrieval", "filtering", "ordering", "answer"} >= stages > {"retrieval"}
