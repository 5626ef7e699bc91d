"""Looking up a server's name takes no longer than the call may; an address is never looked up."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tiercel_client.wire.direct import Connection, DirectChannel
from tiercel_client.wire.status_codes import CallFailed


@pytest.fixture
def port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@pytest.fixture
def lookups(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Replace lookups of names, which are listed here; that of ``slow.test`` lasts until the test ends."""
    find, ended, names = socket.getaddrinfo, threading.Event(), []

    def look_up(host: str, port: int, *, type: int, flags: int = 0) -> Any:
        if flags & socket.AI_NUMERICHOST or host == "localhost":
            return find(host, port, type=type, flags=flags)
        names.append(host)
        if host == "slow.test":
            ended.wait(20)
        if host == "none.test":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return find("127.0.0.1", port, type=type)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    yield names
    ended.set()
    for thread in threading.enumerate():
        if thread.name == "tiercel-lookup":
            thread.join()


def test_a_slow_lookup_ends_with_the_deadline(port: int, lookups: list[str]) -> None:
    begun = time.monotonic()
    with pytest.raises(CallFailed, match=r"no connection to slow\.test") as raised:
        DirectChannel("slow.test", port).unary("/x", b"", 0.2, {})
    assert raised.value.status == "DEADLINE_EXCEEDED"
    assert time.monotonic() - begun < 10
    assert lookups == ["slow.test"]


def test_calls_that_wait_for_a_name_share_a_lookup(port: int, lookups: list[str]) -> None:
    channel = DirectChannel("slow.test", port)
    for _ in range(5):
        with pytest.raises(CallFailed, match=r"no connection to slow\.test"):
            channel.unary("/x", b"", 0.05, {})
    assert lookups == ["slow.test"]
    assert [thread.name for thread in threading.enumerate()].count("tiercel-lookup") == 1


def test_a_name_is_looked_up(port: int, lookups: list[str]) -> None:
    Connection("known.test", port, time.monotonic() + 10).close()
    with pytest.raises(CallFailed, match="Name or service not known") as raised:
        Connection("none.test", port, time.monotonic() + 10)
    assert raised.value.status == "UNAVAILABLE"
    Connection("known.test", port, time.monotonic() + 10).close()
    assert lookups == ["known.test", "none.test", "known.test"]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_an_address_needs_no_thread(
    port: int, lookups: list[str], host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threading, "Thread", None)
    Connection(host, port, time.monotonic() + 10).close()
    assert not lookups
