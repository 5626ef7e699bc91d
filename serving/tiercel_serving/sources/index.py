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

if TYPE_CHECKING:  # every process of a server reads these settings; only one that opens an index needs FAISS
    from .search import Profile

#: A part of a factory string with too small a number: 0 links, lists or codes, or a graph with 1 link.
_TOO_FEW = re.compile(r"HNSW0*1(?!\d)|[A-Za-z]+(\d+x)?0+(?!\d)")

#: The index's file in its artefact.
INDEX_FILE = "index.faiss"

#: If rules leave at most this many items of the catalogue, no index is built: a scan is faster.
EXACT_ITEMS = 32_768

#: Up to this many items, a trial index over random vectors is built before anything is trained.
_FEW = 4_096

#: Number of queries used to measure the served recall.
MEASURED = 200

#: Formats that vectors may have on a device.
PRECISIONS = ("float32", "float16", "bfloat16")

_RECALL = Range(0, 1, open_low=True)


class Index(Settings, frozen=True, tag="index"):
    """Item vectors searched by a query, in FAISS.

    A candidate's score is the float32 inner product of query and item vector. It depends on neither the index
    type nor the rest of the batch.

    Parameters
    ----------
    name
        Its name in ``--explain``; the retrieval model of this name gives queries and item vectors.
    quota
        Number of candidates that it may give; None is what the other quotas leave.
    factory
        A FAISS factory string: ``Flat`` (exact), ``IVF256,Flat``, ``HNSW32`` and so on.
    parameters
        FAISS search parameters, such as ``{"nprobe": 16}``; empty lets the export tune them.
    min_recall
        The export fails if the index finds a smaller share of the items that exact search finds.
    precision
        Format of the vectors on a device, for targets whose stages run there: ``float32``, ``float16`` or
        ``bfloat16``. The export measures the recall that rounding costs.
    exact_on_device
        On a device, catalogues with more items than this are searched with the index that ``factory`` built,
        in faiss-gpu (an HNSW as CAGRA); None always searches exactly.
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
        """The name of its query tensor, ``[B, D]`` float32."""
        return f"query_{self.name}"

    def problems(self) -> list[Problem]:
        """Return invalid values of the settings: recall, precision, factory string or parameters."""
        ranges = {"min_recall": _RECALL, "exact_on_device": COUNT_OR_0}
        wrong = list(out_of_range(self, ranges, none={"exact_on_device": "a look at every vector"}))
        if self.precision not in PRECISIONS:
            problem = f"there is no precision {self.precision!r}"
            wrong.append(Problem("precision", problem, choose(self.precision, PRECISIONS)))
        if not self.factory:
            wrong.append(Problem("factory", "expected a FAISS factory, got none", "use 'Flat'"))
        elif few := _TOO_FEW.search(self.factory):
            # FAISS creates such an index, and crashes the process when vectors are added to it.
            problem = f"{self.factory!r} asks for too few of something: {few[0]!r}"
            wrong.append(Problem("factory", problem, "use more, as in IVF256,Flat or HNSW32"))
        for key, value in self.parameters.items():
            if not POSITIVE.holds(value):
                problem = f"expected {POSITIVE}, got {value!r}"
                wrong.append(Problem(f"parameters[{key!r}]", problem, "give such a number"))
        return wrong

    def misfits(self, dimension: int, items: int | None = None, allowed: int | None = None) -> list[Problem]:
        """Return problems of a factory string or parameters with which FAISS can't index such vectors.

        Parameters
        ----------
        dimension
            Length of each vector.
        items, allowed
            Number of vectors, and of those that pass the rules; None if unknown.
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
        """Return the name of its query tensor."""
        return (self.query,)

    def make(self, material: Material) -> Made:
        """Keep the vectors of the allowed items; if there are queries, build the index and measure it.

        Raises
        ------
        InvalidSettings
            The index can't be built, or its served recall is below ``min_recall``.
        KindUnavailable
            ``precision`` is below float32, and torch, which measures its recall, is not installed.
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
            # Scanning the few items that rules leave is faster than searching any index.
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
        """Measure the recall of a device's search over rounded vectors."""
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
        """Open the index; an artefact without one, such as one made in memory, is searched exactly."""
        import faiss

        # FAISS's thread count applies to the process; each instance in Triton's Python backend has its own.
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
    """Return the vectors of the items that pass the rules."""
    vectors: Array = material.form["vectors"]
    if material.allowed is None or material.allowed.all():
        return Space(vectors, None, material.items)
    rows = np.flatnonzero(material.allowed).astype(np.int32)
    return Space(np.ascontiguousarray(vectors[rows]), rows, material.items)


def _measured(material: Material, queries: Array) -> tuple[Array, list[Rows], tuple[Array, list[Rows]]]:
    """Return queries to measure with and their users' seen rows; then both for users who have seen many."""
    from .search import HEAVY

    seen = list(material.seen) or [np.zeros(0, np.int64)] * len(queries)
    much = np.array([len(rows) > HEAVY * material.candidates for rows in seen], np.bool_)
    # If all users have seen many, they also serve as the typical ones.
    groups = ~much | much.all(), much
    places = [np.flatnonzero(group)[:MEASURED] for group in groups]
    parts = [(queries[some], [seen[at] for at in some.tolist()]) for some in places]
    return *parts[0], parts[1]


def read_index(file: Path, vectors: Array) -> Any:
    """Read an index file; memory-map it if its type allows that.

    Raises
    ------
    ArtefactCorrupt
        The file is not an index, or its number of items or dimensions differs from that of ``vectors``.
    MachineFault
        The machine is at fault, such as too little memory.
    """
    import faiss

    # Mapped, so that the instances of a model share one copy. Older versions of FAISS can only map inverted
    # lists, and then start 32 read-ahead threads at each search: with those the file is read instead.
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
        The name of the query tensor.
    space
        The vectors that are searched.
    search
        Finds the allowed items with the largest inner product.
    """

    def __init__(self, query: str, space: Space, search: Search) -> None:
        self._query, self.space, self._search = query, space, search

    def candidates(self, arrays: Arrays, mask: Mask, count: int) -> tuple[Scores, Rows]:
        """Return the ``count`` allowed items with the largest inner products."""
        return self._search.nearest(arrays[self._query], mask, count)

    def holds(self, rows: Rows) -> npt.NDArray[np.bool_]:
        """Return ``[n]``: which items have a vector here."""
        held: npt.NDArray[np.bool_] = self.space.positions_of(rows) < len(self.space)
        return held

    def grown(self, vectors: Array, rows: Rows) -> GrownIndex:
        """Return the index with added items."""
        return GrownIndex(self, self._query, vectors, rows)

    def related(self, rows: Rows, mask: Mask, count: int) -> tuple[Scores, Rows]:
        """Return the items with the largest cosine to the mean direction of the given ones."""
        return self.space.alike(self.space.positions_of(rows), mask, count)

    def score(self, arrays: Arrays, rows: Rows) -> Scores:
        """Return the inner products ``[B, M]`` of queries with any items; -inf for items without a vector."""
        return self.space.score(arrays[self._query], self.space.positions_of(rows))


def _too_few(factory: str, dimension: int, items: int) -> list[Problem]:
    """Return why an index can't be built over ``items`` items.

    The number of IVF lists is always checked. Up to :data:`_FEW` items, a trial index is built.
    """
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
