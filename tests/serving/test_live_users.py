"""Live values of users: a write takes effect from the next request, as if the request had sent the values."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmdb
import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from kind_contracts import check_settings
from tiny_release import COLUMNS, Tiny, ids_array, objects

from drawing import examples
from tiercel_client.errors import InvalidInput
from tiercel_serving.errors import InvalidSettings, KindUnavailable, StoreMismatch
from tiercel_serving.release.opened import Release, open_release
from tiercel_serving.runtime.chain import Chain
from tiercel_serving.settings import KNOWN, UNKNOWN
from tiercel_serving.stages.explain_items import EXCLUDED, HAD
from tiercel_serving.stores.chosen import read_store, write_store
from tiercel_serving.stores.embedded import Embedded, Overlay
from tiercel_serving.stores.feature_store import FeatureStore, Line, LiveUser
from tiercel_serving.stores.live import UNAVAILABLE, LiveUsers
from tiercel_serving.stores.schema import Schema, user_columns
from tiercel_serving.stores.table import STORES, StoreKind

BOTH = pytest.mark.parametrize("variant", ["plain", "strings"], indirect=True)
ONE = pytest.mark.parametrize("variant", ["plain"], indirect=True)
quick = examples(4, suppress_health_check=[HealthCheck.function_scoped_fixture])


def text(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value


class Live:
    """A chain with its own store, and the same chain without one."""

    def __init__(self, tiny: Tiny, folder: Path, chain: Chain) -> None:
        self.tiny, self.plain_chain = tiny, chain
        self.release = Release(tiny.release.path, tiny.release.manifest, Embedded(path=str(folder)))
        self.chain = Chain.open(self.release)
        self.store = FeatureStore.open(self.release)
        self.users, self.items = [text(u) for u in tiny.user_ids], [text(i) for i in tiny.item_ids]
        text_ids = tiny.release.manifest.catalogue.user_id_dtype == "bytes"
        self.nobody: Any = "nobody" if text_ids else 987_654
        self.anonymous: Any = "\0anonymous" if text_ids else -(2**63)

    def ids(self, values: list[Any]) -> np.ndarray:
        return ids_array([v.encode() if isinstance(v, str) else v for v in values])

    def ask(self, users: list[Any], *, plain: bool = False, **sent: np.ndarray) -> dict[str, np.ndarray]:
        arrays = {"user_id": self.ids(users)[:, None], **sent}
        return (self.plain_chain if plain else self.chain).run(arrays)[0]

    def sent(self, values: dict[str, Any]) -> dict[str, np.ndarray]:
        """Return a one-user request that sends these values."""
        arrays: dict[str, np.ndarray] = {}
        if "age" in values:
            arrays["age"] = np.array([[values["age"]]], np.float64)
        if "occupation" in values:
            arrays["occupation"] = objects([values["occupation"].encode()])[:, None]
            arrays["occupation__valid"] = np.array([[True]])
        if "tags" in values:
            arrays["tags"] = np.array([values["tags"]], np.int64)
            arrays["how many tags"] = np.array([[len(values["tags"])]], np.int32)
        return arrays


@pytest.fixture
def live(tiny: Tiny, variant: str, chain_of: Callable[[str], Chain], tmp_path: Path) -> Live:
    return Live(tiny, tmp_path / "store", chain_of(variant))


values_of = st.fixed_dictionaries(
    {},
    optional={
        "age": st.integers(18, 90).map(float),
        "occupation": st.sampled_from(["artist", "пилот", "", "nobody's", "nul\0byte"]),
        "tags": st.lists(st.integers(0, 9), max_size=4),
    },
)


def same(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray], *names: str) -> None:
    for name in names or (
        "status",
        "user_cat",
        "user_num",
        "user_list_tags",
        "history_row",
        "item_id",
        "score",
    ):
        np.testing.assert_array_equal(ours[name], theirs[name], name)


@BOTH
@quick
@given(data=st.data())
def test_what_is_written_is_what_a_request_could_have_sent(live: Live, data: st.DataObject) -> None:
    user = data.draw(st.sampled_from(live.users))
    values = data.draw(values_of)
    had = data.draw(st.lists(st.integers(0, len(live.items) - 1), max_size=6, unique=True))
    for line in list(live.store.export()):  # left by an earlier example
        live.store.remove(line.user_id)
    if values:
        live.store.put(user, values)
    for row in had:
        live.store.append(user, [live.items[row]])
    sent = live.sent(values)
    if had:
        old = [row for row in live.tiny.history[live.users.index(user)] if row not in had]
        history = [live.items[row] for row in [*old, *had]]
        sent["history_item_ids"] = live.ids(history)[None]
        sent["history_item_ids__length"] = np.array([[len(history)]], np.int32)
    same(live.ask([user]), live.ask([user], plain=True, **sent))
    # Values in the request still take precedence, and another user's answer is unchanged.
    other = next(one for one in live.users if one != user)
    batch = live.ask([other, user, live.nobody])
    same({name: array[:1] for name, array in batch.items()}, live.ask([other], plain=True))
    told = {"age": np.array([[77.0]]), "history_item_ids": live.ids(live.items[:2])[None]}
    told["history_item_ids__length"] = np.array([[2]], np.int32)
    own = {**{name: array for name, array in sent.items() if not name.startswith("history")}, **told}
    overridden = live.ask([user], **told)
    same(overridden, live.ask([user], plain=True, **own), "user_num", "user_cat", "history_row")
    gone = {live.items[row] for row in had}
    assert not gone & {text(item) for item in overridden["item_id"].ravel().tolist()}


@BOTH
def test_a_new_user_is_known_from_the_first_write_on(live: Live) -> None:
    assert live.ask([live.nobody])["status"].tolist() == [[UNKNOWN]]
    live.store.append(live.nobody, live.items[:3])
    answer = live.ask([live.nobody])
    assert answer["status"].tolist() == [[KNOWN]]
    assert answer["history_row"][0, :3].tolist() == [0, 1, 2]
    assert not {0, 1, 2} & set(answer["retrieved_row"][0].tolist())
    seen = live.ask([live.nobody], allow_seen=np.array([[True]]))
    assert {0, 1, 2} & set(seen["retrieved_row"][0].tolist())
    sent = live.sent({"age": 40.0}) | {"history_item_ids": live.ids(live.items[:3])[None]}
    sent["history_item_ids__length"] = np.array([[3]], np.int32)
    live.store.put(live.nobody, {"age": 40})
    same(live.ask([live.nobody]), live.ask([live.nobody], plain=True, **sent), "user_num", "item_id")


@BOTH
def test_what_was_appended_is_explained_as_had(live: Live) -> None:
    live.store.append(live.nobody, live.items[:2])
    sent = {"explain_item_ids": live.ids([live.items[row] for row in (0, 1, 2, 3)])[None]}
    sent |= {"exclude_item_ids": live.ids([live.items[row] for row in (1, 2)])[None]}
    sent |= {f"{name}__length": np.array([[array.shape[1]]], np.int32) for name, array in sent.items()}
    told = live.ask([live.nobody], **sent)["explain_reason"][0].tolist()
    assert told[:3] == [HAD, EXCLUDED, EXCLUDED]
    assert told[3] not in (HAD, EXCLUDED)
    may = live.ask([live.nobody], **sent, allow_seen=np.array([[True]]))["explain_reason"][0].tolist()
    assert HAD not in may
    assert may[1:3] == [EXCLUDED, EXCLUDED]


@pytest.mark.parametrize("variant", ["seen again"], indirect=True)
def test_what_was_appended_may_come_again_after_some_days(live: Live) -> None:
    day_ms, today = 86_400_000, 20
    store = FeatureStore(live.release, live.store._kind, live.store._records, lambda: today * day_ms)
    user = live.users[1]  # consumed every item, one a day, from day 1 on
    place = {item: at for at, item in enumerate(live.tiny.history[1])}
    store.append(user, [live.items[live.tiny.history[1][2]]])
    store.append(live.nobody, [live.items[live.tiny.history[1][3]]])
    today = 23
    store.append(user, [live.items[live.tiny.history[1][4]]])
    store.append(user, [live.items[live.tiny.history[1][5]]])

    def come(now_day: float, days: float | None = None) -> list[set[int]]:
        """Return which of the history's first ten items are retrieved, by position, for both users."""
        sent = {"now": np.full((2, 1), now_day * 86_400)}
        sent["include_item_ids"] = live.ids([live.items[row] for row in live.tiny.history[1][:10]] * 2)
        sent["include_item_ids"] = sent["include_item_ids"].reshape(2, 10)
        sent["include_item_ids__length"] = np.full((2, 1), 10, np.int32)
        if days is not None:
            sent["again_days"] = np.full((2, 1), days)
        rows = live.ask([user, live.nobody], **sent)["retrieved_row"]
        return [{place[row] for row in mine.tolist() if row in place} for mine in rows]

    every = set(range(10))
    assert come(24) == [every - {2, 4, 5}, every - {3}], "five days, unless a request says otherwise"
    assert come(25) == [every - {4, 5}, every], "exactly five days after the append"
    assert come(28) == [every, every]
    assert come(24, days=2) == [every - {4, 5}, every]
    assert come(24, days=18) == [{0, 1, 3}, every - {3}]
    assert come(24, days=0) == [every, every]
    # The clock jumped back: items with a time in the future count as just consumed.
    assert come(2, days=1) == [{0}, every - {3}]


