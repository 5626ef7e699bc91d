"""``redis``: live values in Redis or Valkey, shared by several machines.

A user's record is one value under one key. So a batch is read by one command in one round trip, and keys may
be on different nodes of a cluster. A record is changed by compare-and-set: it is read, and a script writes
the new record if the old one is still there. Every read has a deadline (``deadline.py``).
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

from ..errors import StoreUnavailable
from ..problems import POSITIVE, Problem, out_of_range
from .deadline import DeadlineReader
from .table import Change, LiveSettings, StorePlace

#: URL scheme → redis-py's name for it; Valkey speaks the same protocol.
SCHEMES = {"redis": "redis", "rediss": "rediss", "valkey": "redis", "valkeys": "rediss", "unix": "unix"}

#: Sets a key to ARGV[2], or removes it if that is empty, if it still holds ARGV[1] (empty: no value).
_COMPARE_AND_SET = """
local held = redis.call('GET', KEYS[1]) or ''
if held ~= ARGV[1] then return 0 end
if ARGV[2] == '' then redis.call('DEL', KEYS[1]) else redis.call('SET', KEYS[1], ARGV[2]) end
return 1
"""

#: Attempts at a change while others change the same key.
_TRIES = 100
#: Number of keys that a scan reads together.
_BLOCK = 500


class Redis(LiveSettings, frozen=True, tag="redis"):
    """Live values in Redis or Valkey.

    Parameters
    ----------
    url
        ``redis://HOST:PORT/DB``, ``rediss://`` with TLS, ``unix://PATH``; ``valkey`` means ``redis``. The
        manifest stores the URL, so put a password into ``password_file`` instead.
    prefix
        Prefix of the keys; empty is ``tiercel:NAME``, with the name of the release.
    timeout_ms
        Deadline of one read, in milliseconds, after which the release's own values are used.
    retry_s
        Interval, in seconds, at which a store that did not answer is pinged.
    write_timeout_s
        How long a write waits for an answer, in seconds.
    cluster
        Whether it is a cluster. If so, a batch takes one round trip to each node that holds some of it.
    password_file
        A file that contains the password.
    """

    url: str
    prefix: str = ""
    timeout_ms: float = 20.0
    retry_s: float = 0.2
    write_timeout_s: float = 5.0
    cluster: bool = False
    password_file: str | None = None

    @classmethod
    def of_text(cls, text: str) -> Redis:
        """Return a store at a URL, or at ``HOST:PORT``."""
        return cls(url=text if "://" in text else f"redis://{text}")

    def problems(self) -> list[Problem]:
        """Return what is wrong with the settings by themselves."""
        numbers = dict.fromkeys(("timeout_ms", "retry_s", "write_timeout_s"), POSITIVE)
        wrong = super().problems() or list(out_of_range(self, numbers))
        if not wrong and (problem := _url_problem(self.url)):
            wrong.append(Problem("url", problem, "write redis://HOST:PORT/DB"))
        return wrong

    def open(self, place: StorePlace) -> RedisRecords:
        """Connect; a store that does not answer now may do so later."""
        timeout_s = self.write_timeout_s if place.patient else self.timeout_ms / 1000
        return RedisRecords(self, self.prefix or f"tiercel:{place.name}", timeout_s)


def _url_problem(url: str) -> str | None:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        return f"expected a URL, got {url!r} ({error})"
    if parts.scheme not in SCHEMES or not (parts.netloc or parts.path):
        return f"expected a URL of the schemes {', '.join(SCHEMES)}, got {url!r}"
    return None


class RedisRecords:
    """Records in Redis.

    Parameters
    ----------
    settings
        The store's settings.
    prefix
        Prefix of the keys, without the colon that follows it.
    timeout_s
        Deadline of a read, in seconds.
    """

    def __init__(self, settings: Redis, prefix: str, timeout_s: float) -> None:
        self._prefix, self._named = f"{prefix}:".encode(), _without_password(settings.url)
        # A read ends by itself, at worst after several deadlines; connecting may take longer than a read.
        reader = _Connection(settings, self._prefix, timeout_s, max(1.0, timeout_s))
        self._writer = _Connection(settings, self._prefix, settings.write_timeout_s, settings.write_timeout_s)
        with contextlib.suppress(StoreUnavailable), _faults(self._named):
            # Connect now, or the first batch would wait for the connection, perhaps beyond the deadline.
            reader.client.ping()
        self._timely = DeadlineReader(self._named, reader.get, reader.ping, timeout_s, settings.retry_s)

    def read(self, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        """Return the record of each key, within the deadline; None if there is none."""
        return self._timely.read(keys)

    def change(self, changes: Sequence[tuple[bytes, Change]]) -> None:
        """Change records by compare-and-set; retry those that others changed in between.

        Raises
        ------
        StoreUnavailable
            The store does not answer, or others changed a record at each attempt.
        """
        pending: dict[bytes, list[Change]] = {}
        for key, change in changes:
            pending.setdefault(key, []).append(change)
        for _ in range(_TRIES):
            if not pending:
                return
            keys = list(pending)
            old = self._writer.get(keys)
            new = [_changed(record, pending[key]) for key, record in zip(keys, old, strict=True)]
            done = self._compare_and_set(keys, old, new)
            pending = {key: pending[key] for key, did in zip(keys, done, strict=True) if not did}
        raise StoreUnavailable(
            f"store {self._named}: others changed the record {next(iter(pending))!r} each of {_TRIES} "
            "times; try again"
        )

    def _compare_and_set(
        self, keys: Sequence[bytes], old: Sequence[bytes | None], new: Sequence[bytes | None]
    ) -> list[bool]:
        calls = [
            (_COMPARE_AND_SET, 1, self._prefix + key, before or b"", after or b"")
            for key, before, after in zip(keys, old, new, strict=True)
        ]
        with _faults(self._named):
            client = self._writer.client
            if self._writer.cluster:
                return [bool(client.eval(*call)) for call in calls]
            with client.pipeline(transaction=False) as pipeline:
                for call in calls:
                    pipeline.eval(*call)
                return [bool(done) for done in pipeline.execute()]

    def scan(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield every key with its record, each once; keys added or removed meanwhile may be missing."""
        pattern = re.sub(rb"([*?\[\]^\\-])", rb"\\\1", self._prefix) + b"*"
        told = set[bytes]()
        with _faults(self._named):
            names = iter(self._writer.client.scan_iter(match=pattern, count=_BLOCK))
            while block := list(islice(names, _BLOCK)):
                keys = [name.removeprefix(self._prefix) for name in dict.fromkeys(block) if name not in told]
                told.update(block)
                for key, record in zip(keys, self._writer.get(keys) if keys else [], strict=True):
                    if record is not None:
                        yield key, record

    def check(self) -> str:
        """Ping the store, and return how long it took."""
        begun = time.monotonic()
        with _faults(self._named):
            self._writer.client.ping()
        return f"{self._named}: answers in {(time.monotonic() - begun) * 1000:.1f} ms"


