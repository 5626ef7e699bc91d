"""`tiercel store`, and `tiercel serve --store`."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from cli.command import TIERCEL, Tiercel
from tiercel_serving.commands.store import _read_of
from tiercel_serving.errors import StoreUnavailable
from tiercel_serving.release.opened import open_release
from tiercel_serving.repository.graph import render_repository
from tiercel_serving.stores.embedded import Embedded
from tiercel_serving.stores.feature_store import FeatureStore, LiveUser
from tiercel_serving.stores.redis import Redis
from tiercel_serving.stores.server import find_server


class Store:
    """The commands, on their own store."""

    def __init__(self, tiercel: Tiercel, release: Path, store: str) -> None:
        self._tiercel, self.release, self.store = tiercel, release, store

    def run(self, command: str, *arguments: Any) -> subprocess.CompletedProcess[str]:
        done = self._tiercel("store", command, self.release, *arguments, "--store", self.store, "--json")
        assert done.returncode == 0, done.stderr
        return done

    def __call__(self, command: str, *arguments: Any) -> Any:
        return json.loads(self.run(command, *arguments).stdout)

    def fails(self, command: str, *arguments: Any, code: int = 2) -> str:
        done = self._tiercel("store", command, self.release, *arguments, "--store", self.store)
        assert done.returncode == code, done.stderr
        assert done.stdout == ""
        assert "defect" not in done.stderr
        return " ".join(re.sub(r"[│╭╰─╮╯]", " ", done.stderr).split())


@pytest.fixture
def store(tiercel_here: Tiercel, release: Path, tmp_path: Path) -> Store:
    return Store(tiercel_here, release, f"embedded:{tmp_path / 'store'}")


@pytest.fixture
def user(release: Path) -> str:
    from tiercel_serving.commands.serve import example_user

    return str(example_user(open_release(release)))


@pytest.fixture
def column(release: Path) -> str:
    """Return the name of a numeric user column."""
    columns = open_release(release).manifest.request_columns
    return next(c.name for c in columns if c.part == "user" and c.dtype == "float64" and not c.is_list)


def test_what_is_written_can_be_read_exported_and_loaded(
    store: Store, user: str, column: str, release: Path, tmp_path: Path
) -> None:
    items = [item.decode() for item in open_release(release).items.all_ids().objects()[:3]]
    assert store("get", "--user", user) == {"user": user, "values": {}, "history": []}
    assert store("put", "--user", user, f"{column}=31.5", "--ttl", 1000)["values"] == {column: 31.5}
    told = store("append", "--user", user, "--item", items[0], "--item", items[1])
    assert told == {"user": user, "values": {column: 31.5}, "history": items[:2]}
    assert store("append", "--user", "neu", "--item", "no such item")["history"] == ["no such item"]
    file = tmp_path / "users.jsonl"
    assert store("export", file) == {"users": 2, "damaged": 0}
    assert len(file.read_text(encoding="utf-8").splitlines()) == 2
    assert store("remove", "--user", user, "--column", column)["values"] == {}
    assert store("remove", "--user", user)["history"] == []
    done = store.run("load", file)
    assert json.loads(done.stdout) == {"users": 2}
    assert "kB of users.jsonl 100%" in done.stderr
    assert store("get", "--user", user) == told
    assert "3 records" in store("check")["store"]


def test_how_much_is_read_of_a_file_a_redirection_and_a_pipe(tmp_path: Path) -> None:
    file, told = tmp_path / "users.jsonl", list[tuple[str, int, int | None]]()
    file.write_bytes(b"x" * 5000)
    read, write = os.pipe()
    with file.open("rb") as lines, os.fdopen(read, "rb") as pipe, os.fdopen(write, "wb"):
        lines.read(2000)
        for name, stream in ((file, lines), (Path("-"), lines), (Path("-"), pipe)):
            _read_of(name, stream, lambda *report: told.append(report))(3)
    assert told == [("kB of users.jsonl", 2, 5), ("kB of standard input", 2, 5), ("users", 3, None)]


def test_for_people(store: Store, user: str, column: str, tiercel_here: Tiercel) -> None:
    done = tiercel_here("store", "put", store.release, "--user", user, f"{column}=7", "--store", store.store)
    assert done.returncode == 0
    assert f"Live values of user {user}" in done.stdout
    assert "7.0" in done.stdout


def test_what_cannot_be_is_said(store: Store, user: str, column: str, tmp_path: Path) -> None:
    assert "has no user column 'aeg'; use" in store.fails("put", "--user", user, "aeg=3")
    assert "expected a number, got str 'old'" in store.fails("put", "--user", user, f"{column}=old")
    assert "write NAME=VALUE" in store.fails("put", "--user", user, column)
    assert "ttl_s: expected a number above 0" in store.fails("put", "--user", user, f"{column}=1", "--ttl", 0)
    (tmp_path / "bad").write_text('{"user_id": 3}\n')
    assert "line 1: " in store.fails("load", tmp_path / "bad")
    assert "there is no such file" in store.fails("load", tmp_path / "none")
    store.store = "paper:x"
    assert "there is no store 'paper'; use 'memory_mapped', 'embedded', 'redis'" in store.fails("check")
    store.store = "memory_mapped"
    assert "keeps no live values; name a store" in store.fails("check")
    store.store = "redis:127.0.0.1:1"
    assert "redis://127.0.0.1:1: ConnectionError" in store.fails("check", code=1)
    folder = tmp_path / "garbage"
    folder.mkdir()
    (folder / "data.mdb").write_bytes(b"garbage" * 5000)
    store.store = f"embedded:{folder}"
    assert "it is not what was written" in store.fails("check", code=1)


def test_a_development_server(release: Path, user: str, column: str) -> None:
    try:
        find_server()
    except StoreUnavailable as error:
        pytest.skip(str(error))
    with subprocess.Popen(
        [*TIERCEL, "store", "serve", "--port", "0", "--json"], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            told = json.loads(process.stdout.readline())
            assert "error" not in told, told
            store = FeatureStore.open(release, told["store"])
            store.put(user, {column: 3})
            assert store.get(user) == LiveUser({column: 3.0}, [])
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 143
    with pytest.raises(ProcessLookupError):
        os.kill(told["pid"], 0)


def test_models_are_told_of_the_store_that_was_chosen(release: Path, tmp_path: Path) -> None:
    kind = Redis(url="redis://127.0.0.1:1/3")
    render_repository(open_release(release, store=kind), tmp_path, "fused")
    [config] = [file.read_text() for file in tmp_path.glob("chain/config.pbtxt")]
    assert r"\"kind\":\"redis\"" in config.replace(" ", "")
    assert r"redis://127.0.0.1:1/3" in config


def test_serving_refuses_a_damaged_store_and_not_one_that_is_away(
    release: Path, tmp_path: Path, tiercel_here: Tiercel
) -> None:
    from tiercel_serving.commands.serve import _check_store

    class Notes:
        def __init__(self) -> None:
            self.text = ""

        def note(self, text: str, *, style: str) -> None:
            self.text += text

    notes: Any = Notes()
    _check_store(notes, open_release(release, store=Redis(url="redis://127.0.0.1:1")))
    assert "Until it answers, the release's own values are served" in notes.text
    _check_store(notes, open_release(release, store=Embedded(path=str(tmp_path / "new"))))
    (tmp_path / "data.mdb").write_bytes(b"garbage" * 5000)
    done = tiercel_here("serve", release, "--grpc-port", 0, "--store", f"embedded:{tmp_path}")
    assert done.returncode == 1
    assert "it is not what was written" in done.stderr
