"""An index, and vectors of items added since it was built, which are searched exactly and merged."""

from __future__ import annotations

from functools import cached_property
from typing import Protocol

import numpy as np

from ..ranked.masks import Mask
from ..ranked.order import Rows, Scores, sort_by_score
from ..spec import Array, Arrays
from .scan import Space


class Held(Protocol):
    """The index of the release."""

    space: Space

    def candidates(self, arrays: Arrays, mask: Mask, count: int) -> tuple[Scores, Rows]:
        """See :class:`~.table.Source`."""
        ...

    def score(self, arrays: Arrays, rows: Rows) -> Scores:
        """See :class:`~.table.Scorer`."""
        ...


class GrownIndex:
    """An index with a few added items.

    Parameters
    ----------
    index
        The index.
    query
        The name of the query tensor.
    vectors, rows
        ``[n, D]`` float32 vectors and ``[n]`` ascending catalogue rows of the added items.
    """

    def __init__(self, index: Held, query: str, vectors: Array, rows: Rows) -> None:
        self._index, self._query = index, query
        self._new = Space(np.ascontiguousarray(vectors), rows, index.space.items)

    def candidates(self, arrays: Arrays, mask: Mask, count: int) -> tuple[Scores, Rows]:
        """Return the best ``count`` allowed items of the index and the added ones together."""
        scores, rows = self._index.candidates(arrays, mask, count)
        own = np.broadcast_to(self._new.rows_at(np.arange(len(self._new))), (len(rows), len(self._new)))
        places = np.where(mask.allows(own), np.arange(len(self._new)), len(self._new))
        more = self._new.best(arrays[self._query], places, min(count, len(self._new)))
        both = np.concatenate([scores, more[0]], axis=1), np.concatenate([rows, more[1]], axis=1)
        best_scores, best_rows = sort_by_score(*both)
        return best_scores[:, :count], best_rows[:, :count]

    def score(self, arrays: Arrays, rows: Rows) -> Scores:
        """Return the inner products ``[B, M]`` of queries with any items; -inf for items without a vector."""
        new: Scores = self._new.score(arrays[self._query], self._new.positions_of(rows))
        return np.maximum(self._index.score(arrays, rows), new)

    @cached_property
    def _both(self) -> Space:
        old = self._index.space
        rows = old.rows_at(np.arange(len(old)))
        vectors = np.concatenate([old.vectors, self._new.vectors])
        return Space(vectors, np.append(rows, self._new.rows_at(np.arange(len(self._new)))), old.items)

    def related(self, rows: Rows, mask: Mask, count: int) -> tuple[Scores, Rows]:
        """Return the items, old or added, with the largest cosine to the mean direction of the given ones."""
        return self._both.alike(self._both.positions_of(rows), mask, count)
