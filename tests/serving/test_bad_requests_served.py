"""Odd requests to a real Triton: each invalid one is refused alone, and the rest of its batch is answered."""

from __future__ import annotations

from collections.abc import Iterator
from threading import Event
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from tiny_release import Tiny, make_tiny
from tritonclient.utils import InferenceServerException

from brief_server import brief_server
from e2e.raw import ANSWER, raw_infer, raw_request
from tiercel_serving import backend
from tiercel_serving.reorder.cap import Cap
from tiercel_serving.reorder.gumbel_top_k import GumbelTopK
from tiercel_serving.reorder.mmr import MMR
from tiercel_serving.reorder.per_request import PerRequest
from tiercel_serving.reorder.pin_items import PinItems
from tiercel_serving.repository.graph import render_repository
from tiercel_serving.rules.compare import Compare

STEPS = (
    MMR(source="near", strength=PerRequest("diversity", 0.25, 0.0, 0.5)),
    Cap("genres", PerRequest("most", 5.0, 1.0, 9.0, whole=True)),
    GumbelTopK(PerRequest("temperature", 0.1, 0.05, 2.0)),
    PinItems("label", ("Film № 2", "Film № 21", "Film № 7")),
)
SETTINGS = {
    "max_excluded": 10_000,
    "rules": (Compare("recent", "year", ">=", 1995),),
    "reorder": STEPS,
    # Long enough for requests sent together to run in one batch.
    "queue_delay_us": 50_000,
}
MODELS = ("recommend", "recommend_staged")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return make_tiny(tmp_path_factory.mktemp("odd") / "release", most_seen=0, settings=SETTINGS)


