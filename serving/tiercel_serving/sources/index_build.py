"""How an index is built: FAISS by factory string, with its recall measured and not assumed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import faiss

from ..errors import InvalidSettings
from ..spec import Array
from ..verify.recall import recall

#: Knobs that trade time for recall, tried in this order on whatever the factory string builds.
KNOBS = ("nprobe", "efSearch")


@dataclass(frozen=True)
class IndexBuild:
    """A searched-for index and what is known about it.

    Parameters
    ----------
    index
        The FAISS index; position = catalogue row.
    factory
        The string that made it, or ``ready`` if it was given.
    parameters
        Search parameters that lie in it.
    recall
        Share of the exact top-N that it finds, over ``queries`` queries.
    candidates
        That N.
    queries
        How many queries the recall was measured over.
    """

    index: Any
    factory: str
    parameters: Mapping[str, int]
    recall: float
    candidates: int
    queries: int

    @property
    def exact(self) -> bool:
        """Whether it can miss nothing, whoever asks."""
        return isinstance(faiss.downcast_index(self.index), faiss.IndexFlat)

    def figures(self) -> dict[str, Any]:
        """Return what was measured, for the manifest."""
        return {
            "factory": self.factory,
            "parameters": dict(self.parameters),
            "exact": self.exact,
            "recall": round(self.recall, 6),
            "candidates": self.candidates,
            "queries": self.queries,
        }


def build_index(
    vectors: Array,
    queries: Array,
    *,
    factory: str,
    parameters: Mapping[str, int] | None,
    candidates: int,
    min_recall: float,
    ready: Any = None,
    seed: int = 0,
) -> IndexBuild:
    """Build or take over an index, choose its search parameters, and measure its recall.

    Parameters
    ----------
    vectors
        ``[I, D]`` float32, in catalogue order.
    queries
        ``[Q, D]`` float32, as like to real queries as can be had.
    factory
        A FAISS factory string, such as ``Flat`` or ``IVF256,Flat``.
    parameters
        Search parameters by FAISS name (``nprobe``, ``efSearch``); None doubles the index's own knob
        until the recall is reached.
    candidates
        N, the number of candidates that retrieval asks for.
    min_recall
        The recall at N to reach.
    ready
        A trained and filled FAISS index to take instead, whose position i is catalogue row i.
    seed
        For the clustering.

    Raises
    ------
    InvalidSettings
        For a factory string that FAISS does not know, too few items to train on, a ready index of
        other vectors, an unknown parameter, or a recall below ``min_recall``.
    """
    index = _make(vectors, factory, seed) if ready is None else _check_ready(ready, vectors)
    name = factory if ready is None else "ready"
    if (
        ready is not None
        and parameters is None
        and (as_given := recall(index, vectors, queries, candidates)) >= min_recall
    ):
        # A ready index keeps its own search parameters if they do.
        chosen, reached = {}, as_given
    elif parameters is not None:
        for key, value in parameters.items():
            _set(index, key, value)
        chosen, reached = dict(parameters), recall(index, vectors, queries, candidates)
    else:
        chosen, reached = _search_parameters(index, vectors, queries, candidates, min_recall)
    if reached < min_recall:
        raise InvalidSettings(
            f"index {name} {chosen or ''}: recall at {candidates} candidates is {reached:.4f} over "
            f"{len(queries)} queries, below min_recall {min_recall}. Raise nprobe or efSearch in "
            "parameters (or leave them out, then they are searched), choose a finer factory string "
            "('Flat' is exact), or lower min_recall"
        )
    return IndexBuild(index, name, chosen, reached, candidates, len(queries))


def _make(vectors: Array, factory: str, seed: int) -> Any:
    try:
        index = faiss.index_factory(vectors.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise InvalidSettings(
            f"index: FAISS does not know the factory string {factory!r} for {vectors.shape[1]} dimensions "
            f"({_reason(error)}); for example 'Flat', 'IVF64,Flat' or 'HNSW32'"
        ) from error
    ivf = faiss.try_extract_index_ivf(index)
    if ivf is not None:
        if ivf.nlist > len(vectors):
            raise InvalidSettings(
                f"index {factory!r}: {ivf.nlist} lists for {len(vectors)} items; use fewer lists, or 'Flat'"
            )
        ivf.cp.seed = seed
        # Small catalogues are trained on all they have; FAISS only warns about that.
        ivf.cp.min_points_per_centroid = 1
    try:
        index.train(vectors)
        index.add(vectors)
    except RuntimeError as error:
        raise InvalidSettings(
            f"index {factory!r}: FAISS cannot build it over {len(vectors)} items: {_reason(error)}"
        ) from error
    return index


def _check_ready(index: Any, vectors: Array) -> Any:
    if getattr(index, "metric_type", None) != faiss.METRIC_INNER_PRODUCT:
        raise InvalidSettings("the index given: expected a FAISS index with METRIC_INNER_PRODUCT")
    if index.d != vectors.shape[1] or index.ntotal != len(vectors):
        raise InvalidSettings(
            f"the index given: expected {len(vectors)} vectors of {vectors.shape[1]} dimensions, position = "
            f"row of `items`; came {index.ntotal} of {index.d}"
        )
    return index


def _set(index: Any, name: str, value: int) -> None:
    try:
        faiss.ParameterSpace().set_index_parameter(index, name, float(value))
    except RuntimeError as error:
        raise InvalidSettings(
            f"parameters: {type(index).__name__} has no parameter {name!r} ({_reason(error)})"
        ) from error


def _search_parameters(
    index: Any, vectors: Array, queries: Array, candidates: int, min_recall: float
) -> tuple[dict[str, int], float]:
    """Double the index's knob until the recall is reached or doubling cannot help."""
    knob = next((name for name in KNOBS if _has(index, name)), None)
    if knob is None:
        return {}, recall(index, vectors, queries, candidates)
    ivf = faiss.try_extract_index_ivf(index)
    limit = ivf.nlist if ivf is not None else len(vectors)
    value, reached = 0, 0.0
    while reached < min_recall and value < limit:
        value = min(limit, max(1, 2 * value) if knob == "nprobe" else max(32, 2 * value))
        _set(index, knob, value)
        reached = recall(index, vectors, queries, candidates)
    return {knob: value}, reached


def _has(index: Any, name: str) -> bool:
    try:
        faiss.ParameterSpace().set_index_parameter(index, name, 1.0)
    except RuntimeError:
        return False
    return True


def _reason(error: Exception) -> str:
    # FAISS puts the useful half of its message last: "Error in …: 'condition' failed: reason".
    return str(error).strip().splitlines()[-1][-200:]
