"""Redis and Valkey on a real server: one round trip per batch, and answers even when the store fails."""

from __future__ import annotations

import contextlib
import gc
import itertools
import select
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_release import Tiny

from tiercel_serving.errors import KindUnavailable, PortTaken, ServerFailed, StoreDamaged, StoreUnavailable
from tiercel_serving.release.opened import Release
from tiercel_serving.runtime.chain import Chain
from tiercel_serving.stores.deadline import DeadlineReader
from tiercel_serving.stores.feature_store import FeatureStore, LiveUser
from tiercel_serving.stores.live import DAMAGED, UNAVAILABLE
from tiercel_serving.stores.records import user_key
from tiercel_serving.stores.redis import Redis
from tiercel_serving.stores.server import StoreServer
from tiercel_serving.stores.table import StorePlace

_prefixes = (f"test {number}" for number in itertools.count())


class Wire:
    """A TCP proxy to a server, which counts round trips, and can delay or cut connections.

    The background query for changed items belongs to no request and is not counted.
    """

    def __init__(self, port: int) -> None:
        self._to, self.round_trips, self.delay_s = port, 0, 0.0
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._listener: socket.socket | None = None
        self.port = 0
        self.join()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def join(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def cut(self) -> None:
        """Refuse new connections and break the existing ones."""
        assert self._listener is not None
        # close() alone does not wake a thread that is blocked in accept().
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for one in itertools.chain.from_iterable(self._pairs):
            one.close()
        self._pairs.clear()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self._to))
            except OSError:  # the server is down
                near.close()
                continue
            for one in (near, far):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._pairs.append((near, far))
            threading.Thread(target=self._carry, args=(near, far), daemon=True).start()

    def _carry(self, near: socket.socket, far: socket.socket) -> None:
        asking = False
        # select() fails above descriptor 1,023, which a long test process reaches.
        ready = select.poll()
        sides = {one.fileno(): one for one in (near, far)}
        for descriptor in sides:
            ready.register(descriptor, select.POLLIN)
        try:
            while True:
                for descriptor, _ in ready.poll():
                    one = sides[descriptor]
                    data = one.recv(1 << 20)
                    if not data:
                        return
                    if one is near:
                        self.round_trips += not asking and b"items version" not in data
                        asking = True
                        far.sendall(data)
                    else:
                        asking = False
                        time.sleep(self.delay_s)
                        near.sendall(data)
        except (OSError, ValueError):
            return
        finally:
            near.close()
            far.close()


@pytest.fixture
def wire(valkey: StoreServer) -> Iterator[Wire]:
    made = Wire(valkey.port)
    yield made
    made.cut()


class Live:
    """A chain over a store behind a proxy, and a writer with a direct connection."""

    def __init__(self, tiny: Tiny, wire: Wire, server: StoreServer, **settings: Any) -> None:
        self.tiny, prefix = tiny, next(_prefixes)
        # A busy machine may pause; unless a test wants that, it must not look like a lost store.
        self.kind = Redis(
            **{"url": wire.url, "prefix": prefix, "timeout_ms": 3000.0, "retry_s": 0.02, **settings}
        )
        self.store = FeatureStore.open(tiny.release, Redis(url=server.url, prefix=prefix))
        self.user, self.item = tiny.user_ids[2], tiny.item_ids[0]
        self.store.append(self.user, [self.item])
        self.open()

    def open(self) -> None:
        self.release = Release(self.tiny.release.path, self.tiny.release.manifest, self.kind)
        self.chain = Chain.open(self.release)

    def is_live(self) -> bool:
        """Return whether the appended item takes effect; errors are raised."""
        out, _ = self.chain.run({"user_id": np.array([[self.user]])})
        appended = 0 in out["history_row"]
        assert appended == (self.item not in out["item_id"]) or not appended
        return bool(appended)

    def wait_for(self, live: bool) -> None:
        deadline = time.monotonic() + 20
        while self.is_live() != live:
            assert time.monotonic() < deadline
            time.sleep(0.005)

    def fallbacks(self, why: str = UNAVAILABLE) -> int:
        return int(self.release.store.fallbacks[why])


