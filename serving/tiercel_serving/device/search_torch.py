"""The best allowed items for a query by looking at every vector, on a device: exact, in blocks over items.

A matrix product gives rough scores of a block, and masked items get -inf. The best of a block are found by
groups of items, because there are fewer groups' best scores than items. The best of all blocks are scored
again in float64, so that an item's score depends only on its vector and the query, and not on block, batch or
device. Nothing synchronises with the device in between.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .masks_torch import TensorMask
from .order_torch import arranged, numbers, rows_of, scored, sort_keys

#: Precision of vectors on a device → torch's dtype.
DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}

#: Items of a group; the best score of each group is compared first.
GROUP = 32

#: The most rough scores of one block, over all users: 256 MB in float32.
BLOCK_SCORES = 1 << 26

#: Extra candidates, because rough scores may differ from exact ones in the last bits (float32 vectors), or
#: are rounded to half precision (other vectors).
MARGIN, HALF_MARGIN = 16, 128

#: Items whose vectors are hashed at a time.
_PIECE = 1 << 18

_LOWEST = float("-inf")


class DeviceSearch:
    """Item vectors on a device.

    Parameters
    ----------
    vectors
        ``[A, D]`` float32, float16 or bfloat16.
    rows
        ``[A]`` int64 ascending catalogue rows; None if position and row are the same.
    items
        I, the pad row.
    block_scores
        The most rough scores of one block.
    """

    def __init__(
        self, vectors: Tensor, rows: Tensor | None, items: int, block_scores: int = BLOCK_SCORES
    ) -> None:
        self.vectors, self.items, self._block_scores = vectors, items, block_scores
        # Position A, after the last, stands for the pad row, and for rows that are not searched.
        self._row_of: Tensor | None = None
        self._position_of: Tensor | None = None
        if rows is not None:
            self._row_of = torch.cat([rows, rows.new_full((1,), items)])
            self._position_of = rows.new_full((items + 1,), len(vectors))
            self._position_of[rows] = torch.arange(len(rows), device=rows.device)
        least = MARGIN if vectors.dtype == torch.float32 else HALF_MARGIN
        # Items with equal vectors tie, but their rough scores may differ, so the margin covers all of them.
        self._margin = max(least, most_alike(vectors))

    def nearest(self, query: Tensor, mask: TensorMask, count: int) -> tuple[Tensor, Tensor]:
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
        ``[B, count]`` float32 scores, ``[B, count]`` int64 rows; -inf and the pad row for missing items.
        """
        size, wanted = len(self.vectors), count + self._margin
        block = max(GROUP, self._block_scores // max(len(query), 1) // GROUP * GROUP)
        half = self.vectors.dtype != torch.float32
        best = _best_rounded if half else _best_in_order
        rough = query
        if half:
            # Normalised, so that no product leaves the range of half precision; this keeps the order.
            rough = torch.nn.functional.normalize(query, dim=1).type(self.vectors.dtype)
        masked: tuple[Tensor | None, Tensor] | None = None
        parts = []
        for begin in range(0, size, block):
            end = min(begin + block, size)
            scores = self._products(rough, begin, end)
            if masked is None:
                # After the first product, so that the device is busy while further work is enqueued.
                users, rows = mask.cells()
                masked = users, self.positions_of(rows)
            self._mask_out(scores, mask.allowed, masked, begin, end)
            parts.append(best(scores, wanted, begin, size))
        if not parts:
            parts = [torch.empty((len(query), 0), dtype=torch.int64, device=query.device)]
        positions = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        return self.best_of(query, positions, count)

    def best_of(self, query: Tensor, positions: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Return the best ``count`` of positions ``[B, M]`` as :meth:`nearest` does; position A is none."""
        size = len(self.vectors)
        scores = self.score_at(query, positions)
        rows = self.rows_at(torch.where(torch.isneginf(scores), size, positions))
        missing = count - rows.shape[1]
        if missing > 0:
            pad = torch.nn.functional.pad
            scores, rows = pad(scores, (0, missing), value=_LOWEST), pad(rows, (0, missing), value=self.items)
        best, found = arranged(sort_keys(scores, rows), count, scores, rows)
        return best, found

    def score_at(self, query: Tensor, positions: Tensor) -> Tensor:
        """Return inner products ``[B, M]`` with items at positions; -inf for position A and for NaN."""
        size = len(self.vectors)
        if not size:
            return torch.full(positions.shape, _LOWEST, device=query.device)
        found = self.vectors[positions.clamp(max=size - 1)]
        products = (found * query.double()[:, None]).sum(dim=2).float()
        return _sortable(products).masked_fill(positions == size, _LOWEST)

    def rows_at(self, positions: Tensor) -> Tensor:
        """Return the catalogue rows of positions; position A is the pad row."""
        return positions if self._row_of is None else self._row_of[positions]

    def positions_of(self, rows: Tensor) -> Tensor:
        """Return the positions of catalogue rows; A for the pad row and for rows that are not searched."""
        return rows if self._position_of is None else self._position_of[rows]

    def _products(self, query: Tensor, begin: int, end: int) -> Tensor:
        """Return rough scores ``[B, width]`` of positions ``begin`` to ``end``.

        The width is padded to whole groups with at least one column, to which masked cells outside of these
        positions are mapped. For many users the scores are larger than the vectors, so each is written and
        read only once.
        """
        users, size = len(query), end - begin
        scores = query.new_empty((users, (size // GROUP + 1) * GROUP))
        torch.mm(query, self.vectors[begin:end].T, out=scores[:, :size])
        scores[:, size:].fill_(_LOWEST)
        return scores

    def _mask_out(
        self,
        scores: Tensor,
        allowed: Tensor | None,
        masked: tuple[Tensor | None, Tensor],
        begin: int,
        end: int,
    ) -> None:
        """Set the scores of masked items to -inf."""
        size = end - begin
        if allowed is not None:
            own = allowed[:, begin:end] if self._row_of is None else allowed[:, self._row_of[begin:end]]
            scores[:, :size].masked_fill_(~own, _LOWEST)
        user, column = masked
        if size < len(self.vectors):
            column = column - begin
            column = torch.where((column >= 0) & (column < size), column, size)
        cells = column if user is None else torch.add(column, user, alpha=scores.shape[1])
        scores.view(-1).index_fill_(0, cells, _LOWEST)


def _best_in_order(scores: Tensor, wanted: int, begin: int, none: int) -> Tensor:
    """Return positions ``[B, n]`` of the best by (score descending, place ascending), in any order.

    Parameters
    ----------
    scores
        ``[B, width]``.
    wanted
        The number of positions; n is that, or the number of columns if that is smaller.
    begin
        The position of the first column.
    none
        The position that is returned for a score of -inf.
    """
    device = scores.device
    if scores.shape[1] <= wanted * GROUP:
        keys = sort_keys(_sortable(scores), numbers(scores.shape[1], device))
    else:
        # The best n items are in the n groups with the best items: each group ahead of another contains an
        # item ahead of all items of the other.
        groups = scores.view(len(scores), -1, GROUP)
        tops = sort_keys(_sortable(groups.amax(dim=2)), numbers(groups.shape[1], device))
        best = rows_of(_first(tops, wanted))
        found = _sortable(groups.gather(1, best[:, :, None].expand(-1, -1, GROUP)))
        places = best[:, :, None] * GROUP + numbers(GROUP, device)
        keys = sort_keys(found, places).flatten(1)
    keys = _first(keys, wanted)
    return torch.where(scored(keys), _moved(rows_of(keys), begin), none)


def _best_rounded(scores: Tensor, wanted: int, begin: int, none: int) -> Tensor:
    """Return positions as :func:`_best_in_order` does, for scores in half precision, with ties in any order.

    The margin covers ties as well as rounding, which swaps more items. The selection reads two bytes per item
    instead of eight. The items of a group are strided, so that neighbouring threads read neighbouring scores.
    """
    groups = scores.view(len(scores), GROUP, -1)
    width = groups.shape[2]
    tops = groups.amax(dim=1).nan_to_num(nan=_LOWEST, neginf=_LOWEST)
    best = tops.topk(min(wanted, width), dim=1, sorted=False).indices
    found = groups.gather(2, best[:, None].expand(-1, GROUP, -1)).nan_to_num(nan=_LOWEST, neginf=_LOWEST)
    places = torch.add(best[:, None], numbers(GROUP, scores.device)[:, None], alpha=width).flatten(1)
    chosen, order = found.flatten(1).topk(min(wanted, places.shape[1]), dim=1, sorted=False)
    positions = places.gather(1, order)
    return torch.where(torch.isneginf(chosen), none, _moved(positions, begin))


def _moved(places: Tensor, begin: int) -> Tensor:
    return places + begin if begin else places


def _first(keys: Tensor, count: int) -> Tensor:
    """Return the ``count`` smallest keys of each user in any order; all of them if there are fewer."""
    if count >= keys.shape[1]:
        return keys
    return keys.topk(count, dim=1, largest=False, sorted=False).values


def _sortable(scores: Tensor) -> Tensor:
    """Return scores as float32, with NaN, as from a broken model, replaced by -inf."""
    return scores.float().nan_to_num(nan=_LOWEST, posinf=float("inf"), neginf=_LOWEST)


def most_alike(vectors: Tensor) -> int:
    """Return the largest number of items with equal vectors, compared by a 64-bit hash."""
    if not len(vectors):
        return 0
    draw = torch.Generator().manual_seed(0)
    odd = torch.randint(-(2**62), 2**62, (vectors.shape[1],), generator=draw) * 2 + 1
    odd = odd.to(vectors.device)
    hashes = [
        # Adding 0.0 turns -0.0 into 0.0, so that both have one hash.
        ((piece.float() + 0.0).view(torch.int32).long() * odd).sum(dim=1)
        for piece in (vectors[begin : begin + _PIECE] for begin in range(0, len(vectors), _PIECE))
    ]
    ordered = torch.cat(hashes).sort().values
    begins = torch.ones_like(ordered, dtype=torch.bool)
    begins[1:] = ordered[1:] != ordered[:-1]
    starts = begins.nonzero()[:, 0]
    return int(torch.diff(starts, append=starts.new_tensor([len(ordered)])).max())
