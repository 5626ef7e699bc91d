"""The best allowed items for a query: by an index, or by looking at all of a small catalogue."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import faiss
import numpy as np
import numpy.typing as npt

from ..errors import ArtefactCorrupt
from ..ranked import Mask, Rows, Scores, first_allowed, pick, read_keys, sort_by_score, sort_keys
from ..spec import Array

#: Up to this many items an exact index is not asked: scoring all items here and masking before the cut
#: takes a third of the time of asking for N and all masked ones (measured at 1,700 items × 64, batches of
#: 1 and 64). From some 8,000 items on a batch of 64 is faster in the index.
SCAN_ITEMS = 4096

#: Candidates taken from an index beyond those needed, so that items which tie at the cut are all seen.
MARGIN = 16

_NOTHING = np.float32(-np.inf)


class Search(Protocol):
    """Finds the allowed items with the largest inner product."""

    def nearest(self, query: Array, mask: Mask, count: int) -> tuple[Scores, Rows]:
        """Return the ``count`` best allowed items of each query, by (score descending, row ascending).

        Parameters
        ----------
        query
            ``[B, D]`` float32.
        mask
            Which items each user must not get.
        count
            How many.

        Returns
        -------
        ``[B, count]`` float32 scores, -inf where there is no more item; ``[B, count]`` int64 rows, there
        the pad row.
        """
        ...


def score_rows(vectors: Array, query: Array, rows: Rows) -> Scores:
    """Return the inner products of queries with the items in ``rows``; -inf for the pad row.

    One sum an item over its own vector alone: unlike a matrix product's, its value does not depend on
    what else is in the batch.

    Parameters
    ----------
    vectors
        ``[I, D]`` float32.
    query
        ``[B, D]`` float32.
    rows
        ``[B, M]`` int64.

    Returns
    -------
    ``[B, M]`` float32; the NaN of a broken model is -inf, which sorts.
    """
    products: Scores = np.einsum("bmd,bd->bm", vectors.take(rows, axis=0, mode="clip"), query)
    np.fmax(products, _NOTHING, out=products)
    products[rows == len(vectors)] = _NOTHING
    return products


class ScanSearch:
    """Scores every item, masks, and cuts.

    Parameters
    ----------
    vectors
        ``[I, D]`` float32.
    """

    def __init__(self, vectors: Array) -> None:
        self._vectors = vectors
        self._rows = np.arange(len(vectors))
        pad = np.array([[len(vectors)]])
        self._nothing = int(sort_keys(np.full((1, 1), _NOTHING), pad)[0, 0])

    def nearest(self, query: Array, mask: Mask, count: int) -> tuple[Scores, Rows]:
        """Return the best allowed items, as :meth:`Search.nearest` says."""
        # The same sums as score_rows makes, bit for bit.
        scores = np.einsum("id,bd->bi", self._vectors, query)
        keys = sort_keys(np.fmax(scores, _NOTHING, out=scores), self._rows)
        keys[mask.table()[:, :-1]] = self._nothing
        if count < len(self._vectors):
            keys.partition(count - 1, axis=1)
            keys = keys[:, :count]
        elif count > len(self._vectors):
            keys = np.pad(keys, ((0, 0), (0, count - len(self._vectors))), constant_values=self._nothing)
        keys.sort(axis=1)
        return read_keys(keys)


class IndexSearch:
    """Asks a FAISS index for as many items as are wanted and masked.

    Parameters
    ----------
    index
        The index; position = catalogue row.
    vectors
        ``[I, D]`` float32, to score what it finds.
    """

    def __init__(self, index: Any, vectors: Array) -> None:
        self._index, self._vectors, self._pad = index, vectors, len(vectors)
        self._slack = _rounding_slack(vectors)

    def nearest(self, query: Array, mask: Mask, count: int) -> tuple[Scores, Rows]:
        """Return the best allowed items, as :meth:`Search.nearest` says.

        The index is asked again for more while items that it left out might still tie with the last
        one, so that neither its order among equal items nor its rounding shows in the answer.
        """
        width, masked = count + MARGIN, mask.most
        while True:
            fetched = min(width + masked, self._pad)
            found_scores, found = self._index.search(query, fetched)
            # FAISS says -1 where it has no more.
            found[found < 0] = self._pad
            places, real = first_allowed(mask.allows(found), min(width, fetched))
            rows = pick(found, places)
            if real is not None:
                rows[~real] = self._pad
            scores, rows = sort_by_score(score_rows(self._vectors, query, rows), rows)
            scores, rows = scores[:, :count], rows[:, :count]
            ended = np.zeros(len(query), np.bool_) if real is None else ~real[:, -1]
            if width >= self._pad or not self._open_end(
                query, pick(found_scores, places[:, -1:])[:, 0], ended, scores[:, -1]
            ):
                return _widen(scores, count, _NOTHING), _widen(rows, count, self._pad)
            width *= 4

    def _open_end(self, query: Array, last: Array, ended: npt.NDArray[np.bool_], worst: Array) -> bool:
        """Whether an item that the index did not return might belong among the best of some user.

        Parameters
        ----------
        query
            ``[B, D]``.
        last
            ``[B]`` the index's own score of the last item that was looked at.
        ended
            ``[B]`` whether the index had no more than that.
        worst
            ``[B]`` score of the last of the best.
        """
        slack = self._slack * np.sqrt(np.einsum("bd,bd->b", query, query))
        return bool((~ended & (last + slack >= worst)).any())


def exact_search_over(vectors: Array) -> Search:
    """Return an exact search over vectors ``[I, D]`` that no file holds."""
    if len(vectors) <= SCAN_ITEMS:
        return ScanSearch(vectors)
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(np.ascontiguousarray(vectors, np.float32))
    return IndexSearch(index, vectors)


def open_search(file: Path, parameters: Mapping[str, float], vectors: Array) -> Search:
    """Open an index file.

    Parameters
    ----------
    file
        What FAISS wrote.
    parameters
        Search parameters (``nprobe``, ``efSearch``).
    vectors
        ``[I, D]`` float32.

    Raises
    ------
    ArtefactCorrupt
        The file is no index, or holds another number of items.
    """
    index = _read_index(file)
    if (index.ntotal, index.d) != vectors.shape:
        raise ArtefactCorrupt(
            f"{file}: expected {len(vectors)} items of {vectors.shape[1]} dimensions, found {index.ntotal} "
            f"of {index.d}; export again"
        )
    for name, value in parameters.items():
        faiss.ParameterSpace().set_index_parameter(index, name, value)
    exact = isinstance(faiss.downcast_index(index), faiss.IndexFlat)
    if exact and index.metric_type == faiss.METRIC_INNER_PRODUCT and len(vectors) <= SCAN_ITEMS:
        return ScanSearch(vectors)
    return IndexSearch(index, vectors)


def _read_index(file: Path) -> Any:
    # Mapped, so that the instances of a model share one copy. Older versions of FAISS can only map
    # inverted lists, and then start 32 threads at each search to read ahead: there it is read instead.
    mapped = getattr(faiss, "IO_FLAG_MMAP_IFC", 0)
    try:
        try:
            return faiss.read_index(str(file), mapped)
        except RuntimeError:
            # Not every index type can be mapped.
            return faiss.read_index(str(file))
    except RuntimeError as error:
        raise ArtefactCorrupt(f"{file}: not an index that FAISS reads ({error}); export again") from error


def _rounding_slack(vectors: Array) -> float:
    """Return how far two float32 sums of one inner product may lie apart, per unit of the query's norm.

    The textbook bound: D roundings in each, of a sum that is at most the product of the norms.
    """
    block = 1 << 16
    norms = (
        np.einsum("id,id->i", vectors[i : i + block], vectors[i : i + block]).max()
        for i in range(0, len(vectors), block)
    )
    return float(2 * vectors.shape[1] * 2.0**-24 * np.sqrt(max(norms, default=0.0)))


def _widen(array: Array, width: int, pad: Any) -> Array:
    if array.shape[1] == width:
        return array
    return np.pad(array, ((0, 0), (0, width - array.shape[1])), constant_values=pad)
