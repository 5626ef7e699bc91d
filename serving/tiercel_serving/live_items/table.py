"""The items of a release together with new and changed ones: its tables, with rows reserved at the end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..columns import Column, merge_rows, take_rows
from ..lookups.strings import Strings
from ..ranked.order import Rows
from ..release.artefacts import Artefact
from ..spec import Array
from ..tables.column_store import StoredColumn
from ..tables.items import ItemTable
from .overlay import Overlay


class LiveItemTable(ItemTable):
    """Item tables with rows for new items between the release's own and the pad row.

    Packed tables are copied into memory once, since rows of new and changed items are overwritten in place.

    Parameters
    ----------
    artefact
        The artefact ``items``.
    own
        I, the number of items in the release.
    room
        Largest number of new items.
    """

    def __init__(self, artefact: Artefact, own: int, room: int) -> None:
        super().__init__(artefact, own)
        self.own, self.room, self.size = own, room, own + room
        self.overlay = Overlay()
        self._tables: dict[str, Array] = {}
        self._place = np.full(self.size + 1, -1, np.int32)
        self._keys: Mapping[int | bytes, int] = {}
        self._names: list[int | bytes] = []
        if self._offsets is None and room:
            self._values = _widened(self._values, room)

    def apply(self, overlay: Overlay) -> None:
        """Replace the overlay."""
        before, self.overlay = self.overlay, overlay
        for name, table in self._tables.items():
            gone = np.setdiff1d(before.rows, overlay.rows)
            table[gone] = self._artefact.array(name)[np.minimum(gone, self.own)]
            table[overlay.rows] = overlay.packed[name] if len(overlay.rows) else 0
        place = np.full(self.size + 1, -1, np.int32)
        place[overlay.rows] = np.arange(len(overlay.rows))
        self._place, self._keys = place, overlay.keys
        self._names = sorted(overlay.keys, key=overlay.keys.__getitem__)
        if self._offsets is None and overlay.keys:
            self._values[[*overlay.keys.values()]] = [*overlay.keys]

    @property
    def keys(self) -> Mapping[int | bytes, int]:
        """Raw id → row of the new items."""
        return self._keys

    def ids(self, rows: Rows) -> Array:
        """Return the raw ids of rows (any shape); see :meth:`~.ItemTable.ids`."""
        if self._offsets is None:
            return super().ids(rows)
        out = super().ids(np.minimum(rows, self.own))
        new = (rows >= self.own) & (rows < self.own + len(self._names))
        if new.any():
            flat, places = out.reshape(-1), np.flatnonzero(new.reshape(-1))
            for place in places.tolist():  # text: one object each, as for all other items
                flat[place] = self._names[int(rows.reshape(-1)[place]) - self.own]
        return out

    def rows(self, item_ids: Array | Strings) -> Rows:
        """Return the row of each raw id; the pad row if neither the release nor the overlay has it."""
        found = super().rows(item_ids)
        if self._keys and found.size and found.max() == self.size:
            flat, missing = found.reshape(-1), np.flatnonzero(found.reshape(-1) == self.size)
            if isinstance(item_ids, Strings):
                asked = item_ids.take(missing).objects()
            else:
                asked = item_ids.reshape(-1)[missing]
            flat[missing] = [self._keys.get(one, self.size) for one in asked.tolist()]
        return found

    def packed(self, name: str) -> Array:
        """Return a packed table ``[I + room + 1, …]``, which :meth:`apply` modifies in place."""
        if name not in self._tables:
            table = self._artefact.array(name, self.own + 1)
            if not self.room and not len(self.overlay.rows):
                return table
            wide = self._tables[name] = _widened(table, self.room)
            if len(self.overlay.rows):
                wide[self.overlay.rows] = self.overlay.packed[name]
        return self._tables[name]

    def raw(self, column: str) -> StoredColumn:
        """Return a raw column ``[I + room + 1]`` with the values of the current overlay."""
        stored = super().raw(column)
        over = self.overlay.columns.get(column)
        if not self.room and over is None:
            return stored
        return LiveColumn(
            stored.values,
            stored.valid,
            stored.list_offsets,
            stored.row_valid,
            stored.text_offsets,
            stored.blob,
            over,
            self._place,
            self.own,
        )


@dataclass(frozen=True, slots=True)
class LiveColumn(StoredColumn):
    """A stored column with replaced values in some rows.

    Parameters
    ----------
    over
        The replacing values ``[n]``; None if there are none.
    place
        ``[I + room + 1]``: the index of each row's value in ``over``, -1 for none.
    own
        I; rows from I on are null unless ``over`` has a value.
    """

    over: Column | None
    place: npt.NDArray[np.int32]
    own: int

    def __len__(self) -> int:
        return len(self.place)

    def take(self, rows: npt.NDArray[np.int64]) -> Column:
        """Gather rows ``[n]``; see :meth:`~.StoredColumn.take`."""
        under = StoredColumn.take(self, np.minimum(rows, self.own))
        if self.over is None:
            return under
        place = self.place[rows].astype(np.int64)
        there = place >= 0
        if not there.any():
            return under
        return merge_rows(take_rows(self.over, np.maximum(place, 0)), under, there)


def _widened(table: Array, room: int) -> Array:
    """Return a copy with ``room`` rows of zeros before the last."""
    empty = np.zeros((room, *table.shape[1:]), table.dtype)
    return np.concatenate([table[:-1], empty, table[-1:]])