@pytest.mark.parametrize("variant", ["seen filter"], indirect=True)
def test_what_a_store_no_longer_carries_is_in_a_bloom_filter(live: Live, tmp_path: Path) -> None:
    place = Embedded(path=str(tmp_path / "short"), history_most=3)
    release = Release(live.tiny.release.path, live.tiny.release.manifest, place)
    chain, store = Chain.open(release), FeatureStore.open(release)
    user, had = live.nobody, live.items[5:25]
    for item in had:
        store.append(user, [item])
    store.append(live.users[0], ["of another release", *live.items[:4]])
    store.append(live.users[1], live.items[30:35], ttl_s=1000)

    def come(one: Any, **sent: Any) -> set[str]:
        asked = {
            "user_id": live.ids([one])[:, None],
            "candidate_item_ids": live.ids(live.items)[None],
            **sent,
        }
        asked["candidate_item_ids__length"] = np.full((1, 1), len(live.items), np.int32)
        masked = chain.run(asked)[0]["excluded_row"][0].tolist()
        return set(live.items) - {live.items[row] for row in masked if row < len(live.items)}

    assert store.get(user) == LiveUser({}, had[-3:])
    assert come(user) == set(live.items) - set(had)
    assert come(live.users[0]) == set(live.items[4:])
    assert come(live.users[1]) == set(live.items) - set(live.items[32:35]), "what expires is in no filter"
    assert come(user, allow_seen=np.array([[True]])) == set(live.items)
    # Appending, exporting and loading again, even twice, changes nothing.
    store.append(user, had[:2])
    lines = [msgspec.json.encode(line) for line in store.export()]
    other = Embedded(path=str(tmp_path / "other"), history_most=3)
    release = Release(live.tiny.release.path, live.tiny.release.manifest, other)
    chain, store = Chain.open(release), FeatureStore.open(release)
    assert store.load(lines) == store.load(lines) == 3
    assert come(user) == set(live.items) - set(had)
    with pytest.raises(InvalidInput, match="line 1: filters: these are not Bloom filters"):
        store.load([b'{"user_id": "a", "filters": "AAAA"}'])


