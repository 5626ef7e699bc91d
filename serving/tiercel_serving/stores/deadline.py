"""Reads with a deadline, from a store that may be slow or unavailable for a while."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue

from ..errors import StoreUnavailable

Read = Callable[[Sequence[bytes]], Sequence[bytes | None]]


class _Job:
    """One read: its keys, and its result."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        self.keys = keys
        self.done = threading.Event()
        #: None if the read was skipped because the store was already down.
        self.records: Sequence[bytes | None] | None = None
        self.error: Exception | None = None


class DeadlineReader:
    """Reads in a background thread; callers wait no longer than the deadline.

    After a read that fails or misses the deadline, the store counts as down: every read fails at once, and
    the thread only pings the store, every ``retry_s`` seconds, until it answers in time.

    Parameters
    ----------
    named
        The store's name in messages.
    read
        Reads records; it must return or raise eventually.
    ping
        Checks that the store answers, within a deadline of its own, or raises.
    timeout_s
        The deadline, in seconds.
    retry_s
        Interval of the pings, in seconds.
    """

    def __init__(
        self, named: str, read: Read, ping: Callable[[], None], timeout_s: float, retry_s: float
    ) -> None:
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._named, self._timeout_s = named, timeout_s
        self._down = threading.Event()
        thread = threading.Thread(
            target=_work,
            args=(self._jobs, self._down, read, ping, retry_s),
            name="tiercel-store",
            daemon=True,
        )
        thread.start()
        weakref.finalize(self, self._jobs.put, None)

    def read(self, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        """Return the records of the keys.

        Raises
        ------
        StoreUnavailable
            The store failed, or did not answer in time, now or before.
        """
        if self._down.is_set():
            raise self._silent()
        job = _Job(keys)
        self._jobs.put(job)
        if not job.done.wait(self._timeout_s):
            self._down.set()
            # The thread may just have finished this job and be waiting for the next without a timeout; an
            # empty job wakes it, so that it starts to ping.
            self._jobs.put(_Job(()))
            raise StoreUnavailable(
                f"store {self._named}: no answer within {self._timeout_s * 1000:g} ms; check that it runs "
                "and is near, or give it a longer deadline"
            )
        if job.error is not None:
            told = str(job.error) if isinstance(job.error, StoreUnavailable) else repr(job.error)
            raise StoreUnavailable(told) from job.error
        if job.records is None:
            raise self._silent()
        return job.records

    def _silent(self) -> StoreUnavailable:
        return StoreUnavailable(
            f"store {self._named}: it did not answer before, and is asked again in the background; check "
            "that it runs, and its address"
        )


def _work(
    jobs: SimpleQueue[_Job | None],
    down: threading.Event,
    read: Read,
    ping: Callable[[], None],
    retry_s: float,
) -> None:
    """Run the jobs; while the store is down, only ping it."""
    while True:
        try:
            job = jobs.get(timeout=retry_s if down.is_set() else None)
        except Empty:
            with contextlib.suppress(Exception):
                ping()
                down.clear()
            continue
        if job is None:
            return
        if not job.keys:
            job.records = ()  # nothing to read: the job only woke this thread
        elif not down.is_set():
            # A job queued just before another one failed is skipped, so that its caller need not wait.
            try:
                job.records = read(job.keys)
            except Exception as error:
                job.error = error
                down.set()
        job.done.set()
