"""Items put, changed and withdrawn between releases are found, filtered and removed like all others."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from small_release import SETTINGS, Parts, small_release
from typer.testing import CliRunner

from tiercel_client.errors import InvalidInput
from tiercel_export.release.build import build_release, plan_release
from tiercel_export.workflow.frames import columns_from_frame
from tiercel_serving.commands.cli import app
from tiercel_serving.errors import InvalidSettings, MachineFault, StoreDamaged, StoreUnavailable
from tiercel_serving.live_items.journal import ITEMS_KEY, Entry, Journal
from tiercel_serving.live_items.store import ItemStore
from tiercel_serving.release.opened import Release, open_release
from tiercel_serving.runtime.chain import Chain
from tiercel_serving.settings import UNKNOWN
from tiercel_serving.stores.embedded import Embedded
from tiercel_serving.stores.feature_store import FeatureStore
from tiercel_serving.stores.redis import Redis
from tiercel_serving.stores.server import StoreServer, find_server

ROOM = 3
NEW = {"kind": "book", "tags": ["a", "e"], "price": 12.5, "stock": 4, "title": "New ✓"}


@pytest.fixture(scope="module")
def made(parts: Parts, tmp_path_factory: pytest.TempPathFactory) -> Release:
    settings = msgspec.structs.replace(SETTINGS, added_items=ROOM, related=("towers",))
    return small_release(tmp_path_factory.mktemp("live") / "small", parts, settings=settings, verify=False)


def test_stages_on_a_device_take_no_new_items(parts: Parts, tmp_path: Path) -> None:
    arguments = parts.arguments()
    arguments["settings"] = msgspec.structs.replace(SETTINGS, added_items=ROOM)
    said = rf"settings.added_items: {ROOM}, but stages on a device \(target 'torch'\) take no new items"
    with pytest.raises(InvalidSettings, match=said):
        plan_release(**arguments, target="torch")
    with pytest.raises(InvalidSettings, match=said):
        build_release(tmp_path / "made", **arguments, target="torch")


class Live:
    """A store, and the release served with it."""

    def __init__(self, made: Release, folder: Path) -> None:
        self.kind = Embedded(path=str(folder))
        self.made, self.store = made, ItemStore.open(made, self.kind)
        self.release = self.opened()
        self.chain, self.related = Chain.open(self.release), Chain.open(self.release, ["related"])

    def opened(self) -> Release:
        return Release(self.made.path, self.made.manifest, self.kind)

    def ask(self, user: int = 1000, **sent: Any) -> dict[str, np.ndarray]:
        """Return the answer after all earlier writes have been read."""
        assert self.release.live_items is not None
        self.release.live_items.look()
        k = np.array([[SETTINGS.k_max]], np.int32)
        return self.chain.run({"user_id": np.array([[user]]), "k": k, **sent})[0]

    def found(self, **sent: Any) -> list[int]:
        """Return the ids of the candidates that passed every rule."""
        rows = self.ask(**sent)["kept_row"][0]
        return [int(one) for one in self.release.items.ids(rows[rows < self.release.items.size])]

    def like(self, item: int) -> list[int]:
        self.ask()
        length = np.array([[1]], np.int32)
        sent = {"related_item_ids": np.array([[item]]), "related_item_ids__length": length}
        out = self.related.run({**sent, "k": np.array([[SETTINGS.k_max]], np.int32)})[0]
        return [int(one) for one in out["item_id"][0, : int(out["count"][0, 0])]]


@pytest.fixture
def live(made: Release, tmp_path: Path) -> Live:
    return Live(made, tmp_path / "store")


def ids(answer: dict[str, np.ndarray]) -> list[int]:
    return [int(one) for one in answer["item_id"][0, : int(answer["count"][0, 0])]]


def listed(name: str, items: list[int]) -> dict[str, np.ndarray]:
    return {name: np.array([items]), f"{name}__length": np.array([[len(items)]], np.int32)}


def vector_of(parts: Parts, values: dict[str, Any], live: Live) -> np.ndarray:
    """Return the module's vector of an item, from the features that NVTabular computes of a frame."""
    frame = parts.items.iloc[:1].assign(item_id=9_999_999)
    for name, value in values.items():
        frame[name] = [value]
    program = live.release.open_item_features()
    packed = program.packed(columns_from_frame(frame, program.inputs), 1)
    with torch.inference_mode():
        tensors = {
            name: torch.from_numpy(packed[name]) for name in ("item_cat", "item_num", "item_list_tags")
        }
        made: np.ndarray = parts.item_tower(**tensors).numpy()[0]
    return made