@ONE
def test_a_write_counts_within_50_ms(live: Live) -> None:
    user = live.users[3]
    live.ask([user])
    waits = []
    for row in range(5):
        begun = time.perf_counter()
        live.store.append(user, [live.items[row]])
        assert live.items[row] not in live.ask([user])["item_id"]
        waits.append(time.perf_counter() - begun)
    assert min(waits) < 0.05


@BOTH
def test_an_item_that_the_release_does_not_know_waits_for_one_that_does(live: Live) -> None:
    user, strange = live.users[2], "☃" if isinstance(live.items[0], str) else 10**9
    assert live.store.unknown_items([live.items[0], strange]) == [strange]
    before = live.ask([user])
    live.store.append(user, [strange])
    same(live.ask([user]), before)
    assert live.store.get(user) == LiveUser({}, [strange])


@ONE
def test_of_a_repeated_item_the_latest_stays_and_of_all_the_latest_many(live: Live) -> None:
    user, kind = live.users[2], msgspec.structs.replace(live.release.store_kind, history_most=3)
    store = FeatureStore.open(live.release, kind)
    store.append(user, live.items[:3])
    store.append(user, [live.items[1], live.items[1]])
    assert store.get(user).history == [live.items[0], live.items[2], live.items[1]]
    store.append(user, [live.items[4]])
    assert store.get(user).history == [live.items[2], live.items[1], live.items[4]]


# --------------------------------------------------------------------------------------- time and types


