"""The recall of an index whose vectors are rounded for a device; measured at export, on the CPU."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..device.masks_torch import TensorMask
from ..device.place_torch import Place
from ..device.search_torch import DTYPES, DeviceSearch
from ..ranked.masks import make_mask
from ..ranked.order import Rows
from ..spec import Array
from .scan import ExactSearch, Space


def rounded_recall(space: Space, queries: Array, seen: Sequence[Rows], count: int, precision: str) -> float:
    """Return the share of the best allowed items that a search over rounded vectors finds.

    Parameters
    ----------
    space
        The vectors, in float32.
    queries, seen
        ``[Q, D]`` queries, and for each the catalogue rows that its user has seen.
    count
        Number of items to find.
    precision
        A key of :data:`~tiercel_serving.device.search_torch.DTYPES`.
    """
    place, items = Place("cpu"), space.items
    rows = None if space.rows is None else place.table(space.rows.astype(np.int64))
    rounded = DeviceSearch(place.table(space.vectors, DTYPES[precision]), rows, items)
    counts = np.array([len(had) for had in seen], np.int64)
    flat = np.concatenate([*seen, np.empty(0, np.int64)]).astype(np.int64)
    _, want = ExactSearch(space).nearest(queries, make_mask(len(queries), items, flat, counts), count)
    base = np.arange(len(queries)) * (items + 1)
    cells = np.concatenate([flat + np.repeat(base, counts), base + items])
    mask = TensorMask(len(queries), items, place.put(cells), int(counts.max(initial=0)))
    found = place.take(rounded.nearest(place.put(queries), mask, count)[1])
    shares = [
        np.isin(best[best < items], own).mean()
        for best, own in zip(want, found, strict=True)
        if (best < items).any()
    ]
    return float(np.mean(shares)) if shares else 1.0
