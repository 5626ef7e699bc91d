"""The embedded store: writers killed, two writers at once, damaged files, a full disk."""

from __future__ import annotations

import random
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lmdb
import pytest
from apart import Worker
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_release import Tiny

from drawing import examples
from tiercel_serving.errors import MachineFault, StoreDamaged, StoreUnavailable
from tiercel_serving.live_items.journal import Entry, Journal
from tiercel_serving.release.opened import open_release
from tiercel_serving.stores import walk
from tiercel_serving.stores.embedded import Embedded
from tiercel_serving.stores.feature_store import FeatureStore
from tiercel_serving.stores.records import NEVER, Event, Record, user_key
from tiercel_serving.stores.schema import SCHEMA_FORMAT, Schema, StoredColumn
from tiercel_serving.stores.sealed import ITEMS_KEY, SCHEMA_KEY, VERSION_KEY, seal
from tiercel_serving.stores.table import Change, StorePlace

USERS, NOBODY = (10, 13, 10**6), 3
SHARED = user_key(b"1")


def opened(tiny: Tiny, folder: Path) -> Callable[[], FeatureStore]:
    return lambda: FeatureStore.open(
        open_release(tiny.release.path), Embedded(path=str(folder), history_most=4)
    )


@contextmanager
def worker(make: Callable[[], Any]) -> Iterator[Worker]:
    made = Worker(make)
    try:
        made.result()
        yield made
    finally:
        made.kill()


def after(state: dict[int, dict[str, Any]], operation: tuple[Any, ...]) -> dict[str, Any]:
    """Return what a plain dictionary holds for the operation's user after it."""
    name, user, *arguments = operation
    held = state.get(user, {"values": {}, "history": []})
    if name == "put":
        return {**held, "values": {**held["values"], **arguments[0]}}
    if name == "append":
        (items,) = arguments
        history = held["history"]
        for item in items:
            history = [*(one for one in history if one != item), item]
        return {**held, "history": history[-4:]}
    return {"values": {}, "history": []}


def held(store: Worker, user: int) -> dict[str, Any]:
    live = store.call("get", user)
    return {"values": {}, "history": []} if live is None else {"values": live.values, "history": live.history}


operations = st.one_of(
    st.tuples(
        st.just("put"), st.sampled_from(USERS), st.fixed_dictionaries({"age": st.integers(0, 9).map(float)})
    ),
    st.tuples(
        st.just("put"),
        st.sampled_from(USERS),
        st.fixed_dictionaries({"tags": st.lists(st.integers(0, 9), max_size=3)}),
    ),
    st.tuples(st.just("append"), st.sampled_from(USERS), st.lists(st.integers(1, 6), min_size=1, max_size=3)),
    st.tuples(st.just("remove"), st.sampled_from(USERS)),
)
#: An operation and what follows it: nothing, a kill after it was acknowledged, or a kill at once.
steps = st.lists(
    st.tuples(operations, st.sampled_from(["go on", "go on", "kill", "kill at once"])), max_size=12
)


