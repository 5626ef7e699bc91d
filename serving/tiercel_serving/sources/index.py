"""``index``: the items whose vectors have the largest inner product with the user's query."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec
import numpy as np
import numpy.typing as npt

from ..errors import ArtefactCorrupt, InvalidSettings, KindUnavailable
from ..kinds import Settings
from ..machine_faults import fault_of
from ..problems import COUNT_OR_0, POSITIVE, Problem, Range, choose, out_of_range
from ..ranked.masks import Mask
from ..ranked.order import Rows, Scores
from ..release.artefacts import Artefact
from ..spec import Array, Arrays
from .grown_index import GrownIndex
from .scan import ExactSearch, Search, Space, longest_norm
from .table import Made, Material, UserTensors

if TYPE_CHECKING:  # FAISS is loaded where an index is opened: every process of a server reads these settings
    from .search import Profile

#: A part of a factory string whose number is 0: no links, no lists, no codes; or one link in a graph.
_TOO_FEW = re.compile(r"HNSW0*1(?!\d)|[A-Za-z]+(\d+x)?0+(?!\d)")

#: The index's file in its artefact.
INDEX_FILE = "index.faiss"

#: Of a catalogue that rules have cut down to so many items no index is made: a scan is quicker.
EXACT_ITEMS = 32_768

#: So few items are indexed for a try before anything is trained.
_FEW = 4_096

#: Queries whose served recall is measured.
MEASURED = 200

#: What vectors may be rounded to on a device.
PRECISIONS = ("float32", "float16", "bfloat16")

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
    precision
        In what the vectors lie on a device, for targets whose stages run there: ``float32``, ``float16`` or
        ``bfloat16``. What that costs in recall is measured at export.
    exact_on_device
        There, more items than this are searched by the index that ``factory`` made, in faiss-gpu (an HNSW as
        CAGRA); None looks at every vector.
    """

    name: str
    quota: int | None = None
    factory: str = "Flat"
    parameters: Mapping[str, int | float] = {}
    min_recall: float = 0.99
    precision: str = "float32"
    exact_on_device: int | None = None

    personal: ClassVar[bool] = True
    form: ClassVar[str | None] = "vectors"
    relates: ClassVar[bool] = True

    @property
    def query(self) -> str:
        """The tensor of its queries ``[B, D]`` float32."""
        return f"query_{self.name}"

    def problems(self) -> list[Problem]:
        """Return a recall or parameters that cannot be."""
        ranges = {"min_recall": _RECALL, "exact_on_device": COUNT_OR_0}
        wrong = list(out_of_range(self, ranges, none={"exact_on_device": "a look at every vector"}))
        if self.precision not in PRECISIONS:
            problem = f"there is no precision {self.precision!r}"
            wrong.append(Problem("precision", problem, choose(self.precision, PRECISIONS)))
        if not self.factory:
            wrong.append(Problem("factory", "expected a FAISS factory, got none", "use 'Flat'"))
        elif few := _TOO_FEW.search(self.factory):
            # FAISS makes such an index, and ends the process as soon as vectors are added to it.
            problem = f"{self.factory!r} asks for too few of something: {few[0]!r}"
            wrong.append(Problem("factory", problem, "use more, as in IVF256,Flat or HNSW32"))
        for key, value in self.parameters.items():
            if not POSITIVE.holds(value):
                problem = f"expected {POSITIVE}, got {value!r}"
                wrong.append(Problem(f"parameters[{key!r}]", problem, "give such a number"))
        return wrong

    def misfits(self, dimension: int, items: int | None = None, allowed: int | None = None) -> list[Problem]:
        """Return a factory string or parameters of which FAISS makes no index of such vectors.

        Parameters
        ----------
        dimension
            How long each vector is.
        items, allowed
            How many there are, and how many pass the rules, where that is known.
        """
        import faiss

        from .index_build import check_parameters, faiss_reason

        try:
            faiss.index_factory(dimension, self.factory, faiss.METRIC_INNER_PRODUCT)
        except Exception as error:
            reason = faiss_reason(error)
            problem = f"FAISS makes no index of {self.factory!r} with {dimension} dimensions ({reason})"
            remedy = "use Flat, IVF<lists>,Flat, HNSW<links> or another FAISS factory"
            return [Problem("factory", problem, remedy)]
        wrong = []
        try:
            check_parameters(dimension, self.factory, {k: int(v) for k, v in self.parameters.items()})
        except InvalidSettings as error:
            wrong.append(Problem("parameters", str(error), "use parameters of that index, in their range"))
        held = items if allowed is None else allowed
        if held is not None and (held == items or held > EXACT_ITEMS):
            wrong += _too_few(self.factory, dimension, held)
        return wrong

    def reads(self) -> tuple[str, ...]:
        """Return the tensor of its queries."""
        return (self.query,)

    def make(self, material: Material) -> Made:
        """Keep the vectors of the allowed items; with queries at hand, build the index and measure it.

        Raises
        ------
        InvalidSettings
            The index can't be built, or is served with a smaller recall than was asked for.
        """
        space = _space(material)
        arrays: dict[str, Array] = {"vectors": space.vectors}
        if space.rows is not None:
            arrays["rows"] = space.rows
        meta: dict[str, Any] = {"longest": longest_norm(space.vectors)}
        if material.queries is None:
            return Made(arrays, meta)
        import faiss

        from .index_build import build_index, check_parameters
        from .served_recall import served_recall

        for problem in self.misfits(space.vectors.shape[1]):
            raise InvalidSettings(f"index: {problem}")
        factory, ready, notes = self.factory, material.form.get("index"), []
        parameters = {name: int(value) for name, value in self.parameters.items()}
        if space.rows is not None and len(space) <= EXACT_ITEMS:
            # What is left after the rules is looked at faster than any index is asked.
            if ready is None:
                check_parameters(space.vectors.shape[1], factory, parameters)
            factory, parameters = "Flat", {}
        if space.rows is not None and ready is not None:
            ready = None
            notes.append(
                f"index {self.name!r}: the given one holds items that the rules exclude; {factory} it is"
            )
        queries, seen, heavy = _measured(material, material.queries)
        built = build_index(
            space.vectors,
            queries,
            factory=factory,
            parameters=parameters or None,
            candidates=material.candidates,
            min_recall=self.min_recall,
            heavy=heavy[0],
            ready=ready,
            seed=material.seed,
        )
        figures: dict[str, Any] = {
            "factory": built.factory,
            "exact": built.profile is None,
            "recall": 1.0,
            "candidates": material.candidates,
        }
        if built.profile is not None:
            cases = served_recall(built.search(space), space, queries, seen, material.candidates, heavy)
            figures |= {"recall": min(cases.values()), "cases": cases, "queries": len(queries)}
            figures["ladder"] = [msgspec.to_builtins(rung) for rung in built.profile.ladder]
            self._refuse_low(cases, built.profile)
        if self.precision != "float32":
            figures |= self._rounded(space, queries, seen, material.candidates)
        if built.profile is None:
            # An exact index is the vectors themselves.
            return Made(arrays, meta, {}, figures, notes)
        meta["profile"] = msgspec.to_builtins(built.profile)
        return Made(arrays, meta, {INDEX_FILE: partial(faiss.write_index, built.index)}, figures, notes)

    def _rounded(self, space: Space, queries: Array, seen: list[Rows], count: int) -> dict[str, Any]:
        """Measure what a device finds among rounded vectors."""
        try:
            from .rounded_recall_torch import rounded_recall
        except ModuleNotFoundError as error:
            raise KindUnavailable(
                f"index {self.name!r}: precision {self.precision!r} needs {error.name}, which is not "
                'installed; run pip install "tiercel[aoti]", or leave precision out'
            ) from error
        recall = rounded_recall(space, queries, seen, count, self.precision)
        if recall < self.min_recall:
            raise InvalidSettings(
                f"index {self.name!r}: rounded to {self.precision}, the vectors give {recall:.4f} of the "
                f"best allowed items, below min_recall {self.min_recall}; leave precision out, or lower "
                "min_recall"
            )
        return {"precision": self.precision, "recall_rounded": recall}

    def _refuse_low(self, cases: Mapping[str, float], profile: Profile) -> None:
        case, reached = min(cases.items(), key=lambda pair: pair[1])
        if reached >= self.min_recall:
            return
        tried = f"with {profile.knob} {profile.ladder[-1].knob}" if profile.knob else "without a knob"
        raise InvalidSettings(
            f"index {self.name!r} ({self.factory}): of the best allowed items {reached:.4f} are served "
            f"{tried} (masked: {case}), below min_recall {self.min_recall}; how it rounds or links vectors "
            "limits it, and no knob: take a finer quantiser ('Flat' is exact) or lower min_recall"
        )

    def open(self, artefact: Artefact, items: int, threads: int) -> VectorIndex:
        """Open the index; in memory, where no index was built, the search is exact."""
        import faiss

        # FAISS counts its threads for the whole process; a Python model has its own.
        faiss.omp_set_num_threads(threads)
        rows = artefact.arrays.get("rows")
        vectors = artefact.array("vectors", items - artefact.room if rows is None else len(rows))
        if rows is None and artefact.room:
            rows = np.arange(len(vectors), dtype=np.int32)
        space = Space(vectors, rows, items, artefact.meta.get("longest"))
        if "profile" not in artefact.meta:
            return VectorIndex(self.query, space, ExactSearch(space))
        from .search import IndexSearch, Profile

        profile = msgspec.convert(artefact.meta["profile"], Profile)
        search = IndexSearch(space, read_index(artefact.file(INDEX_FILE), vectors), profile)
        search.touch()
        return VectorIndex(self.query, space, search)

    def reference(
        self, arrays: Mapping[str, Array], user: UserTensors, allowed: npt.NDArray[np.bool_], count: int
    ) -> list[tuple[int, float]]:
        """Return the allowed items with the largest inner products, ties by row."""
        rows = arrays.get("rows", np.arange(len(arrays["vectors"])))
        scores = np.einsum("id,d->i", arrays["vectors"], user[self.query])
        free = np.flatnonzero(allowed[rows])
        best = free[np.lexsort((rows[free], -scores[free]))][:count]
        return [(int(rows[at]), float(scores[at])) for at in best]

    def reference_score(self, arrays: Mapping[str, Array], user: UserTensors, row: int) -> float:
        """Return one item's inner product."""
        at = row if "rows" not in arrays else int(np.searchsorted(arrays["rows"], row))
        return float(np.einsum("id,d->i", arrays["vectors"][at : at + 1], user[self.query])[0])


