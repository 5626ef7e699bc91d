"""Item vectors, and exact search for the best allowed items of a query by scanning all vectors."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Protocol

import numpy as np

from ..native import search as native
from ..ranked.masks import Mask
from ..ranked.order import Rows, Scores, best_by_score, sort_by_score
from ..spec import Array

#: Up to this many items, NumPy computes and sorts the scores of all users together.
SCAN_ITEMS = 4096

#: Up to this many vector elements (16 MB), the vectors are also kept in blocks for a C function, which takes
#: 0.3 to 0.9 of the time of a scan. Beyond it, both are limited by memory bandwidth.
BLOCK_NUMBERS = 1 << 22

#: Candidates taken beyond those needed, so that items which tie at the cut are all seen.
MARGIN = 16

#: Scores that one matrix product computes (32 MB). The more users share a product, the fewer times the
#: vectors are read from memory.
SCAN_SCORES = 1 << 23

#: If an allowed set leaves less than this share of the items, only those are scored: gathering one vector
#: costs about as much as reading four contiguous ones.
FEW = 0.25

#: The score of an empty slot.
NOTHING = np.float32(-np.inf)


class Search(Protocol):
    """A search for the allowed items with the largest inner product."""

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
        ``[B, count]`` float32 scores and int64 rows; -inf and the pad row I in empty slots.
        """
        ...


