"""``item_weights``: a sparse item × item matrix, applied to the user's history.

The score of item i is the sum of the weights ``W[j, i]`` over the items j of the history. W is stored by rows
(CSR) and memory-mapped. Only the rows of the histories are read, and a dense array users × items is allocated
only if it is small.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from ..errors import InvalidSettings
from ..ranked.order import Rows, Scores
from ..release.artefacts import Artefact
from ..spec import Array
from .history_sums import HistorySums, OpenedSums
from .sparse_sums import picked, sum_cells
from .table import Made, Material, UserTensors


class ItemWeights(HistorySums, frozen=True, tag="item_weights"):
    """Items by the sum of their weights from the items of the history.

    An item that occurs twice in the history counts twice. The retrieval model of the source's name gives the
    weights.
    """

    form: ClassVar[str | None] = "item weights"
    relates: ClassVar[bool] = True

    def make(self, material: Material) -> Made:
        """Keep the weights of the allowed items: ``offsets [I + 1]``, ``columns`` and ``weights [n]``.

        Raises
        ------
        InvalidSettings
            The weights are not a matrix over the catalogue; see :func:`checked_weights`.
        """
        offsets, columns, weights = checked_weights(material.form, material.items, self.name)
        if material.allowed is not None and not material.allowed.all():
            kept = material.allowed[columns]
            offsets = np.append(0, np.cumsum(kept))[offsets]
            columns, weights = columns[kept], weights[kept]
        arrays = {"offsets": offsets, "columns": columns, "weights": weights}
        return Made(arrays, figures={"weights": len(weights)})

    def open(self, artefact: Artefact, items: int, threads: int) -> WeightedItems:
        """Open the matrix."""
        columns = artefact.array("columns")
        weights = artefact.array("weights", len(columns))
        offsets = artefact.array("offsets", items - artefact.room + 1)
        if artefact.room:
            # Added items have no weights.
            offsets = np.append(offsets, np.repeat(offsets[-1:], artefact.room))
        return WeightedItems(offsets, columns, weights, items)

    def totals(self, arrays: Mapping[str, Array], history: list[int]) -> dict[int, float]:
        """Return item row → its float64 sum, added in the order of the history."""
        totals: dict[int, float] = {}
        offsets = arrays["offsets"]
        for item in history:
            if item < len(offsets) - 1:
                part = slice(int(offsets[item]), int(offsets[item + 1]))
                weights = arrays["weights"][part].tolist()
                for column, weight in zip(arrays["columns"][part].tolist(), weights, strict=True):
                    totals[column] = totals.get(column, 0.0) + weight
        return totals

    def reference_score(self, arrays: Mapping[str, Array], user: UserTensors, row: int) -> float:
        """Return one item's sum, added in float64 in the order of the history, rounded to float32."""
        offsets, total = arrays["offsets"], 0.0
        for item in user["history_row"].tolist():
            if item < len(offsets) - 1:
                part = slice(int(offsets[item]), int(offsets[item + 1]))
                # Only this item's weights: summing all items again for each candidate would be slow.
                for weight in arrays["weights"][part][arrays["columns"][part] == row].tolist():
                    total += weight
        return float(np.float32(total))


def checked_weights(form: Mapping[str, Any], items: int, name: str) -> tuple[Array, Array, Array]:
    """Return offsets, columns and weights of a form as int64, int32 and float32.

    Raises
    ------
    InvalidSettings
        An array is missing, or they are not a CSR matrix ``[I, I]`` of finite numbers.
    """
    what = f"item weights {name!r}"
    missing = [array for array in ("offsets", "columns", "weights") if array not in form]
    if missing:
        raise InvalidSettings(f"{what}: expected offsets, columns and weights, got no {missing[0]}; give all")
    offsets = np.asarray(form["offsets"], np.int64)
    columns, weights = np.asarray(form["columns"]), np.asarray(form["weights"], np.float32)
    if len(offsets) != items + 1 or len(columns) != len(weights) or offsets[-1] != len(weights):
        raise InvalidSettings(
            f"{what}: expected {items + 1} offsets that end at the number of columns and of weights, got "
            f"{len(offsets)} that end at {offsets[-1:]}, {len(columns)} and {len(weights)}; give CSR arrays "
            "with a row for each item of the catalogue"
        )
    inside = (columns >= 0) & (columns < items)
    if offsets[0] != 0 or (np.diff(offsets) < 0).any() or not inside.all():
        raise InvalidSettings(
            f"{what}: offsets must rise from 0 and columns lie below {items}; give a CSR matrix"
        )
    if not np.isfinite(weights).all():
        bad = int(np.argmin(np.isfinite(weights)))
        row = int(np.searchsorted(offsets, bad, side="right")) - 1
        raise InvalidSettings(f"{what}: a weight of row {row} is {weights[bad]}; give finite numbers")
    return offsets, columns.astype(np.int32), weights


class WeightedItems(OpenedSums):
    """A sparse matrix over a catalogue.

    Parameters
    ----------
    offsets, columns, weights
        CSR: ``[I + 1]`` int64, ``[n]`` int32 and ``[n]`` float32.
    items
        I, the pad row.
    """

    def __init__(self, offsets: Array, columns: Array, weights: Array, items: int) -> None:
        super().__init__(items)
        self._offsets, self._columns, self._weights = offsets, columns, weights

    def sums(self, history: Rows) -> tuple[Rows, Scores]:
        """Return the sums of weights, added in the order of the history; see :meth:`OpenedSums.sums`."""
        users, width = len(history), self._items + 1
        real = history < self._items
        places, counts = picked(self._offsets, history[real])
        owner = np.repeat(np.nonzero(real)[0], counts)
        cells = self._columns[places] + owner * width
        cells, (sums,) = sum_cells(cells, users * width, self._weights[places])
        return cells, sums.astype(np.float32)
