"""Sizes of the scale benchmark."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Size:
    """One size of the benchmark.

    Parameters
    ----------
    items, users, events
        Numbers of items, users and interactions.
    served
        The index type of the exported release.
    indexes
        The index types whose search is measured.
    dimension, clusters
        Dimension D and number of clusters of the item vectors.
    heavy, heavy_events
        Number of heavy users, and of the items that each has had, at most half of all items.
    queries
        Number of queries for each mask.
    answers
        Number of measured requests for a single user; batches are a fifth as many.
    candidates, kept
        N and K.
    hidden
        How many of each query's best items are excluded, in the smaller and in the larger case.
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
        items=2000,
        users=300,
        events=9000,
        served="IVF16,Flat",
        indexes=("Flat", "IVF16,Flat"),
        dimension=16,
        clusters=20,
        heavy=12,
        heavy_events=600,
        queries=6,
        answers=10,
        candidates=50,
        kept=20,
        hidden=(50, 500),
    ),
    "S0": Size(
        items=10_000,
        users=20_000,
        events=500_000,
        served="Flat",
        indexes=("Flat", "IVF256,Flat", "HNSW32", "SQ8"),
        clusters=200,
    ),
    "S1": Size(
        items=100_000,
        users=200_000,
        events=5_000_000,
        served="IVF1024,Flat",
        indexes=("Flat", "IVF1024,Flat", "HNSW32", "SQ8"),
    ),
    "S2": Size(
        items=1_000_000,
        users=1_000_000,
        events=20_000_000,
        served="IVF4096,SQ8",
        indexes=("Flat", "IVF4096,SQ8", "SQ8"),
        clusters=4000,
        queries=20,
        answers=200,
    ),
}
