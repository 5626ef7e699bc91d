"""``retrieval``: candidates from the index and from the popular list; seen and excluded items never enter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from ..errors import ArtefactCorrupt
from ..ranked import Mask, Rows, Scores, first_allowed, make_mask, order_by_score, pick, sort_by_score
from ..release.opened import Release
from ..settings import NO_SOURCE, UNKNOWN, ServingSettings
from ..sources.search import open_search, score_rows
from ..spec import Array, Arrays, StageSpec
from ..tables.store import ItemTable, UserStore

#: The index's file in its artefact.
INDEX_FILE = "index.faiss"

#: Scores, rows and sources, each ``[B, N]``.
_Candidates = tuple[Scores, Rows, npt.NDArray[np.int32]]


@dataclass(frozen=True)
class Quota:
    """One source with its share of N, and the code that its candidates carry."""

    kind: str
    count: int
    code: int


class Retrieval:
    """Give each user the N best candidates that are neither seen, nor in the history, nor excluded.

    Masked items are taken out before the top-N is cut: an index is asked for as many more as the most
    masked user of the batch needs, a small catalogue is looked at whole. A candidate's score is the
    float32 inner product of query and item vector, computed the same way for every source, index type
    and batch; by it the candidates are sorted, ties by row.

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
        self._pad = self._items.size
        if len(self._vectors) != self._pad:
            raise ArtefactCorrupt(
                f"{artefact.path}: expected {self._pad} vectors, found {len(self._vectors)}; export again"
            )
        file = artefact.file(INDEX_FILE)
        self._search = open_search(file, artefact.meta.get("parameters", {}), self._vectors)
        # FAISS counts its threads for the whole process; a Python model has its own.
        faiss.omp_set_num_threads(settings.engine_threads)
        self._count = settings.candidates
        self._quotas = quotas(settings)
        self._index_alone = [(quota.kind, quota.count) for quota in self._quotas] == [("index", self._count)]
        self._popular_code = next(
            (i + 1 for i, source in enumerate(settings.sources) if source.kind == "popular"), NO_SOURCE
        )
        self._popular_bypass = settings.unknown_users == "popular"

    def run(self, arrays: Arrays) -> dict[str, Array]:
        """Retrieve for ``query [B, D]``.

        Parameters
        ----------
        arrays
            Also ``user_row [B, 1]``, ``status [B, 1]`` and ``excluded_row [B, E]``.

        Returns
        -------
        ``retrieved_row``, ``retrieval_score`` and ``source``, each ``[B, N]``.
        """
        query = arrays["query"]
        unknown = arrays["status"][:, 0] == UNKNOWN
        if not (self._popular_bypass and unknown.any()):
            scores, rows, source = self._ranked(query, self._mask(arrays, slice(None)))
        elif unknown.all():
            scores, rows, source = self._popular(self._mask(arrays, slice(None)), len(query))
        else:
            rows = np.empty((len(query), self._count), np.int64)
            scores, source = np.empty(rows.shape, np.float32), np.empty(rows.shape, np.int32)
            known = ~unknown
            parts = self._ranked(query[known], self._mask(arrays, known))
            scores[known], rows[known], source[known] = parts
            parts = self._popular(self._mask(arrays, unknown), np.count_nonzero(unknown))
            scores[unknown], rows[unknown], source[unknown] = parts
        return {"retrieved_row": rows, "retrieval_score": scores, "source": source}

    def _mask(self, arrays: Arrays, users: Any) -> Mask:
        """Return what the selected users must not get: seen and excluded.

        A history is among them: the store's is part of what was seen, one sent with the request is
        among the excluded rows.
        """
        rows = arrays["user_row"][users, 0]
        mask = make_mask(len(rows), self._pad, *self._users.seen(rows))
        mask.add(arrays["excluded_row"][users])
        return mask

    def _popular(self, mask: Mask, users: int) -> _Candidates:
        """Return the first N of the popular list that the mask allows, with their popularity."""
        places, real = self._first_popular(mask, users, self._count)
        rows, scores = self._items.popular_rows[places], self._items.popular_scores[places]
        if real is not None:
            rows, scores = np.where(real, rows, self._pad), np.where(real, scores, np.float32(-np.inf))
        scores, rows = sort_by_score(scores, rows)
        return self._blank(scores, rows, np.full(rows.shape, self._popular_code, np.int32))

    def _ranked(self, query: Array, mask: Mask) -> _Candidates:
        """Let each source give its share in turn, fill from the popular list, sort all by score."""
        parts: list[tuple[Scores, Rows]] = []
        codes: list[int] = []
        for quota in self._quotas:
            if parts:
                mask.add(parts[-1][1])
            parts.append(self._from_source(quota, query, mask))
            codes += [quota.code] * quota.count
        if self._index_alone and parts[0][1][:, -1].max() != self._pad:
            # One index that filled every slot comes sorted; nearly every batch ends here.
            return (*parts[0], np.full((len(query), self._count), codes[0], np.int32))
        counts = [np.count_nonzero(rows != self._pad, axis=1) for _, rows in parts]
        missing = self._count - sum(counts, np.zeros(len(query), np.int64))
        most = int(missing.max())
        if most > 0:
            if parts:
                mask.add(parts[-1][1])
            rows = self._popular_rows(mask, len(query), most)
            rows[np.arange(most) >= missing[:, None]] = self._pad
            parts.append((score_rows(self._vectors, query, rows), rows))
            codes += [self._popular_code] * most
        source = np.array(codes, np.int32)
        scores = np.concatenate([part[0] for part in parts], axis=1)
        rows = np.concatenate([part[1] for part in parts], axis=1)
        order = order_by_score(scores, rows)[:, : self._count]
        return self._blank(pick(scores, order), pick(rows, order), source[order])

    def _blank(self, scores: Scores, rows: Rows, source: npt.NDArray[np.int32]) -> _Candidates:
        """Blank the scores and sources of empty slots, which are the last of a user."""
        if rows[:, -1].max() == self._pad:
            empty = rows == self._pad
            scores, source = (
                np.where(empty, np.float32(0), scores),
                np.where(empty, np.int32(NO_SOURCE), source),
            )
        return scores, rows, source

    def _from_source(self, quota: Quota, query: Array, mask: Mask) -> tuple[Scores, Rows]:
        if quota.kind == "index":
            return self._search.nearest(query, mask, quota.count)
        rows = self._popular_rows(mask, len(query), quota.count)
        return score_rows(self._vectors, query, rows), rows

    def _popular_rows(self, mask: Mask, users: int, count: int) -> Rows:
        places, real = self._first_popular(mask, users, count)
        rows: Rows = self._items.popular_rows[places]
        return rows if real is None else np.where(real, rows, self._pad)

    def _first_popular(self, mask: Mask, users: int, count: int) -> tuple[Rows, npt.NDArray[np.bool_] | None]:
        """Return the places in the popular list of the first ``count`` that the mask allows."""
        listed = self._items.popular_rows[: count + mask.most]
        return first_allowed(mask.allows(np.broadcast_to(listed, (users, len(listed)))), count)


def quotas(settings: ServingSettings) -> tuple[Quota, ...]:
    """Return the sources that have a share of N, in order."""
    given = sum(source.quota for source in settings.sources if source.quota is not None)
    counts = [
        max(settings.candidates - given, 0) if source.quota is None else source.quota
        for source in settings.sources
    ]
    return tuple(
        Quota(source.kind, count, number + 1)
        for number, (source, count) in enumerate(zip(settings.sources, counts, strict=True))
        if count > 0
    )