def _space(material: Material) -> Space:
    """Return the vectors of the items that may be recommended at all."""
    vectors: Array = material.form["vectors"]
    if material.allowed is None or material.allowed.all():
        return Space(vectors, None, material.items)
    rows = np.flatnonzero(material.allowed).astype(np.int32)
    return Space(np.ascontiguousarray(vectors[rows]), rows, material.items)


def _measured(material: Material, queries: Array) -> tuple[Array, list[Rows], tuple[Array, list[Rows]]]:
    """Return the queries that are measured with what their users have had, and those who have had much."""
    from .search import HEAVY

    seen = list(material.seen) or [np.zeros(0, np.int64)] * len(queries)
    much = np.array([len(rows) > HEAVY * material.candidates for rows in seen], np.bool_)
    # If that is everybody, they are the typical ones too.
    groups = ~much | much.all(), much
    places = [np.flatnonzero(group)[:MEASURED] for group in groups]
    parts = [(queries[some], [seen[at] for at in some.tolist()]) for some in places]
    return *parts[0], parts[1]


def read_index(file: Path, vectors: Array) -> Any:
    """Read an index file, mapped where its type can be.

    Raises
    ------
    ArtefactCorrupt
        The file is no index, or holds another number of items.
    """
    import faiss

    # Mapped, so that the instances of a model share one copy. Older versions of FAISS can only map
    # inverted lists, and then start 32 threads at each search to read ahead: there it is read instead.
    mapped = getattr(faiss, "IO_FLAG_MMAP_IFC", 0)
    try:
        try:
            index = faiss.read_index(str(file), mapped)
        except RuntimeError:
            # Not every index type can be mapped.
            index = faiss.read_index(str(file))
    except RuntimeError as error:
        from .index_build import faiss_reason

        reason = faiss_reason(error)
        corrupt = ArtefactCorrupt(f"{file}: not an index that FAISS reads ({reason}); export again")
        raise fault_of(error, file) or corrupt from error
    if (index.ntotal, index.d) != vectors.shape:
        raise ArtefactCorrupt(
            f"{file}: expected {len(vectors)} items of {vectors.shape[1]} dimensions, found {index.ntotal} "
            f"of {index.d}; export again"
        )
    return index