@pytest.mark.parametrize("variant", ["plain", "asking rules"], indirect=True)
def test_a_batch_is_one_round_trip_in_either_layout(tiny: Tiny, wire: Wire, valkey: StoreServer) -> None:
    live = Live(tiny, wire, valkey)
    live.store.put(tiny.user_ids[2], {"age": 33})  # a column that rules read
    batch = {"user_id": np.array(tiny.user_ids)[:, None]}
    live.chain.run(batch)
    for _ in range(3):
        before = wire.round_trips
        live.chain.run({name: array.copy() for name, array in batch.items()})
        assert wire.round_trips == before + 1
    # In the staged layout each stage has its own process and opens the release itself.
    stages = [
        Chain.open(Release(live.release.path, live.release.manifest, live.kind), [name])
        for name in live.release.stages
        if name != "describe_items"
    ]
    before, arrays = wire.round_trips, {name: array.copy() for name, array in batch.items()}
    opening = wire.round_trips
    assert opening == before
    for stage in stages:
        arrays.update(
            stage.run({t.name: arrays[t.name] for t in stage.external_inputs if t.name in arrays})[0]
        )
    assert wire.round_trips == before + 1
    np.testing.assert_array_equal(arrays["item_id"], live.chain.run(batch)[0]["item_id"])


def test_a_slow_store_costs_one_deadline_and_comes_back(plain: Tiny, wire: Wire, valkey: StoreServer) -> None:
    live = Live(plain, wire, valkey, timeout_ms=150.0)
    live.wait_for(True)
    wire.delay_s = 0.4
    begun, waits = time.perf_counter(), []
    while time.perf_counter() - begun < 1.0:
        asked = time.perf_counter()
        assert not live.is_live()
        waits.append(time.perf_counter() - asked)
    # Only the first request waits for its deadline; the median allows for pauses of a busy machine.
    assert np.median(waits) < 0.05
    assert live.fallbacks() == len(waits) > 1
    wire.delay_s = 0.0
    live.wait_for(True)
    before = live.fallbacks()
    assert live.is_live()
    assert live.fallbacks() == before


class LateEvent(threading.Event):
    """An event for a deadline that passes just as the work ends: ``wait`` reports a timeout."""

    def wait(self, timeout: float | None = None) -> bool:
        super().wait(timeout)
        time.sleep(0.1)  # by now the worker waits for the next work
        return False


def test_an_answer_at_the_very_deadline_does_not_end_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Sequence[bytes]] = []

    def read(keys: Sequence[bytes]) -> Sequence[bytes | None]:
        asked.append(keys)
        return [None] * len(keys)

    reader = DeadlineReader("mine", read, lambda: None, timeout_s=5.0, retry_s=0.01)
    with monkeypatch.context() as patch:
        patch.setattr("tiercel_serving.stores.deadline.threading.Event", LateEvent)
        with pytest.raises(StoreUnavailable, match="store mine: no answer within 5000 ms; check"):
            reader.read([b"a"])
    until = time.monotonic() + 20
    while True:
        try:
            assert reader.read([b"b"]) == [None]
            break
        except StoreUnavailable:
            assert time.monotonic() < until, "it is never asked again"
            time.sleep(0.005)
    # Waking the worker sent no extra query to the store.
    assert asked == [[b"a"], [b"b"]]


def test_whoever_reads_is_told_which_store_is_away_and_what_to_do(tmp_path: Path) -> None:
    records = Redis("redis://me:secret@127.0.0.1:1").open(StorePlace(tmp_path, "mine", patient=True))
    for told in ("ConnectionError", "it did not answer before"):
        with pytest.raises(
            StoreUnavailable, match=rf"^store redis://127\.0\.0\.1:1: {told}.*; check that it runs"
        ):
            records.read([b"a"])


def test_no_password_is_told_of_a_cluster_that_is_away(tmp_path: Path) -> None:
    records = Redis("redis://me:secret@127.0.0.1:1", cluster=True).open(StorePlace(tmp_path, "mine", True))
    for ask in (partial(records.read, [b"a"]), records.check, partial(records.change, [(b"a", bool)])):
        with pytest.raises(StoreUnavailable, match=r"^store redis://127\.0\.0\.1:1: .*check that") as told:
            ask()
        assert "secret" not in str(told.value)