class _Connection:
    """A client, created on first use, and its reads.

    It has no reference to :class:`RedisRecords`: the reader's thread holds this object, and must end once the
    records are garbage collected.
    """

    def __init__(self, settings: Redis, prefix: bytes, timeout_s: float, connect_timeout_s: float) -> None:
        self.named, self.cluster = _without_password(settings.url), settings.cluster
        self._prefix, self._timeout_s = prefix, timeout_s
        self._options: dict[str, Any] = {
            "socket_timeout": timeout_s,
            "socket_connect_timeout": connect_timeout_s,
            "protocol": 2,
        }
        if settings.password_file is not None:
            self._options["password"] = _password(settings.password_file, self.named)
        scheme, _, rest = settings.url.partition("://")
        self._url = f"{SCHEMES[scheme]}://{rest}"

    @cached_property
    def client(self) -> Any:
        """A redis-py client without retries of its own, since callers have deadlines."""
        from redis import Redis as Client
        from redis.backoff import NoBackoff
        from redis.cluster import RedisCluster
        from redis.retry import Retry

        if not self.cluster:
            return Client.from_url(self._url, retry=Retry(NoBackoff(), 0), **self._options)
        # Unlike the other client, this one connects at once, which may fail.
        with _faults(self.named):
            return RedisCluster.from_url(self._url, retry=Retry(NoBackoff(), 3), **self._options)

    def get(self, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        """Return the record of each key; None if there is none."""
        names = [self._prefix + key for key in keys]
        with _faults(self.named):
            if not self.cluster:
                return cast("list[bytes | None]", self.client.mget(names))
            # Each node of a cluster answers only for its own keys.
            with self.client.pipeline() as pipeline:
                for name in names:
                    pipeline.get(name)
                return cast("list[bytes | None]", pipeline.execute())

    def ping(self) -> None:
        """Raise unless the store answers in time; connecting may take longer."""
        self.client.ping()
        begun = time.monotonic()
        self.client.ping()
        if time.monotonic() - begun > self._timeout_s:
            raise StoreUnavailable(f"store {self.named}: it answers, but not within {self._timeout_s:g} s")


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _changed(record: bytes | None, changes: Sequence[Change]) -> bytes | None:
    for change in changes:
        record = change(record)
    return record


def _password(file: str, named: str) -> str:
    try:
        return Path(file).read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:  # ValueError: not UTF-8
        raise StoreUnavailable(
            f"store {named}: its password_file {file} can't be read ({error}); put a file there, on every "
            "host that serves, that holds the password alone"
        ) from error


@contextlib.contextmanager
def _faults(named: str) -> Iterator[None]:
    """Turn errors of redis-py into StoreUnavailable."""
    from redis.exceptions import RedisClusterException, RedisError

    try:
        yield
    except (RedisError, RedisClusterException, OSError) as error:  # the second is not a RedisError
        raise StoreUnavailable(
            f"store {named}: {type(error).__name__}: {error}; check that it runs, and its "
            "address, and try again"
        ) from error
