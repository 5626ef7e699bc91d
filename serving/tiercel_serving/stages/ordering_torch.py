"""``ordering`` on a device: steps and sorting there, one copy of the result, raw ids on the host."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..device.order_torch import smallest, sort_keys
from ..device.place_torch import Place
from ..ranked.order import read_keys
from ..release.opened import Release
from ..reorder.steps_torch import TensorSteps
from ..reorder.table import REORDER
from .ordering import Ordering


class TensorOrdering(Ordering):
    """Turn scores into an answer; see :class:`~.ordering.Ordering`."""

    def __init__(self, name: str, release: Release, place: Place) -> None:
        super().__init__(name, release)
        steps = []
        for kind, step in self._steps.opened:
            form = REORDER.form(REORDER.name_of(kind))
            steps.append((kind, form(step, place)))
        self._there = TensorSteps(release.settings, steps, self._pad_row, place)
        self._place = place
        self._graphed = place.graphed(self._first)
        self.tensors = frozenset({"kept_row", "kept_score", "rank_score"})

    def run(self, arrays: Mapping[str, Any]) -> dict[str, Any]:
        """Apply the steps; see :meth:`.Ordering.run`. ``k`` and other request numbers are on the host."""
        scores, rows, reasons = self._there.apply(arrays)
        k = arrays["k"]
        # A key holds score and row, so one copy to the host suffices.
        [keys] = self._graphed([scores, rows])
        best, found = read_keys(self._place.take(keys)[:, : int(k.max())])
        answer = self._answer(best, found, k)
        return answer if reasons is None else {**answer, "reorder_reason": reasons}

    def _first(self, tensors: list[Tensor]) -> list[Tensor]:
        """Return the keys of the best ``k_max`` items, in order."""
        scores, rows = tensors
        return [smallest(sort_keys(self._there.blank(scores[:, :, 0], rows), rows), self._k_max)]


def open_stage(name: str, release: Release, place: Place) -> Ordering:
    """Return the stage on the device; on the host if a step has no device form (its arrays are small)."""
    steps = release.settings.reorder
    if any(REORDER.rows[REORDER.name_of(step)].on_device is None for step in steps):
        return Ordering(name, release)
    return TensorOrdering(name, release, place)
