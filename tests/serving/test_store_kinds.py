"""The contract of a user store, for every row of ``STORES``."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from kind_contracts import check_rows, check_settings
from tiny_release import Tiny, ids_array, transform, user_arrays

from drawing import examples
from tiercel_serving.columns import Column
from tiercel_serving.release.artefacts import Artefact
from tiercel_serving.release.opened import Release
from tiercel_serving.stores.embedded import Embedded
from tiercel_serving.stores.memory_mapped import MemoryMapped, UserTables
from tiercel_serving.stores.records import NEVER, Event, Record, user_key
from tiercel_serving.stores.redis import Redis
from tiercel_serving.stores.server import StoreServer
from tiercel_serving.stores.table import STORES, Change, Records, Store, StoreKind, StorePlace
from tiercel_serving.verify.reference import plain_items


@contextmanager
def embedded(server: StoreServer) -> Iterator[Embedded]:
    with tempfile.TemporaryDirectory() as folder:
        yield Embedded(path=folder)


def redis(server: StoreServer) -> AbstractContextManager[Redis]:
    # A pause of a busy machine must not look like a lost store.
    return nullcontext(Redis(server.url, prefix=f"contract {id(object())}*[x]", timeout_ms=10_000.0))


#: Kind → a context manager that provides its settings, with an empty store.
EXAMPLES: dict[str, Callable[[StoreServer], AbstractContextManager[Any]]] = {
    "memory_mapped": lambda server: nullcontext(MemoryMapped()),
    "embedded": embedded,
    "redis": redis,
}


def test_every_kind_is_here() -> None:
    check_rows(STORES, EXAMPLES)


@pytest.fixture(params=EXAMPLES)
def kind(request: pytest.FixtureRequest, valkey: StoreServer) -> Iterator[StoreKind]:
    with EXAMPLES[request.param](valkey) as made:
        check_settings(STORES, request.param, made, StoreKind)
        yield made


@pytest.fixture
def records(kind: StoreKind) -> Records:
    opened = kind.open(StorePlace(Path("/nowhere"), "tiny"))
    if opened is None:
        assert kind.history_most == 0
        pytest.skip("this kind is never written")
    return opened


@pytest.fixture(params=["written", "in memory"])
def store(request: pytest.FixtureRequest, kind: StoreKind, tiny: Tiny) -> Store:
    release = Release(tiny.release.path, tiny.release.manifest, kind)
    if request.param == "in memory":
        release.users = UserTables(Artefact.in_memory("users", user_arrays(tiny)))
    return release.store


def values(column: Column) -> list[Any]:
    """Return a column as Python values: None for null, ``str`` for text."""
    item_of = plain_items({"c": column})
    return [item_of(row)["c"] for row in range(len(column))]


several = pytest.mark.parametrize("variant", ["plain", "strings", "no users"], indirect=True)
quick = examples(4, suppress_health_check=[HealthCheck.function_scoped_fixture])


@several
@quick
@given(data=st.data())
def test_it_reads_a_batch_at_once(tiny: Tiny, store: Store, data: st.DataObject) -> None:
    string = tiny.release.manifest.catalogue.user_id_dtype == "bytes"
    anybody = st.binary(max_size=3) if string else st.integers(-5, 60)
    if tiny.user_ids:
        anybody |= st.sampled_from(tiny.user_ids)
    asked = data.draw(st.lists(anybody, min_size=1, max_size=6))
    length, pad = data.draw(st.integers(0, 5)), len(tiny.item_ids)
    users = store.read(ids_array(asked)[:, None])
    rows = [tiny.user_ids.index(user) if user in tiny.user_ids else None for user in asked]
    assert store.size == len(tiny.user_ids)
    assert users.known.tolist() == [row is not None for row in rows]
    assert (users.stale, users.appended) == (None, None)

    def stored(column: list[Any]) -> list[Any]:
        return [None if row is None else column[row] for row in rows]

    age, occupation, tags = users.raw("age"), users.raw("occupation"), users.raw("tags")
    assert age is not None
    assert values(age) == stored(tiny.age)
    assert occupation is not None
    assert values(occupation) == [None if o is None else o.decode() for o in stored(tiny.occupation)]
    assert tags is not None
    assert values(tags) == stored(tiny.tags)
    assert users.raw("hour") is None
    nulls = [None] * len(rows)
    packed = transform(stored(tiny.age), stored(tiny.occupation), stored(tiny.tags), nulls, nulls)
    given = users.packed(tuple(packed))
    assert list(given) == list(packed)
    for name, want in packed.items():
        assert given[name].dtype == want.dtype
        np.testing.assert_array_equal(given[name], want)

    latest = [[] if row is None or not length else tiny.history[row][-length:] for row in rows]
    history, counts = users.history(length, pad)
    assert (history.dtype, counts.dtype) == (np.int64, np.int32)
    assert counts.tolist() == [len(mine) for mine in latest]
    assert history.tolist() == [mine + [pad] * (length - len(mine)) for mine in latest]


@several
@quick
@given(data=st.data())
def test_the_tables_know_what_users_have_seen(tiny: Tiny, data: st.DataObject) -> None:
    tables, rows = tiny.release.users, [None, *range(len(tiny.user_ids))]
    chosen = data.draw(st.lists(st.sampled_from(rows), min_size=1, max_size=6))
    flat, counts = tables.at(np.array([tables.size if row is None else row for row in chosen])).seen()
    ends = np.cumsum(counts)
    for row, end, count in zip(chosen, ends, counts, strict=True):
        mine = flat[end - count : end].tolist()
        assert len(mine) == len(set(mine))
        assert set(mine) == (set() if row is None else tiny.seen[row])
    assert len(flat) == ends[-1]


@pytest.mark.parametrize("variant", ["plain"], indirect=True)
def test_one_batch_gets_one_snapshot(tiny: Tiny, store: Store) -> None:
    """Stages of a chain share the array; features and exclusions must come from one snapshot."""
    asked = np.array([[tiny.user_ids[2]], [-1]])
    users = store.read(asked)
    assert store.read(asked) is users
    assert store.read(asked.copy()) is not users


# ----------------------------------------------------------------------------------------------- records


def written(user: bytes, times: int, size: int = 0) -> bytes:
    return bytes(Record(user, events=[Event(n, 0, NEVER) for n in range(times)], filters=bytes(size)))


def noted(user: bytes) -> tuple[bytes, Change]:
    """Return a change that counts how often it was applied."""
    key = user_key(user)

    def change(old: bytes | None) -> bytes:
        return written(user, 1 if old is None else len(Record.read(old, key).events) + 1)

    return key, change


def test_records_are_read_changed_and_listed(records: Records) -> None:
    users = [b"a", b"b", "ü\0*".encode(), b"x" * 399]
    keys, large = [user_key(user) for user in users], written(users[3], 1, 10_000)
    assert list(records.read(keys)) == [None] * 4
    records.change([noted(user) for user in (*users[:3], users[0])])
    first = [written(users[0], 2), written(users[1], 1), written(users[2], 1), None]
    assert list(records.read(keys)) == first
    gone = user_key(b"c")
    records.change([(keys[3], lambda old: large), (keys[1], lambda old: None), (gone, lambda old: None)])
    assert list(records.read([*keys, gone])) == [first[0], None, first[2], large, None]
    assert dict(records.scan()) == {keys[0]: first[0], keys[2]: first[2], keys[3]: large}
    assert records.check()


def test_no_change_is_lost_between_threads(records: Records) -> None:
    def count() -> None:
        for _ in range(20):
            records.change([noted(b"count")])

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(records.read([user_key(b"count")])) == [written(b"count", 80)]


def test_an_error_in_a_change_changes_nothing(records: Records) -> None:
    def fail(old: bytes | None) -> bytes:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        records.change([noted(b"a"), (user_key(b"b"), fail)])
    assert list(records.read([user_key(b"a"), user_key(b"b")])) == [None, None]
