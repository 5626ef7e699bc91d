"""How large everything is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Size:
    """One size of the benchmark.

    Parameters
    ----------
    items, users, events
        How many.
    served
        The index type of the release that is exported.
    indexes
        The index types whose search is measured.
    dimension, clusters
        Of the item vectors.
    heavy, heavy_events
        How many heavy users there are, and how many items each has had, at most half of them all.
    queries
        Queries for each mask.
    answers
        Single users who are answered; a fifth as many batches.
    candidates, kept
        N and K.
    hidden
        How many of the best items are excluded, few and many.
    """

    items: int
    users: int
    events: int
    served: str
    indexes: tuple[str, ...]
    dimension: int = 64
    clusters: int = 1000
    heavy: int = 64
    heavy_events: int = 10_000
    queries: int = 40
    answers: int = 400
    candidates: int = 200
    kept: int = 100
    hidden: tuple[int, int] = (500, 5000)


#: Name → size.
SIZES: Mapping[str, Size] = {
    "tiny": Size(
        *(2000, 300, 9000, "IVF16,Flat", ("Flat", "IVF16,Flat")),
        **{"dimension": 16, "clusters": 20, "heavy": 4, "heavy_events": 600, "queries": 6, "answers": 10},
        **{"candidates": 50, "kept": 20},
        hidden=(50, 500),
    ),
    "S0": Size(10_000, 20_000, 500_000, "Flat", ("Flat", "IVF256,Flat", "HNSW32", "SQ8"), clusters=200),
    "S1": Size(100_000, 200_000, 5_000_000, "IVF1024,Flat", ("Flat", "IVF1024,Flat", "HNSW32", "SQ8")),
    "S2": Size(
        *(1_000_000, 1_000_000, 20_000_000, "IVF4096,SQ8", ("Flat", "IVF4096,SQ8", "SQ8")),
        **{"clusters": 4000, "queries": 20, "answers": 200},
    ),
}
