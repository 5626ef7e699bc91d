"""A Dask cluster that fits a workflow instead of this process."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..errors import TrainingError

#: Seconds in which a scheduler must answer.
TIMEOUT_S = 10


@contextmanager
def dask_cluster(address: str | None) -> Iterator[Any]:
    """Yield a ``distributed.Client`` of the scheduler at ``address``, which NVTabular finds by itself.

    Without an address, yield None: this process does the work.

    Raises
    ------
    TrainingError
        If no scheduler answers, or it has no workers.
    """
    if address is None:
        yield None
        return
    distributed: Any = importlib.import_module("distributed")
    try:
        client = distributed.Client(address, timeout=TIMEOUT_S)
    except (OSError, ValueError, TimeoutError) as error:
        raise TrainingError(
            f"Dask scheduler {address}: none answered within {TIMEOUT_S} s ({error}); give the address that "
            "`dask scheduler` printed, such as tcp://10.0.0.5:8786"
        ) from error
    with client:
        if not client.scheduler_info()["workers"]:
            raise TrainingError(
                f"Dask scheduler {address}: expected workers, it has none; start some: dask worker {address}"
            )
        yield client
