"""``filtering`` on a device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..device.order_torch import first_of
from ..device.place_torch import Place
from ..release.opened import Release
from ..rules.kept import reason_table
from ..settings import BEYOND_KEPT, KEPT
from ..spec import StageSpec


class TensorFiltering:
    """Keep the first K candidates that pass every rule, like :class:`~..rules.kept.KeptRules`."""

    def __init__(self, name: str, release: Release, place: Place) -> None:
        self.spec: StageSpec = release.stages[name]
        self.tensors = frozenset(tensor.name for tensor in self.spec.inputs)
        settings, items = release.settings, release.items
        columns = items.columns(column for rule in settings.rules for column in rule.columns())
        self._reasons = place.table(reason_table(settings.rules, columns, items.size))
        self._kept, self._pad = settings.kept, items.size
        self._places = torch.arange(settings.candidates, device=place.device)
        self._graphed = place.graphed(self._keep)

    def run(self, arrays: Mapping[str, Any]) -> dict[str, Tensor]:
        """Filter ``retrieved_row [B, N]``."""
        read = ("retrieved_row", "retrieval_score", "source")
        made = self._graphed([arrays[name] for name in read])
        names = ("kept_row", "kept_index", "kept_score", "kept_source", "filter_reason")
        return dict(zip(names, made, strict=True))

    def _keep(self, tensors: list[Tensor]) -> list[Tensor]:
        rows, scores, source = tensors
        count = len(self._places)
        reason = self._reasons[rows]
        passed = reason == KEPT
        first = first_of(passed, self._kept, count)
        empty = first == count
        index = first.masked_fill(empty, 0)
        # Candidates that pass after the last kept one are beyond the first K.
        late = passed & (self._places > first[:, -1:])
        return [
            rows.gather(1, index).masked_fill(empty, self._pad),
            index,
            scores.gather(1, index).masked_fill(empty, 0),
            source.gather(1, index).masked_fill(empty, 0),
            reason.masked_fill(late, BEYOND_KEPT),
        ]
