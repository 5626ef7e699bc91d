"""Progress of a workflow's fit, counted in the Dask tasks with which NVTabular computes statistics."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from dask.callbacks import Callback

from ..data import Progress

#: Name of a pass over the data in reports; each group of operators that needs another's result takes one.
PASS = "fitting the workflow, pass {}"
#: Computations of fewer tasks are not passes: they look at a first row, or complete what was counted.
_FEW = 4
#: Seconds between two requests to a cluster's scheduler.
POLL_S = 1.0


def fit_progress(progress: Progress | None, client: Any = None) -> AbstractContextManager[Any]:
    """Report the finished tasks of each pass within the block.

    Parameters
    ----------
    progress
        Called as ``progress(what, done, total)`` after each task, or with a cluster regularly from a thread;
        None reports nothing.
    client
        The ``distributed.Client`` of the cluster that computes instead of this process; None if none does.
    """
    if progress is None:
        return nullcontext()
    return _Tasks(progress) if client is None else _of_cluster(progress, client)


class _Tasks(Callback):
    """Dask callback that is called after each task."""

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
            return  # the fit itself reports what happened to the cluster
        if total < _FEW:
            continue
        passes += done / total < share or passes == 0
        share = done / total
        progress(PASS.format(passes), done, total)


def _counting() -> Callable[[Any], tuple[int, int]]:
    """Return a function that is pickled with its code, since the scheduler may have no Tiercel installed."""

    def count(dask_scheduler: Any) -> tuple[int, int]:
        states = [task.state for task in list(dask_scheduler.tasks.values())]
        return sum(state in ("memory", "released", "erred") for state in states), len(states)

    return count