@pytest.fixture(scope="module")
def client(
    tiny: Tiny, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[grpcclient.InferenceServerClient]:
    repository = tmp_path_factory.mktemp("repository")
    runner = "tiercel" if backend.library() else "python"
    render_repository(tiny.release, repository, "fused", runner=runner)
    render_repository(tiny.release, repository, "staged", suffix="_staged", runner=runner)
    with brief_server(repository) as server:
        yield grpcclient.InferenceServerClient(server.grpc_url)


def one(value: Any, dtype: Any = np.float64) -> np.ndarray:
    return np.array([[value]], dtype)


def ids(values: Any, length: int | None = None, name: str = "candidate_item_ids") -> dict[str, np.ndarray]:
    sent = np.array([values], np.int64)
    return {name: sent, f"{name}__length": one(sent.shape[1] if length is None else length, np.int32)}


#: Inputs sent in addition to the user → expected words of the error.
REFUSED: dict[str, tuple[dict[str, np.ndarray], str]] = {
    **{
        f"{name} {value}": (
            {name: one(value)},
            f"{name}: expected {what} from {low} to {high} (the recipe's limits), got {value:g}; send one",
        )
        for name, what, low, high, values in (
            ("diversity", "a number", "0", "0.5", (0.51, -1e-9, np.inf, -np.inf)),
            ("temperature", "a number", "0.05", "2", (0.0, -0.0, -1.0, 1e-300, np.inf)),
            ("most", "a whole number", "1", "9", (0.0, 1.5, -3.0, 10.0)),
            ("seed", "a whole number", "0", "9.0072e+15", (-1.0, 0.5, 2.0**60)),
        )
        for value in values
    },
    "a strength in float32": ({"diversity": one(0.3, np.float32)}, "diversity"),
    "a strength as text": ({"diversity": one(b"0.3", np.object_)}, "diversity"),
    "a strength without users": ({"diversity": np.array([0.3])}, "diversity"),
    "two strengths of one user": ({"diversity": np.array([[0.3, 0.3]])}, "diversity"),
    "a seed in whole numbers": ({"seed": one(3, np.int64)}, "seed"),
    "candidates in int32": ({"candidate_item_ids": np.array([[1, 2]], np.int32)}, "candidate_item_ids"),
    "candidates as text": ({"candidate_item_ids": one(b"1", np.object_)}, "candidate_item_ids"),
    "candidates of no user": ({"candidate_item_ids": np.array([1, 2])}, "batch size"),
    "too many candidates": (ids([1] * 10_001), "candidate_item_ids may hold 10000 ids at most, got 10001"),
    "more than there are": (ids([1, 2], 3), "candidate_item_ids__length"),
    "a length below null": (ids([1, 2], -2), "candidate_item_ids__length"),
    "a length as a float": (
        ids([1]) | {"candidate_item_ids__length": one(1.0)},
        "candidate_item_ids__length",
    ),
    "too many to choose from": (ids([1] * 10_001, name="include_item_ids"), "include_item_ids may hold"),
    "a length without a list": ({"include_item_ids__length": one(2, np.int32)}, "include_item_ids"),
    "a number that no step has": ({"strength": one(0.3)}, "strength"),
}


def asked(tiny: Tiny, more: dict[str, np.ndarray], user: int = 2) -> dict[str, np.ndarray]:
    return {"user_id": one(tiny.user_ids[user], np.int64), "k": one(8, np.int32), **more}


@pytest.mark.parametrize("model", MODELS)
def test_each_is_refused_in_words(tiny: Tiny, client: Any, model: str) -> None:
    for case, (more, words) in REFUSED.items():
        with pytest.raises(InferenceServerException) as refused:
            raw_infer(client, asked(tiny, more), model=model)
        assert refused.value.status() == "StatusCode.INVALID_ARGUMENT", (case, refused.value)
        assert words in refused.value.message(), case


@pytest.mark.parametrize("model", MODELS)
def test_all_at_once_harm_no_neighbour(tiny: Tiny, client: Any, model: str) -> None:
    good = {user: raw_infer(client, asked(tiny, {}, user), model=model) for user in range(len(tiny.user_ids))}
    # The second user has seen every item.
    assert [user for user, answer in good.items() if not answer["count"].item()] == [1]
    found: list[Any] = [None] * (2 * len(REFUSED))
    left = [len(found)]
    done = Event()

    def take(place: int) -> Any:
        def call(result: Any, error: Any) -> None:
            found[place] = error if result is None else {name: result.as_numpy(name) for name in ANSWER}
            left[0] -= 1
            if not left[0]:
                done.set()

        return call

    for place, (more, _) in enumerate(REFUSED.values()):
        for own, inputs in enumerate((asked(tiny, more), asked(tiny, {}, place % len(good)))):
            tensors, wanted = raw_request(inputs)
            client.async_infer(model, tensors, take(2 * place + own), outputs=wanted)
    assert done.wait(60)
    for place, (case, (_, words)) in enumerate(REFUSED.items()):
        refused, answer = found[2 * place], found[2 * place + 1]
        assert words in str(refused), case
        for name in ANSWER:
            np.testing.assert_array_equal(answer[name], good[place % len(good)][name], case)


@pytest.mark.parametrize("model", MODELS)
def test_odd_ones_that_mean_something_are_answered(tiny: Tiny, client: Any, model: str) -> None:
    def ask(more: dict[str, np.ndarray]) -> list[int]:
        answer = raw_infer(client, asked(tiny, more), model=model)
        return [int(item) for item in answer["item_id"][0, : answer["count"].item()]]

    plain = ask({})
    assert plain == ask({name: one(np.nan) for name in ("diversity", "most", "temperature", "seed")})
    assert plain == ask({"seed": one(np.nan), "temperature": one(2.0)})
    assert sorted(ask({"seed": one(2.0**53)})) == sorted(set(ask({"seed": one(-0.0)})))
    known = tiny.item_ids[4:20]
    own = ask(ids(known))
    assert own
    assert set(own) <= set(known)
    assert own == ask(ids([*known, *range(10**6, 10**6 + 5_000), *known * 311][:10_000]))
    assert ask(ids([2**63 - 1, -(2**63), 0, -1])) == []
    # Film 2 fails the rule and film 21 is not a candidate, so the third pin comes first.
    pinned = tiny.item_ids[7]
    assert ask(ids([*tiny.item_ids[:12]]))[0] == pinned
    without = ask({**ids([*tiny.item_ids[:12]]), **ids([pinned], name="exclude_item_ids")})
    assert without
    assert pinned not in without