def test_a_new_item_is_found_where_its_vector_says(live: Live, parts: Parts) -> None:
    before = live.ask(allow_seen=np.array([[True]]))
    live.store.put(9_999_999, NEW)
    after = live.ask(allow_seen=np.array([[True]]), **listed("candidate_item_ids", [9_999_999, 500]))
    row = live.made.manifest.catalogue.items
    assert row in after["retrieved_row"][0]
    place = after["retrieved_row"][0].tolist().index(row)
    expected = vector_of(parts, NEW, live) @ after["query_towers"][0]
    assert after["retrieval_score"][0, place] == pytest.approx(expected, rel=1e-5)
    assert 9_999_999 in ids(after)
    # Apart from the new item, the search returns the same candidates.
    found = live.ask(allow_seen=np.array([[True]]))["retrieved_row"][0].tolist()
    others = before["retrieved_row"][0].tolist()
    assert [one for one in found if one != row][:12] == others[:12]


def test_a_given_vector_stands_in_place_of_the_towers(live: Live) -> None:
    query = live.ask()["query_towers"][0]
    live.store.put(7, NEW, vectors={"towers": (query * 100).tolist()})
    first = live.ask()["retrieved_row"][0, 0]
    assert first == live.made.manifest.catalogue.items
    assert live.found()[0] == 7
    assert live.like(7)
    assert 7 not in live.like(7)
    assert 7 in live.like(live.like(7)[0])


def test_a_withdrawn_item_comes_nowhere(live: Live) -> None:
    answer = ids(live.ask())
    gone, related = answer[0], live.like(answer[1])[0]
    unknown = ids(live.ask(user=5))
    live.store.withdraw([gone, related, *unknown[:2]])
    assert not {gone, related} & set(ids(live.ask()))
    assert gone not in ids(live.ask(**listed("candidate_item_ids", [gone, answer[1]])))
    assert related not in live.like(answer[1])
    fallback = live.ask(user=5)
    assert fallback["status"][0, 0] == UNKNOWN
    assert not set(unknown[:2]) & set(ids(fallback))
    said = live.ask(**listed("explain_item_ids", [gone]))["explain_reason"][0, 0]
    assert said == -1
    live.store.put(gone)
    assert gone in live.found()


def test_a_withdrawn_new_item_goes_and_its_row_is_not_anothers(live: Live) -> None:
    query = (live.ask()["query_towers"][0] * 100).tolist()
    for item in (7, 8):
        live.store.put(item, NEW, vectors={"towers": query})
    live.store.withdraw([7])
    answer = live.ask()
    assert live.found()[0] == 8
    assert 7 not in live.found()
    assert answer["retrieved_row"][0, 0] == live.made.manifest.catalogue.items + 1


def test_a_changed_item_is_ruled_by_its_new_values(live: Live) -> None:
    item = ids(live.ask())[0]
    live.store.put(item, {"stock": 0})
    answer = live.ask()
    assert item not in ids(answer)
    assert answer["count"][0, 0] == SETTINGS.k_max  # it was masked before the search
    live.store.put(item, {"stock": 1})
    assert item in ids(live.ask())


def test_what_the_rules_had_kept_out_comes_when_it_passes(live: Live, parts: Parts) -> None:
    gift = int(parts.items[parts.items["kind"] == "gift"]["item_id"].iloc[0])
    sent = listed("candidate_item_ids", [gift])
    assert ids(live.ask(**sent)) == []
    live.store.put(gift, {"kind": "book", "stock": 3})
    out = live.ask(**sent, allow_seen=np.array([[True]]))
    assert ids(out) == [gift]
    assert out["source"][0, 0] == 1
    packed = live.release.items.packed("item_cat")
    row = live.release.items.rows(np.array([gift]))[0]
    assert (packed[row] != live.made.items.packed("item_cat")[row]).any()


def test_history_and_exclusions_know_new_items(live: Live) -> None:
    query = (live.ask()["query_towers"][0] * 100).tolist()
    live.store.put(7, NEW, vectors={"towers": query})
    assert 7 not in live.found(**listed("exclude_item_ids", [7]))
    row = live.made.manifest.catalogue.items
    assert row in live.ask(**listed("history_item_ids", [500, 7]))["history_row"][0]
    FeatureStore.open(live.opened()).append(1000, [7])
    assert 7 not in live.found()


