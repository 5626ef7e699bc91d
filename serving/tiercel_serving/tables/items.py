"""The items of a release: memory-mapped tables, gathered by row.

The artefact ``items`` (I items; row I is the pad row) holds

    the lookup :data:`ITEM_LOOKUP` (raw id → row), the raw ids :data:`ITEM_IDS` in row order, as arrays of
    :func:`store_ids`, a stored column :func:`~.column_store.raw_prefix` ``[I + 1]`` for each raw item
    column (the pad row is null), ``item_cat [I + 1, Ci]`` i64, ``item_num [I + 1, Fi]`` f32 and
    ``item_list_<c> [I + 1, Lc]``.

Packed arrays of width zero are left out.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property

import numpy as np
import numpy.typing as npt

from ..columns import Column
from ..errors import ArtefactCorrupt
from ..lookups.lookup import Lookup
from ..lookups.strings import Strings, packed_strings
from ..native.rows import take_rows
from ..release.artefacts import Artefact
from ..spec import Array
from .column_store import StoredColumn, raw_column

#: Prefix of the lookup from raw item id to catalogue row.
ITEM_LOOKUP = "item_id"
#: Prefix of the items' raw ids in row order.
ITEM_IDS = "ids"

Rows = npt.NDArray[np.int64]


def store_ids(ids: Array | Strings) -> dict[str, Array]:
    """Return raw ids ``[I]`` as arrays: ``values [I + 1]``, or ``offsets [I + 2]`` and ``blob`` for text.

    The pad row's id is 0 or ``b""``.
    """
    if isinstance(ids, Strings) or ids.dtype == np.object_:
        text = packed_strings(ids)
        offsets = np.append(text.offsets, text.offsets[-1:])
        return {f"{ITEM_IDS}.offsets": offsets, f"{ITEM_IDS}.blob": text.blob}
    return {f"{ITEM_IDS}.values": np.append(ids, np.zeros(1, ids.dtype))}


class ItemTable:
    """The items of a release.

    Parameters
    ----------
    artefact
        The artefact ``items``.
    size
        I, and the pad row.
    """

    def __init__(self, artefact: Artefact, size: int) -> None:
        self._artefact, self.size = artefact, size
        self._offsets: Array | None = None
        self._blob: Array | None = None
        if f"{ITEM_IDS}.offsets" in artefact.arrays:
            self._offsets = artefact.array(f"{ITEM_IDS}.offsets", size + 2)
            self._blob = artefact.array(f"{ITEM_IDS}.blob")
            # Indexing a memoryview is several times faster than indexing an array.
            self._text = memoryview(self._blob)  # type: ignore[arg-type]
            self._ends = memoryview(self._offsets)  # type: ignore[arg-type]
        else:
            self._values = artefact.array(f"{ITEM_IDS}.values", size + 1)

    @cached_property
    def lookup(self) -> Lookup:
        """Raw item id → row. Opened on first use, since not every stage uses raw ids."""
        return self._artefact.lookup(ITEM_LOOKUP)

    def ids(self, rows: Rows) -> Array:
        """Return the raw ids of rows (any shape): int64, or ``bytes`` objects; 0 or ``b""`` for the pad row.

        Text becomes Python objects only here, for these rows: a table of objects would take some 60 bytes per
        item in each serving process.
        """
        if self._offsets is None:
            return take_rows(self._values, rows)
        ends, text = self._ends, self._text
        out = np.empty(rows.size, np.object_)
        out[:] = [text[ends[row] : ends[row + 1]].tobytes() for row in rows.ravel().tolist()]
        return out.reshape(rows.shape)

    def all_ids(self) -> Array | Strings:
        """Return the raw ids ``[I]``; text ids are packed strings, without a Python object for each."""
        if self._offsets is None or self._blob is None:
            return self._values[:-1]
        return Strings(self._blob, self._offsets[:-1])

    def rows(self, item_ids: Array | Strings) -> Rows:
        """Return the row of each raw id (any shape, or packed strings); I for an unknown item."""
        if isinstance(item_ids, Strings):
            found = self.lookup.find(item_ids)
        else:
            found = self.lookup.find(item_ids.reshape(-1)).reshape(item_ids.shape)
        return np.where(found < 0, self.size, found)

    def packed(self, name: str) -> Array:
        """Return a packed table ``[I + 1, …]``."""
        return self._artefact.array(name, self.size + 1)

    def raw(self, column: str) -> StoredColumn:
        """Return a raw column ``[I + 1]``.

        Raises
        ------
        ArtefactCorrupt
            The table does not hold it.
        """
        stored = raw_column(self._artefact, column)
        if stored is None:
            raise ArtefactCorrupt(
                f"{self._artefact.path or 'items'}: the items hold no raw column {column!r}, which a "
                "source, rule, step or title speaks of; export again with this column among the items"
            )
        return stored

    def columns(self, names: Iterable[str], *, pad: bool = False) -> dict[str, Column]:
        """Return whole raw columns ``[I]``, or ``[I + 1]`` with the null pad row; see :meth:`raw`."""
        rows = np.arange(self.size + pad)
        return {name: self.raw(name).take(rows) for name in names}