class Clock:
    def __init__(self) -> None:
        self.ms = 1_700_000_000_000

    def __call__(self) -> int:
        return self.ms


def clocked(live: Live) -> tuple[Clock, FeatureStore]:
    """Return a clock used by both the store and the stages."""
    clock = Clock()
    live.release.store._clock = clock
    records = live.release.open_records(live.release.store_kind)
    return clock, FeatureStore(live.release, live.release.store_kind, records, clock)


@ONE
def test_values_expire_and_no_jump_of_the_clock_loses_one(live: Live) -> None:
    clock, store = clocked(live)
    user = live.users[0]
    before = live.ask([user])
    store.put(user, {"age": 60}, ttl_s=10)
    store.put(user, {"occupation": "artist"})
    store.append(user, [live.items[1]], ttl_s=5)
    store.append(user, [live.items[2]])
    written = live.ask([user])
    assert written["user_num"][0, 0] == 60
    clock.ms -= 3_600_000_000  # the clock jumps back, and later writes still win over earlier ones
    same(live.ask([user]), written)
    store.append(user, [live.items[3]])
    assert live.ask([user])["history_row"][0, :3].tolist() == [1, 2, 3]
    clock.ms += 3_600_000_000 + 5000
    assert store.get(user) == LiveUser({"age": 60.0, "occupation": "artist"}, live.items[2:4])
    assert live.ask([user])["history_row"][0, :2].tolist() == [2, 3]
    clock.ms += 10**13  # far ahead and back again: neither reads nor other writes remove anything
    assert live.ask([user])["user_num"][0, 0] == before["user_num"][0, 0]
    store.put(user, {"occupation": "пилот"})
    clock.ms -= 10**13 + 4999
    assert store.get(user) == LiveUser({"age": 60.0, "occupation": "пилот"}, live.items[1:4])


@ONE
def test_a_null_overrides_and_a_removed_value_does_not(live: Live) -> None:
    user = live.users[1]
    plain = live.ask([user])
    live.store.put(user, {"age": None, "occupation": None, "tags": None})
    assert live.store.get(user) == LiveUser(dict.fromkeys(("age", "occupation", "tags")), [])
    null = live.ask([user])
    assert (null["user_num"][0, 0], null["user_cat"][0, 0]) == (30, 1)
    assert null["user_list_tags"].tolist() == [[0, 0, 0]]
    live.store.remove(user, ["age", "tags"])
    assert live.store.get(user) == LiveUser({"occupation": None}, [])
    assert live.ask([user])["user_num"][0, 0] == plain["user_num"][0, 0]
    live.store.remove(user)
    assert live.store.get(user) is None
    same(live.ask([user]), plain)
    live.store.remove(user, ["age"])
    assert live.store.get(user) is None


