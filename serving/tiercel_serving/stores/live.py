"""The users that stages see: a store's records applied over the release's tables."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cached_property

import numpy as np
import numpy.typing as npt

from ..columns import Column, merge_rows, null_column
from ..errors import MachineFault, StoreError, StoreUnavailable
from ..ranked.order import Rows, last_real
from ..release.manifest import RequestColumn
from ..spec import Array
from ..tables.items import ItemTable
from .bloom import ItemProbes
from .memory_mapped import UserRows, UserTables
from .record_batch import EMPTY, Flags, RecordBatch
from .records import intact, user_keys
from .schema import Schema
from .sealed import SCHEMA_KEY
from .table import Records, Users

#: Reasons why users were answered without their live values: labels of a metric.
UNAVAILABLE, DAMAGED = "unavailable", "damaged"


def now_ms() -> int:
    """Return the time in milliseconds since 1970."""
    return time.time_ns() // 1_000_000


class LiveUsers:
    """The users of a release, with the live values written since.

    A batch of users without records costs one read of the store. If the store cannot be read or does not
    answer in time, or a record is damaged, the release's own values are used, and the users are counted in
    :attr:`fallbacks`.

    Parameters
    ----------
    tables, items
        The release's own users and items.
    records
        The opened store.
    schema
        The schema that the release would write.
    columns
        The columns of users, by name.
    session
        Names of the columns that hold a session's events: a user's are all from the store, or all from the
        release.
    probes
        Returns the items that Bloom filters are tested for: the release's, and those added since.
    clock
        Returns the time in milliseconds since 1970.

    Raises
    ------
    StoreMismatch
        The store holds columns or ids of other types than the release.
    StoreDamaged
        The store's schema is not readable.
    """

    def __init__(
        self,
        tables: UserTables,
        items: ItemTable,
        records: Records,
        schema: Schema,
        columns: dict[str, RequestColumn],
        *,
        session: Sequence[str] = (),
        probes: Callable[[], Sequence[ItemProbes]] = tuple,
        clock: Callable[[], int] = now_ms,
    ) -> None:
        self.tables, self.items, self.columns, self.probes = tables, items, columns, probes
        self.session = tuple(name for name in session if name in columns)
        self.fallbacks: Counter[str] = Counter({UNAVAILABLE: 0, DAMAGED: 0})
        self._records, self._schema, self._clock = records, schema, clock
        #: Column → number, for the columns known to be in the store; and the number of such columns.
        self.numbers: dict[str, int] = {}
        self._width = 0
        self._latest: tuple[Array | None, Users | None] = (None, None)
        # The store may become available later; until then the release's own values are good answers.
        with suppress(StoreUnavailable):
            self._learn()

    @property
    def size(self) -> int:
        """Number of users in the release."""
        return self.tables.size

    def read(self, user_ids: Array) -> Users:
        """Look up the users ``[B, 1]`` in the tables and in the store."""
        asked, snapshot = self._latest
        if asked is user_ids and snapshot is not None:
            return snapshot
        # For one user both are equal, and the first is faster.
        snapshot = self._read(user_ids[0] if len(user_ids) == 1 else user_ids[:, 0])
        self._latest = (user_ids, snapshot)
        return snapshot

    def _read(self, user_ids: Array) -> Users:
        """Look up the users ``[B]``."""
        base = UserRows(self.tables, self.tables.rows(user_ids))
        try:
            keys = user_keys(user_ids.tolist())
            found = self._records.read(keys)
            if found.count(None) == len(found):
                return base
            whole = [
                EMPTY if record is None or not intact(record, key) else record
                for key, record in zip(keys, found, strict=True)
            ]
            self.fallbacks[DAMAGED] += whole.count(EMPTY) - found.count(None)
            batch = RecordBatch(whole, self._clock())
            if batch.width > self._width:
                self._learn()
        except (StoreError, MachineFault):
            self.fallbacks[UNAVAILABLE] += len(user_ids)
            return base
        return LiveRows(self, base, batch)

    def _learn(self) -> None:
        """Read the store's schema again, to which columns are only ever added."""
        (data,) = self._records.read([SCHEMA_KEY])
        if data is None:
            return
        held = Schema.read(data)
        held.with_columns_of(self._schema)
        self.numbers, self._width = held.numbers(), len(held.columns)


