"""``candidate_features``: packed item tensors of the kept candidates, gathered from tables made at export."""

from __future__ import annotations

from ..native.rows import Tables
from ..release.opened import Release
from ..spec import Array, Arrays, StageSpec


class CandidateFeatures:
    """Gather each packed item table by ``kept_row``; the pad row holds zeros."""

    def __init__(self, name: str, release: Release) -> None:
        self.spec: StageSpec = release.stages[name]
        self._items = release.items
        self.renew()

    def renew(self) -> None:
        """Open the current tables."""
        names = (tensor.name for tensor in self.spec.outputs)
        self._tables = Tables({name: self._items.packed(name) for name in names})

    def run(self, arrays: Arrays) -> dict[str, Array]:
        """Gather ``kept_row [B, K]`` into ``item_cat [B, K, Ci]``, ``item_num [B, K, Fi]`` and lists."""
        return self._tables.take(arrays["kept_row"])
