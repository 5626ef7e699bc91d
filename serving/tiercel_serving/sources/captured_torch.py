"""The merged sources of a recommender on a GPU, replayed from CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..device.graphs_torch import BUCKETS, Capture, GraphedForms, bucket_of, lasting
from ..device.masks_torch import TensorMask, rounded_up
from .merged_torch import Candidates, MergedTensorSources

#: Computes the candidates of a batch: ``give(arrays, mask)``.
_Give = Callable[[Mapping[str, Any], TensorMask], Candidates]


class CapturedSources:
    """Merged sources, captured as a CUDA graph for each batch-size bucket and mask length.

    A batch is padded to its bucket with dummy users, whose candidates are dropped. A batch beyond the largest
    bucket, or one whose mask has an allowed set, runs without a graph.

    Parameters
    ----------
    merged
        The sources; all of their work must be on the device (:class:`~.merged_torch.Capturable`).
    reads
        The names of the tensors that they read.
    capture
        Captures a run.
    """

    def __init__(self, merged: MergedTensorSources, reads: Sequence[str], capture: Capture) -> None:
        self._merged, self._reads, self.count = merged, tuple(reads), merged.count
        self.ranked = merged.ranked
        self._graphs = GraphedForms(capture)
        #: Size of a bucket → the tensors to which all graphs of that size write candidates.
        self._found: dict[int, Candidates] = {}

    def personal(self, arrays: Mapping[str, Any], mask: TensorMask) -> Candidates:
        """Return the candidates of known users; see :meth:`~.merged_torch.MergedTensorSources.personal`."""
        return self._replayed("personal", self._merged.personal, arrays, mask)

    def fallback(self, arrays: Mapping[str, Any], mask: TensorMask) -> Candidates:
        """Return the fallback's candidates; see :meth:`~.merged_torch.MergedTensorSources.fallback`."""
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
        """Return the output tensors of a bucket; each batch of that size overwrites them."""
        if users not in self._found:
            scores, rows, source = (
                lasting(torch.zeros((users, self.count), dtype=dtype, device=device))
                for dtype in (torch.float32, torch.int64, torch.int32)
            )
            self._found[users] = scores, rows, source
        return self._found[users]


def _filled(tensor: Tensor, users: int) -> Tensor:
    """Return a tensor ``[B, …]`` padded with zeros to ``users`` rows."""
    batch = tensor.shape[0]
    if batch == users:
        return tensor
    out = tensor.new_zeros((users, *tensor.shape[1:]))
    out[:batch] = tensor
    return out
