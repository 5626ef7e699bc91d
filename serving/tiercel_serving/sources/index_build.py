"""Building of a FAISS index from a factory string, and measuring of its search parameter for each depth."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import faiss
import numpy as np

from ..errors import InvalidSettings
from ..machine_faults import fault_of
from ..ranked.order import Rows
from ..spec import Array
from .scan import ExactSearch, Search, Space
from .search import DEEP, IndexSearch, Profile, Rung
from .served_recall import mask_of

#: The prefix of a FAISS error, repeated for each thread and each nested index:
#: "Error in <C++ function> at <file>:<line>: Error: '<condition>' failed: <message>". The condition or the
#: message may be missing, and a function's name may contain spaces, commas and brackets.
_PLACE = re.compile(r"Error in .+? at \S+:\d+: (Error: )?('.*?' failed: (?=.))?")

#: FAISS errors without a useful message → what they mean here.
_BARE = {
    "'metric == METRIC_L2' failed": "it knows no inner product, by which items are found",
    "C++ exception stoi": "a number in it is too large",
    "add_with_ids": "its vectors need ids of their own; leave IDMap out: position = row",
}

#: Search parameters that trade time for recall ("knobs"), tried on an index in this order.
KNOBS = ("nprobe", "efSearch")

#: Ratio of the depths of two successive rungs of the ladder, and the largest number of rungs.
RUNG, RUNGS = 2, 7

#: A knob value that finds nearly everything an index holds, and the number of queries for :func:`_margin`.
THOROUGH, MARGIN_QUERIES = 4096, 50

#: Number of queries for measuring the ladder, of queries for timing a search, and how often each is timed.
LADDER_QUERIES, TIMED_QUERIES, TIMED_TURNS = 200, 8, 3

#: Largest number of k-means training points per centroid; FAISS's default of 256 takes four times as long.
POINTS_PER_CENTROID = 64


@dataclass(frozen=True)
class IndexBuild:
    """A built index and its measurements.

    Parameters
    ----------
    index
        The FAISS index; its ids are positions of the vectors.
    factory
        The factory string that made it, or ``ready`` if the caller gave the index.
    profile
        Its measurements; None for an exact index, which is served without FAISS.
    parameters
        Search parameters that the caller gave.
    notes
        Notes for people.
    """

    index: Any
    factory: str
    profile: Profile | None = None
    parameters: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def search(self, space: Space) -> Search:
        """Return the search that serves it."""
        return ExactSearch(space) if self.profile is None else IndexSearch(space, self.index, self.profile)


def build_index(
    vectors: Array,
    queries: Array,
    *,
    factory: str,
    parameters: Mapping[str, int] | None,
    candidates: int,
    min_recall: float,
    heavy: Array | None = None,
    ready: Any = None,
    seed: int = 0,
) -> IndexBuild:
    """Build an index, or check a given one, and measure the knob value that each search depth needs.

    Parameters
    ----------
    vectors
        ``[A, D]`` float32.
    queries
        ``[Q, D]`` float32, as close to real queries as possible.
    factory
        A FAISS factory string, such as ``Flat`` or ``IVF256,Flat``.
    parameters
        Search parameters by FAISS name (``nprobe``, ``efSearch``). A knob among them is where the tuning
        starts; None starts at 1.
    candidates
        N, the number of candidates that retrieval asks for.
    min_recall
        The recall required at each depth.
    heavy
        ``[H, D]`` queries of users who have seen many items, whom only the deeper rungs serve.
    ready
        A trained and filled FAISS index to use instead; its id i must be position i of ``vectors``.
    seed
        For clustering and for sampling training vectors.

    Raises
    ------
    InvalidSettings
        FAISS does not know the factory string or a parameter, there are too few items to train on, the
        ready index holds other vectors, or ``nprobe`` is above the number of lists.
    MachineFault
        The machine is at fault, such as too little memory.
    """
    index = _make(vectors, factory, seed) if ready is None else _check_ready(ready, vectors, queries)
    name = factory if ready is None else "ready"
    for key, value in (parameters or {}).items():
        _set(index, key, value)
    if isinstance(faiss.downcast_index(index), faiss.IndexFlat):
        return IndexBuild(index, name, None, parameters or {})
    knob = next((name for name in KNOBS if _has(index, name)), None)
    profile = _measure(
        index,
        knob,
        (parameters or {}).get(knob or ""),
        vectors,
        [queries] if heavy is None or not len(heavy) else [queries, heavy],
        candidates,
        min_recall,
    )
    if knob is not None:
        _set(index, knob, profile.ladder[0].knob)
    return IndexBuild(index, name, profile, parameters or {})


def _make(vectors: Array, factory: str, seed: int) -> Any:
    try:
        index = faiss.index_factory(vectors.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise InvalidSettings(
            f"index: FAISS does not know the factory string {factory!r} for {vectors.shape[1]} dimensions "
            f"({faiss_reason(error)}); for example 'Flat', 'IVF64,Flat' or 'HNSW32'"
        ) from error
    plain = faiss.downcast_index(index.index if isinstance(index, faiss.IndexPreTransform) else index)
    if isinstance(plain, faiss.IndexPQ):
        # Polysemous training anneals the codes for a search mode not used here, for half a minute or more.
        plain.do_polysemous_training = False  # type: ignore[attr-defined]
    ivf = faiss.try_extract_index_ivf(index)
    if ivf is not None:
        if ivf.nlist > len(vectors):
            raise InvalidSettings(
                f"index {factory!r}: {ivf.nlist} lists for {len(vectors)} items; use fewer lists, or 'Flat'"
            )
        ivf.cp.seed = seed
        ivf.cp.max_points_per_centroid = POINTS_PER_CENTROID
        # A small catalogue trains on all of its vectors; FAISS would only warn that they are few.
        ivf.cp.min_points_per_centroid = 1
    try:
        index.train(_sample(vectors, ivf, seed))
        index.add(vectors)
    except RuntimeError as error:
        raise fault_of(error) or InvalidSettings(
            f"index {factory!r}: FAISS cannot build it over {len(vectors)} items: {faiss_reason(error)}"
        ) from error
    return index


def _sample(vectors: Array, ivf: Any, seed: int) -> Array:
    """Return the vectors to train on: a sample that is large enough for every list and quantiser."""
    enough = max(65_536, POINTS_PER_CENTROID * (0 if ivf is None else ivf.nlist))
    if len(vectors) <= enough:
        return vectors
    chosen = np.random.default_rng(seed).choice(len(vectors), enough, replace=False)
    return np.ascontiguousarray(vectors[np.sort(chosen)])


def _check_ready(index: Any, vectors: Array, queries: Array) -> Any:
    if getattr(index, "metric_type", None) != faiss.METRIC_INNER_PRODUCT:
        raise InvalidSettings("index: the given one must be a FAISS index with METRIC_INNER_PRODUCT")
    if index.d != vectors.shape[1] or index.ntotal != len(vectors):
        raise InvalidSettings(
            f"index: the given one must hold {len(vectors)} vectors of {vectors.shape[1]} dimensions, "
            f"position = row of `items`; it holds {index.ntotal} of {index.d}"
        )
    # Scores of the given index may be rounded, but must lie at least twice as close to the products with
    # these vectors as to those with other vectors.
    told, found = index.search(queries[:LADDER_QUERIES], min(10, len(vectors)))
    if (found >= len(vectors)).any():
        raise InvalidSettings(
            f"index: the given one finds id {found.max()} where there are {len(vectors)} vectors; add them "
            "without ids of their own (no IDMap, no add_with_ids), in the order of `items`: position = row"
        )
    products = np.einsum("qnd,qd->qn", vectors[found], queries[:LADDER_QUERIES])
    shifted = np.einsum("qnd,qd->qn", vectors[(found + 1) % len(vectors)], queries[:LADDER_QUERIES])
    off, chance = (float(np.abs(told - scores)[found >= 0].mean()) for scores in (products, shifted))
    if off > chance / 2:
        raise InvalidSettings(
            "index: the given one holds other vectors than `items`, or in another order: position = row"
        )
    return index


def check_parameters(dimension: int, factory: str, parameters: Mapping[str, int]) -> None:
    """Raise InvalidSettings for parameters that an index of this factory string does not have."""
    index = faiss.index_factory(dimension, factory, faiss.METRIC_INNER_PRODUCT)
    for name, value in parameters.items():
        _set(index, name, value)


def _set(index: Any, name: str, value: int) -> None:
    ivf = faiss.try_extract_index_ivf(index)
    if name == "nprobe" and ivf is not None and value > ivf.nlist:
        raise InvalidSettings(f"index: nprobe {value} is above the {ivf.nlist} lists of this index; lower it")
    try:
        faiss.ParameterSpace().set_index_parameter(index, name, float(value))
    except RuntimeError as error:
        raise InvalidSettings(
            f"index: {type(index).__name__} has no parameter {name!r} ({faiss_reason(error)})"
        ) from error


def _has(index: Any, name: str) -> bool:
    try:
        faiss.ParameterSpace().set_index_parameter(index, name, 1.0)
    except RuntimeError:
        return False
    return True


def _limit(index: Any, knob: str) -> int:
    ivf = faiss.try_extract_index_ivf(index)
    return int(ivf.nlist) if knob == "nprobe" and ivf is not None else max(int(index.ntotal), 64)


def _measure(
    index: Any,
    knob: str | None,
    begin: int | None,
    vectors: Array,
    queries: Sequence[Array],
    candidates: int,
    min_recall: float,
) -> Profile:
    """Find, for increasing search depths, the knob value that reaches the recall, and its cost.

    The first rung must reach the recall on the first set of queries, deeper rungs on all sets. Exact answers
    are computed once, for the largest depth. The ladder ends where a search is not much cheaper than a scan,
    or where no knob value reaches the recall because the index rounds its vectors.
    """
    picked = [some[:LADDER_QUERIES] for some in queries]
    size = len(vectors)
    depths = list(dict.fromkeys(min(candidates * RUNG**i, size) for i in range(RUNGS)))
    # Half way between the requested recall and 1, since queries in production differ from these.
    target = (1 + min_recall) / 2
    best = [faiss.knn(some, vectors, depths[-1], metric=faiss.METRIC_INNER_PRODUCT)[0] for some in picked]
    space = Space(vectors, None, size)
    norms = np.maximum(np.sqrt(np.einsum("qd,qd->q", picked[0], picked[0])), 1e-12)
    margin = _margin(index, knob, vectors, picked[0], best[0][:, : depths[0]], target)
    value = begin or 1
    rungs: list[Rung] = []
    for depth in depths:
        # As when serving: the first rung looks at N items plus the margin, the others at ``depth`` in all.
        looked = min(Profile(knob, margin, ()).looked_at(depth), size) if not rungs else depth
        sure = depth if not rungs else max(int(depth / (1 + margin)), 1)
        reached = 1.0
        for some, scores in list(zip(picked, best, strict=True))[: None if rungs else 1]:
            value, own = _climb(index, knob, value, vectors, some, scores[:, :sure], looked, target)
            reached = min(reached, own)
        if knob is not None:
            _set(index, knob, value)
        cost = _cost(index, space, picked[0], depth)
        if rungs and (reached < target or cost >= DEEP):
            break
        cut = float(np.median(best[0][:, depth - 1] / norms))
        rungs.append(Rung(int(depth), value, round(cost, 4), cut))
    return Profile(knob, round(margin, 4), tuple(rungs))


def _margin(
    index: Any, knob: str | None, vectors: Array, queries: Array, best: Array, target: float
) -> float:
    """Return how many extra results must be rescored to have the best, as a share of their number; at most 3.

    This measures the index's rounding of vectors, not its knob: only those of the best that the index finds
    at all are counted. The share may lose a third of the recall that ``target`` allows to be lost.
    """
    count, size = best.shape[1], len(vectors)
    if knob is not None:
        _set(index, knob, min(_limit(index, knob), THOROUGH))
    _, found = index.search(queries[:MARGIN_QUERIES], min(4 * count, size))
    lost = np.zeros(found.shape[1])
    for query, rows, last in zip(queries, found, best[:, -1], strict=False):
        scores = vectors[np.maximum(rows, 0)] @ query
        hits = (rows >= 0) & (scores >= last - 1e-6 - 1e-5 * abs(last))
        lost += 1 - np.cumsum(hits) / max(np.count_nonzero(hits), 1)
    enough = np.flatnonzero(lost / len(found) <= (1 - target) / 3)
    return max(int(enough[0]) + 1 - count, 0) / count if len(enough) else 3.0


def _cost(index: Any, space: Space, queries: Array, depth: int) -> float:
    """Return the median time of a search divided by that of a scan.

    The two alternate, so that each finds the caches as the other leaves them. The fastest of several runs
    counts, since other load on the machine only slows them. A single query runs on one thread.
    """
    mask, spent = mask_of(space, [[]]), np.full((2, TIMED_QUERIES), np.inf)
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        for turn in range(TIMED_QUERIES * TIMED_TURNS):
            at = turn % TIMED_QUERIES
            query = queries[at % len(queries)][None]
            begun = time.perf_counter()
            index.search(query, depth)
            between = time.perf_counter()
            space.scan(query, mask, [0], min(depth, len(space)))
            took = between - begun, time.perf_counter() - between
            spent[:, at] = np.minimum(spent[:, at], took)
    finally:
        faiss.omp_set_num_threads(threads)
    search, scan = np.median(spent, axis=1)
    return float(search / scan)


def _climb(
    index: Any,
    knob: str | None,
    value: int,
    vectors: Array,
    queries: Array,
    best: Array,
    fetched: int,
    min_recall: float,
) -> tuple[int, float]:
    """Raise the knob by half until enough of the best are among those fetched, or it is at its limit.

    The last step is halved once if that still suffices, since every search pays for a knob set too high.
    """
    limit = 1 if knob is None else _limit(index, knob)

    def reached(value: int) -> float:
        if knob is not None:
            _set(index, knob, value)
        return _share(vectors, queries, index.search(queries, fetched)[1], best)

    value, before = min(value, limit), 0
    while (share := reached(value)) < min_recall and value < limit:
        value, before = min(max(value + 1, value * 3 // 2), limit), value
    between = (before + value) // 2
    if before and before < between and share >= min_recall and (own := reached(between)) >= min_recall:
        return between, own
    return value, share


def _share(vectors: Array, queries: Array, found: Rows, best: Array) -> float:
    """Return the share of the best ``[Q, n]`` scores that items found reach, averaged over queries.

    A different choice among items that tie at the cut-off does not count as a loss.
    """
    shares, count = [], best.shape[1]
    for query, rows, last in zip(queries, found, best[:, -1], strict=True):
        scores = vectors[np.maximum(rows, 0)] @ query
        reached = np.count_nonzero((rows >= 0) & (scores >= last - 1e-6 - 1e-5 * abs(last)))
        shares.append(min(reached / count, 1.0))
    return float(np.mean(shares))


def faiss_reason(error: Exception) -> str:
    """Return the message of a FAISS error on one line, without the C++ locations.

    Common errors without a useful message get one from :data:`_BARE`.
    """
    text = " ".join(str(error).split())
    words = _PLACE.sub("", text).strip() or text or type(error).__name__
    return next((said for raw, said in _BARE.items() if raw in words), words)
