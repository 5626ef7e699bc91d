"""Writing and reading of users' live values: the API behind ``tiercel store``, also for applications.

::

    from tiercel_serving.stores.feature_store import FeatureStore

    with FeatureStore.open("releases/movielens", store="embedded:/var/lib/tiercel/movielens") as store:
        store.put(42, {"age": 31}, ttl_s=3600)  # for an hour; then the release's own value again
        store.append(42, [50, 172])  # seen just now: from now on filtered, and visible to the models
        store.get(42)

A server of the same release and store sees a write as soon as the call returns, without a restart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from tiercel_client.errors import InvalidInput
from tiercel_client.request import ANONYMOUS_IDS as ANONYMOUS_IDS
from tiercel_client.values import convert_ids, sequence, shown

from ..errors import InvalidSettings, StoreDamaged
from ..live_items.journal import read_journal
from ..problems import POSITIVE
from ..release.opened import Release, open_release
from . import bloom
from .chosen import read_store
from .lines import Line, LiveUser, to_line
from .live import now_ms
from .records import NEVER, Event, Record, Slot, damaged, intact, is_user_key, latest_of_each, user_key
from .schema import Schema, check_utf8, find_column, to_slot, user_columns
from .sealed import SCHEMA_KEY
from .table import Change, Records, StoreKind

#: Number of lines that are loaded together, in one transaction if the store has transactions.
_BLOCK = 500

_NOTHING: Mapping[str, int] = {}


class FeatureStore:
    """The live values of a recommender's users. :meth:`open` makes one.

    Parameters
    ----------
    release
        The release: types of columns and ids, items and users.
    kind
        The store's settings.
    records
        The opened store.
    clock
        Returns the time in milliseconds since 1970.
    """

    def __init__(
        self, release: Release, kind: StoreKind, records: Records, clock: Callable[[], int] = now_ms
    ) -> None:
        self.release = release
        self._kind, self._records, self._clock = kind, records, clock
        self._columns = user_columns(release.manifest)
        self._session = set(release.session_columns)
        self._schema: Schema | None = None
        #: Number of damaged records that the latest export left out.
        self.damaged = 0

    @classmethod
    def open(cls, release: Release | str | Path, store: StoreKind | str | None = None) -> FeatureStore:
        """Open the store of a release.

        Parameters
        ----------
        release
            The release, or its directory.
        store
            A store to use instead of the release's, as settings or in the form of ``tiercel serve --store``.

        Raises
        ------
        InvalidSettings
            The release names no store that can be written, and none is given.
        ReleaseError, StoreError, MachineFault
            The release or the store can't be opened.
        """
        opened = release if isinstance(release, Release) else open_release(release)
        kind = read_store(store) if isinstance(store, str) else store
        kind = opened.store_kind if kind is None else kind
        records = opened.open_records(kind, patient=True)
        if records is None:
            raise InvalidSettings(
                f"{opened.path}: this release keeps no live values; name a store (--store embedded:FOLDER or "
                "--store redis:HOST:PORT, here and at `tiercel serve`), or give its recipe one"
            )
        return cls(opened, kind, records)

    def __enter__(self) -> FeatureStore:
        return self

    def __exit__(self, *raised: object) -> None:
        """Nothing is pending: every write is done when it returns."""

    def put(self, user_id: int | str, values: Mapping[str, Any], *, ttl_s: float | None = None) -> None:
        """Write values of a user's columns; other columns stay as they are.

        Parameters
        ----------
        user_id
            The raw id of a user, known to the release or new.
        values
            Column → value, for user columns that a request may send; None is null. Columns of a session's
            events are written together: those that are left out become null.
        ttl_s
            Seconds until the values expire and the release's own count again; None is never.

        Raises
        ------
        InvalidInput
            A column does not exist, or an id or value is of another type.
        StoreUnavailable, StoreMismatch, StoreDamaged, MachineFault
            The values were not written.
        """
        expires = self._expires(ttl_s)
        self._change([self._put(self._user(user_id), values, expires)])

    def append(
        self, user_id: int | str, item_ids: Sequence[int | str], *, ttl_s: float | None = None
    ) -> None:
        """Append items, oldest first, to a user's history.

        An item that is not in this release takes effect with a release that has it; see
        :meth:`unknown_items`. Items beyond the store's ``history_most`` are dropped, or go into a Bloom
        filter if the release has a ``seen_filter``.

        Parameters
        ----------
        user_id, item_ids
            Raw ids.
        ttl_s
            Seconds until the items expire; None is never.

        Raises
        ------
        InvalidInput
            An id is of another type, or there are no items.
        StoreUnavailable, StoreMismatch, StoreDamaged, MachineFault
            The items were not written.
        """
        items, now, expires = self._items(item_ids), self._clock(), self._expires(ttl_s)
        self._change([self._append(self._user(user_id), [Event(item, now, expires) for item in items])])

    def remove(self, user_id: int | str, columns: Iterable[str] | None = None) -> None:
        """Remove a user's live values, or those of some columns; the release's own values count again."""
        user = self._user(user_id)
        if columns is None:
            self._change([(user_key(user), lambda record: None)])
            return
        gone = {self._number(find_column(self._columns, name).name) for name in columns}

        def change(data: bytes | None) -> bytes | None:
            if data is None:
                return None
            record = Record.read(data, user_key(user))
            record.slots = {number: slot for number, slot in record.slots.items() if number not in gone}
            return bytes(record)

        self._change([(user_key(user), change)])

    def get(self, user_id: int | str) -> LiveUser | None:
        """Return a user's live values that have not expired; None if the user has no record."""
        key = user_key(self._user(user_id))
        (data,) = self._records.read([key])
        if data is None:
            return None
        line = to_line(Record.read(data, key), self._stored_schema(), self._clock())
        return LiveUser(line.values, line.history)

    def unknown_items(self, item_ids: Sequence[int | str]) -> list[int | str]:
        """Return those of the items that are not in the release's catalogue."""
        dtype = self.release.manifest.catalogue.item_id_dtype
        rows = self.release.items.rows(convert_ids(item_ids, dtype, lambda n: f"item_ids[{n}]"))
        return [
            item for item, row in zip(item_ids, rows.tolist(), strict=True) if row == self.release.items.size
        ]

    def load(self, lines: Iterable[bytes | str], progress: Callable[[int], None] | None = None) -> int:
        """Write the users of a file of JSON lines (:class:`Line`), and return how many there were.

        Lines are written in blocks, so if a line fails, blocks before it have been written. The file can be
        loaded again: values are overwritten, and an item that is appended again moves to the end.

        Raises
        ------
        InvalidInput
            A line is invalid; the message has its number.
        StoreUnavailable, StoreMismatch, StoreDamaged, MachineFault
            A block was not written.
        """
        changes: list[tuple[bytes, Change]] = []
        done, numbered = 0, enumerate(lines, 1)
        while block := list(islice(numbered, _BLOCK)):
            for number, text in block:
                if text.strip():
                    changes += self._changes_of(number, text)
                    done += 1
            self._change(changes)
            changes = []
            if progress is not None:
                progress(done)
        return done

    def export(self) -> Iterator[Line]:
        """Yield each user's live values, without expired ones and damaged records.

        Afterwards :attr:`damaged` holds the number of damaged records.
        """
        self.damaged = 0
        schema = self._stored_schema()
        for key, data in self._records.scan():
            if not is_user_key(key):
                continue
            try:
                record = Record.read(data, key)
            except StoreDamaged:
                self.damaged += 1
                continue
            line = to_line(record, schema, self._clock())
            if line.values or line.history or line.filters:
                yield line

    def check(self) -> str:
        """Check the whole store, and return a line about it for people.

        Raises
        ------
        StoreUnavailable, StoreDamaged, StoreMismatch
            The store does not answer, is damaged, or has a schema that does not fit the release.
        """
        said = self._records.check()
        self._stored_schema().with_columns_of(Schema.of(self.release.manifest))
        read_journal(self._records, self.release.manifest.catalogue.item_id_dtype)
        return said

    def check_users(self) -> None:
        """Read the record of every user, and raise StoreDamaged for the first damaged one.

        A server does not do so when it starts: a user with a damaged record gets the release's own values.
        """
        keys = (key for key, data in self._records.scan() if is_user_key(key) and not intact(data, key))
        broken = next(keys, None)
        if broken is not None:
            raise damaged(broken)

    # ------------------------------------------------------------------------------------------ changes

    def _put(
        self, user: bytes, values: Mapping[str, Any], expires: int, own: Mapping[str, int] = _NOTHING
    ) -> tuple[bytes, Change]:
        if not isinstance(values, Mapping):
            raise InvalidInput(f"values: expected a mapping of column to value, got {shown(values)}")
        if not values:
            raise InvalidInput(f"user {user.decode()!r}: expected values of columns, got none; name some")
        slots = {
            name: to_slot(find_column(self._columns, name), value, own.get(name, expires))
            for name, value in values.items()
        }
        self._check_session(values)
        # A session is written as a whole: columns left over from another one would not match it.
        gone = {self._number(name) for name in self._session} if self._session & set(values) else set[int]()
        numbered: dict[int, Slot] = {self._number(name): slot for name, slot in slots.items()}

        def change(data: bytes | None) -> bytes:
            record = Record(user) if data is None else Record.read(data, user_key(user))
            kept = {number: slot for number, slot in record.slots.items() if number not in gone}
            record.slots = {**kept, **numbered}
            return bytes(record)

        return user_key(user), change

    def _check_session(self, values: Mapping[str, Any]) -> None:
        lengths = {
            name: len(values[name])
            for name in sorted(self._session & set(values))
            if values[name] is not None
        }
        if len(set(lengths.values())) > 1:
            raise InvalidInput(
                f"values: {', '.join(f'{name!r} has {n}' for name, n in lengths.items())}, but they are of "
                "the events of one session; give one value in each for every event"
            )

    def _append(self, user: bytes, events: Sequence[Event], filters: bytes = b"") -> tuple[bytes, Change]:
        kept = self.release.settings.seen_filter

        def change(data: bytes | None) -> bytes:
            record = Record(user) if data is None else Record.read(data, user_key(user))
            latest, most = latest_of_each([*record.events, *events]), self._kind.history_most
            # The filters of a line that is loaded again are already there.
            record.filters += b"" if filters in record.filters else filters
            if kept is not None and len(latest) > most:
                # Items that expire must not go into a filter, where nothing can be removed.
                gone = [event.item for event in latest[:-most] if event.expires == NEVER]
                record.filters = bloom.put(record.filters, gone, kept)
            record.events = latest[-most:]
            return bytes(record)

        return user_key(user), change

    def _changes_of(self, number: int, text: bytes | str) -> Iterator[tuple[bytes, Change]]:
        try:
            line = msgspec.json.decode(text, type=Line)
            user, expires = self._user(line.user_id), self._expires(line.ttl_s)
            if line.values:
                yield self._put(user, line.values, expires, line.expires_ms)
            if line.history or line.filters:
                items, count = self._items(line.history) if line.history else [], len(line.history)
                at = line.appended_ms or [self._clock()] * count
                until = line.history_expires_ms or [expires] * count
                events = [Event(*one) for one in zip(items, at, until, strict=True)]
                yield self._append(user, events, line.series)
        except (InvalidInput, ValueError) as error:
            raise InvalidInput(f"line {number}: {error}") from error

    def _change(self, changes: Sequence[tuple[bytes, Change]]) -> None:
        self._written_schema()
        self._records.change(changes)

    # ------------------------------------------------------------------------------------------- schema

    def _stored_schema(self) -> Schema:
        """Return the schema of the store; that of the release if the store is empty."""
        (data,) = self._records.read([SCHEMA_KEY])
        return Schema.of(self.release.manifest) if data is None else Schema.read(data)

    def _written_schema(self) -> Schema:
        """Return the store's schema with this release's columns; write it first if some were missing."""
        if self._schema is None:
            own = Schema.of(self.release.manifest)
            (data,) = self._records.read([SCHEMA_KEY])
            if data is None or Schema.read(data).with_columns_of(own) != Schema.read(data):
                self._records.change([(SCHEMA_KEY, lambda data: _with_columns(data, own))])
            self._schema = self._stored_schema()
        return self._schema

    def _number(self, column: str) -> int:
        return self._written_schema().numbers()[column]

    # ---------------------------------------------------------------------------------------- arguments

    def _user(self, user_id: Any) -> bytes:
        dtype = self.release.manifest.catalogue.user_id_dtype
        (user,) = _ids([user_id], dtype, "user_id")
        if user == ANONYMOUS_IDS[dtype]:
            raise InvalidInput(
                f"user_id: {user_id!r} stands for ANONYMOUS, whoever has no id, so what is written would be "
                "everybody's; expected the id of one user"
            )
        return user if isinstance(user, bytes) else b"%d" % user

    def _items(self, item_ids: Sequence[Any]) -> list[int | bytes]:
        items = _ids(
            list(sequence(item_ids, "item_ids")), self.release.manifest.catalogue.item_id_dtype, "item_ids"
        )
        if not items:
            raise InvalidInput("item_ids: expected items, got none; name some")
        return items

    def _expires(self, ttl_s: float | None) -> int:
        if ttl_s is None:
            return NEVER
        if not POSITIVE.holds(ttl_s) or ttl_s > 1e9:
            raise InvalidInput(
                f"ttl_s: expected {POSITIVE} and at most 1e9, got {ttl_s!r}; leave it out for never"
            )
        return self._clock() + max(1, round(ttl_s * 1000))


def _ids(values: Sequence[Any], dtype: str, what: str) -> list[int | bytes]:
    found: list[int | bytes] = convert_ids(
        values, dtype, lambda n: what if what == "user_id" else f"{what}[{n}]"
    ).tolist()
    if dtype == "bytes":
        check_utf8(found, what)
    return found


def _with_columns(data: bytes | None, own: Schema) -> bytes:
    schema = own if data is None else Schema.read(data).with_columns_of(own)
    return bytes(schema)
