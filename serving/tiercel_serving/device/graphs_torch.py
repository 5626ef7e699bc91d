"""Replay work from CUDA graphs, with one launch for all of its kernels.

A graph is bound to its shapes and addresses. Inputs are copied into the buffers that it was captured with,
except for those that are at a fixed address, such as the outputs of other graphs. If a capture fails, the
work runs without a graph and a warning is logged. The choice of graphs and the copies are tested on the CPU
with a test double of the capture, and the capture with ``pytest -m gpu``.
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

#: A function from input tensors to output tensors, in a fixed order.
Run = Callable[[list[Tensor]], list[Tensor]]

#: Batch sizes that graphs are captured for; a larger batch runs without one.
BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)

#: One capture at a time.
_CAPTURING = Lock()

#: The attribute that marks a lasting tensor; see :func:`lasting`.
_LASTS = "tiercel_lasts"

#: Runs before a capture, for libraries that choose kernels and allocate memory on their first calls.
WARM_RUNS = 3


def lasting(tensor: Tensor) -> Tensor:
    """Mark and return a tensor that keeps its address while it lives, and is overwritten for each request.

    A graph reads it in place. Its views are not marked.
    """
    setattr(tensor, _LASTS, True)
    return tensor


class Captured(NamedTuple):
    """A captured run; ``replay()`` reads the inputs of the capture, and writes these outputs."""

    replay: Callable[[], None]
    outputs: list[Tensor]


#: Captures a run on given inputs.
Capture = Callable[[Run, list[Tensor]], Captured]


def capture(run: Run, inputs: list[Tensor], stream: torch.cuda.Stream, pool: Any) -> Captured:
    """Capture a run as a CUDA graph, on a stream and from a memory pool; see :func:`one_instance`."""
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_RUNS):
            run(inputs)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    # A process serves several models, each with its own threads. With "thread_local", calls of other threads
    # to the device during a capture neither fail nor invalidate it.
    with (
        _CAPTURING,
        torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"),
    ):
        outputs = run(inputs)
    return Captured(graph.replay, outputs)


def one_instance() -> Capture:
    """Return a function that captures graphs of one instance, which share memory and never run in parallel.

    A graph's intermediate memory is free after its replay, and its outputs are reserved while it lives. So
    graphs of many forms need the intermediate memory of the largest. Other tensors made in a capture must not
    be kept, because the next replay overwrites them.

    The graphs also share the stream of their captures. cuBLAS keeps scratch memory for each stream that it
    was used on (32 MB on an H100) forever. Graphs write to that of their capture's stream, so instances must
    not share a stream.
    """
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    return partial(capture, stream=stream, pool=torch.cuda.graph_pool_handle())


def bucket_of(batch: int, buckets: Sequence[int]) -> int | None:
    """Return the smallest of the ascending buckets that holds a batch; None if none does."""
    place = bisect_left(buckets, batch)
    return buckets[place] if place < len(buckets) else None


def attempt(capture: Capture, run: Run, inputs: list[Tensor]) -> Captured | None:
    """Return a captured run; log a warning and return None if the capture fails."""
    try:
        return capture(run, inputs)
    except RuntimeError as error:
        log.warning(
            "a CUDA graph could not be captured, and the work is done without: %s",
            " ".join(str(error).split()[:20]),
        )
        return None


class _Graph(NamedTuple):
    """A graph of one form: its input buffers, the places to fill grouped by dtype, and the captured run."""

    inputs: list[Tensor]
    filled: list[list[int]]
    captured: Captured | None


class GraphedForms:
    """Runs work from graphs, one for each form; a form determines the shapes of the inputs and the work.

    A lasting tensor (:func:`lasting`) is read in place, and a graph is bound to those that it reads. Other
    tensors are copied into buffers.

    Parameters
    ----------
    capture
        Captures a run.
    room
        The most graphs that are captured; other forms run without one.
    """

    def __init__(self, capture: Capture, room: int = 32) -> None:
        self._capture, self._room = capture, room
        self._graphs: dict[Hashable, _Graph] = {}

    def __call__(
        self, form: Hashable, run: Run, tensors: list[Tensor], rows: int | None = None
    ) -> list[Tensor]:
        """Run the work of a form, from its graph if there is one.

        Parameters
        ----------
        form
            The key of the graph.
        run
            Does the work without a graph.
        tensors
            Its inputs.
        rows
            The rows of the graph's inputs, if more than those of ``tensors``; the outputs are cut to these.

        Returns
        -------
        The outputs. A graph's outputs live as long as this object, and its next run overwrites them.
        """
        given = tensors[0].shape[0]
        batch = None if rows is None or rows == given else given
        lasts = [batch is None and hasattr(one, _LASTS) for one in tensors]
        key = form, *(id(one) if there else 0 for one, there in zip(tensors, lasts, strict=True))
        graph = self._graphs.get(key)
        if graph is None and len(self._graphs) < self._room:
            graph = self._graphs[key] = self._captured(run, tensors, lasts, rows)
        if graph is None or graph.captured is None:
            return run(tensors)
        for places in graph.filled:
            # One launch for all tensors of a dtype.
            buffers = [graph.inputs[place][:batch] for place in places]
            torch._foreach_copy_(buffers, [tensors[place] for place in places])
        graph.captured.replay()
        outputs = graph.captured.outputs
        return outputs if batch is None else [output[:batch] for output in outputs]

    def _captured(self, run: Run, tensors: list[Tensor], lasts: list[bool], rows: int | None) -> _Graph:
        inputs, filled = list[Tensor](), dict[torch.dtype, list[int]]()
        for place, (tensor, there) in enumerate(zip(tensors, lasts, strict=True)):
            inputs.append(tensor if there else _buffer(tensor, rows))
            if not there:
                filled.setdefault(tensor.dtype, []).append(place)
        captured = attempt(self._capture, run, inputs)
        for output in [] if captured is None else captured.outputs:
            lasting(output)
        return _Graph(inputs, list(filled.values()), captured)


def _buffer(tensor: Tensor, rows: int | None) -> Tensor:
    if rows is None or rows == len(tensor):
        return tensor.clone()
    return tensor.new_zeros((rows, *tensor.shape[1:]))


class GraphedRun:
    """Runs work on batches from graphs for a few batch sizes, each captured on first use.

    A batch is copied into the buffers of the smallest bucket that holds it, and the outputs of the rows after
    it are discarded.

    Parameters
    ----------
    run
        Does the work on tensors ``[B, …]``, and returns such tensors.
    capture
        Captures a run.
    buckets
        Ascending batch sizes.
    """

    def __init__(self, run: Run, capture: Capture, buckets: Sequence[int] = BUCKETS) -> None:
        self._run, self._buckets, self._forms = run, tuple(buckets), GraphedForms(capture)

    def __call__(self, tensors: list[Tensor]) -> list[Tensor]:
        """Run the work for tensors ``[B, …]``; the next batch of the same bucket overwrites the outputs."""
        bucket = bucket_of(tensors[0].shape[0], self._buckets)
        return self._run(tensors) if bucket is None else self._forms(bucket, self._run, tensors, bucket)
