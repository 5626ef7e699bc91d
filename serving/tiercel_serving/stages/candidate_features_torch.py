"""``candidate_features`` on a device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..device.place_torch import Place
from ..release.opened import Release
from ..spec import StageSpec


class TensorCandidateFeatures:
    """Gather each packed item table, which lives on the device, by ``kept_row``."""

    def __init__(self, name: str, release: Release, place: Place) -> None:
        self.spec: StageSpec = release.stages[name]
        self.tensors = frozenset({"kept_row"})
        items = release.items
        self._tables = {one.name: place.table(items.packed(one.name)) for one in self.spec.outputs}

    def run(self, arrays: Mapping[str, Any]) -> dict[str, Tensor]:
        """Gather ``kept_row [B, K]``."""
        return {name: table[arrays["kept_row"]] for name, table in self._tables.items()}
