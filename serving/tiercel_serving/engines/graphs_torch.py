"""A model replayed from CUDA graphs: one launch for all of its kernels, for each of a few batch sizes.

A graph is bound to its shapes and addresses, so a batch is copied into the buffers of the next larger bucket,
and what the rows behind it give is thrown away. The choice of buckets and the copies are tested on the CPU
with a double of the capture, and the capture by ``pytest -m gpu``.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from threading import Lock
from typing import NamedTuple

import torch
from torch import Tensor

#: What runs a model on its inputs, in their order.
Run = Callable[[list[Tensor]], list[Tensor]]

#: Batch sizes that graphs are captured for; a larger batch runs without one.
BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)

#: One capture at a time.
_CAPTURING = Lock()

#: Runs before a capture, for libraries that choose kernels and take memory when they are first called.
WARM_RUNS = 3


class Captured(NamedTuple):
    """A captured run: ``replay()`` reads the inputs that it was captured with, and writes these outputs."""

    replay: Callable[[], None]
    outputs: list[Tensor]


#: Captures a run on given inputs.
Capture = Callable[[Run, list[Tensor]], Captured]


def capture(run: Run, inputs: list[Tensor]) -> Captured:
    """Capture a run as a CUDA graph, on a stream of its own as CUDA asks."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_RUNS):
            run(inputs)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    # A process serves several models, which start and work in threads of their own: what another thread asks
    # of the device meanwhile must neither fail nor end the capture.
    with _CAPTURING, torch.cuda.graph(graph, capture_error_mode="thread_local"):
        outputs = run(inputs)
    return Captured(graph.replay, outputs)


def bucket_of(batch: int, buckets: Sequence[int]) -> int | None:
    """Return the smallest bucket that holds a batch, of ascending ones; None if none does."""
    place = bisect_left(buckets, batch)
    return buckets[place] if place < len(buckets) else None


class GraphedRun:
    """A model whose batches run from captured graphs; each is captured when its bucket is first asked for.

    Parameters
    ----------
    run
        Runs the model itself.
    buckets
        Ascending batch sizes.
    capture
        Captures a run.
    """

    def __init__(self, run: Run, buckets: Sequence[int] = BUCKETS, capture: Capture = capture) -> None:
        self._run, self._buckets, self._capture = run, tuple(buckets), capture
        self._captured: dict[int, tuple[list[Tensor], Captured]] = {}

    def __call__(self, tensors: list[Tensor]) -> list[Tensor]:
        """Run the model on tensors ``[B, …]``; the results are the caller's own."""
        batch = len(tensors[0])
        bucket = bucket_of(batch, self._buckets)
        if bucket is None:
            return self._run(tensors)
        if bucket not in self._captured:
            inputs = [one.new_zeros((bucket, *one.shape[1:])) for one in tensors]
            self._captured[bucket] = inputs, self._capture(self._run, inputs)
        inputs, captured = self._captured[bucket]
        for buffer, tensor in zip(inputs, tensors, strict=True):
            buffer[:batch].copy_(tensor)
        captured.replay()
        # The next replay writes over them.
        return [output[:batch].clone() for output in captured.outputs]
