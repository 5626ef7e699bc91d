"""``memory_mapped``: only the release's own users, in its memory-mapped tables; no live values.

The artefact ``users`` (U users; row U is the dummy row of all users who are not in the tables) holds

    the lookup :data:`USER_LOOKUP` (raw id → row), a stored column :func:`raw_prefix` for each raw user
    column ``[U + 1]``, ``user_cat [U + 1, Cu]`` i64, ``user_num [U + 1, Fu]`` f32,
    ``user_list_<c> [U + 1, Lc]``, ``history_offsets [U + 2]`` i64 and ``history_rows`` i32: the rows of the
    items that each user has seen, once each; and if the recipe sets ``seen_again_days``, ``history_times``
    f64: when each was last seen, in seconds since 1970.

If the recipe sets ``seen_filter``, ``history_rows`` holds only each user's latest items. Older items of users
with longer histories are in ``filter_offsets [U + 2]`` i64 and ``filter_data`` u8, one Bloom filter per user.

A user's latest rows, up to the history length, come last, in order of time. Those before them are only used
for masks and are sorted by row, which makes masks several times cheaper (for a user with 10,000 items, 13
against 600 to 1,200 microseconds on a slow core). Any other order would be correct too.

Packed arrays of width zero are left out.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from ..columns import Column, flat_ranges
from ..errors import InvalidSettings
from ..kinds import Settings
from ..lookups.lookup import Lookup
from ..native.rows import Tables, latest_rows
from ..ranked.order import Rows
from ..release.artefacts import Artefact
from ..spec import Array
from ..tables.column_store import StoredColumn, raw_column
from .bloom import ItemProbes
from .table import StorePlace

#: Prefix of the lookup from raw user id to user row.
USER_LOOKUP = "user_id"


class MemoryMapped(Settings, frozen=True, tag="memory_mapped"):
    """Only the release's own tables; they change with the release."""

    history_most: ClassVar[int] = 0

    @classmethod
    def of_text(cls, text: str) -> MemoryMapped:
        """Return the settings; raise InvalidSettings if there is a text, since this kind takes none."""
        if text:
            raise InvalidSettings(
                f"store 'memory_mapped:{text}': this kind reads only the release, from no place of its own; "
                "write memory_mapped, or for live values embedded:FOLDER or redis:HOST:PORT"
            )
        return cls()

    def open(self, place: StorePlace) -> None:
        """Open nothing: there are no live values."""


#: The flags ``[1]`` of one user: not set, and set; read-only.
_ONE = tuple(np.broadcast_to(np.bool_(flag), (1,)) for flag in (False, True))


class UserTables:
    """The users of a release.

    Parameters
    ----------
    artefact
        The artefact ``users``.
    probes
        Returns the items that Bloom filters are tested for.
    hashes
        k of the filters; 0 if there are none.

    Attributes
    ----------
    size : int
        U, and the row of all users who are not in the tables.
    fallbacks : dict
        Empty: there are no live values.
    """

    def __init__(
        self, artefact: Artefact, probes: Callable[[], ItemProbes] | None = None, hashes: int = 0
    ) -> None:
        self._artefact, self._probes, self._hashes = artefact, probes, hashes
        # In the types that ``latest_rows`` reads, which are those of the file.
        self.history_offsets = np.ascontiguousarray(artefact.array("history_offsets"), np.int64)
        self.history_rows = np.ascontiguousarray(artefact.array("history_rows"), np.int32)
        self.size = len(self.history_offsets) - 2
        self.fallbacks: dict[str, int] = {}
        self._packed: dict[str, Array] = {}
        self._together: dict[tuple[str, ...], Tables] = {}
        self._raw: dict[str, StoredColumn | None] = {}
        # The latest batch: its ids and its snapshot. Holding the ids keeps the ``is`` test valid.
        self._latest: tuple[Array | None, UserRows | None] = (None, None)

    @cached_property
    def lookup(self) -> Lookup:
        """Raw user id → row."""
        return self._artefact.lookup(USER_LOOKUP)

    def read(self, user_ids: Array) -> UserRows:
        """Look up the users ``[B, 1]``."""
        asked, snapshot = self._latest
        if asked is user_ids and snapshot is not None:
            return snapshot
        snapshot = self.at(self.rows(user_ids if len(user_ids) == 1 else user_ids[:, 0]))
        self._latest = (user_ids, snapshot)
        return snapshot

    def at(self, rows: Rows) -> UserRows:
        """Return the users in ``rows [B]``; row U is an unknown user."""
        return UserRows(self, rows)

    def rows(self, user_ids: Array) -> Rows:
        """Return the row of each raw id ``[n]`` (one may have any shape); U if there is no such user."""
        if len(user_ids) == 1:
            row = self.lookup.find_one(user_ids.item())
            return _alone(row if row >= 0 else self.size)
        found = self.lookup.find(user_ids)
        return np.where(found < 0, self.size, found)

    @cached_property
    def history_times(self) -> Array:
        """When each of :attr:`history_rows` was last seen, in seconds since 1970."""
        return self._artefact.array("history_times", len(self.history_rows))

    def filtered(self, rows: Rows) -> list[Rows] | None:
        """Return the rows that each user ``[B]`` has seen by a Bloom filter; None if no user has one."""
        if not self._hashes or self._probes is None:
            return None
        offsets = self._artefact.array("filter_offsets", self.size + 2)
        begins, ends = offsets[rows].tolist(), offsets[rows + 1].tolist()
        if begins == ends:
            return None
        data, probes = self._artefact.array("filter_data"), self._probes()
        nothing = np.zeros(0, np.int64)
        return [
            probes.members(data[a:b], self._hashes) if b > a else nothing
            for a, b in zip(begins, ends, strict=True)
        ]

    def packed(self, name: str) -> Array:
        """Return a packed table ``[U + 1, …]``."""
        table = self._packed.get(name)
        if table is None:
            table = self._packed[name] = self._artefact.array(name, self.size + 1)
        return table

    def together(self, names: tuple[str, ...]) -> Tables:
        """Return packed tables whose rows are wanted together."""
        tables = self._together.get(names)
        if tables is None:
            tables = self._together[names] = Tables({name: self.packed(name) for name in names})
        return tables

    def raw(self, column: str) -> StoredColumn | None:
        """Return a raw column ``[U + 1]``; None if the tables do not hold it."""
        if column not in self._raw:
            self._raw[column] = raw_column(self._artefact, column)
        return self._raw[column]


