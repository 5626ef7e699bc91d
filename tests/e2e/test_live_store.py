"""A write while a real Triton serves takes effect in the next answer, in both layouts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest

from brief_server import brief_server
from e2e.served import LAYOUTS, RUNNERS, Served
from tiercel_client import Recommender, Status
from tiercel_pipelines.export.run_export import export_run
from tiercel_pipelines.recipe import replace
from tiercel_pipelines.training import TrainedRun
from tiercel_serving.live_items.store import ItemStore
from tiercel_serving.live_items.watch import EVERY_S
from tiercel_serving.release.opened import Release
from tiercel_serving.repository.graph import render_repository
from tiercel_serving.runtime.local import LocalTransport
from tiercel_serving.stores.embedded import Embedded
from tiercel_serving.stores.feature_store import FeatureStore
from waiting import wait_until


@pytest.fixture(params=LAYOUTS)
def recommender(request: pytest.FixtureRequest, served: Served) -> Iterator[Recommender]:
    with Recommender(served.server.grpc_url, model=LAYOUTS[request.param], timeout_s=60.0) as client:
        yield client


@pytest.fixture
def store(served: Served) -> Iterator[FeatureStore]:
    store = FeatureStore.open(served.release)
    yield store
    for line in list(store.export()):
        store.remove(line.user_id)


def plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def row(served: Served, at: int, columns: list[str]) -> dict[str, Any]:
    """Return another user's values, without nulls."""
    values = {name: plain(served.run.users[name].iloc[at]) for name in columns}
    return {name: value for name, value in values.items() if value == value and value is not None}


# Other tests compare answers with sent values to the reference.


def test_a_view_counts_in_the_next_answer(
    served: Served, recommender: Recommender, store: FeatureStore
) -> None:
    user = served.known_user
    before = recommender.recommend(user)
    history = [plain(served.reference.raw_ids[row]) for row in served.reference.history[user]]
    waits = []
    for _ in range(4):
        [item] = [one.item_id for one in recommender.recommend(user, k=1).items]
        begun = time.perf_counter()
        store.append(user, [item])
        answer = recommender.recommend(user)
        waits.append(time.perf_counter() - begun)
        assert item not in {one.item_id for one in answer.items}
        history.append(item)
        assert recommender.recommend(user, history=history).items == answer.items
    # Time of the write and the whole request; the minimum, as a busy machine may pause.
    assert min(waits) < 0.05
    store.remove(user)
    assert recommender.recommend(user, history=history).items == answer.items
    assert recommender.recommend(user).items == before.items


def test_values_count_in_the_next_answer_and_a_request_overrides_them(
    served: Served, recommender: Recommender, store: FeatureStore
) -> None:
    user = served.known_user
    columns = [c.name for c in served.release.manifest.request_columns if c.part == "user"]
    values, own = row(served, 3, columns), row(served, 11, columns[1:])
    sent = recommender.recommend(user, features=values)
    both = recommender.recommend(user, features={**values, **own})
    assert recommender.recommend(user).items != sent.items
    store.put(user, values)
    assert recommender.recommend(user).items == sent.items
    assert recommender.recommend(user, features=own).items == both.items


def test_a_new_user_is_known_from_the_first_write_on(
    served: Served, recommender: Recommender, store: FeatureStore
) -> None:
    user = served.unknown_user
    assert recommender.recommend(user).status is Status.UNKNOWN
    history = served.run.items[served.dataset.item_id].tolist()[3:9]
    store.append(user, history)
    answer = recommender.recommend(user)
    assert answer.status is Status.KNOWN
    assert not {one.item_id for one in answer.items} & set(history)
    sent = recommender.recommend(user, history=history)
    assert [one.item_id for one in sent.items] == [one.item_id for one in answer.items]


