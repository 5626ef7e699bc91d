"""``describe_items``: raw ids or catalogue rows → ids, rows and titles, for display."""

from __future__ import annotations

import numpy as np

from ..errors import InvalidRequest
from ..release.opened import Release
from ..spec import Array, Arrays, StageSpec


class DescribeItems:
    """Look up items by raw id or by catalogue row."""

    def __init__(self, name: str, release: Release) -> None:
        self.spec: StageSpec = release.stages[name]
        self._title_column = release.settings.title_column
        self._items = release.items
        self._items.lookup  # noqa: B018 - opened now, not in the first request
        self.renew()

    def renew(self) -> None:
        """Open the current titles."""
        title = self._title_column
        self._titles = None if title is None else self._items.raw(title)

    def check(self, arrays: Arrays) -> None:
        """Reject a request with both or neither of its inputs, and negative rows."""
        given = [name for name in ("item_id", "item_row") if name in arrays]
        if len(given) != 1:
            raise InvalidRequest(
                f"stage describe_items: send item_id or item_row, got {' and '.join(given) or 'neither'}"
            )
        rows = arrays.get("item_row")
        if rows is not None and rows.size and rows.min() < 0:
            raise InvalidRequest(f"stage describe_items: item_row must not be negative, got {rows.min()}")

    def widths(self, arrays: Arrays) -> dict[str, int]:
        """Return output → width for one request: the width of its input."""
        width = max(array.shape[1] for array in arrays.values())
        return {tensor.name: width for tensor in self.spec.outputs}

    def run(self, arrays: Arrays) -> dict[str, Array]:
        """Describe items ``[B, M]``; where ``item_row`` is -1, ``item_id`` counts.

        Returns
        -------
        ``item_id``, ``item_row``, ``title`` and ``found``, each ``[B, M]``. For an item that is not found,
        they hold an empty id, the pad row, an empty title and False.
        """
        ids, rows = arrays["item_id"], arrays["item_row"]
        width = max(ids.shape[1], rows.shape[1])
        pad_row = self._items.size
        found = np.full((len(ids), width), pad_row, np.int64)
        found[:, : ids.shape[1]] = self._items.rows(ids)
        by_row = rows >= 0
        given = np.where(rows < pad_row, rows, pad_row)
        found[:, : rows.shape[1]] = np.where(by_row, given, found[:, : rows.shape[1]])
        return {
            "item_id": self._items.ids(found),
            "item_row": found,
            "title": self._title(found),
            "found": found < pad_row,
        }

    def _title(self, rows: Array) -> Array:
        """Return titles as ``bytes`` objects; numbers become text, nulls are empty."""
        flat = rows.reshape(-1)
        out = np.full(flat.shape, b"", np.object_)
        real = flat < self._items.size
        if self._titles is not None and real.any():
            column = self._titles.take(flat[real])
            values = column.values
            if values.dtype != np.object_:
                values = np.array([str(value).encode() for value in values.tolist()], np.object_)
            out[real] = values if column.valid is None else np.where(column.valid, values, b"")
        return out.reshape(rows.shape)
