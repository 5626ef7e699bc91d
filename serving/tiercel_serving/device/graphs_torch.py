"""Work replayed from CUDA graphs: one launch for all of its kernels.

A graph is bound to its shapes and addresses: inputs are copied into the buffers that it was captured with,
but for those that lie at the same address each time, as the outputs of other graphs do.
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

#: The attribute of a tensor that lasts; see :func:`lasting`.
_LASTS = "tiercel_lasts"

#: Runs before a capture, for libraries that choose kernels and take memory when they are first called.
WARM_RUNS = 3


def lasting(tensor: Tensor) -> Tensor:
    """Mark a tensor whose memory is its own as long as it lives, written anew for each request; return it.

    A graph reads it there. Its views are not marked.
    """
    setattr(tensor, _LASTS, True)
    return tensor


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


class _Graph(NamedTuple):
    """What was captured for some form: the buffers that it reads, those to fill by dtype, and the run."""

    inputs: list[Tensor]
    filled: list[list[int]]
    captured: Captured | None


class GraphedForms:
    """Work from graphs, one for each form that it has: what decides the shapes of its inputs and the rest.

    A tensor that lasts (:func:`lasting`) is read where it is, and a graph belongs to those that it reads;
    others are copied into buffers.

    Parameters
    ----------
    capture
        Captures a run.
    room
        So many forms are captured; others run without.
    """

    def __init__(self, capture: Capture, room: int = 32) -> None:
        self._capture, self._room = capture, room
        self._graphs: dict[Hashable, _Graph] = {}

    def __call__(
        self, form: Hashable, run: Run, tensors: list[Tensor], rows: int | None = None
    ) -> list[Tensor]:
        """Do the work ``run`` of a form.

        Parameters
        ----------
        form
            Which of the graphs.
        run
            Does the work.
        tensors
            Its inputs.
        rows
            So many rows the graph's inputs have, if more than these; what the further rows give is cut off.

        Returns
        -------
        The results. They last as long as this object, and the next work of the same form writes over them.
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
            # All of one dtype by one launch.
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
        self._run, self._buckets, self._forms = run, tuple(buckets), GraphedForms(capture)

    def __call__(self, tensors: list[Tensor]) -> list[Tensor]:
        """Do the work for tensors ``[B, …]``; the next batch of the same bucket writes over the results."""
        bucket = bucket_of(tensors[0].shape[0], self._buckets)
        return self._run(tensors) if bucket is None else self._forms(bucket, self._run, tensors, bucket)