def test_users_without_their_live_values_are_counted(served: Served, recommender: Recommender) -> None:
    recommender.recommend(served.known_user)

    def told() -> str:
        return httpx.get(served.server.metrics_url).text

    time.sleep(1.6)
    wait_until(lambda: "tiercel_store_fallbacks_total{" in told())
    text = told()
    assert all(
        line.endswith(" 0") for line in text.splitlines() if line.startswith("tiercel_store_fallbacks")
    )


def test_a_withdrawn_item_comes_no_more_until_it_is_put_again(
    served: Served, recommender: Recommender
) -> None:
    def first_two() -> list[Any]:
        return [one.item_id for one in recommender.recommend(user, k=2).items]

    def wait_for(condition: Callable[[], bool]) -> None:
        # Each model sees a change on its own, and may see only the first of two writes.
        while not condition() and time.monotonic() < until:
            time.sleep(EVERY_S)

    user, items = served.known_user, ItemStore.open(served.release)
    until = time.monotonic() + 60  # generous, as the machine may be shared
    opened = Release(served.release.path, served.release.manifest, served.release.store_kind)
    with Recommender(transport=LocalTransport(opened)) as here:
        gone = [one.item_id for one in here.recommend(user, k=2).items]
    # The other layout's test may have put items again that this layout's models have not seen yet.
    wait_for(lambda: first_two() == gone)
    items.withdraw(gone)
    try:
        wait_for(lambda: not set(gone) & set(first_two()))
        assert not set(gone) & {one.item_id for one in recommender.recommend(user).items}
        listed = recommender.recommend(user, candidates=[*gone, plain(served.reference.raw_ids[3])])
        assert not set(gone) & {one.item_id for one in listed.items}
        assert recommender.why(user, gone[0]).reason == "it was withdrawn"
    finally:
        for item in gone:
            items.put(item)
    wait_for(lambda: first_two() == gone)
    assert first_two() == gone


@pytest.mark.slow
@pytest.mark.parametrize("served", ["synthetic"], indirect=True)
def test_new_items_live_in_two_instances_of_both_layouts(served: Served, tmp_path: Path) -> None:
    record, serving = served.run.record, replace(served.recipe.serving, added_items=2, instances=2)
    record = msgspec.structs.replace(record, recipe=replace(record.recipe, serving=serving))
    made = export_run(TrainedRun(served.run.path, record), tmp_path / "release")
    release = Release(made.path, made.manifest, Embedded(path=str(tmp_path / "store")))
    for layout, suffix in (("fused", ""), ("staged", "_staged")):
        render_repository(
            release, tmp_path / "repository", layout, suffix=suffix, runner=RUNNERS["synthetic"]
        )
    items, user = ItemStore.open(release), served.known_user
    with brief_server(tmp_path / "repository", timeout_s=300) as server:
        clients = [Recommender(server.grpc_url, model=name, timeout_s=60.0) for name in LAYOUTS.values()]
        (first,) = clients[0].recommend(user, k=1, allow_seen=True).items
        like = first.item_id
        row = served.run.items[served.run.items[served.dataset.item_id] == like].iloc[0]
        columns = release.overlays.columns
        values = {name: plain(row[name]) for name in columns if name != served.dataset.item_id}
        items.put("new 1", values)
        items.put("new 2", values)
        items.withdraw(["new 2", like])
        listed = ["new 1", "new 2", like]
        until = time.monotonic() + 60  # generous, as the machine may be shared
        for client in clients:
            right = 0
            while right < 8 and time.monotonic() < until:  # each instance may answer
                answer = client.recommend(user, candidates=listed)
                named = [(one.item_id, one.title) for one in answer.items]
                right = right + 1 if named == [("new 1", first.title)] else 0
        for _ in range(8):
            answers = [one.recommend(user, candidates=listed) for one in clients]
            assert [[one.item_id for one in answer.items] for answer in answers] == [["new 1"]] * 2
            whole = [one.recommend(user, k=20).items for one in clients]
            assert whole[0] == whole[1]
            assert not {"new 2", like} & {one.item_id for one in whole[0]}