def test_a_process_that_starts_later_and_one_that_runs_agree(live: Live) -> None:
    query = (live.ask()["query_towers"][0] * 100).tolist()
    live.store.put(7, NEW, vectors={"towers": query})
    live.store.put(8, {**NEW, "price": 3.0})
    live.store.withdraw([500])
    ours = live.ask()
    theirs, _ = Chain.open(live.opened()).run(
        {"user_id": np.array([[1000]]), "k": np.array([[12]], np.int32)}
    )
    for name in ("item_id", "score", "retrieved_row", "rank_score"):
        np.testing.assert_array_equal(ours[name], theirs[name], name)


def test_a_process_that_has_not_heard_of_an_item_looks_when_it_is_named(live: Live) -> None:
    staged = live.opened()
    last = Chain.open(staged, ["ordering"])
    before = live.ask()
    live.store.put(7, NEW, vectors={"towers": (before["query_towers"][0] * 100).tolist()})
    after = live.ask()
    sent = {name: after[name] for name in ("kept_row", "kept_score", "rank_score", "status")}
    out, _ = last.run({**sent, "k": np.array([[12]], np.int32)})
    np.testing.assert_array_equal(out["item_id"], after["item_id"])


def test_a_machines_fault_while_it_looks_leaves_what_was_known(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    live.store.withdraw([500])
    live.ask()
    items = live.release.live_items
    assert items is not None

    def read(keys: list[bytes]) -> list[bytes | None]:
        raise MachineFault("store: Input/output error while reading the store")

    monkeypatch.setattr(items._records, "read", read)
    items.take_up(newest=items.table.own + len(items.overlay.keys))
    assert 500 not in ids(live.ask())


def test_a_later_release_takes_over(live: Live, parts: Parts, tmp_path: Path) -> None:
    live.store.put(500, {"stock": 0, "title": "old news"})
    live.store.put(7, NEW)
    manifest = live.made.manifest
    later = msgspec.structs.replace(
        manifest, made=msgspec.structs.replace(manifest.made, created="2099-01-01T00:00:00+00:00")
    )
    release = Release(live.made.path, later, live.kind)
    assert release.live_items is not None
    # Items put for the earlier release belong to the new one; those that it lacks are still there.
    assert [entry.item_id for entry in release.live_items.overlay.entries] == [7]


def test_what_does_not_fit_is_refused(live: Live) -> None:
    refused: list[tuple[dict[str, Any], str]] = [
        ({"item_id": 7, "values": {"colour": "red"}}, "no column 'colour'.*use 'item_id'"),
        ({"item_id": 7, "values": {"stock": "many"}}, "values\\['stock'\\].*whole number"),
        ({"item_id": 7, "values": {"tags": "a"}}, "values\\['tags'\\].*list"),
        ({"item_id": "seven"}, "item_id.*whole number"),
        ({"item_id": 7, "vectors": {"towers": [1.0]}}, "expected 8 finite numbers, got 1"),
        ({"item_id": 7, "vectors": {"towers": [float("nan")] * 8}}, "finite"),
        ({"item_id": 7, "vectors": {"popular": [1.0]}}, "not a source of vectors; use towers"),
        (
            {"item_id": 7, "vectors": {"towers": ["a"] * 8}},
            r"vectors.*: expected numbers, got str",
        ),
        ({"item_id": 7, "vectors": {"towers": 5}}, r"vectors\['towers'\]: expected a list, got int 5"),
        ({"item_id": 7, "vectors": [1.0]}, "vectors: expected a mapping from names, got list"),
        ({"item_id": 7, "values": [1]}, "values: expected a mapping from names, got list"),
    ]
    for arguments, message in refused:
        with pytest.raises(InvalidInput, match=message):
            live.store.put(**arguments)
    live.store.load([b'{"item_id": 1}', b'{"item_id": 2}', b"", b'{"item_id": 3}'])
    with pytest.raises(InvalidInput, match="room for 3 new items, and with these there would be 4"):
        live.store.put(4)
    with pytest.raises(InvalidInput, match=r"line 2: .*unknown field"):
        live.store.load([b'{"item_id": 1}', b'{"item_id": 2, "colour": 1}'])
    assert [entry.item_id for entry in live.store.list()] == [1, 2, 3]
    known = int(live.release.items.ids(np.array([0]))[0])
    assert live.store.unknown([known, 3, 4_000_000]) == (4_000_000,)
    with pytest.raises(InvalidSettings, match="keeps nothing that is written"):
        ItemStore.open(live.made)


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (("put", "--item", "7", "--vector", "towers=[1"), "expected numbers in JSON"),
        (("put", "--item", "7", "stock=1", "stock=2"), "'stock' was given twice"),
        (("withdraw", "--item", "4000000", "--item", "4000000"), "so of no effect on it: [4000000]"),
        (("list", "--store", "embedded:"), "expected a folder, got ''"),
    ],
)
def test_what_is_typed_wrongly_is_said(
    made: Release, tmp_path: Path, typed: tuple[str, ...], said: str
) -> None:
    command, *rest = typed
    store = () if "--store" in rest else ("--store", f"embedded:{tmp_path / 'store'}")
    done = CliRunner().invoke(app, ["items", command, str(made.path), *store, *rest], env={"COLUMNS": "200"})
    assert said in " ".join(done.output.split())
    assert done.exit_code == (0 if command == "withdraw" else 2)


