"""Reads of users from the release's memory-mapped columns, overridden by an embedded store."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from benchmarks.features.timing import interleave
from benchmarks.stages.report import Size
from tiercel_serving.lookups.build import build_lookup
from tiercel_serving.release.artefacts import Artefact, open_artefact, write_artefact
from tiercel_serving.release.manifest import RequestColumn
from tiercel_serving.spec import Array
from tiercel_serving.stores.embedded import Embedded
from tiercel_serving.stores.live import LiveUsers, now_ms
from tiercel_serving.stores.memory_mapped import USER_LOOKUP, UserTables
from tiercel_serving.stores.records import INLINE, NEVER, Event, Record, Slot, user_key
from tiercel_serving.stores.schema import SCHEMA_FORMAT, Schema, StoredColumn
from tiercel_serving.stores.sealed import SCHEMA_KEY
from tiercel_serving.stores.table import StorePlace
from tiercel_serving.tables.column_store import raw_prefix
from tiercel_serving.tables.items import ITEM_LOOKUP, ItemTable, store_ids

#: Numeric columns of a user.
COLUMNS = tuple(f"c{number}" for number in range(20))

#: One user in this many has a record in the store, with some values and some appended items.
WRITTEN = 1000

_BUILD, _ITEMS, _ASKED = "bench", 1000, 50


def measure_users(size: Size) -> dict[str, float]:
    """Return by name the microseconds of each kind of read (for the whole batch), and seconds of opening."""
    with TemporaryDirectory(prefix="tiercel-bench-") as place:
        folder = Path(place)
        _write_release(folder / "users", size.known)
        _write_records(folder, size.known)
        begun = time.perf_counter()
        users = _open(folder)
        users.read(np.array([[1]]))
        seconds = time.perf_counter() - begun
        rng = np.random.default_rng(1)

        def asked(count: int, *, written: bool) -> list[Array]:
            ids = rng.integers(0, size.known // WRITTEN, (_ASKED, count, 1)) * WRITTEN
            return list(ids if written else ids + 1)

        reads: Mapping[str, tuple[int, bool, Callable[[LiveUsers, Array], object]]] = {
            "one user, model-ready": (1, False, _packed),
            "one user, 20 columns": (1, False, _columns),
            "one user with a record, 20 columns": (1, True, _columns),
            "64 users, model-ready": (64, False, _packed),
            "64 users, 20 columns": (64, False, _columns),
            "64 users with records, 20 columns": (64, True, _columns),
        }
        sides: dict[str, list[Callable[[], object]]] = {
            name: [partial(read, users, ids) for ids in asked(count, written=written)]
            for name, (count, written, read) in reads.items()
        }
        timed = interleave(sides, rounds=size.rounds, seconds=size.seconds)
        return {"opening, s": seconds, **{name: one.us for name, one in timed.items()}}


def _packed(users: LiveUsers, ids: Array) -> object:
    return users.read(ids).packed(("user_num",))


def _columns(users: LiveUsers, ids: Array) -> object:
    found = users.read(ids)
    return [found.raw(name) for name in COLUMNS]


def _write_release(place: Path, known: int) -> None:
    rng = np.random.default_rng(0)
    arrays: dict[str, Array] = dict(build_lookup(np.arange(known), USER_LOOKUP))
    for name in COLUMNS:
        values = np.append(rng.random(known), np.nan)
        arrays[f"{raw_prefix(name)}.values"] = values
    arrays["user_num"] = rng.random((known + 1, len(COLUMNS)), np.float32)
    arrays["history_offsets"] = np.zeros(known + 2, np.int64)
    arrays["history_rows"] = np.zeros(0, np.int32)
    write_artefact(place, "users", _BUILD, arrays)


def _schema() -> Schema:
    columns = tuple(StoredColumn(name, "float64", False) for name in COLUMNS)
    return Schema(SCHEMA_FORMAT, "int64", "int64", columns)


def _write_records(folder: Path, known: int) -> None:
    records, now = Embedded(path="store").open(StorePlace(folder, "bench")), now_ms()
    records.change([(SCHEMA_KEY, lambda _: bytes(_schema()))])
    slots = {number: Slot(NEVER, INLINE, np.float64(number).tobytes()) for number in range(0, 20, 4)}
    events = [Event(item, now, NEVER) for item in range(8)]
    changes = []
    for user in range(0, known, WRITTEN):
        name = b"%d" % user
        record = bytes(Record(name, slots, events))
        changes.append((user_key(name), partial(_given, record)))
    records.change(changes)


def _given(record: bytes, _: bytes | None) -> bytes:
    return record


def _open(folder: Path) -> LiveUsers:
    ids = np.arange(_ITEMS)
    items = Artefact.in_memory("items", {**build_lookup(ids, ITEM_LOOKUP), **store_ids(ids)})
    tables = UserTables(open_artefact(folder / "users", "users", _BUILD))
    tables.lookup  # noqa: B018 - opened here
    columns = {name: RequestColumn(name, "float64", False, "user", name, None) for name in COLUMNS}
    records = Embedded(path="store").open(StorePlace(folder, "bench"))
    return LiveUsers(tables, ItemTable(items, _ITEMS), records, _schema(), columns)
