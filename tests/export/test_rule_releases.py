"""Releases with rules by expression: their request columns are inferred, applied and verified."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from time import time
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pytest
from small_release import SETTINGS, Parts, small_release

from brief_server import brief_server

pytest.importorskip("nvtabular")

from tiercel_client import ANONYMOUS, InvalidInput, Recommender, RequestRefused
from tiercel_export.errors import ExportInputError
from tiercel_serving.release.opened import Release
from tiercel_serving.reorder.per_request import PerRequest
from tiercel_serving.repository.graph import render_repository
from tiercel_serving.rules.compare import Compare
from tiercel_serving.rules.expression import Expression
from tiercel_serving.runtime.chain import Chain
from tiercel_serving.settings import ServingSettings
from tiercel_serving.stages.retrieval import Retrieval

DAY_S = 86_400
BEGUN_S = time()

RULES = (
    Compare("in stock", column="stock", operator=">", value=0),
    Expression("wanted", "item.price <= request.most and any(item.tags, request.tags)"),
    Expression("shipped", "item.kind not in ('gift',) and (item.kind != 'tool' or user.country == 'NL')"),
    Expression("valid", "item.until > now or item.until is None"),
    Expression("grown up", "user.vip or item.kind != 'toy'"),
    Expression("own", "item.maker != user.user_id"),
)


def ruled(parts: Parts) -> dict[str, Any]:
    """Return arguments of a release whose rules read columns that no model reads."""
    settings = msgspec.structs.replace(
        SETTINGS,
        rules=RULES,
        related=("towers",),
        seen_again_days=PerRequest("again_days", 30.0, 0.0, 90.0),
    )
    random = np.random.default_rng(4)
    until = pd.Series(pd.to_datetime(random.integers(0, 100, len(parts.items)), unit="D"))
    items = parts.items.assign(until=until.where(random.random(len(until)) < 0.8), maker=1000)
    items["maker"] = random.choice(parts.users["user_id"], len(items))
    users = parts.users.assign(vip=parts.users.age % 2 == 0)
    # Half a day away from every boundary that a test uses.
    ago_s = DAY_S * (random.integers(0, 60, len(parts.interactions)) + 0.5)
    events = parts.interactions.assign(timestamp=BEGUN_S - ago_s)
    return {"settings": settings, "items": items, "users": users, "interactions": events}


@pytest.fixture(scope="module")
def release(parts: Parts, tmp_path_factory: pytest.TempPathFactory) -> Release:
    return small_release(tmp_path_factory.mktemp("ruled") / "r", parts, **ruled(parts))


def right(parts: Parts, user: int, *, most: Any = None, tags: Any = None, now: float) -> set[int]:
    """Return the items that pass the rules, in plain Python."""
    given = ruled(parts)
    known = given["users"].set_index("user_id")
    person = known.loc[user] if user in known.index else {"country": None, "vip": None}
    passing = set()
    for item in given["items"].to_dict("records"):
        until = item["until"]
        checks = (
            item["stock"] > 0,
            most is None or item["price"] <= most,
            tags is None or bool(set(item["tags"]) & set(tags)),
            item["kind"] != "gift",
            item["kind"] != "tool" or person["country"] == "NL",
            pd.isna(until) or until.timestamp() > now,
            bool(person["vip"]) or item["kind"] != "toy",
            item["maker"] != user,
        )
        if all(checks):
            passing.add(item["item_id"])
    return passing


def test_what_requests_bring_is_in_the_manifest(release: Release) -> None:
    columns = {column.name: column for column in release.manifest.request_columns}
    assert {name for name, column in columns.items() if column.of_rules} == {"most", "tags", "vip"}
    assert (columns["most"].dtype, columns["most"].part, columns["most"].companion) == (
        "float64",
        "context",
        None,
    )
    assert (columns["tags"].dtype, columns["tags"].is_list) == ("bytes", True)
    assert (columns["vip"].dtype, columns["vip"].part) == ("bool", "user")
    names = {spec.name: {tensor.name for tensor in spec.inputs} for spec in release.stages.values()}
    assert {"most", "tags", "now"} <= names["retrieval"]
    assert {"again_days", "now"} <= names["retrieval"] & names["user_features"]
    # Only the first stage reads users; it passes their sent or stored values on to the rules.
    assert {"vip", "country"} <= names["user_features"]
    assert not {"vip", "country"} & names["retrieval"]
    assert not {"most", "tags"} & names["user_features"]


@pytest.fixture(scope="module", params=["fused", "staged"])
def recommender(release: Release, server: str, request: pytest.FixtureRequest) -> Iterator[Recommender]:
    model = {"fused": "recommend", "staged": "recommend_staged"}[request.param]
    with Recommender(server, model=model, timeout_s=60.0) as client:
        yield client


@pytest.fixture(scope="module")
def server(release: Release, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    repository = tmp_path_factory.mktemp("repository")
    render_repository(release, repository, "fused")
    render_repository(release, repository, "staged", suffix="_staged")
    with brief_server(repository) as running:
        yield running.grpc_url


def test_rules_are_obeyed_before_the_search(parts: Parts, recommender: Recommender) -> None:
    users = [*parts.users["user_id"].tolist()[:8], 5]
    cases: list[dict[str, Any]] = [{"now": 50 * DAY_S}, {"now": 20 * DAY_S, "most": 30.0}]
    cases += [{"now": 0.0, "tags": ["a", "q"]}, {"now": 99 * DAY_S, "most": 60.0, "tags": ["b", "c"]}]
    for case in cases:
        features = {name: [value] * len(users) for name, value in case.items()}
        answers = recommender.recommend_many(users, k=12, features=features, allow_seen=True)
        for user, answer in zip(users, answers, strict=True):
            passing = right(parts, user, **case)
            assert set(answer.item_ids) <= passing
            assert answer.count == min(12, len(passing)), (user, case)


def test_what_was_had_comes_again_after_some_days(parts: Parts, recommender: Recommender) -> None:
    had = ruled(parts)["interactions"].groupby(["user_id", "item_id"])["timestamp"].max()
    often = had.groupby("user_id").size().sort_values().index[-4:]
    come = 0
    for user in often.tolist():
        mine = had[user].head(12)
        for days in (None, 0, 10, 45):
            # The rules depend on the time too, so compare them at the same moment.
            features = {"now": BEGUN_S} | ({} if days is None else {"again_days": days})
            answer = recommender.recommend(user, k=12, include=mine.index.tolist(), features=features)
            until = BEGUN_S - DAY_S * (30 if days is None else days)
            wanted = set(mine[mine < until].index) & right(parts, user, now=BEGUN_S)
            assert set(answer.item_ids) == wanted, (user, days)
            come += len(wanted)
    assert come
    with pytest.raises(RequestRefused, match=r"again_days: expected a number from 0 to 90"):
        recommender.recommend(int(often[0]), features={"again_days": 91})


def test_what_is_sent_of_a_user_overrides_the_store(parts: Parts, recommender: Recommender) -> None:
    def come(**features: Any) -> set[str]:
        """Return the kinds with any recommended item, each requested separately."""
        found = set()
        for kind, items in parts.items.groupby("kind")["item_id"]:
            sent = {"now": 0, **features}
            if recommender.recommend(ANONYMOUS, features=sent, include=items.tolist()).count:
                found.add(kind)
        return found

    assert come() == {"book"}, "what nobody knows of a user passes no rule"
    assert come(country="NL", vip=True) == {"book", "tool", "toy"}
    assert come(country="DE", vip=False) == {"book"}


def test_why_an_item_does_not_come(parts: Parts, recommender: Recommender) -> None:
    user, now = int(parts.users["user_id"].iloc[3]), 50.0 * DAY_S
    passing, features = right(parts, user, now=now), {"now": now}
    answer = recommender.recommend(user, features=features, allow_seen=True)
    stock = dict(zip(parts.items["item_id"], parts.items["stock"], strict=True))
    for item in parts.items["item_id"].tolist()[::3]:
        why = recommender.why(user, item, features=features, allow_seen=True)
        assert (why.stage == "answer") == (item in answer.item_ids)
        assert (why.stage == "retrieval") == (item not in passing), why
        if not stock[item]:
            assert (why.reason, why.seen) == ("in stock: not stock > 0", {"item.stock": 0})
            assert why.needed == "other values: item.stock is 0"


def test_similar_items(release: Release, parts: Parts, recommender: Recommender) -> None:
    arrays = release.artefact("source_towers", "source").arrays
    vectors, rows = np.asarray(arrays["vectors"], np.float64), np.asarray(arrays["rows"])
    ids = parts.items["item_id"].to_numpy()[rows]
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    for places in ([2], [3, 5, 8]):
        mean = unit[places].sum(axis=0)
        cosine = unit @ (mean / np.linalg.norm(mean))
        given = ids[places].tolist()
        want = [i for i in np.argsort(-cosine, kind="stable") if ids[i] not in given]
        found = recommender.related(given, k=6)
        assert [one.item_id for one in found] == ids[want[:6]].tolist()
        np.testing.assert_allclose([one.score for one in found], cosine[want[:6]], rtol=1e-5, atol=1e-6)
        assert all(one.title for one in found)
        without = recommender.related(given, k=5, exclude=[found[0].item_id])
        assert [one.item_id for one in without] == ids[want[1:6]].tolist()
    gift = int(parts.items["item_id"][parts.items["kind"] == "gift"].iloc[0])
    assert recommender.related([gift, -7], k=3) == (), "what rules leave out is in no source"
    with pytest.raises(InvalidInput, match="item_ids: expected 1 to 50"):
        recommender.related([])


def test_the_clock_is_injected(release: Release, parts: Parts) -> None:
    chain = Chain.open(release)
    place = next(n for n, stage in enumerate(chain.stages) if stage.spec.name == "retrieval")
    user = int(parts.users["user_id"].iloc[3])
    for now in (0.0, 60.0 * DAY_S):
        stages = list(chain.stages)
        stages[place] = Retrieval("retrieval", release, clock=lambda now=now: now)
        out, _ = Chain(stages).run({"user_id": np.array([[user]]), "allow_seen": np.array([[True]])})
        rows = out["retrieved_row"][0]
        ids = {release.items.ids(rows[rows < 60])[n] for n in range(np.count_nonzero(rows < 60))}
        assert ids == right(parts, user, now=now) or len(ids) == 24


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("item.price > 'x'", r"settings\.rules\[0\]\.expression: item\.price holds numbers, and 'x' text"),
        ("item.price > request.age", r"'age' is a column of the users; write user\.age"),
        ("item.kind == request.device and request.device > 3", r"request\.device holds text, and 3 numbers"),
    ],
)
def test_rules_that_do_not_fit_are_refused(parts: Parts, tmp_path: Path, expression: str, said: str) -> None:
    settings: ServingSettings = msgspec.structs.replace(SETTINGS, rules=(Expression("r", expression),))
    with pytest.raises(ExportInputError, match=said):
        small_release(tmp_path / "r", parts, settings=settings)
