"""``index`` on a device: vectors in device memory, searched exactly or by FAISS."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import msgspec
import numpy as np
from torch import Tensor

from ..device.masks_torch import TensorMask
from ..device.place_torch import Place
from ..device.search_torch import DTYPES, DeviceSearch
from ..release.artefacts import Artefact
from .faiss_torch import FaissSearch, open_faiss
from .index import INDEX_FILE, Index, read_index
from .search import Profile


class IndexTensors:
    """Item vectors on a device, searched exactly, or by FAISS above ``exact_on_device`` items."""

    def __init__(self, kind: Index, artefact: Artefact, items: int, place: Place) -> None:
        self._query = kind.query
        rows = artefact.arrays.get("rows")
        vectors = artefact.array("vectors", items if rows is None else len(rows))
        there = None if rows is None else place.table(np.asarray(rows, np.int64))
        self._exact = DeviceSearch(place.table(vectors, DTYPES[kind.precision]), there, items)
        self._search: DeviceSearch | FaissSearch = self._exact
        if (
            kind.exact_on_device is not None
            and len(vectors) > kind.exact_on_device
            and "profile" in artefact.meta
        ):
            profile = msgspec.convert(artefact.meta["profile"], Profile)
            read = partial(read_index, artefact.file(INDEX_FILE), vectors)
            self._search = open_faiss(self._exact, read, profile, kind.factory, place)
        self.capturable = self._search is self._exact

    def candidates(self, arrays: Mapping[str, Any], mask: TensorMask, count: int) -> tuple[Tensor, Tensor]:
        """Return the ``count`` allowed items with the largest inner products."""
        return self._search.nearest(arrays[self._query], mask, count)

    def score(self, arrays: Mapping[str, Any], rows: Tensor) -> Tensor:
        """Return the inner products ``[B, M]`` of queries with any items; -inf for items without a vector."""
        return self._exact.score_at(arrays[self._query], self._exact.positions_of(rows))
