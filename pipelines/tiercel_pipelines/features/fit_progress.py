"""How far the fit of a workflow has got: NVTabular computes statistics with Dask, whose tasks are counted."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from dask.callbacks import Callback

from ..data import Progress

#: What a report calls a pass over the data; each group of operators that needs another's outcome takes one.
PASS = "fitting the workflow, pass {}"
#: Computations of fewer tasks are no passes: they look at a first row, or put an end to what was counted.
_FEW = 4
#: How often a cluster's scheduler is asked.
POLL_S = 1.0


def fit_progress(progress: Progress | None, client: Any = None) -> AbstractContextManager[Any]:
    """Report the tasks that are done of each pass within the block.

    Parameters
    ----------
    progress
        Called as ``progress(what, done, total)`` after each task, of a cluster from a thread; None reports
        nothing.
    client
        The ``distributed.Client`` of the cluster that computes in place of this process, if one does.
    """
    if progress is None:
        return nullcontext()
    return _Tasks(progress) if client is None else _of_cluster(progress, client)


class _Tasks(Callback):
    """Dask's own way to be told of each task."""

    def __init__(self, progress: Progress) -> None:
        self._progress, self._passes = progress, 0

    def _start_state(self, dsk: Mapping[Any, Any], state: Mapping[str, Any]) -> None:
        self._passes += len(state["ready"]) + len(state["waiting"]) >= _FEW

    def _posttask(
        self, key: Any, value: Any, dsk: Mapping[Any, Any], state: Mapping[str, Any], worker: Any
    ) -> None:
        done = len(state["finished"])
        total = done + sum(len(state[phase]) for phase in ("ready", "waiting", "running"))
        if total >= _FEW:
            self._progress(PASS.format(self._passes), done, total)


@contextmanager
def _of_cluster(progress: Progress, client: Any) -> Iterator[None]:
    over = threading.Event()
    thread = threading.Thread(target=_ask, args=(progress, client, over), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _ask(progress: Progress, client: Any, over: threading.Event) -> None:
    passes, share = 0, 1.0
    while not over.wait(POLL_S):
        try:
            done, total = client.run_on_scheduler(_counting())
        except Exception:
            return  # what became of the cluster the fit itself says
        if total < _FEW:
            continue
        passes += done / total < share or passes == 0
        share = done / total
        progress(PASS.format(passes), done, total)


def _counting() -> Callable[[Any], tuple[int, int]]:
    """Return a function that travels to the scheduler whole, for Tiercel need not be installed there."""

    def count(dask_scheduler: Any) -> tuple[int, int]:
        states = [task.state for task in list(dask_scheduler.tasks.values())]
        return sum(state in ("memory", "released", "erred") for state in states), len(states)

    return count