class LiveRows:
    """A snapshot of some users of the tables, with their live values.

    Parameters
    ----------
    users
        The users of the release.
    base
        The release's own rows of these users.
    batch
        Their records.
    """

    def __init__(self, users: LiveUsers, base: UserRows, batch: RecordBatch) -> None:
        self._users, self._base, self._batch = users, base, batch
        has: Flags = batch.has_values | batch.has_events
        self.known: npt.NDArray[np.bool_] = base.known | has
        # The dummy row's packed tensors do not fit a new user's columns: the id may be one of them.
        self.stale: npt.NDArray[np.bool_] | None = batch.has_values | (has & ~base.known)
        self._session = self._has_session()

    def _has_session(self) -> Flags | None:
        flags = [self._there(name) for name in self._users.session]
        found = [one for one in flags if one is not None]
        return np.logical_or.reduce(found) if found else None

    def _there(self, name: str) -> Flags | None:
        number = self._users.numbers.get(name)
        return None if number is None else self._batch.there(number)

    @cached_property
    def appended(self) -> Rows | None:
        """``[B, M]``: item rows appended since the export, oldest first, padded; None if no user has any."""
        batch, items = self._batch, self._users.items
        return self._padded(items.rows(batch.items()), items.size) if batch.has_events.any() else None

    @cached_property
    def filtered(self) -> Rows | None:
        """``[B, M]``: rows of items appended earlier, by a Bloom filter, padded; None if no user has one."""
        filters, probes = self._batch.filters, self._users.probes()
        if not filters:
            return None
        found = {
            place: np.concatenate([one.members_of_series(series) for one in probes])
            for place, series in filters.items()
        }
        out = np.full((len(self.known), max(map(len, found.values()))), self._users.items.size, np.int64)
        for place, rows in found.items():
            out[place, : len(rows)] = rows
        return out

    @property
    def appended_ms(self) -> Rows:
        """``[B, M]``: when each of :attr:`appended` was appended, in milliseconds since 1970."""
        return self._padded(self._batch.times_ms(), 0)

    def _padded(self, flat: Rows, pad: int) -> Rows:
        """Return ``[B, M]`` from a flat array with one element per event."""
        counts = self._batch.counts
        if len(counts) == 1:
            return flat[None]
        width = int(counts.max())
        out = np.full((len(counts), width), pad, np.int64)
        out[np.arange(width) < counts[:, None]] = flat
        return out

    def packed(self, names: tuple[str, ...]) -> dict[str, Array]:
        """Return model-ready tensors ``[B, …]`` as the export made them; see :attr:`stale`."""
        return self._base.packed(names)

    def raw(self, name: str) -> Column | None:
        """Return a raw column of ``B`` rows: the store's values where there are any, else the release's."""
        column, batch = self._users.columns.get(name), self._batch
        there = None if column is None else self._there(name)
        if name in self._users.session and self._session is not None:
            there = self._session
        if column is None or there is None:
            return self._base.raw(name)
        number = self._users.numbers.get(name, batch.width)
        if number >= batch.width:
            over = null_column(column.dtype, column.is_list, len(self.known))
        else:
            over = batch.column(number, column.dtype, column.is_list)
            if batch.everywhere(number):
                return over
        under = self._base.raw(name)
        if under is None:
            under = null_column(column.dtype, column.is_list, len(self.known))
        return merge_rows(over, under, there)

    def history(self, length: int, pad: int) -> tuple[Rows, npt.NDArray[np.int32]]:
        """Return the latest items ``[B, length]``, oldest first, and how many ``[B]`` are real.

        Appended items come after the release's own. If an item occurs in both, only the later one stays.
        """
        old, counts = self._base.history(length, pad)
        new = self.appended
        if new is None:
            return old, counts
        # Encode (user, item) as one number.
        base = (np.arange(len(old)) * (pad + 1))[:, None]
        real = np.concatenate([old, new], axis=1) != pad
        real[:, :length] &= ~np.isin(old + base, new + base)
        rows = last_real(np.concatenate([old, new], axis=1), real, length, pad)
        return rows, np.minimum(np.count_nonzero(real, axis=1), length).astype(np.int32)