def check_against_a_dictionary(tiny: Tiny, folder: Path, script: list[Any]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    state: dict[int, dict[str, Any]] = {}
    make = opened(tiny, folder)
    writers = [Worker(make), Worker(make)]
    for one in writers:
        one.result()
    try:
        for number, (operation, then) in enumerate(script):
            # Two processes write alternately, and each must see the other's changes.
            one, user = writers[number % 2], operation[1]
            before = state.get(user, after({}, ("remove", user)))
            if then == "kill at once":
                one.send(*operation)
                one.kill()
                # If it died after the commit but before it told readers, the next write shows the change.
                writers[1 - number % 2].call("remove", NOBODY)
                found = held(writers[1 - number % 2], user)
                assert found in (before, after(state, operation)), operation
                state[user] = found
            else:
                one.call(*operation)
                state[user] = after(state, operation)
                if then == "kill":
                    one.kill()
            if then.startswith("kill"):
                writers[number % 2] = Worker(make)
                writers[number % 2].result()
            for reader in writers:
                assert {user: held(reader, user) for user in state} == state
    finally:
        for one in writers:
            one.kill()


unhurried = {"suppress_health_check": [*HealthCheck]}


@examples(3, **unhurried)
@given(script=steps)
def test_it_is_a_dictionary_whoever_writes_and_dies(plain: Tiny, tmp_path: Path, script: list[Any]) -> None:
    check_against_a_dictionary(plain, tmp_path / "store", script)


@pytest.mark.slow
@settings(max_examples=150, **unhurried)
@given(script=steps)
def test_it_is_a_dictionary_often(plain: Tiny, tmp_path: Path, script: list[Any]) -> None:
    check_against_a_dictionary(plain, tmp_path / "store", script)


class Appender:
    """Appends increasing numbers, and records each one when its write is acknowledged."""

    def __init__(self, folder: Path, name: int, acknowledged: Path) -> None:
        self._records = Embedded(path=str(folder)).open(StorePlace(folder, "x"))
        self._name, self._acknowledged = name, acknowledged

    def run(self) -> None:
        with self._acknowledged.open("wb", buffering=0) as file:
            for number in range(1_000_000):
                self._records.change([(SHARED, self._append(number))])
                file.write(b"%d\n" % number)

    def _append(self, number: int) -> Change:
        def change(data: bytes | None) -> bytes:
            record = Record(b"1") if data is None else Record.read(data, SHARED)
            record.events.append(Event(self._name * 1_000_000 + number, 0, 1))
            return bytes(record)

        return change


def test_two_writers_killed_in_the_middle_lose_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    folder, files = tmp_path / "store", [tmp_path / "0", tmp_path / "1"]
    writers = [Worker(lambda name=name: Appender(folder, name, files[name])) for name in (0, 1)]
    try:
        for one in writers:
            one.result()
            one.send("run")
        end = time.monotonic() + 60
        while any(not file.exists() or file.read_bytes().count(b"\n") < 15 for file in files):
            assert time.monotonic() < end, "a writer has stopped"
    finally:
        for one in writers:
            one.kill()
    with worker(lambda: Embedded(path=str(folder)).open(StorePlace(folder, "x"))) as reader:
        (data,) = reader.call("read", [SHARED])
    items = [event.item for event in Record.read(data, SHARED).events]
    for name, file in enumerate(files):
        mine = [item - name * 1_000_000 for item in items if item // 1_000_000 == name]
        last = int(file.read_bytes().split(b"\n")[-2])
        assert mine == list(range(len(mine))), "in order, each once"
        assert last <= mine[-1] <= last + 1


# ---------------------------------------------------------------------------------------------- damage


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[bytes, bytes]]:
    """Return a closed store and its records."""
    folder = tmp_path_factory.mktemp("whole") / "store"
    drawn = random.Random(3)
    users = [b"%d" % number + drawn.randbytes(drawn.choice([10, 100, 6000])) for number in range(120)]
    records = {user_key(user): bytes(Record(user)) for user in users}
    with worker(lambda: Filled(folder, records)):
        pass
    return folder, records


WRITTEN = {
    user_key(b"3"): bytes(Record(b"3", events=[Event(7, 1, NEVER)])),
    user_key(b"3" * 500): bytes(Record(b"3" * 500, filters=bytes(9))),
    SCHEMA_KEY: bytes(Schema(SCHEMA_FORMAT, "int64", "int64", (StoredColumn("age", "float64", False),))),
    ITEMS_KEY: bytes(Journal("int64", entries=(Entry(172, withdrawn=True),))),
    VERSION_KEY: seal(VERSION_KEY, b"3"),
}


@pytest.mark.parametrize("key", WRITTEN, ids=["user", "long user id", "schema", "items", "version"])
def test_no_bit_of_a_key_or_a_value_may_differ(key: bytes) -> None:
    value = WRITTEN[key]
    assert walk.is_whole(key, value)
    for data in (key, value):
        for bit in range(8 * len(data)):
            changed = bytearray(data)
            changed[bit // 8] ^= 1 << bit % 8
            pair = (bytes(changed), value) if data is key else (key, bytes(changed))
            assert not walk.is_whole(*pair), pair


class Filled:
    """Writes records, some of them twice, so that the file contains unused pages."""

    def __init__(self, folder: Path, records: dict[bytes, bytes]) -> None:
        store = Embedded(path=str(folder)).open(StorePlace(folder, "x"))
        for part in (records, dict(list(records.items())[::3])):
            store.change([(key, lambda old, record=record: record) for key, record in part.items()])


def flipped(data: bytearray, drawn: random.Random) -> bytearray:
    for _ in range(drawn.choice([1, 20])):
        data[drawn.randrange(len(data))] ^= 1 << drawn.randrange(8)
    return data


def zeroed(data: bytearray, drawn: random.Random) -> bytearray:
    page = 4096 * drawn.randrange(len(data) // 4096)
    data[page : page + 4096] = bytes(4096)
    return data


DAMAGES: dict[str, Callable[[bytearray, random.Random], bytearray]] = {
    "flipped": flipped,
    "zeroed": zeroed,
    "cut": lambda data, drawn: data[: drawn.randrange(len(data))],
    "garbage": lambda data, drawn: bytearray(drawn.randbytes(len(data))),
    "another file": lambda data, drawn: bytearray(b"SQLite format 3\0" + bytes(8000)),
}


class Opened:
    """Opens a store that may be damaged, and reads it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def look(self, keys: list[bytes]) -> list[bytes | None]:
        walk.count(str(self._folder))  # as a check does in a child process; this is already one
        return list(Embedded(path=str(self._folder)).open(StorePlace(self._folder, "x")).read(keys))


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_refused_or_not_in_use_where_it_is_damaged(
    damage: str, whole: tuple[Path, dict[bytes, bytes]], tmp_path: Path
) -> None:
    folder, records = whole
    refused = 0
    for seed in range(5):
        copy = tmp_path / f"{seed}"
        copy.mkdir()
        data = bytearray((folder / "data.mdb").read_bytes())
        (copy / "data.mdb").write_bytes(DAMAGES[damage](data, random.Random(seed)))
        one = Worker(lambda copy=copy: Opened(copy))
        one.result()
        try:
            assert one.call("look", list(records)) == list(records.values())
        except (StoreDamaged, StoreUnavailable, MachineFault, lmdb.Error, walk.NotWhole):
            refused += 1
        except EOFError:  # the process crashed, as would the child process of a check
            refused += 1
        finally:
            one.kill()
    assert refused >= 1


def test_a_check_says_what_a_process_died_of(whole: tuple[Path, dict[bytes, bytes]], tmp_path: Path) -> None:
    folder, records = whole
    shutil.copytree(folder, tmp_path / "store")
    file = tmp_path / "store" / "data.mdb"
    with worker(lambda: Embedded(path=str(tmp_path / "store")).open(StorePlace(tmp_path, "x"))) as one:
        assert f"{len(records)} records" in one.call("check")
        data = file.read_bytes()
        record = records[min(records)]
        with file.open("r+b") as stream:
            stream.write(data.replace(record, record[:20] + b"!" + record[21:]))
        with pytest.raises(StoreDamaged, match=r"1 are not what was written\); move the folder away"):
            one.call("check")
    file.write_bytes(data[: len(data) // 2])
    with pytest.raises(StoreDamaged, match=r"it is not what was written"):
        with worker(lambda: Embedded(path=str(tmp_path / "store")).open(StorePlace(tmp_path, "x"))):
            pass


# ---------------------------------------------------------------------------------------- full disks


class Limited:
    """A store on a full disk, simulated by a limit on the size of any file."""

    def __init__(self, folder: Path) -> None:
        self._records = Embedded(path=str(folder)).open(StorePlace(folder, "x"))
        self.change(b"first")
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))

    def change(self, key: bytes, size: int = 10) -> None:
        self._records.change([(key, lambda old: bytes(Record(bytes(size))))])

    def read(self, key: bytes) -> bool:
        return self._records.read([key])[0] is not None


def test_a_full_disk_is_said_and_what_was_written_stays(tmp_path: Path) -> None:
    with worker(lambda: Limited(tmp_path / "store")) as one:
        with pytest.raises(
            MachineFault, match=r"store: No space left on device while writing the store; .* make room"
        ):
            one.call("change", b"large", 1_000_000)
        assert one.call("read", b"first")
        assert not one.call("read", b"large")
        one.call("change", b"small")
        assert one.call("read", b"small")


#: Fills its own disk except for the given number of bytes, and opens a store in an existing folder there.
FULL = """
import shutil, sys
from pathlib import Path
from tiercel_serving.errors import MachineFault
from tiercel_serving.stores.embedded import Overlay
disk = Path(sys.argv[1])
(disk / "store").mkdir()
(disk / "rest").write_bytes(bytes(shutil.disk_usage(disk).free - int(sys.argv[2])))
try:
    Overlay(disk / "store", 100)
except MachineFault as error:
    print(error, [file.name for file in (disk / "store").iterdir()])
"""


@pytest.mark.parametrize("free", [0, 8192, 32768])
def test_a_disk_without_room_for_the_locks_is_said_too(tmp_path: Path, free: int) -> None:
    mounted = 'mount -t tmpfs -o size=200k disk "$0" && exec "$@"'
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mounted, str(tmp_path)]
    if subprocess.run([*command, "true"], capture_output=True).returncode:
        pytest.skip("no disk can be mounted here: user namespaces are not allowed")
    opening = [*command, sys.executable, "-c", FULL, str(tmp_path), str(free)]
    done = subprocess.run(opening, capture_output=True, text=True, check=True)
    assert f"{tmp_path}/store: No space left on device while opening the store; " in done.stdout
    assert done.stdout.endswith("choose another folder []\n")


def test_a_store_that_has_reached_its_size_says_so(tmp_path: Path) -> None:
    records = Embedded(path=str(tmp_path / "store"), most_mb=1).open(StorePlace(tmp_path, "x"))
    with pytest.raises(StoreUnavailable, match=r"it has reached most_mb \(1\); raise it"):
        records.change([(b"large", lambda old: bytes(2_000_000))])
    assert records.read([b"large"]) == [None]
    records.change([(b"a", lambda old: bytes(Record(b"a")))])


def test_a_folder_that_cannot_be_is_the_machines_fault(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises((MachineFault, StoreUnavailable), match=str(tmp_path / "file")):
        Embedded(path=str(tmp_path / "file")).open(StorePlace(tmp_path, "x"))


def test_threads_that_open_it_at_once_share_it(tmp_path: Path) -> None:
    place = StorePlace(tmp_path, "x")
    with ThreadPoolExecutor(8) as threads:
        opened = list(threads.map(lambda _: Embedded(path="store").open(place), range(8)))
    assert all(one is opened[0] for one in opened)