@pytest.mark.parametrize("content", [None, b"\xff"])
def test_a_password_file_that_cannot_be_read_is_told(content: bytes | None, tmp_path: Path) -> None:
    file = tmp_path / "password"
    if content is not None:
        file.write_bytes(content)
    kind = Redis("redis://127.0.0.1:1", password_file=str(file))
    with pytest.raises(StoreUnavailable, match=f"password_file {file} can't be read .*; put a file there"):
        kind.open(StorePlace(tmp_path, "mine", patient=True))


def test_a_store_that_is_gone_comes_back(plain: Tiny, wire: Wire, valkey: StoreServer) -> None:
    live = Live(plain, wire, valkey)
    live.wait_for(True)
    wire.cut()
    live.wait_for(False)
    assert live.fallbacks() > 0
    wire.join()
    live.wait_for(True)


def test_a_store_that_nobody_holds_any_more_is_not_asked_whether_it_is_back(
    plain: Tiny, wire: Wire, valkey: StoreServer
) -> None:
    """A model may be unloaded while its store is down: no thread stays behind."""
    before = set(threading.enumerate())
    live = Live(plain, wire, valkey)
    wire.cut()
    live.wait_for(False)
    asking = {thread for thread in threading.enumerate() if thread.name == "tiercel-store"} - before
    assert asking
    live.chain.close()
    del live
    gc.collect()
    for thread in asking:
        thread.join(20)
        assert not thread.is_alive()
    wire.join()


def test_a_server_may_start_before_its_store(plain: Tiny, wire: Wire, valkey: StoreServer) -> None:
    live = Live(plain, wire, valkey)
    wire.cut()
    live.open()
    assert not live.is_live()
    wire.join()
    live.wait_for(True)
    live.store.put(live.user, {"age": 70})
    out, _ = live.chain.run({"user_id": np.array([[live.user]])})
    assert out["user_num"][0, 0] == 70


def test_under_load_the_store_is_stopped_and_started_again(plain: Tiny, tmp_path: Path) -> None:
    """Stop a real server and start it on its data again; every request meanwhile is answered."""
    failures: list[BaseException] = []
    over = threading.Event()
    try:
        server = StoreServer(folder=tmp_path / "data")
    except StoreUnavailable as error:
        pytest.skip(str(error))
    with server:
        wire = Wire(server.port)
        live = Live(plain, wire, server)
        chains = [Chain.open(Release(live.release.path, live.release.manifest, live.kind)) for _ in range(2)]

        def ask(chain: Chain) -> None:
            try:
                while not over.is_set():
                    out, _ = chain.run({"user_id": np.array(plain.user_ids)[:, None]})
                    assert (out["count"] > 0).any()
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=ask, args=(chain,)) for chain in chains]
        for thread in threads:
            thread.start()
        try:
            live.wait_for(True)
            server._process.kill()
            live.wait_for(False)
            with pytest.raises(StoreUnavailable, match=r"redis://127\.0\.0\.1:\d+: ConnectionError"):
                live.store.append(live.user, [plain.item_ids[1]])
            with StoreServer(server.port, tmp_path / "data"):
                live.wait_for(True)
                live.store.append(live.user, [plain.item_ids[1]])
                assert live.store.get(live.user) == LiveUser({}, plain.item_ids[:2])
        finally:
            over.set()
            for thread in threads:
                thread.join()
            wire.cut()
    assert not failures


def test_a_damaged_record_is_counted_and_can_be_removed(plain: Tiny, wire: Wire, valkey: StoreServer) -> None:
    live = Live(plain, wire, valkey)
    key = user_key(b"%d" % live.user)
    records = live.release.open_records(live.kind)
    records.change([(key, lambda record: record[:-1] + b"!")])
    assert not live.is_live()
    assert (live.fallbacks(DAMAGED), live.fallbacks(UNAVAILABLE)) == (1, 0)
    live.store.check()  # a server makes the same check when it starts
    append = partial(live.store.append, live.user, [live.item])
    for call in (partial(live.store.get, live.user), append, live.store.check_users):
        with pytest.raises(StoreDamaged, match="its checksum differs"):
            call()
    live.store.append(plain.user_ids[3], [live.item])
    assert [line.user_id for line in live.store.export()] == [plain.user_ids[3]]
    assert live.store.damaged == 1
    live.store.remove(live.user)
    live.store.append(live.user, [live.item])
    live.store.check_users()
    assert live.is_live()


