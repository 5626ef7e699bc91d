"""``retrieval``: candidates from the index and from the popular list; seen and excluded items never enter."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from ..errors import ArtefactCorrupt
from ..release import Release
from ..settings import NO_SOURCE, UNKNOWN, ServingSettings
from ..spec import Array, Arrays, StageSpec
from ..store import ItemTable, UserStore
from .ranked import Mask, Rows, Scores, first_allowed, make_mask, order_by_score

#: The index's file in its artefact.
INDEX_FILE = "index.faiss"

#: Candidates taken from the index beyond those needed, so that items which tie at the cut are all seen.
MARGIN = 16


@dataclass(frozen=True)
class _Quota:
    """One source with its share of N, and the code that its candidates carry."""

    kind: str
    count: int
    code: int


class Retrieval:
    """Give each user the N best candidates that are neither seen, nor in the history, nor excluded.

    Masked items are taken out before the top-N is cut: the index is asked for as many more as the most
    masked user of the batch needs. A candidate's score is the float32 inner product of query and item
    vector, computed the same way for every source, index type and batch; by it the candidates are
    sorted, ties by row.

    Parameters
    ----------
    release
        The release.
    """

    def __init__(self, release: Release) -> None:
        self.spec: StageSpec = release.stages["retrieval"]
        settings = release.settings
        self._users, self._items = UserStore.open(release), ItemTable.open(release)
        artefact = release.artefact("index", "index")
        self._vectors: Array = artefact.arrays["vectors"]
        self._index = _read_index(artefact.file(INDEX_FILE), artefact.meta.get("parameters", {}))
        self._pad = self._items.size
        for what, found in (("vectors", len(self._vectors)), ("index", self._index.ntotal)):
            if found != self._pad:
                raise ArtefactCorrupt(f"{artefact.path}: expected {self._pad} items, {what} has {found}")
        # FAISS counts its threads for the whole process; a Python model has its own.
        faiss.omp_set_num_threads(settings.engine_threads)
        self._count = settings.candidates
        self._quotas = quotas(settings)
        self._popular_code = next(
            (i + 1 for i, source in enumerate(settings.sources) if source.kind == "popular"), NO_SOURCE
        )
        self._popular_bypass = settings.unknown_users == "popular"
        self._slack = _rounding_slack(self._vectors)

    def check(self, arrays: Arrays) -> None:
        """Accept everything: nothing here comes from the caller."""

    def run(self, arrays: Arrays) -> dict[str, Array]:
        """Retrieve for ``query [B, D]``.

        Parameters
        ----------
        arrays
            Also ``user_row [B, 1]``, ``status [B, 1]``, ``history_row [B, L]`` if there are histories,
            and ``excluded_row [B, E]``.

        Returns
        -------
        ``retrieved_row``, ``retrieval_score`` and ``source``, each ``[B, N]``.
        """
        query = arrays["query"]
        unknown = arrays["status"][:, 0] == UNKNOWN
        if not (self._popular_bypass and unknown.any()):
            rows, scores, source = self._ranked(query, self._mask(arrays, slice(None)))
        elif unknown.all():
            rows, scores, source = self._popular(self._mask(arrays, slice(None)), len(query))
        else:
            rows = np.empty((len(query), self._count), np.int64)
            scores, source = np.empty(rows.shape, np.float32), np.empty(rows.shape, np.int32)
            known = ~unknown
            parts = self._ranked(query[known], self._mask(arrays, known))
            rows[known], scores[known], source[known] = parts
            parts = self._popular(self._mask(arrays, unknown), np.count_nonzero(unknown))
            rows[unknown], scores[unknown], source[unknown] = parts
        return {"retrieved_row": rows, "retrieval_score": scores, "source": source}

    def _mask(self, arrays: Arrays, users: Any) -> Mask:
        """Return what the selected users must not get: seen, history and excluded."""
        rows = arrays["user_row"][users, 0]
        mask = make_mask(len(rows), self._pad, *self._users.seen(rows))
        history = arrays.get("history_row")
        # A store's history is part of what was seen, but one sent with the request is not.
        if history is not None:
            mask.add(history[users])
        mask.add(arrays["excluded_row"][users])
        return mask

    def _popular(self, mask: Mask, users: int) -> tuple[Rows, Scores, npt.NDArray[np.int32]]:
        """Return the first N of the popular list that the mask allows, with their popularity."""
        places, real = self._first_popular(mask, users, self._count)
        rows = np.where(real, self._items.popular_rows[places], self._pad)
        scores = np.where(real, self._items.popular_scores[places], np.float32(-np.inf))
        order = order_by_score(scores, rows)
        return self._finish(rows, scores, np.full(rows.shape, self._popular_code, np.int32), order)

    def _ranked(self, query: Array, mask: Mask) -> tuple[Rows, Scores, npt.NDArray[np.int32]]:
        """Let each source give its share in turn, fill from the popular list, sort all by score."""
        rows_of: list[Rows] = []
        scores_of: list[Scores] = []
        codes: list[tuple[int, int]] = []
        for number, quota in enumerate(self._quotas):
            if number:
                mask.add(rows_of[-1])
            if quota.kind == "index":
                rows, scores = self._nearest(query, mask, quota.count)
            else:
                rows = self._popular_rows(mask, len(query), quota.count)
                scores = self._score(query, rows)
            rows_of.append(rows)
            scores_of.append(scores)
            codes.append((quota.code, rows.shape[1]))
        missing = self._count - sum(np.count_nonzero(rows != self._pad, axis=1) for rows in rows_of)
        most = int(np.max(missing))
        if most > 0:
            if rows_of:
                mask.add(rows_of[-1])
            rows = self._popular_rows(mask, len(query), most)
            rows[np.arange(most) >= np.asarray(missing)[..., None]] = self._pad
            rows_of.append(rows)
            scores_of.append(self._score(query, rows))
            codes.append((self._popular_code, most))
        if len(rows_of) == 1:
            rows, scores = rows_of[0], scores_of[0]
        else:
            rows, scores = np.concatenate(rows_of, axis=1), np.concatenate(scores_of, axis=1)
        source = np.repeat(np.array([code for code, _ in codes], np.int32), [width for _, width in codes])
        source = np.broadcast_to(source, rows.shape)
        # One index that filled every slot comes sorted.
        comes_sorted = len(rows_of) == 1 and self._quotas and self._quotas[0].kind == "index"
        order = None if comes_sorted else order_by_score(scores, rows)
        return self._finish(rows, scores, source, order)

    def _finish(
        self, rows: Rows, scores: Scores, source: npt.NDArray[np.int32], order: Rows | None
    ) -> tuple[Rows, Scores, npt.NDArray[np.int32]]:
        """Sort, cut at N, and blank the scores and sources of empty slots."""
        if order is not None:
            order = order[:, : self._count]
            users = np.arange(len(rows))[:, None]
            rows, scores, source = rows[users, order], scores[users, order], source[users, order]
        empty = rows == self._pad
        if empty.any():
            scores = np.where(empty, np.float32(0), scores)
            source = np.where(empty, np.int32(NO_SOURCE), source)
        return rows, scores, source

    def _nearest(self, query: Array, mask: Mask, count: int) -> tuple[Rows, Scores]:
        """Return the ``count`` allowed items with the largest inner product, best first.

        The index is asked again for more while items that it left out might still tie with the last
        one, so that neither its order among equal items nor its rounding shows in the answer.
        """
        width, masked = count + MARGIN, mask.most
        while True:
            fetched = min(width + masked, self._pad)
            found_scores, found = self._index.search(query, fetched)
            found[found < 0] = self._pad
            places, real = first_allowed(mask.allows(found), min(width, fetched))
            users = np.arange(len(query))[:, None]
            rows = np.where(real, found[users, places], self._pad)
            scores = self._score(query, rows)
            order = order_by_score(scores, rows)[:, :count]
            best_rows, best = rows[users, order], scores[users, order]
            if fetched == self._pad or not self._open_end(
                query, found_scores[users, places[:, -1:]], real, best
            ):
                return _widen(best_rows, count, self._pad), _widen(best, count, np.float32(-np.inf))
            width *= 4

    def _open_end(self, query: Array, last: Scores, real: npt.NDArray[np.bool_], best: Scores) -> bool:
        """Whether an item that the index did not return might belong among the best of some user.

        Parameters
        ----------
        query
            ``[B, D]``.
        last
            ``[B, 1]`` the index's own score of the last item that was looked at.
        real
            ``[B, M]`` which of the looked-at are items; if the last is none, the index had no more.
        best
            ``[B, count]`` scores of the best.
        """
        slack = self._slack * np.sqrt(np.einsum("bd,bd->b", query, query))
        return bool((real[:, -1] & (last[:, 0] + slack >= best[:, -1])).any())

    def _popular_rows(self, mask: Mask, users: int, count: int) -> Rows:
        places, real = self._first_popular(mask, users, count)
        return np.where(real, self._items.popular_rows[places], self._pad)

    def _first_popular(self, mask: Mask, users: int, count: int) -> tuple[Rows, npt.NDArray[np.bool_]]:
        """Return the places in the popular list of the first ``count`` that the mask allows."""
        listed = self._items.popular_rows[: count + mask.most]
        return first_allowed(mask.allows(np.broadcast_to(listed, (users, len(listed)))), count)

    def _score(self, query: Array, rows: Rows) -> Scores:
        """Return the inner products ``[B, M]`` of queries with the items in ``rows``; -inf for the pad.

        One sum an item, over its own row only: unlike a matrix product its value does not depend on the
        other rows of the batch.
        """
        vectors = self._vectors.take(rows, axis=0, mode="clip")
        products = np.einsum("bmd,bd->bm", vectors, query)
        # fmax turns the NaN of a broken model into -inf, which sorts.
        return np.where(rows == self._pad, np.float32(-np.inf), np.fmax(products, np.float32(-np.inf)))


def quotas(settings: ServingSettings) -> tuple[_Quota, ...]:
    """Return the sources that have a share of N, in order."""
    given = sum(source.quota for source in settings.sources if source.quota is not None)
    counts = [
        max(settings.candidates - given, 0) if source.quota is None else source.quota
        for source in settings.sources
    ]
    return tuple(
        _Quota(source.kind, count, number + 1)
        for number, (source, count) in enumerate(zip(settings.sources, counts, strict=True))
        if count > 0
    )


def _widen(array: Array, width: int, pad: Any) -> Array:
    if array.shape[1] == width:
        return array
    return np.pad(array, ((0, 0), (0, width - array.shape[1])), constant_values=pad)


def _rounding_slack(vectors: Array) -> float:
    """Return how far two float32 sums of one inner product may lie apart, per unit of the query's norm.

    The textbook bound: D roundings in each, of a sum that is at most the product of the norms.
    """
    if not len(vectors):
        return 0.0
    block = 1 << 16
    norms = (
        np.einsum("id,id->i", vectors[i : i + block], vectors[i : i + block]).max()
        for i in range(0, len(vectors), block)
    )
    return float(2 * vectors.shape[1] * 2.0**-24 * np.sqrt(max(norms)))


def _read_index(file: Path, parameters: Any) -> Any:
    try:
        try:
            index = faiss.read_index(str(file), faiss.IO_FLAG_MMAP)
        except RuntimeError:
            # Not every index type can be memory-mapped.
            index = faiss.read_index(str(file))
    except RuntimeError as error:
        raise ArtefactCorrupt(f"{file}: not an index that FAISS reads ({error}); export again") from error
    for name, value in parameters.items():
        faiss.ParameterSpace().set_index_parameter(index, name, value)
    return index