@ONE
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "expected values of columns, got none"),
        ({"aeg": 3}, "no user column 'aeg'; use 'age', 'occupation', 'tags'"),
        ({"hour": 3}, "no user column 'hour'"),
        ({"age": "old"}, r"values\['age'\]: expected a number, got str 'old'"),
        ({"age": float("inf")}, "expected a finite float64"),
        ({"age": True}, "expected a number, got bool True"),
        ({"age": [1.0]}, "expected a number, got list"),
        ({"occupation": 7}, "expected a string, got int 7"),
        ({"occupation": b"\xff"}, "expected UTF-8"),
        ({"tags": 3}, r"values\['tags'\]: expected a list, got int 3"),
        ({"tags": [1, 2.5]}, r"values\['tags'\]\[1\]: expected a whole number"),
        ({"tags": [None]}, "expected a whole number, got NoneType"),
        ({"tags": [2**63]}, "expected a number that fits int64"),
        ([1], r"values: expected a mapping of column to value, got list \[1\]"),
    ],
)
def test_values_of_another_type_are_refused(live: Live, values: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        live.store.put(live.users[0], values)
    assert live.store.get(live.users[0]) is None


@BOTH
def test_ids_and_times_of_another_type_are_refused(live: Live) -> None:
    wrong: Any = 3 if isinstance(live.users[0], str) else "3"
    user, item = live.users[0], live.items[0]
    for call in (
        lambda: live.store.put(wrong, {"age": 3}),
        lambda: live.store.append(user, [wrong]),
        lambda: live.store.append(user, []),
        lambda: live.store.append(user, item),
        lambda: live.store.append(user, [None]),
        lambda: live.store.append(user, [item], ttl_s=0),
        lambda: live.store.append(user, [item], ttl_s=float("nan")),
        lambda: live.store.put(user, {"age": 3}, ttl_s=1e12),
        lambda: live.store.remove(user, ["aeg"]),
        # Without an id, what one anonymous user writes would apply to all of them.
        lambda: live.store.put(live.anonymous, {"age": 3}),
        lambda: live.store.append(live.anonymous, [item]),
    ):
        with pytest.raises(InvalidInput):
            call()
    assert live.store.get(user) is None


@ONE
def test_the_columns_of_a_session_are_written_together(live: Live) -> None:
    """A request that sends one column of a session sends all of them; a write must too."""
    live.store._session = {"age", "tags"}
    user = live.users[6]
    live.store.put(user, {"tags": [1, 2], "occupation": "artist"})
    release = live.release
    users = LiveUsers(
        release.users,
        release.items,
        release.open_records(release.store_kind),
        Schema.of(release.manifest),
        user_columns(release.manifest),
        session=("age", "tags"),
    ).read(live.ids([user, live.users[0]])[:, None])
    age = users.raw("age")
    assert np.isnan(age.values).tolist() == [True, False]
    assert users.raw("tags").values.tolist() == [1, 2]
    live.store._session = {"tags", "occupation"}
    with pytest.raises(InvalidInput, match="'occupation' has 6, 'tags' has 1"):
        live.store.put(user, {"tags": [1], "occupation": "artist"})


# ------------------------------------------------------------------------------------- schemas and files


def other_columns(tiny: Tiny, columns: tuple[Any, ...], **catalogue: Any) -> Release:
    manifest = tiny.release.manifest
    changed = msgspec.structs.replace(manifest.catalogue, **catalogue)
    return Release(
        tiny.release.path, msgspec.structs.replace(manifest, request_columns=columns, catalogue=changed)
    )


@ONE
def test_releases_with_other_columns_share_a_store_unless_a_type_differs(live: Live) -> None:
    user, kind = live.users[0], live.release.store_kind
    first = FeatureStore.open(other_columns(live.tiny, COLUMNS[:1]), kind)
    first.put(user, {"age": 40})
    # This store was opened before the columns were added; it learns them from the first record that has them.
    assert live.ask([user])["user_num"][0, 0] == 40
    live.store.put(user, {"tags": [4]})
    assert live.ask([user])["user_list_tags"].tolist() == [[4, 0, 0]]
    assert first.get(user) == live.store.get(user) == LiveUser({"age": 40.0, "tags": [4]}, [])
    first.put(user, {"age": 41})
    assert live.store.get(user).values == {"age": 41.0, "tags": [4]}
    whole = msgspec.structs.replace(COLUMNS[0], dtype="int64", companion="age__valid")
    other = FeatureStore.open(other_columns(live.tiny, (whole,)), kind)
    with pytest.raises(StoreMismatch, match="holds the column 'age' as float64, but the release reads int64"):
        other.put(user, {"age": 1})
    with pytest.raises(StoreMismatch, match="'age'"):
        other.check()
    changed = other_columns(live.tiny, COLUMNS, user_id_dtype="bytes")
    with pytest.raises(StoreMismatch, match="holds user_id as int64, but the release as bytes"):
        FeatureStore.open(changed, kind).put("x", {"age": 1})
    with pytest.raises(StoreMismatch, match="user_id"):
        _ = Release(changed.path, changed.manifest, kind).store


@BOTH
def test_what_is_exported_can_be_loaded(live: Live, tmp_path: Path) -> None:
    clock, store = clocked(live)
    first, second = live.users[2], "x" * 900 if isinstance(live.users[0], str) else 1 - 2**63
    store.put(first, {"age": 40, "occupation": "пилот", "tags": [1, 2]}, ttl_s=100)
    store.put(first, {"age": None})
    store.append(first, live.items[:2])
    store.append(first, [live.items[2]], ttl_s=50)
    store.append(second, [live.items[5]])
    clock.ms += 1000
    lines = [msgspec.json.encode(line) for line in store.export()]
    assert sorted(msgspec.json.decode(line, type=Line).user_id for line in lines) == sorted([first, second])
    records = Embedded(path=str(tmp_path / "other")).open(None or _place())
    other = FeatureStore(live.release, live.release.store_kind, records, clock)
    seen: list[int] = []
    assert other.load([b"", *lines], seen.append) == 2
    assert seen == [2]
    assert sorted(other.export(), key=str) == sorted(store.export(), key=str)
    clock.ms += 60_000
    assert other.get(first) == store.get(first)
    assert other.get(first).history == live.items[:2]
    assert other.load(lines) == 2
    assert sorted(other.export(), key=str) == sorted(store.export(), key=str)


def _place() -> Any:
    from tiercel_serving.stores.table import StorePlace

    return StorePlace(Path("/nowhere"), "tiny")


@ONE
@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: "),
        ('{"user_id": 1, "ages": 3}', "line 2: .*unknown field `ages`"),
        ('{"values": {}}', "line 2: .*missing required field `user_id`"),
        ('{"user_id": "x"}', "line 2: user_id: expected a whole number"),
        ('{"user_id": 1, "values": {"age": "x"}}', "line 2: .*expected a number"),
        ('{"user_id": 1, "history": [1], "appended_ms": [1, 2]}', "line 2: "),
    ],
)
def test_a_line_that_is_none_is_named(live: Live, line: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        live.store.load(['{"user_id": 10, "values": {"age": 3}}', line])


class Broken:
    """An LMDB environment whose reads fail."""

    def __init__(self, why: str) -> None:
        self.why = why

    def begin(self) -> Any:
        raise lmdb.Error(f"mdb_txn_begin: {self.why}")


@ONE
@pytest.mark.parametrize("gone", [False, True])
@pytest.mark.parametrize("number", [errno.EIO, errno.ENOMEM, errno.EACCES, errno.EMFILE])
def test_a_fault_of_the_machine_fails_no_request(
    live: Live, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, gone: bool
) -> None:
    user = live.users[0]
    live.store.append(user, live.items[:1])
    records = live.release.open_records(Embedded(path=str(tmp_path / "store")))
    assert isinstance(records, Overlay)
    monkeypatch.setattr(records, "_env", Broken(os.strerror(number)))
    if gone:
        shutil.rmtree(tmp_path / "store")
    live.chain.run({"user_id": live.ids([live.users[1]])[:, None]})
    same(live.ask([user]), live.ask([user], plain=True))
    assert live.release.store.fallbacks[UNAVAILABLE] == 2


@ONE
def test_stores_as_text(tmp_path: Path, variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    stores: dict[str, StoreKind] = {
        text: read_store(text)
        for text in (
            "memory_mapped",
            "embedded:here",
            "redis:127.0.0.1:6379",
            "redis:rediss://user@host:1/2",
            '{"kind": "redis", "url": "unix:///x", "timeout_ms": 50}',
        )
    }
    assert stores["embedded:here"].path == str(tmp_path / "here")
    assert stores["redis:127.0.0.1:6379"].url == "redis://127.0.0.1:6379"
    for store in stores.values():
        check_settings(STORES, STORES.name_of(store), read_store(write_store(store)), StoreKind)
    for wrong in (
        "redis:http://x",
        "redis:",
        "embedded:\0",
        '{"kind": "redis"}',
        "{",
        '{"kind": "redis", "url": "redis://h:x"}',
    ):
        with pytest.raises(InvalidSettings, match=r"^store "):
            read_store(wrong)
    with pytest.raises(InvalidSettings, match=r"'memory_mapped:/x': .* live values embedded:FOLDER"):
        read_store("memory_mapped:/x")
    with pytest.raises(KindUnavailable, match="no store 'reddis'"):
        read_store("reddis:x")


@ONE
def test_a_release_without_a_store_says_how_to_get_one(tiny: Tiny) -> None:
    with pytest.raises(InvalidSettings, match="keeps no live values"):
        FeatureStore.open(tiny.release)
    assert open_release(tiny.release.path).store is not None


@ONE
def test_a_folder_beside_releases_is_found_from_links_too(tiny: Tiny, tmp_path: Path) -> None:
    """A server reads a release through links in a folder of its own."""
    mirror = tmp_path / "elsewhere" / "mirror"
    mirror.mkdir(parents=True)
    for name in ("manifest.json", "artefacts"):
        (mirror / name).symlink_to(tiny.release.path / name)
    kind = Embedded(path="live values")
    records = open_release(mirror, store=kind).open_records(kind)
    assert records is open_release(tiny.release.path).open_records(kind)
    assert (tiny.release.path.parent / "live values").is_dir()
