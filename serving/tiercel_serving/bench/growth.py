"""Measure how an answer's time grows with the batch, and how each index type trades time for recall."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import cycle
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

from ..release.opened import Release
from ..runtime.batching import absent
from ..runtime.chain import Chain
from ..sources.index import Index
from ..spec import Array

#: From a larger catalogue this many vectors are sampled, so that an index is built in seconds.
MOST_VECTORS = 50_000
#: Queries that are searched in each index.
QUERIES = 64
#: Index type → the search parameter that trades time for recall, and its values.
SWEEPS: Mapping[str, tuple[str, tuple[int, ...]]] = {
    "IVF64,Flat": ("nprobe", (1, 2, 4, 8, 16, 32)),
    "HNSW32": ("efSearch", (8, 16, 32, 64, 128, 256)),
}


@dataclass(frozen=True)
class Searched:
    """An index type at one setting: its recall of the exact top N, and the median µs of a search."""

    index: str
    setting: str
    recall: float
    us: float


@dataclass(frozen=True)
class Growth:
    """Measurements in one process, without a server.

    Parameters
    ----------
    batches
        Users in one batch → median µs per user.
    indexes
        Source → each index type and setting, on the vectors of the release's items.
    """

    batches: Mapping[int, float]
    indexes: Mapping[str, Sequence[Searched]]

    def to_json(self) -> dict[str, Any]:
        """Return a JSON form."""
        return {
            "batches": {str(users): round(us, 1) for users, us in self.batches.items()},
            "indexes": {
                name: [{**asdict(one), "us": round(one.us, 1), "recall": round(one.recall, 4)} for one in of]
                for name, of in self.indexes.items()
            },
        }


def measure_growth(release: Release, pipeline: Chain, user_ids: Array, seconds: float) -> Growth:
    """Run batches of 1, 2, 4 … users, and search the vectors of each index source that has some.

    Parameters
    ----------
    release, pipeline
        A release, and its stages.
    user_ids
        Raw ids ``[n]`` of the users in the requests.
    seconds
        How long each batch size is measured.
    """
    most = release.settings.max_batch_size
    sizes = [2**power for power in range(most.bit_length()) if 2**power <= most]
    batches = {size: _of_batch(pipeline, user_ids, size, seconds) for size in sizes}
    first = _requests(pipeline, user_ids, QUERIES)[0]
    made, _ = pipeline.run(first)
    indexes = {
        source.name: tuple(_search(np.asarray(vectors, np.float32), made[source.query], release))
        for source in release.settings.sources
        if isinstance(source, Index) and (vectors := _vectors(release, source.name)) is not None
    }
    return Growth(batches, indexes)


def _requests(pipeline: Chain, user_ids: Array, users: int) -> list[dict[str, Array]]:
    blank = absent(pipeline.external_inputs, users)
    ids = np.resize(user_ids, max(users, len(user_ids)))
    return [
        {**blank, "user_id": ids[begin : begin + users, None]}
        for begin in range(0, len(ids) - users + 1, users)
    ]


def _of_batch(pipeline: Chain, user_ids: Array, users: int, seconds: float) -> float:
    requests = cycle(_requests(pipeline, user_ids, users))
    pipeline.run(next(requests))
    spent, end = list[float](), time.perf_counter() + seconds
    while time.perf_counter() < end or not spent:
        begun = time.perf_counter()
        pipeline.run(next(requests))
        spent.append((time.perf_counter() - begun) * 1e6 / users)
    return median(spent)


def _vectors(release: Release, name: str) -> Array | None:
    vectors = release.artefact(f"source_{name}", "source").arrays.get("vectors")
    if vectors is None or len(vectors) <= MOST_VECTORS:
        return vectors
    drawn: Array = vectors[np.random.default_rng(0).permutation(len(vectors))[:MOST_VECTORS]]
    return drawn


def _search(vectors: Array, queries: Array, release: Release) -> Iterator[Searched]:
    """Measure exact search and each of :data:`SWEEPS` on queries ``[Q, D]``, one query at a time."""
    import faiss

    count = min(release.settings.candidates, len(vectors))
    dimension = vectors.shape[1]
    exact = faiss.IndexFlatIP(dimension)
    exact.add(vectors)
    best, us = _ask(exact, queries, count)
    yield Searched("Flat", "", 1.0, us)
    for factory, (parameter, values) in SWEEPS.items():
        if len(vectors) < 64 * 39:  # FAISS wants 39 vectors for each list that it trains
            continue
        index = faiss.index_factory(dimension, factory, faiss.METRIC_INNER_PRODUCT)
        index.train(vectors)
        index.add(vectors)
        for value in values:
            faiss.ParameterSpace().set_index_parameter(index, parameter, value)
            found, us = _ask(index, queries, count)
            shares = [len(np.intersect1d(*pair)) / count for pair in zip(found, best, strict=True)]
            yield Searched(factory, f"{parameter}={value}", float(np.mean(shares)), us)


def _ask(index: Any, queries: Array, count: int) -> tuple[npt.NDArray[np.int64], float]:
    found, spent = [], []
    for query in queries:
        begun = time.perf_counter()
        found.append(index.search(query[None], count)[1][0])
        spent.append((time.perf_counter() - begun) * 1e6)
    return np.array(found), median(spent)