def _alone(number: int) -> Rows:
    """Return ``[1]``: the array of a list takes several times as long after a pause."""
    array = np.empty(1, np.int64)
    array[0] = number
    return array


class UserRows:
    """A snapshot of some users of the tables, which do not change.

    Parameters
    ----------
    tables
        The tables.
    rows
        ``[B]`` their rows.
    """

    #: No live values: packed tensors match the columns, and nothing was appended.
    stale: ClassVar[None] = None
    appended: ClassVar[None] = None
    filtered: ClassVar[None] = None

    def __init__(self, tables: UserTables, rows: Rows) -> None:
        self._tables, self.rows = tables, rows
        #: ``[B]``: which users are in the tables.
        self.known: npt.NDArray[np.bool_] = (
            _ONE[rows.item() < tables.size] if len(rows) == 1 else rows < tables.size
        )

    @property
    def appended_ms(self) -> Rows:
        """``[B, 0]``: nothing was appended."""
        return np.zeros((len(self.rows), 0), np.int64)

    def packed(self, names: tuple[str, ...]) -> dict[str, Array]:
        """Return model-ready tensors ``[B, …]``."""
        return self._tables.together(names).take(self.rows)

    def raw(self, name: str) -> Column | None:
        """Return a raw column of ``B`` rows; None if the tables do not hold it."""
        stored = self._tables.raw(name)
        return None if stored is None else stored.take(self.rows)

    def history(self, length: int, pad: int) -> tuple[Rows, npt.NDArray[np.int32]]:
        """Return the latest items ``[B, length]``, oldest first, and how many ``[B]`` are real."""
        offsets, listed, rows = self._tables.history_offsets, self._tables.history_rows, self.rows
        found = latest_rows(rows, offsets, listed, length, pad)
        if found is not None:
            return found
        out = np.full((len(rows), length), pad)
        ends = offsets[rows + 1]
        counts = np.minimum(ends - offsets[rows], length)
        real = np.arange(length) < counts[:, None]
        out[real] = listed[flat_ranges(ends - counts, counts)]
        return out, counts.astype(np.int32)

    def seen(self) -> tuple[Rows, Rows]:
        """Return all item rows that the users have seen, end to end, and each user's number ``[B]``."""
        offsets, listed, rows = self._tables.history_offsets, self._tables.history_rows, self.rows
        filtered = self._tables.filtered(rows)
        if filtered is not None:
            carried = [listed[offsets[row] : offsets[row + 1]] for row in rows.tolist()]
            parts = [np.concatenate(both) for both in zip(filtered, carried, strict=True)]
            return np.concatenate(parts).astype(np.int64), np.array([len(part) for part in parts])
        if len(rows) == 1:
            row = rows.item()
            begin, end = offsets.item(row), offsets.item(row + 1)
            return listed[begin:end].astype(np.int64), _alone(end - begin)
        starts = offsets[rows]
        counts = offsets[rows + 1] - starts
        return listed.take(flat_ranges(starts, counts)).astype(np.int64), counts

    def seen_s(self) -> npt.NDArray[np.float64]:
        """Return when each of :meth:`seen` was last seen, in seconds since 1970; without Bloom filters."""
        offsets, starts = self._tables.history_offsets, self._tables.history_offsets[self.rows]
        places = flat_ranges(starts, offsets[self.rows + 1] - starts)
        return np.asarray(self._tables.history_times.take(places), np.float64)
