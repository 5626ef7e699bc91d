"""``candidate_features`` on a device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..device.place_torch import Place
from ..release.opened import Release
from ..spec import StageSpec


class TensorCandidateFeatures:
    """Gather each packed item table, held on the device, by ``kept_row``."""

    def __init__(self, name: str, release: Release, place: Place) -> None:
        self.spec: StageSpec = release.stages[name]
        self.tensors = frozenset({"kept_row"})
        items = release.items
        self._tables = {one.name: place.table(items.packed(one.name)) for one in self.spec.outputs}
        self._graphed = place.graphed(self._gather)

    def run(self, arrays: Mapping[str, Any]) -> dict[str, Tensor]:
        """Gather ``kept_row [B, K]``."""
        return dict(zip(self._tables, self._graphed([arrays["kept_row"]]), strict=True))

    def _gather(self, tensors: list[Tensor]) -> list[Tensor]:
        return [table[tensors[0]] for table in self._tables.values()]
