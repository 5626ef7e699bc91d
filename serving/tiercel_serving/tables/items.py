"""The items of a release: memory-mapped tables, gathered by row.

The artefact ``items`` (I items; row I is the pad row) holds

    the lookup :data:`ITEM_LOOKUP` (raw id → row), the stored column :data:`ITEM_IDS` ``[I]`` of raw ids
    in row order, a stored column :func:`~.column_store.raw_prefix` ``[I + 1]`` for each raw item column (the
    pad row is null), ``item_cat [I + 1, Ci]`` i64, ``item_num [I + 1, Fi]`` f32 and ``item_list_<c>
    [I + 1, Lc]``.

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
from ..release.artefacts import Artefact
from ..spec import Array
from .column_store import StoredColumn, open_column, raw_column

#: Prefix of the lookup from raw item id to catalogue row.
ITEM_LOOKUP = "item_id"
#: Prefix of the stored column with the items' raw ids in row order.
ITEM_IDS = "ids"

Rows = npt.NDArray[np.int64]


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
        text = f"{ITEM_IDS}.codes"
        artefact.array(text if text in artefact.arrays else f"{ITEM_IDS}.values", size)

    @cached_property
    def lookup(self) -> Lookup:
        """Raw item id → row. Opened on first use: not every stage speaks raw ids."""
        return self._artefact.lookup(ITEM_LOOKUP)

    @cached_property
    def ids(self) -> Array:
        """Raw ids ``[I + 1]``, in memory: the pad row's is 0 or ``b""``.

        String ids become Python objects once, here: making them anew for each answer costs more than
        they weigh (some 60 bytes an item).
        """
        values = open_column(self._artefact.arrays, ITEM_IDS).take(np.arange(self.size)).values
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
