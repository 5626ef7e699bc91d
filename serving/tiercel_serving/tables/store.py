"""Users and items as the stages read them: memory-mapped tables, gathered by row.

How the arrays of the artefacts ``users`` and ``items`` are named is written here and nowhere else:

``users`` (U users; row U is the dummy row of everybody who is not in the store)
    the lookup :data:`USER_LOOKUP` (raw id → row), a stored column :func:`raw_prefix` for each raw user
    column ``[U + 1]``, ``user_cat [U + 1, Cu]`` i64, ``user_num [U + 1, Fu]`` f32,
    ``user_list_<c> [U + 1, Lc]``, ``history_offsets [U + 2]``, ``history_rows`` in order of time,
    ``seen_offsets [U + 2]``, ``seen_rows`` sorted and unique within a user.
``items`` (I items; row I is the pad row)
    the lookup :data:`ITEM_LOOKUP` (raw id → row), the stored column :data:`ITEM_IDS` ``[I]`` of raw ids
    in row order, a stored column :func:`raw_prefix` ``[I]`` or ``[I + 1]`` for each raw item column,
    ``item_cat [I + 1, Ci]`` i64, ``item_num [I + 1, Fi]`` f32, ``item_list_<c> [I + 1, Lc]``,
    ``popular_rows [I]``, ``popular_scores [I]`` f32.

Packed arrays of width zero are left out.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import numpy.typing as npt

from ..columns import flat_ranges
from ..errors import ArtefactCorrupt
from ..lookups.lookup import Lookup, open_lookup
from ..release.artefacts import Artefact
from ..release.opened import Release
from ..spec import Array
from .column_store import StoredColumn, open_column

#: Prefix of the lookup from raw user id to user row.
USER_LOOKUP = "user_id"
#: Prefix of the lookup from raw item id to catalogue row.
ITEM_LOOKUP = "item_id"
#: Prefix of the stored column with the items' raw ids in row order.
ITEM_IDS = "ids"

Rows = npt.NDArray[np.int64]


def raw_prefix(column: str) -> str:
    """Return the prefix under which a raw column is stored."""
    return f"raw.{column}"


class UserStore:
    """The users of a release.

    Parameters
    ----------
    artefact
        The artefact ``users``.

    Attributes
    ----------
    size : int
        U, and the row of everybody who is not in the store.
    """

    def __init__(self, artefact: Artefact) -> None:
        self._artefact = artefact
        self._history_offsets = _array(artefact, "history_offsets")
        self._history_rows = _array(artefact, "history_rows")
        self._seen_offsets = _array(artefact, "seen_offsets")
        self._seen_rows = _array(artefact, "seen_rows")
        self.size = len(self._seen_offsets) - 2

    @classmethod
    def open(cls, release: Release) -> UserStore:
        """Open the users of a release."""
        store = cls(release.artefact("users", "users"))
        _expect_rows(store._artefact, "users", store.size, int(release.manifest["catalogue"]["users"]))
        return store

    @cached_property
    def lookup(self) -> Lookup:
        """Raw user id → row. Opened on first use: only one stage speaks raw ids."""
        return _lookup(self._artefact, USER_LOOKUP)

    def rows(self, user_ids: Array) -> Rows:
        """Return the row of each raw id ``[n]``; U where the store has no such user."""
        found = self.lookup.find(user_ids)
        return np.where(found < 0, self.size, found)

    def packed(self, name: str) -> Array:
        """Return a packed table ``[U + 1, …]``."""
        return _array(self._artefact, name)

    def raw(self, column: str) -> StoredColumn | None:
        """Return a raw column ``[U + 1]``; None if the store does not hold it."""
        return _raw_column(self._artefact, column)

    def history(self, rows: Rows, length: int, pad: int) -> tuple[Rows, npt.NDArray[np.int32]]:
        """Return the latest items of users.

        Parameters
        ----------
        rows
            ``[B]`` user rows.
        length
            L, how many at most.
        pad
            What fills the end.

        Returns
        -------
        ``[B, L]`` item rows, oldest first, left aligned; ``[B]`` int32 how many are real.
        """
        out = np.full((len(rows), length), pad, np.int64)
        if len(rows) == 1:
            begin, end = self._history_offsets[rows[0] : rows[0] + 2].tolist()
            count = min(end - begin, length)
            out[0, :count] = self._history_rows[end - count : end]
            return out, np.array([count], np.int32)
        ends = self._history_offsets[rows + 1]
        counts = np.minimum(ends - self._history_offsets[rows], length)
        real = np.arange(length) < counts[:, None]
        out[real] = self._history_rows[flat_ranges(ends - counts, counts)]
        return out, counts.astype(np.int32)

    def seen(self, rows: Rows) -> tuple[Rows, Rows]:
        """Return all items that users have seen.

        Parameters
        ----------
        rows
            ``[B]`` user rows.

        Returns
        -------
        Item rows of all of them, end to end; ``[B]`` how many belong to each.
        """
        starts = self._seen_offsets[rows]
        counts = self._seen_offsets[rows + 1] - starts
        return self._seen_rows[flat_ranges(starts, counts)], counts


class ItemTable:
    """The items of a release.

    Parameters
    ----------
    artefact
        The artefact ``items``.

    Attributes
    ----------
    size : int
        I, and the pad row.
    popular_rows : ``[I]`` int64
        Most interactions first.
    popular_scores : ``[I]`` float32
        Their popularity.
    """

    def __init__(self, artefact: Artefact) -> None:
        self._artefact = artefact
        self.popular_rows = _array(artefact, "popular_rows")
        self.popular_scores = _array(artefact, "popular_scores")
        self.size = len(self.popular_rows)

    @classmethod
    def open(cls, release: Release) -> ItemTable:
        """Open the items of a release."""
        table = cls(release.artefact("items", "items"))
        _expect_rows(table._artefact, "items", table.size, int(release.manifest["catalogue"]["items"]))
        return table

    @cached_property
    def lookup(self) -> Lookup:
        """Raw item id → row."""
        return _lookup(self._artefact, ITEM_LOOKUP)

    @cached_property
    def ids(self) -> Array:
        """Raw ids ``[I + 1]``, in memory: the pad row's is 0 or ``b""``.

        String ids become Python objects once, here: making them anew for each answer costs more than
        they weigh (some 60 bytes an item).
        """
        column = open_column(self._artefact.arrays, ITEM_IDS)
        values = column.take(np.arange(self.size)).values
        pad = np.zeros(1, values.dtype)
        if values.dtype == np.object_:
            pad[0] = b""
        return np.concatenate([values, pad])

    def rows(self, item_ids: Array) -> Rows:
        """Return the row of each raw id (any shape); I where the catalogue has no such item."""
        found = self.lookup.find(item_ids.reshape(-1)).reshape(item_ids.shape)
        return np.where(found < 0, self.size, found)

    def packed(self, name: str) -> Array:
        """Return a packed table ``[I + 1, …]``."""
        table = _array(self._artefact, name)
        _expect_rows(self._artefact, name, len(table), self.size + 1)
        return table

    def raw(self, column: str) -> StoredColumn | None:
        """Return a raw column, at least ``[I]``; None if the table does not hold it."""
        return _raw_column(self._artefact, column)


def _raw_column(artefact: Artefact, column: str) -> StoredColumn | None:
    prefix = raw_prefix(column)
    if f"{prefix}.values" not in artefact.arrays and f"{prefix}.codes" not in artefact.arrays:
        return None
    return open_column(artefact.arrays, prefix)


def _lookup(artefact: Artefact, prefix: str) -> Lookup:
    try:
        return open_lookup(artefact.arrays, prefix)
    except KeyError as error:
        raise ArtefactCorrupt(f"{artefact.path}: {error.args[0]}; export again") from None


def _array(artefact: Artefact, name: str) -> Array:
    try:
        return artefact.arrays[name]
    except KeyError:
        raise ArtefactCorrupt(f"{artefact.path}: expected an array {name!r}; export again") from None


def _expect_rows(artefact: Artefact, what: str, found: int, expected: int) -> None:
    if found != expected:
        raise ArtefactCorrupt(
            f"{artefact.path}: expected {expected} rows of {what}, found {found}; export again"
        )
