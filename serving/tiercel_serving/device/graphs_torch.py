"""Work replayed from CUDA graphs: one launch for all of its kernels.

A graph is bound to its shapes and addresses, so inputs are copied into the buffers that it was captured with.
Where a capture fails the work is done without, and the log says so. The choice of graphs and the copies are
tested on the CPU with a double of the capture, and the capture by ``pytest -m gpu``.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from threading import Lock
from typing import Any, NamedTuple

import torch
from torch import Tensor

log = logging.getLogger(__name__)

#: What does some work on its inputs, in their order.
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


def capture(run: Run, inputs: list[Tensor], stream: torch.cuda.Stream, pool: Any) -> Captured:
    """Capture a run as a CUDA graph, on a stream and with memory of its own; see :func:`one_instance`."""
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_RUNS):
            run(inputs)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    # A process serves several models, which start and work in threads of their own: what another thread asks
    # of the device meanwhile must neither fail nor end the capture.
    with (
        _CAPTURING,
        torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"),
    ):
        outputs = run(inputs)
    return Captured(graph.replay, outputs)


def one_instance() -> Capture:
    """Return what captures the graphs of one instance, one replayed after another: they share their memory.

    What a graph holds between its kernels is free after its replay, and its outputs are kept from the others
    as long as it lives: so graphs of many forms take the memory of the largest. Nothing else that is made in
    a capture may be kept: the next replay writes over it.

    They share the stream of their captures too. cuBLAS has scratch memory for each stream that it was used
    on (32 MB on an H100), for good; the graphs write to that of the stream that they were captured on, so
    instances must not share one.
    """
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    return partial(capture, stream=stream, pool=torch.cuda.graph_pool_handle())


def bucket_of(batch: int, buckets: Sequence[int]) -> int | None:
    """Return the smallest bucket that holds a batch, of ascending ones; None if none does."""
    place = bisect_left(buckets, batch)
    return buckets[place] if place < len(buckets) else None


def attempt(capture: Capture, run: Run, inputs: list[Tensor]) -> Captured | None:
    """Return a captured run, or None where it can't be captured."""
    try:
        return capture(run, inputs)
    except RuntimeError as error:
        log.warning(
            "a CUDA graph could not be captured, and the work is done without: %s",
            " ".join(str(error).split()[:20]),
        )
        return None


class GraphedRun:
    """Work on batches, from graphs of a few batch sizes; each is captured when it is first asked for.

    A batch is copied into the buffers of the next larger bucket, and what the rows behind it give is thrown
    away.

    Parameters
    ----------
    run
        Does the work itself: ``[B, …]`` each, in and out.
    capture
        Captures a run.
    buckets
        Ascending batch sizes.
    """

    def __init__(self, run: Run, capture: Capture, buckets: Sequence[int] = BUCKETS) -> None:
        self._run, self._buckets, self._capture = run, tuple(buckets), capture
        self._captured: dict[int, tuple[list[Tensor], Captured | None]] = {}

    def __call__(self, tensors: list[Tensor]) -> list[Tensor]:
        """Do the work for tensors ``[B, …]``; the results are the caller's own."""
        batch = len(tensors[0])
        bucket = bucket_of(batch, self._buckets)
        if bucket is None:
            return self._run(tensors)
        if bucket not in self._captured:
            inputs = [one.new_zeros((bucket, *one.shape[1:])) for one in tensors]
            self._captured[bucket] = inputs, attempt(self._capture, self._run, inputs)
        inputs, captured = self._captured[bucket]
        if captured is None:
            return self._run(tensors)
        for buffer, tensor in zip(inputs, tensors, strict=True):
            buffer[:batch].copy_(tensor)
        captured.replay()
        # The next replay writes over them.
        return [output[:batch].clone() for output in captured.outputs]


class GraphedForms:
    """Work from graphs, one for each form that it has: what decides the shapes of its inputs and the rest.

    Parameters
    ----------
    capture
        Captures a run.
    room
        So many forms are captured; others run without.
    """

    def __init__(self, capture: Capture, room: int = 32) -> None:
        self._capture, self._room = capture, room
        self._captured: dict[Hashable, tuple[list[Tensor], Captured | None]] = {}

    def __call__(self, form: Hashable, run: Run, tensors: list[Tensor]) -> list[Tensor]:
        """Do the work ``run`` of a form; the results are the caller's own."""
        if form not in self._captured and len(self._captured) < self._room:
            inputs = [one.clone() for one in tensors]
            self._captured[form] = inputs, attempt(self._capture, run, inputs)
        inputs, captured = self._captured.get(form, ([], None))
        if captured is None:
            return run(tensors)
        for buffer, tensor in zip(inputs, tensors, strict=True):
            buffer.copy_(tensor)
        captured.replay()
        return [output.clone() for output in captured.outputs]
