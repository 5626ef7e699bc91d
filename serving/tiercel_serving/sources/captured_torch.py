"""The sources of a recommender on a GPU, whose work is replayed from CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..device.graphs_torch import BUCKETS, Capture, GraphedForms, bucket_of, lasting
from ..device.masks_torch import TensorMask, rounded_up
from .merged_torch import Candidates, MergedTensorSources

#: What is done for some users: ``give(arrays, mask)``.
_Give = Callable[[Mapping[str, Any], TensorMask], Candidates]


class CapturedSources:
    """Merged sources, captured for each bucket of batch sizes and length of what its users must not get.

    A batch is filled up to its bucket with users of whom nothing is asked for.

    Parameters
    ----------
    merged
        The sources; all work on the device alone.
    reads
        The tensors that they read.
    capture
        Captures a run.
    """

    def __init__(self, merged: MergedTensorSources, reads: Sequence[str], capture: Capture) -> None:
        self._merged, self._reads, self.count = merged, tuple(reads), merged.count
        self.ranked = merged.ranked
        self._graphs = GraphedForms(capture)
        #: Users of a bucket → where their candidates lie, whatever they were found by.
        self._found: dict[int, Candidates] = {}

    def personal(self, arrays: Mapping[str, Any], mask: TensorMask) -> Candidates:
        """Return what the sources do; see :meth:`~.merged_torch.MergedTensorSources.personal`."""
        return self._replayed("personal", self._merged.personal, arrays, mask)

    def fallback(self, arrays: Mapping[str, Any], mask: TensorMask) -> Candidates:
        """Return what the sources do; see :meth:`~.merged_torch.MergedTensorSources.fallback`."""
        return self._replayed("fallback", self._merged.fallback, arrays, mask)

    def _replayed(self, name: str, give: _Give, arrays: Mapping[str, Any], mask: TensorMask) -> Candidates:
        batch = mask.users
        users = bucket_of(batch, BUCKETS)
        if users is None or mask.allowed is not None:
            return give(arrays, mask)
        cells, most, items = mask.padded(users), rounded_up(mask.most), mask.items

        def run(tensors: list[Tensor]) -> list[Tensor]:
            limits = TensorMask(users, items, tensors[-1], most)
            made = give(dict(zip(self._reads, tensors, strict=False)), limits)
            for there, one in zip(found, made, strict=True):
                there.copy_(one)
            return []

        found = self._place_of(users, cells.device)
        given = [*(_filled(arrays[read], users) for read in self._reads), cells]
        self._graphs((name, users, cells.shape[0], most), run, given)
        if batch == users:
            return found
        scores, rows, source = found
        return scores[:batch], rows[:batch], source[:batch]

    def _place_of(self, users: int, device: torch.device) -> Candidates:
        """Return where the candidates of so many users are written, at each request."""
        if users not in self._found:
            scores, rows, source = (
                lasting(torch.zeros((users, self.count), dtype=dtype, device=device))
                for dtype in (torch.float32, torch.int64, torch.int32)
            )
            self._found[users] = scores, rows, source
        return self._found[users]


def _filled(tensor: Tensor, users: int) -> Tensor:
    """Return ``[B, …]`` with zeros for users beyond B."""
    batch = tensor.shape[0]
    if batch == users:
        return tensor
    out = tensor.new_zeros((users, *tensor.shape[1:]))
    out[:batch] = tensor
    return out