# ----------------------------------------------------------------------------------------------- servers


@pytest.fixture
def server_of(tmp_path: Path) -> Iterator[Callable[..., StoreServer]]:
    made: list[StoreServer] = []

    def start(*options: str, port: int = 0) -> StoreServer:
        try:
            made.append(StoreServer(port, options=options))
        except StoreUnavailable as error:
            pytest.skip(str(error))
        return made[-1]

    yield start
    for one in made:
        one.stop()


def test_a_cluster(plain: Tiny, tmp_path: Path, server_of: Callable[..., StoreServer]) -> None:
    """The keys of a batch are in many slots, so no command may name two of them."""
    import redis

    # The default bus port is the first + 10,000, which may not exist; ports taken in sequence may be equal.
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        port, bus = one.getsockname()[1], other.getsockname()[1]
    kind = Redis(url=f"redis://127.0.0.1:{port}", cluster=True, timeout_ms=5000.0, retry_s=0.02)
    early = kind.open(StorePlace(tmp_path, "early"))
    with pytest.raises(StoreUnavailable):
        early.read([b"nobody"])
    server = server_of("--cluster-enabled", "yes", "--cluster-port", str(bus), port=port)
    with redis.Redis(port=server.port) as client:
        client.execute_command("CLUSTER ADDSLOTSRANGE", 0, 16383)
        while client.execute_command("CLUSTER INFO")["cluster_state"] != "ok":
            time.sleep(0.02)
    # The server was down when the store was opened, and the store keeps asking until it is up.
    until, found = time.monotonic() + 20, None
    while found is None:
        assert time.monotonic() < until, "it is never asked again"
        with contextlib.suppress(StoreUnavailable):
            found = early.read([b"nobody"])
        time.sleep(0.02)
    assert found == [None]
    store = FeatureStore.open(plain.release, kind)
    for number, user in enumerate(plain.user_ids):
        store.append(user, [plain.item_ids[number]])
    store.load([b'{"user_id": %d, "values": {"age": 50}}' % user for user in plain.user_ids])
    assert len(list(store.export())) == len(plain.user_ids)
    chain = Chain.open(Release(plain.release.path, plain.release.manifest, kind))
    out, _ = chain.run({"user_id": np.array(plain.user_ids)[:, None]})
    assert (out["user_num"][:, 0] == 50).all()
    assert all(number in out["history_row"][number] for number in range(len(plain.user_ids)))


def test_a_password_from_a_file(tmp_path: Path, server_of: Callable[..., StoreServer]) -> None:
    server, file = server_of("--requirepass", "geheim"), tmp_path / "password"
    file.write_text("geheim\n")
    place = StorePlace(tmp_path, "x")
    with pytest.raises(StoreUnavailable, match=r"AuthenticationError|NOAUTH"):
        Redis(url=server.url).open(place).check()
    assert "answers in" in Redis(url=server.url, password_file=str(file)).open(place).check()
    said = Redis(url=server.url.replace("//", "//:geheim@")).open(place).check()
    assert "geheim" not in said


def test_a_full_store_says_so(tmp_path: Path, server_of: Callable[..., StoreServer]) -> None:
    server = server_of("--maxmemory", "2mb", "--maxmemory-policy", "noeviction")
    records = Redis(url=server.url, timeout_ms=5000.0).open(StorePlace(tmp_path, "x"))
    records.change([(b"a", lambda old: b"1")])
    with pytest.raises(StoreUnavailable, match=r"OOM|memory"):
        records.change([(b"%d" % number, lambda old: bytes(200_000)) for number in range(40)])
    assert list(records.read([b"a"])) == [b"1"]


def test_the_servers_of_this_machine(valkey: StoreServer, tmp_path: Path) -> None:
    with pytest.raises(PortTaken, match="something listens there"):
        StoreServer(valkey.port)
    with pytest.raises(ServerFailed, match="did not start"):
        StoreServer(options=["--no-such-option", "1"])


def test_a_kind_whose_library_is_missing_says_what_installs_it(
    plain: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(KindUnavailable, match=r'needs redis, which is not .* pip install "tiercel\[redis\]"'):
        FeatureStore.open(plain.release, "redis:127.0.0.1:1")
