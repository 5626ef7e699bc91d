"""The sources of a recommender on a GPU, whose work for one user is replayed from a CUDA graph.

Of many users the work itself outweighs its launches, and the lengths of what limits them are as many.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ..device.graphs_torch import Capture, GraphedForms
from ..device.masks_torch import TensorMask
from .merged_torch import Candidates, MergedTensorSources


class CapturedSources:
    """Merged sources, captured for one user and each length of what he must not get.

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
        self.fallback, self.ranked = merged.fallback, merged.ranked
        self._graphs = GraphedForms(capture)

    def personal(self, arrays: Mapping[str, Any], mask: TensorMask) -> Candidates:
        """Return what the sources do; see :meth:`~.merged_torch.MergedTensorSources.personal`."""
        if mask.users != 1 or mask.allowed is not None:
            return self._merged.personal(arrays, mask)
        cells = mask.padded()

        def run(tensors: list[Tensor]) -> list[Tensor]:
            limits = TensorMask(1, mask.items, tensors[-1], len(tensors[-1]))
            return list(self._merged.personal(dict(zip(self._reads, tensors, strict=False)), limits))

        given = [*(arrays[name] for name in self._reads), cells]
        scores, rows, source = self._graphs(len(cells), run, given)
        return scores, rows, source
