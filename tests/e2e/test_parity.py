"""The served model equals the trained one: 200 users, batches of 1 and 64, 8 callers, both layouts."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from e2e.served import LAYOUTS, Served
from reference import Expected, Question, assert_same
from tiercel_client import Recommendation, Recommender
from tiercel_serving.settings import STATUS_NAMES

USERS = 200


def variety(served: Served, count: int = USERS) -> list[Question]:
    """Return requests of every kind, mostly of known users."""
    rng = np.random.default_rng(3)
    users = served.run.users
    items = served.run.items[served.dataset.item_id].tolist()
    known = users[served.dataset.user_id].tolist()
    columns = [c for c in served.release.manifest.request_columns if c.part == "user"]
    context = [c.name for c in served.release.manifest.request_columns if c.part == "context"]
    questions = []
    for number in range(count):
        kind = number % 5
        user: Any = known[int(rng.integers(len(known)))]
        changes: dict[str, Any] = {}
        features: dict[str, Any] = {}
        if kind == 1:  # a value sent overrides the store
            column = columns[int(rng.integers(len(columns)))].name
            features[column] = plain(users[column].iloc[int(rng.integers(len(users)))])
        if kind == 2:  # exclusions, some unknown and some twice, and its own history
            changes["exclude"] = [items[int(i)] for i in rng.integers(len(items), size=20)] * 2
            changes["history"] = [items[int(i)] for i in rng.choice(len(items), size=30, replace=False)]
        if kind == 3:  # anonymous with features
            user = f"new-{number}-é" if isinstance(user, str) else 10_000_000 + number
            for column in columns[: 1 + int(rng.integers(len(columns)))]:
                features[column.name] = plain(users[column.name].iloc[int(rng.integers(len(users)))])
        if kind == 4 and number % 2:  # an unknown user without features
            user = f"nobody-{number}" if isinstance(user, str) else 20_000_000 + number
        for name in context:
            if rng.random() < 0.7:
                values = served.run.train[name]
                features[name] = plain(values.iloc[int(rng.integers(len(values)))])
        k = int(rng.integers(1, served.release.settings.k_max + 1)) if number % 3 == 0 else None
        questions.append(Question(user, k=k, features=features, **changes))
    return questions


def plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else value


def ask(recommender: Recommender, questions: Sequence[Question]) -> list[Recommendation]:
    """Send one request for several users, each with its own k, exclusions, history and features."""
    names = {name for question in questions for name in question.features}
    return recommender.recommend_many(
        [question.user_id for question in questions],
        k=[question.k for question in questions],
        exclude=[question.exclude for question in questions],
        history=[question.history for question in questions],
        features={name: [question.features.get(name) for question in questions] for name in sorted(names)},
        timeout_s=60.0,
    )


def assert_answers(expected: Sequence[Expected], answers: Sequence[Recommendation]) -> None:
    identical = [
        assert_same(
            want,
            [item.item_id for item in answer.items],
            [item.score for item in answer.items],
            STATUS_NAMES.index(answer.status.value),
        )
        for want, answer in zip(expected, answers, strict=True)
    ]
    # Ties within 1e-5 may swap; nearly all answers have none.
    assert np.mean(identical) > 0.9


@pytest.fixture(scope="module")
def questions(served: Served) -> list[Question]:
    return variety(served)


@pytest.fixture(scope="module")
def expected(served: Served, questions: list[Question]) -> list[Expected]:
    return served.reference.answer(questions)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("batch", [1, 64])
def test_served_equals_the_offline_reference(
    served: Served, questions: list[Question], expected: list[Expected], layout: str, batch: int
) -> None:
    with Recommender(served.server.grpc_url, model=LAYOUTS[layout]) as recommender:
        parts = [questions[at : at + batch] for at in range(0, len(questions), batch)]
        answers = [answer for part in parts for answer in ask(recommender, part)]
    assert_answers(expected, answers)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_eight_callers_at_once(
    served: Served, questions: list[Question], expected: list[Expected], layout: str
) -> None:
    with Recommender(served.server.grpc_url, model=LAYOUTS[layout]) as recommender:
        with ThreadPoolExecutor(8) as pool:
            answers = [one for [one] in pool.map(lambda question: ask(recommender, [question]), questions)]
    assert_answers(expected, answers)


def test_both_layouts_give_identical_results(served: Served, questions: list[Question]) -> None:
    """Exactly equal: the same stages on the same batch give the same bits."""
    with (
        Recommender(served.server.grpc_url, model=LAYOUTS["fused"]) as fused,
        Recommender(served.server.grpc_url, model=LAYOUTS["staged"]) as staged,
    ):
        for at in range(0, len(questions), 50):
            part = questions[at : at + 50]
            assert [a.items for a in ask(fused, part)] == [a.items for a in ask(staged, part)]
