"""How far the fit of a workflow has got: NVTabular computes statistics with Dask, whose tasks are counted."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from dask.callbacks import Callback

from ..data import Progress

#: What a report calls a pass over the data; each group of operators that needs another's outcome takes one.
PASS = "fitting the workflow, pass {}"
#: Computations of fewer tasks are no passes: they look at a first row, or put an end to what was counted.
_FEW = 4


def fit_progress(progress: Progress | None) -> AbstractContextManager[Any]:
    """Report the tasks that are done of each pass within the block.

    Nothing is reported where a cluster computes in place of this process.

    Parameters
    ----------
    progress
        Called as ``progress(what, done, total)`` after each task; None reports nothing.
    """
    return nullcontext() if progress is None else _Tasks(progress)


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
