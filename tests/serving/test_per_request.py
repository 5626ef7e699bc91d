"""Numbers of reorder steps that requests set: how they travel, their defaults, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from tiny_release import Tiny, make_tiny

from tiercel_serving.errors import InvalidRequest
from tiercel_serving.reorder.cap import Cap
from tiercel_serving.reorder.epsilon_slot import EpsilonSlot
from tiercel_serving.reorder.freshness import Freshness
from tiercel_serving.reorder.gumbel_top_k import GumbelTopK
from tiercel_serving.reorder.inputs import source_columns
from tiercel_serving.reorder.mmr import MMR
from tiercel_serving.reorder.per_request import PerRequest
from tiercel_serving.reorder.popularity_correction import PopularityCorrection
from tiercel_serving.repository.graph import client_parameters
from tiercel_serving.runtime.chain import Chain
from tiercel_serving.settings import ServingSettings
from tiercel_serving.sources.index import Index
from tiercel_serving.sources.popular import Popular
from tiercel_serving.verify import reference

DIVERSITY = PerRequest("diversity", 0.25, 0.0, 0.5)
STEPS = (
    Freshness("year", 4.0),
    PopularityCorrection(source="popular"),
    MMR(source="near", strength=DIVERSITY),
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return make_tiny(tmp_path_factory.mktemp("set") / "release", seed=21, settings={"reorder": STEPS})


@pytest.fixture(scope="module")
def chain(tiny: Tiny) -> Chain:
    return Chain.open(tiny.release)


def ask(tiny: Tiny, **numbers: list[float]) -> dict[str, np.ndarray]:
    users = np.array([[user] for user in tiny.user_ids[2:6]])
    arrays = {"user_id": users, "k": np.full((4, 1), 8, np.int32)}
    return arrays | {name: np.array(values)[:, None] for name, values in numbers.items()}


def test_each_user_is_answered_by_the_own_number_and_else_by_the_default(tiny: Tiny, chain: Chain) -> None:
    sent = {"diversity": [0.5, np.nan, 0.0, 0.25], "now": [2000.0, np.nan, 1990.0, 2020.0]}
    asked = ask(tiny, **sent)
    chain.check(asked)
    out, _ = chain.run(asked)
    items = tiny.release.items
    columns = items.columns(["year"], pad=True)
    columns |= source_columns(
        STEPS, lambda name: tiny.release.artefact(f"source_{name}", "source").arrays, items.size
    )
    item_of = reference.plain_items(columns)
    for user in range(4):
        rows, scores = out["kept_row"][user].tolist(), out["kept_score"][user].tolist()
        kept = [
            reference.Candidate(row, s, 1) for row, s in zip(rows, scores, strict=True) if row < items.size
        ]
        served = items.lookup.find(out["item_id"][user, : out["count"][user, 0]]).tolist()
        told = {name: values[user] for name, values in sent.items()} | {"served": served}
        tasks = out["rank_score"][user, : len(kept)].tolist()
        ordered = reference.order(tiny.settings, item_of, kept, tasks, user=told)
        assert [row for row, _ in ordered] == served
        np.testing.assert_array_equal([s for _, s in ordered], out["score"][user, : len(served)])
    alone, _ = chain.run({name: array[[1]] for name, array in ask(tiny).items()})
    assert alone["item_id"].tolist() == out["item_id"][[1]].tolist(), "nothing sent is the default"


def test_fewer_items_are_the_first_of_more(tiny: Tiny, chain: Chain) -> None:
    many, _ = chain.run(ask(tiny))
    few, _ = chain.run({**ask(tiny), "k": np.array([[3], [1], [3], [2]], np.int32)})
    for user, count in enumerate([3, 1, 3, 2]):
        assert few["item_id"][user, :count].tolist() == many["item_id"][user, :count].tolist()
        assert few["score"][user, :count].tolist() == many["score"][user, :count].tolist()


@pytest.mark.parametrize("value", [0.51, -0.1, np.inf])
def test_beyond_the_limits_is_refused_on_arrival(tiny: Tiny, value: float) -> None:
    first = Chain.open(tiny.release, ["user_features"])
    with pytest.raises(InvalidRequest, match=r"diversity: expected a number from 0 to 0.5 .*got"):
        first.check({"user_id": np.array([[1]]), "diversity": np.array([[value]])})


def test_a_whole_number_is_asked_for() -> None:
    seed = PerRequest("seed", None, 0, 2.0**53, whole=True)
    seed.check({"seed": np.array([[3.0], [np.nan]])})
    with pytest.raises(InvalidRequest, match=r"seed: expected a whole number .*got 2.5"):
        seed.check({"seed": np.array([[2.5], [np.nan]])})


def test_clients_are_told_of_them_as_of_columns(tiny: Tiny) -> None:
    told = {
        column["name"]: column for column in json.loads(client_parameters(tiny.release)["request_columns"])
    }
    assert told["diversity"] | {"tensor": "diversity"} == told["diversity"]
    assert (told["diversity"]["dtype"], told["diversity"]["part"]) == ("float64", "ordering")
    ordering = {spec.name: spec for spec in tiny.release.stages["ordering"].inputs}
    assert ordering["diversity"].optional
    assert {"diversity", "now"} <= {spec.name for spec in tiny.release.stages["user_features"].inputs}


def test_a_recipe_without_such_steps_has_no_such_tensors(plain: Tiny) -> None:
    told = [column["part"] for column in json.loads(client_parameters(plain.release)["request_columns"])]
    assert "ordering" not in told
    names = [spec.name for spec in plain.release.stages["ordering"].inputs]
    assert names == ["kept_row", "kept_score", "rank_score", "status", "k"]


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (PerRequest("d", 0.7, 0.0, 0.5), "default: 0.7 is outside of its own limits"),
        (PerRequest("d", 0.5, 0.0, 1.5), "high: expected a number of at least 0 and at most 1"),
        (PerRequest("d", 0.5, 0.6, 0.5), "low: 0.6 is above high"),
        (PerRequest("no name", 0.5), "name: 'no name' cannot name a tensor"),
        (PerRequest("d"), "strength.default: a request that says nothing would leave the step without a"),
        (PerRequest("d", 0.5, 0.0, np.inf), "high: expected a number of at least 0 and at most 1, got inf"),
        (1.2, "strength: expected a number of at least 0 and at most 1, got 1.2"),
        ("much", "strength: "),
    ],
)
def test_numbers_that_make_no_sense(number: PerRequest | float, said: str) -> None:
    wrong = MMR(source="near", strength=number).problems()
    assert wrong
    assert said in str(wrong[0])


@pytest.mark.parametrize(
    ("step", "said"),
    [
        (Cap("a", PerRequest("most", 2, 1, np.inf, whole=True)), "most.high: expected a whole number of at"),
        (
            Cap("a", PerRequest("most", 2.5, 1, 9, whole=True)),
            "most.default: expected a whole number",
        ),
        (GumbelTopK(np.inf), "temperature: expected a number above 0, got inf"),
        (GumbelTopK(seed=PerRequest("seed", None, 0, 9)), "seed.whole: 'seed' may be any number"),
        (EpsilonSlot(seed=PerRequest("seed", None, -9, 9, whole=True)), "seed.low: expected a whole number"),
    ],
)
def test_whole_numbers_temperatures_and_seeds_that_make_no_sense(step: Any, said: str) -> None:
    assert [str(problem) for problem in step.problems() if str(problem).startswith(said)]


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ((MMR(source="far"),), r"reorder[0].source: there is no source 'far'"),
        (
            (MMR(source="popular"),),
            r"reorder[0].source: the source 'popular' has scores for each item, not v",
        ),
        ((MMR(),), "reorder[0].column: expected a source or a column"),
        (
            (MMR(column="a", strength=DIVERSITY), MMR(column="b", strength=PerRequest("diversity", 0.1))),
            "reorder[1].strength: another step's 'diversity' has other limits",
        ),
    ],
)
def test_settings_of_steps_that_do_not_fit_together(steps: tuple[MMR, ...], said: str) -> None:
    settings = ServingSettings(sources=(Index("near"), Popular(quota=0)), reorder=steps)
    assert any(str(problem).startswith(said) for problem in settings.problems()), settings.problems()
