"""``popular`` on a device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from ..device.masks_torch import TensorMask
from ..device.place_torch import Place
from ..ranked.order import sort_keys
from ..release.artefacts import Artefact
from .merged_torch import first_listed
from .popular import Popular


class PopularTensors:
    """One list of items on a device; see :class:`~.popular.PopularList`."""

    capturable = True

    def __init__(self, kind: Popular, artefact: Artefact, items: int, place: Place) -> None:
        rows = artefact.array("rows")
        scores = artefact.array("scores", len(rows))
        rows = np.append(rows, items).astype(np.int64)
        scores = np.append(scores, np.float32(-np.inf)).astype(np.float32)
        self._in_order = bool((np.diff(sort_keys(scores[None], rows[None])) > 0).all())
        self._rows, self._scores = place.table(rows), place.table(scores)

    def candidates(self, arrays: Mapping[str, Any], mask: TensorMask, count: int) -> tuple[Tensor, Tensor]:
        """Return the first ``count`` allowed items."""
        return first_listed(self._rows, self._scores, self._in_order, mask, count)
