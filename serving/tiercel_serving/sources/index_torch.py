"""``index`` on a device: exact search over vectors that live there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from ..device.masks_torch import TensorMask
from ..device.place_torch import Place
from ..device.search_torch import DTYPES, DeviceSearch
from ..release.artefacts import Artefact
from .index import Index


class IndexTensors:
    """Item vectors on a device with exact search over them, whatever index was built for the CPU."""

    def __init__(self, kind: Index, artefact: Artefact, items: int, place: Place) -> None:
        self._query = kind.query
        rows = artefact.arrays.get("rows")
        vectors = artefact.array("vectors", items if rows is None else len(rows))
        there = None if rows is None else place.table(np.asarray(rows, np.int64))
        self._search = DeviceSearch(place.table(vectors, DTYPES[kind.precision]), there, items)

    def candidates(self, arrays: Mapping[str, Any], mask: TensorMask, count: int) -> tuple[Tensor, Tensor]:
        """Return the nearest ``count`` that the mask allows."""
        return self._search.nearest(arrays[self._query], mask, count)

    def score(self, arrays: Mapping[str, Any], rows: Tensor) -> Tensor:
        """Return the inner products of queries with any items ``[B, M]``."""
        return self._search.score_at(arrays[self._query], self._search.positions_of(rows))