def test_a_journal_that_was_changed_is_refused(live: Live) -> None:
    live.store.withdraw([500])
    records = live.made.open_records(live.kind)
    assert records is not None
    records.change([(ITEMS_KEY, lambda data: (data or b"")[:-2] + b"xx")])
    with pytest.raises(StoreDamaged, match="withdrawn items could come"):
        Chain.open(live.opened())
    # A process that is already serving continues with the state it has.
    assert 500 not in ids(live.ask())


def test_rows_are_given_by_the_order_of_putting(live: Live) -> None:
    journal = Journal("int64").with_entries([Entry(9, withdrawn=True), Entry(7, put=True)])
    rows = live.made.overlays.rows_of(journal.entries)
    own = live.made.manifest.catalogue.items
    assert rows.tolist() == [np.iinfo(np.int64).max, own]
    again = journal.with_entries([Entry(9, put=True)])
    assert [entry.item_id for entry in again.entries] == [7, 9]
    assert live.made.overlays.rows_of(again.entries).tolist() == [own, own + 1]


def test_without_a_store_nothing_of_it_is_there(made: Release) -> None:
    release = open_release(made.path)
    assert release.room == 0
    assert release.live_items is None


def test_in_redis_it_is_the_same_and_a_store_that_went_away_leaves_what_was_known(made: Release) -> None:
    pytest.importorskip("redis")
    try:
        find_server()
    except StoreUnavailable as error:
        pytest.skip(str(error))
    with StoreServer() as server:
        kind = Redis(url=server.url)
        store = ItemStore.open(made, kind)
        store.withdraw([500])
        release = Release(made.path, made.manifest, kind)
        chain = Chain.open(release)
        assert release.live_items is not None
        asked = {"user_id": np.array([[1000]]), "k": np.array([[12]], np.int32)}
        query = chain.run(asked)[0]["query_towers"][0]
        store.put(7, NEW, vectors={"towers": (query * 100).tolist()})
        release.live_items.look()
        row = made.manifest.catalogue.items
        assert chain.run(asked)[0]["retrieved_row"][0, 0] == row
        assert [entry.item_id for entry in store.list()] == [500, 7]
    release.live_items.look()
    out = chain.run(asked)[0]
    assert out["retrieved_row"][0, 0] == row
    assert 500 not in ids(out)


def test_no_change_is_lost_between_a_look_and_a_taking(live: Live) -> None:
    """Two threads, as in a server: one polls the store while batches take up what it found."""
    items, done, before = live.release.live_items, threading.Event(), sys.getswitchinterval()
    assert items is not None

    def look() -> None:
        while not done.is_set():
            items.look()

    thread = threading.Thread(target=look)
    sys.setswitchinterval(1e-6)
    thread.start()
    try:
        for turn in range(60):
            live.store.withdraw([500]) if turn % 2 else live.store.put(500)
            end = time.monotonic() + 20
            while (len(items.overlay.withdrawn) > 0) != bool(turn % 2) and time.monotonic() < end:
                items.take_up()
            assert (len(items.overlay.withdrawn) > 0) == bool(turn % 2), f"change {turn} never counted"
    finally:
        done.set()
        thread.join()
        sys.setswitchinterval(before)
