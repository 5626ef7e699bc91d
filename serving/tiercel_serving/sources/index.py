"""``index``: the items whose vectors have the largest inner product with the user's query."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from ..kinds import Settings, mistyped
from ..problems import POSITIVE, Problem, Range, out_of_range
from ..ranked import Mask, Rows, Scores
from ..release.artefacts import Artefact
from ..spec import Array, Arrays
from .table import Made, Material, UserTensors

#: The index's file in its artefact.
INDEX_FILE = "index.faiss"

_RECALL = Range(0, 1, open_low=True)


class Index(Settings, frozen=True, tag="index"):
    """Item vectors searched by a query, in FAISS.

    A candidate's score is the float32 inner product of query and item vector, summed the same way whatever
    the index type and batch.

    Parameters
    ----------
    name
        What ``--explain`` calls it; the retrieval model of this name gives queries and item vectors.
    quota
        How many candidates it may give; None is whatever the other quotas leave.
    factory
        A FAISS factory string: ``Flat`` (exact), ``IVF256,Flat``, ``HNSW32`` and so on.
    parameters
        FAISS search parameters, such as ``{"nprobe": 16}``; empty lets the export search them.
    min_recall
        The export fails if the index finds a smaller share of what exact search finds.
    """

    name: str
    quota: int | None = None
    factory: str = "Flat"
    parameters: Mapping[str, int | float] = {}
    min_recall: float = 0.99

    personal: ClassVar[bool] = True
    form: ClassVar[str | None] = "vectors"

    @property
    def query(self) -> str:
        """The tensor of its queries ``[B, D]`` float32."""
        return f"query_{self.name}"

    def problems(self) -> list[Problem]:
        """Return a recall or parameters that cannot be."""
        if wrong := list(mistyped(self)):
            return wrong
        wrong += out_of_range(self, {"min_recall": _RECALL})
        if not self.factory:
            wrong.append(Problem("factory", "expected a FAISS factory, got none", "use 'Flat'"))
        for key, value in self.parameters.items():
            if not POSITIVE.holds(value):
                problem = f"expected {POSITIVE}, got {value!r}"
                wrong.append(Problem(f"parameters[{key!r}]", problem, "give such a number"))
        return wrong

    def misfits(self, dimension: int) -> list[Problem]:
        """Return a factory string of which FAISS makes no index of so many dimensions."""
        import faiss

        try:
            faiss.index_factory(dimension, self.factory, faiss.METRIC_INNER_PRODUCT)
        except Exception as error:
            # FAISS names its own C++ function and line first, and says last what it means.
            reason = str(error).strip().rpartition(": ")[2]
            problem = f"FAISS makes no index of {self.factory!r} with {dimension} dimensions ({reason})"
            remedy = "use Flat, IVF<lists>,Flat, HNSW<links> or another FAISS factory"
            return [Problem("factory", problem, remedy)]
        return []

    def reads(self) -> tuple[str, ...]:
        """Return the tensor of its queries."""
        return (self.query,)

    def make(self, material: Material) -> Made:
        """Keep the item vectors; with queries at hand, build the index and measure its recall."""
        vectors: Array = material.form["vectors"]
        if material.queries is None:
            return Made({"vectors": vectors})
        import faiss

        from .index_build import build_index

        built = build_index(
            vectors,
            material.queries,
            factory=self.factory,
            parameters={name: int(value) for name, value in self.parameters.items()} or None,
            candidates=material.candidates,
            min_recall=self.min_recall,
            ready=material.form.get("index"),
            seed=material.seed,
        )
        meta = {"factory": built.factory, "parameters": dict(built.parameters)}
        files = {INDEX_FILE: partial(faiss.write_index, built.index)}
        return Made({"vectors": vectors}, meta, files, built.figures())

    def open(self, artefact: Artefact, items: int, threads: int) -> VectorIndex:
        """Open the index; in memory, where no index was built, the search is exact."""
        import faiss

        from .search import exact_search_over, open_search

        # FAISS counts its threads for the whole process; a Python model has its own.
        faiss.omp_set_num_threads(threads)
        vectors = artefact.array("vectors", items)
        if artefact.path is None:
            return VectorIndex(self.query, vectors, exact_search_over(vectors))
        parameters = artefact.meta.get("parameters", {})
        return VectorIndex(self.query, vectors, open_search(artefact.file(INDEX_FILE), parameters, vectors))

    def reference(
        self, arrays: Mapping[str, Array], user: UserTensors, allowed: npt.NDArray[np.bool_], count: int
    ) -> list[tuple[int, float]]:
        """Return the allowed items with the largest inner products, ties by row."""
        scores = np.einsum("id,d->i", arrays["vectors"], user[self.query])
        free = np.flatnonzero(allowed)
        best = free[np.lexsort((free, -scores[free]))][:count]
        return [(int(row), float(scores[row])) for row in best]

    def reference_score(self, arrays: Mapping[str, Array], user: UserTensors, row: int) -> float:
        """Return one item's inner product."""
        return float(np.einsum("id,d->i", arrays["vectors"][row : row + 1], user[self.query])[0])


class VectorIndex:
    """Item vectors with a search over them.

    Parameters
    ----------
    query
        The tensor of the queries.
    vectors
        ``[I, D]`` float32.
    search
        Finds the allowed items with the largest inner product.
    """

    def __init__(self, query: str, vectors: Array, search: Any) -> None:
        from .search import score_rows

        self._query, self._vectors, self._search, self._score = query, vectors, search, score_rows

    def candidates(self, arrays: Arrays, mask: Mask, count: int) -> tuple[Scores, Rows]:
        """Return the nearest ``count`` that the mask allows."""
        found: tuple[Scores, Rows] = self._search.nearest(arrays[self._query], mask, count)
        return found

    def score(self, arrays: Arrays, rows: Rows) -> Scores:
        """Return the inner products of queries with any items ``[B, M]``."""
        return self._score(self._vectors, arrays[self._query], rows)