class VectorIndex:
    """Item vectors with a search over them.

    Parameters
    ----------
    query
        The tensor of the queries.
    space
        The vectors that are searched.
    search
        Finds the allowed items with the largest inner product.
    """

    def __init__(self, query: str, space: Space, search: Search) -> None:
        self._query, self.space, self._search = query, space, search

    def candidates(self, arrays: Arrays, mask: Mask, count: int) -> tuple[Scores, Rows]:
        """Return the nearest ``count`` that the mask allows."""
        return self._search.nearest(arrays[self._query], mask, count)

    def holds(self, rows: Rows) -> npt.NDArray[np.bool_]:
        """Return ``[n]``: which items have a vector here."""
        held: npt.NDArray[np.bool_] = self.space.positions_of(rows) < len(self.space)
        return held

    def grown(self, vectors: Array, rows: Rows) -> GrownIndex:
        """Return the index with more items."""
        return GrownIndex(self, self._query, vectors, rows)

    def related(self, rows: Rows, mask: Mask, count: int) -> tuple[Scores, Rows]:
        """Return the items with the largest cosine to the mean direction of the given ones."""
        return self.space.alike(self.space.positions_of(rows), mask, count)

    def score(self, arrays: Arrays, rows: Rows) -> Scores:
        """Return the inner products of queries with any items ``[B, M]``."""
        return self.space.score(arrays[self._query], self.space.positions_of(rows))


def _too_few(factory: str, dimension: int, items: int) -> list[Problem]:
    """Return why an index can't be built over so few items; where they are many, by its lists alone."""
    import faiss

    from .index_build import faiss_reason

    remedy = f"use 'Flat', or a factory that fits {items} items of {dimension} dimensions"
    index = faiss.index_factory(dimension, factory, faiss.METRIC_INNER_PRODUCT)
    ivf = faiss.try_extract_index_ivf(index)
    if ivf is not None and ivf.nlist > items:
        return [Problem("factory", f"{factory!r} has {ivf.nlist} lists for {items} items", remedy)]
    if ivf is not None:
        ivf.cp.min_points_per_centroid, ivf.cp.niter = 1, 1
    try:
        if items <= _FEW:
            drawn = np.random.default_rng(0).random((items, dimension), np.float32)
            index.train(drawn)
            index.add(drawn)
    except RuntimeError as error:
        problem = f"FAISS cannot build {factory!r} over {items} items ({faiss_reason(error)})"
        return [Problem("factory", problem, remedy)]
    return []
