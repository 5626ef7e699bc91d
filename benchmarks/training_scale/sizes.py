"""Sizes of the data sets, and limits on training with them."""

from __future__ import annotations

from collections.abc import Mapping

from tiercel_pipelines.data import Synthetic

SIZES: Mapping[str, Synthetic] = {
    "tiny": Synthetic(users=60, items=50, interactions=1_200),
    "1x": Synthetic(users=30_000, items=24_000, interactions=300_000),
    "10x": Synthetic(users=30_000, items=24_000, interactions=3_000_000),
    "1m": Synthetic(users=1_000_000, items=200_000, interactions=20_000_000),
    "1m-few": Synthetic(users=1_000_000, items=200_000, interactions=2_000_000),
}

#: Most seconds and bytes for ``1x``, and most memory for ten times its interactions, as a multiple of ``1x``.
MOST_S, MOST_BYTES, MOST_TIMES = 15 * 60, 3 * 10**9, 1.3
