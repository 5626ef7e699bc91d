"""Masks of items for each user of a batch: :class:`tiercel_serving.ranked.masks.Mask` on a device."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from ..ranked.masks import Mask
from ..spec import Array
from .crossing import Copies
from .order_torch import numbers

#: Type of device → the number of cells (users × items) up to which a table of all cells is written. This
#: takes no longer than sorting a few hundred masked cells.
MOST_WRITTEN: Mapping[str, int] = {"cuda": 1 << 26, "cpu": 1 << 18}


class TensorMask:
    """A list of masked cells (user × item), and optionally a table of allowed ones.

    Nothing here synchronises with the device, because no shape depends on values there.

    Parameters
    ----------
    users, items
        B and I.
    cells
        ``[n]`` int64 numbers user·(I + 1) + row of the masked cells, including each user's pad row.
    most
        The most masked cells of one user, without the pad row.
    allowed
        ``[B, I + 1]`` bool, the only cells that are allowed; None allows every cell that is not masked.
    on_host
        Makes the mask on the host, for a source without an implementation on the device.
    """

    def __init__(
        self,
        users: int,
        items: int,
        cells: Tensor,
        most: int,
        allowed: Tensor | None = None,
        on_host: Callable[[], Mask] | None = None,
    ) -> None:
        self.users, self.items, self.most, self.allowed = users, items, most, allowed
        self._cells = cells
        #: A table of the free cells, or the sorted masked cells; made when single items are first looked up.
        self._free: Tensor | None = None
        self._sorted: Tensor | None = None
        self._added: list[Tensor] = []
        self._on_host = on_host

    def add(self, rows: Tensor) -> None:
        """Mask ``[B, M]`` more rows."""
        self._added.append(rows)
        self.most += rows.shape[1]
        self._cells = torch.cat([self._cells, self._cells_of(rows).reshape(-1)])
        self._free = self._sorted = None

    def allows(self, rows: Tensor) -> Tensor:
        """Return whether each user may get their rows ``[B, M]``."""
        free = self._are_free(self._cells_of(rows))
        return free if self.allowed is None else free & self.allowed.gather(1, rows)

    def _cells_of(self, rows: Tensor) -> Tensor:
        """Return the cells of each user's rows ``[B, M]``."""
        if self.users == 1:
            return rows
        users = numbers(self.users, rows.device)[:, None]
        return torch.add(rows, users, alpha=self.items + 1)

    def _are_free(self, wanted: Tensor) -> Tensor:
        """Return which cells are not masked; writing a table of some MB is faster than sorting."""
        cells = self.users * (self.items + 1)
        if cells <= MOST_WRITTEN[wanted.device.type]:
            if self._free is None:
                self._free = torch.ones(cells, dtype=torch.bool, device=wanted.device)
                self._free.index_fill_(0, self._cells, False)
            return self._free[wanted]
        if self._sorted is None:
            self._sorted = self._cells.sort().values
        # The largest masked cell is the last user's pad row, which is also the largest cell of all.
        return self._sorted[torch.searchsorted(self._sorted, wanted)] != wanted

    def cells(self) -> tuple[Tensor | None, Tensor]:
        """Return user and row of the masked cells, ``[n]`` each; the user is None if there is only one."""
        if self.users == 1:
            return None, self._cells
        return self._cells // (self.items + 1), self._cells % (self.items + 1)

    def padded(self, users: int) -> Tensor:
        """Return the cells for ``users`` users, padded to a power of two to limit the number of lengths.

        Users beyond B have only their pad rows masked.
        """
        width, cells = self.items + 1, self._cells
        count = cells.shape[0]
        if users == self.users and count == rounded_up(count):
            return cells
        if users > self.users:
            ends = torch.arange(self.users + 1, users + 1, device=cells.device) * width
            cells = torch.cat([cells, ends - 1])
        # Pad with the last user's pad row, which is masked anyway.
        return torch.nn.functional.pad(
            cells, (0, rounded_up(len(cells)) - len(cells)), value=users * width - 1
        )

    def host(self, place: Copies) -> Mask:
        """Return the mask on the host."""
        assert self._on_host is not None
        mask = self._on_host()
        for rows in self._added:
            mask.add(place.take(rows))
        return mask


def filled_up(cells: Array) -> Array:
    """Return cells on the host, padded to :func:`rounded_up` by repeating the last one."""
    count = len(cells)
    filled = np.empty(rounded_up(count), cells.dtype)
    filled[:count], filled[count:] = cells, cells[-1]
    return filled


def rounded_up(count: int) -> int:
    """Return the next power of two, at least 64."""
    return 1 << max(6, (count - 1).bit_length())