class Space:
    """The vectors that are searched, and the catalogue rows they belong to.

    Parameters
    ----------
    vectors
        ``[A, D]`` float32.
    rows
        ``[A]`` ascending catalogue rows; None if position and row are the same.
    items
        I, the pad row.
    longest
        The largest norm of a vector; None computes it.
    """

    def __init__(self, vectors: Array, rows: Array | None, items: int, longest: float | None = None) -> None:
        self.vectors, self.items = vectors, items
        self.rows: Array | None = rows
        # The position after the last stands for the pad row and for rows that are not searched.
        self._row_of = None if rows is None else np.append(rows, items).astype(np.int64)
        self._position_of: Array | None = None
        if rows is not None:
            self._position_of = np.full(items + 1, len(vectors), np.int32)
            self._position_of[rows] = np.arange(len(rows), dtype=np.int32)
        # Bound on the difference of two float32 sums of one inner product, per unit of the query's norm: the
        # textbook bound of D roundings in each, of a sum that is at most the product of the norms.
        most = longest_norm(vectors) if longest is None else longest
        self.slack = 2 * vectors.shape[1] * 2.0**-24 * most

    def __len__(self) -> int:
        return len(self.vectors)

    def rows_at(self, positions: Rows) -> Rows:
        """Return the catalogue rows of positions; position A is the pad row."""
        if self._row_of is None:
            return positions
        rows: Rows = self._row_of.take(positions)
        return rows

    def positions_of(self, rows: Rows) -> Rows:
        """Return the positions of catalogue rows; A for the pad row and for rows that are not searched."""
        if self._position_of is None:
            return rows
        positions: Rows = self._position_of.take(rows).astype(np.int64)
        return positions

    def score(self, query: Array, positions: Rows) -> Scores:
        """Return inner products ``[B, M]`` of queries with items at positions; -inf for position A.

        Each product is summed over that item's vector alone. Unlike a matrix product's, its value does not
        depend on the rest of the batch. NaN from a broken model becomes -inf, which sorts.
        """
        if not len(self):
            return np.full(positions.shape, NOTHING)
        found = native.inner_products(self.vectors, query, positions)
        if found is not None:
            return found
        products: Scores = np.einsum("bmd,bd->bm", self.vectors.take(positions, axis=0, mode="clip"), query)
        np.fmax(products, NOTHING, out=products)
        products[positions == len(self.vectors)] = NOTHING
        return products

    def best(self, query: Array, positions: Rows, count: int) -> tuple[Scores, Rows]:
        """Return the best ``count`` of the given positions ``[B, M]``, as :meth:`Search.nearest` does."""
        scores, rows = sort_by_score(self.score(query, positions), self.rows_at(positions))
        missing = count - rows.shape[1]
        if missing > 0:
            scores = np.pad(scores, ((0, 0), (0, missing)), constant_values=NOTHING)
            rows = np.pad(rows, ((0, 0), (0, missing)), constant_values=self.items)
        return scores[:, :count], rows[:, :count]

    def alike(self, positions: Rows, mask: Mask, count: int) -> tuple[Scores, Rows]:
        """Return the ``count`` allowed items with the largest cosine to the mean direction of given ones.

        Parameters
        ----------
        positions
            ``[B, M]`` positions of the given items; A is none.
        mask, count
            Which items each row must not get, and how many to return.

        Returns
        -------
        As :meth:`Search.nearest`; all slots are empty if no given item is searched, or their mean is 0.
        """
        products = np.full((len(positions), len(self)), NOTHING)
        turned = self._turned
        for at, own in enumerate(positions):
            real = own[own < len(self)]
            mean = turned[real] @ self.vectors[real]
            length = norm(mean)
            if length > 0:
                np.multiply(self.vectors @ (mean / np.float32(length)), turned, out=products[at])
        rows = np.broadcast_to(self.rows_at(np.arange(len(self))), products.shape)
        products[~mask.allows(rows)] = NOTHING
        rows = np.where(np.isneginf(products), self.items, rows)
        return best_by_score(products, rows, count, self.items)

    @cached_property
    def _turned(self) -> Scores:
        """``[A]`` factors that scale each vector to length 1; 0 for a zero vector."""
        norms: Scores = np.sqrt(np.einsum("id,id->i", self.vectors, self.vectors))
        return np.divide(1, norms, out=np.zeros_like(norms), where=norms > 0)

    def scan(self, query: Array, mask: Mask, users: Sequence[int], count: int) -> tuple[Scores, Rows]:
        """Return scores and rows ``[n, count]`` of some users' best items by scanning all vectors.

        A matrix product selects the items above a threshold, which is estimated from a sample. These are then
        scored by :meth:`score`. The selection includes every item that rounding could have put on the other
        side of the cut-off.

        Parameters
        ----------
        query
            ``[n, D]`` float32.
        mask, users
            A mask, and those of its users that the queries belong to.
        count
            How many items per user.
        """
        scores = np.empty((len(query), count), np.float32)
        rows = np.empty((len(query), count), np.int64)
        few = mask.few(int(len(self) * FEW))
        many = [at for at, user in enumerate(users) if user not in few]
        for at, user in enumerate(users):
            if user in few:
                found = self.best(query[at : at + 1], self.positions_of(few[user])[None], count)
                scores[at : at + 1], rows[at : at + 1] = found
        together = max(1, min(len(many), SCAN_SCORES // max(len(self), 1)))
        held = np.empty((together, len(self)), np.float32)
        for begin in range(0, len(many), together):
            places = many[begin : begin + together]
            part, rough = query[places], held[: len(places)]
            if len(part) == 1:
                np.matmul(self.vectors, part[0], out=rough[0])
            else:
                np.matmul(part, self.vectors.T, out=rough)
            for at, own in zip(places, rough, strict=True):
                scores[at], rows[at] = self._scanned(query[at : at + 1], own, mask.rows_of(users[at]), count)
        return scores, rows

    def _scanned(self, query: Array, rough: Scores, masked: Rows, count: int) -> tuple[Scores, Rows]:
        np.fmax(rough, NOTHING, out=rough)
        positions = self.positions_of(masked)
        rough[positions if self.rows is None else positions[positions < len(self)]] = NOTHING
        slack = self.slack * norm(query[0])
        wanted = count + MARGIN
        while True:
            threshold = _threshold(rough, wanted)
            found = np.flatnonzero(rough >= threshold if threshold > NOTHING else rough > NOTHING)
            scores, rows = self.best(query, found[None], count)
            if threshold == NOTHING or scores[0, -1] > threshold + slack:
                return scores[0], rows[0]
            wanted *= 4


def _threshold(rough: Scores, wanted: int) -> np.float32:
    """Return a score that at least ``wanted`` items reach, but not many times more; -inf selects all."""
    if wanted * 4 >= len(rough):
        return NOTHING
    step = max(1, len(rough) // 16_384)
    sample = rough[::step]
    rank = min(len(sample) - 1, int(1.5 * wanted / step) + 8)
    threshold: np.float32 = np.partition(sample, len(sample) - 1 - rank)[len(sample) - 1 - rank]
    if np.count_nonzero(rough >= threshold) >= wanted:
        return threshold
    exact: np.float32 = np.partition(rough, len(rough) - wanted)[len(rough) - wanted]
    return exact


class ExactSearch:
    """Exact search by scoring every vector: for all users at once if the catalogue is small, else by user."""

    def __init__(self, space: Space) -> None:
        self._space = space
        self._rows = np.ascontiguousarray(space.rows_at(np.arange(len(space))))
        self._blocks = native.in_blocks(space.vectors) if space.vectors.size <= BLOCK_NUMBERS else None

    def nearest(self, query: Array, mask: Mask, count: int) -> tuple[Scores, Rows]:
        """Return the best allowed items, as :meth:`Search.nearest` says."""
        # Each of these ways gives the sums of Space.score, bit for bit.
        space = self._space
        if self._blocks is not None:
            return native.best_of_all(self._blocks, query, self._rows, count, space.items, mask.table())
        if len(space) > SCAN_ITEMS:
            return space.scan(query, mask, range(len(query)), count)
        scores = np.einsum("id,bd->bi", space.vectors, query)
        np.fmax(scores, NOTHING, out=scores)
        return best_by_score(scores, self._rows, count, space.items, mask.table())


def norm(query: Array) -> float:
    """Return the Euclidean norm of a query ``[D]``."""
    wide = query.astype(np.float64)
    return float(np.sqrt(wide @ wide))


def longest_norm(vectors: Array) -> float:
    """Return the largest Euclidean norm of vectors ``[A, D]``."""
    block = 1 << 16
    norms = (
        np.einsum("id,id->i", vectors[i : i + block], vectors[i : i + block]).max()
        for i in range(0, len(vectors), block)
    )
    return float(np.sqrt(max(norms, default=0.0)))
