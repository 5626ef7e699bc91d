"""``redis``: live values in Redis or Valkey, for several machines.

A user's record is one value under one key, so a batch is read by one command in one round trip, and nothing
asks for two keys of a cluster to lie together. A record is changed by compare-and-set: it is read, and a
script writes the new one if the old one is still there. Every read has a deadline (``deadline.py``).
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

#: Schemes of URLs, and how redis-py calls them: Valkey speaks the same protocol.
SCHEMES = {"redis": "redis", "rediss": "rediss", "valkey": "redis", "valkeys": "rediss", "unix": "unix"}

#: Sets a key (an empty value removes it) if it still holds what was read (nothing: an empty string).
_COMPARE_AND_SET = """
local held = redis.call('GET', KEYS[1]) or ''
if held ~= ARGV[1] then return 0 end
if ARGV[2] == '' then redis.call('DEL', KEYS[1]) else redis.call('SET', KEYS[1], ARGV[2]) end
return 1
"""

#: How often a change is tried against others of the same key.
_TRIES = 100
#: Keys that a scan reads together.
_BLOCK = 500


class Redis(LiveSettings, frozen=True, tag="redis"):
    """Keep what is written in a Redis or a Valkey.

    Parameters
    ----------
    url
        ``redis://HOST:PORT/DB``, ``rediss://`` with TLS, ``unix://PATH``; ``valkey`` means ``redis``. It is
        kept in the manifest, so a password is better kept in ``password_file``.
    prefix
        What its keys begin with; empty is ``tiercel:NAME`` of the release.
    timeout_ms
        The deadline of one read, in milliseconds; after it the release's own values are taken.
    retry_s
        How often a store that did not answer is asked again, in seconds.
    write_timeout_s
        How long a write waits for an answer, in seconds.
    cluster
        Whether it is a cluster: then a batch is one round trip to each node that holds some of it.
    password_file
        A file that holds the password.
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
        """Connect; a store that is not there may come later."""
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
        Where it is.
    prefix
        What keys begin with.
    timeout_s
        The deadline of a read.
    """

    def __init__(self, settings: Redis, prefix: str, timeout_s: float) -> None:
        self._prefix, self._named = f"{prefix}:".encode(), _without_password(settings.url)
        # The reader ends by itself, at worst some deadlines late; a connection may take longer than a read.
        reader = _Connection(settings, self._prefix, timeout_s, max(1.0, timeout_s))
        self._writer = _Connection(settings, self._prefix, settings.write_timeout_s, settings.write_timeout_s)
        with contextlib.suppress(StoreUnavailable), _faults(self._named):
            # Else the first batch would wait for the connection, and perhaps too long.
            reader.client.ping()
        self._timely = DeadlineReader(self._named, reader.get, reader.ping, timeout_s, settings.retry_s)

    def read(self, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        """Return the record of each key, within the deadline; None where there is none."""
        return self._timely.read(keys)

    def change(self, changes: Sequence[tuple[bytes, Change]]) -> None:
        """Change records by compare-and-set; what others changed in between is tried anew."""
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
        """Yield every key with its record, each once; keys that come or go meanwhile may be missing."""
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
        """Ask for a sign of life."""
        begun = time.monotonic()
        with _faults(self._named):
            self._writer.client.ping()
        return f"{self._named}: answers in {(time.monotonic() - begun) * 1000:.1f} ms"


class _Connection:
    """A client, made when it is first needed, and what reads through it need.

    It holds nothing of :class:`RedisRecords`: a reader's thread holds it, and ends when nobody has those.
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
        """A client of redis-py that never tries by itself again: whoever asks has a deadline."""
        from redis import Redis as Client
        from redis.backoff import NoBackoff
        from redis.cluster import RedisCluster
        from redis.retry import Retry

        if not self.cluster:
            return Client.from_url(self._url, retry=Retry(NoBackoff(), 0), **self._options)
        # Unlike the other it connects at once, and may be away.
        with _faults(self.named):
            return RedisCluster.from_url(self._url, retry=Retry(NoBackoff(), 3), **self._options)

    def get(self, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        """Return the record of each key; None where there is none."""
        names = [self._prefix + key for key in keys]
        with _faults(self.named):
            if not self.cluster:
                return cast("list[bytes | None]", self.client.mget(names))
            # A cluster's nodes hold some of the keys each, and answer for no others.
            with self.client.pipeline() as pipeline:
                for name in names:
                    pipeline.get(name)
                return cast("list[bytes | None]", pipeline.execute())

    def ping(self) -> None:
        """Raise unless the store answers in time; a new connection may take longer."""
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
    except (OSError, ValueError) as error:  # ValueError: no UTF-8
        raise StoreUnavailable(
            f"store {named}: its password_file {file} can't be read ({error}); put a file there, on every "
            "host that serves, that holds the password alone"
        ) from error


@contextlib.contextmanager
def _faults(named: str) -> Iterator[None]:
    """Turn what redis-py raises into StoreUnavailable."""
    from redis.exceptions import RedisClusterException, RedisError

    try:
        yield
    except (RedisError, RedisClusterException, OSError) as error:  # the second is no RedisError
        raise StoreUnavailable(
            f"store {named}: {type(error).__name__}: {error}; check that it runs, and its "
            "address, and try again"
        ) from error
