"""Counters on Triton's metrics port."""

from __future__ import annotations

import threading
from collections import Counter, defaultdict, deque
from collections.abc import Mapping, Sequence

import numpy as np
import triton_python_backend_utils as pb_utils

from ..settings import STATUS_NAMES
from ..spec import Array
from ..stages.specs import ORDERING

#: Interval, in seconds, at which counts are sent to Triton. An increment is a round trip to the server's
#: process, so it is kept off the request's path.
METRICS_PERIOD_S = 1.0

#: Names and descriptions of the metrics. Answers and short lists are counted in models with ``ordering``.
ANSWERS, SHORT_LISTS = "tiercel_answers_total", "tiercel_short_lists_total"
STAGE_ERRORS, REFUSED = "tiercel_stage_errors_total", "tiercel_refused_requests_total"
STORE_FALLBACKS = "tiercel_store_fallbacks_total"
SOURCE_FAILURES = "tiercel_source_failures_total"
DESCRIPTIONS = {
    ANSWERS: "Users answered, by status: known, unknown with features, or unknown",
    SHORT_LISTS: "Answers with fewer items than requested",
    STAGE_ERRORS: "Requests for which a stage failed",
    REFUSED: "Requests refused because of their contents",
    STORE_FALLBACKS: "Users answered without their live values, by reason",
    SOURCE_FAILURES: "Users for whom a source of candidates failed and others filled its share, by source",
}

#: Label of a stage error that happened outside of every stage.
ADAPTER = "adapter"


class Metrics:
    """The counters of one model on Triton's metrics port.

    A request only queues a note; a thread counts the notes and sends the sums every
    :data:`METRICS_PERIOD_S` seconds.

    Parameters
    ----------
    stages
        The model's stages.
    fallbacks
        The store's own counters, by reason; see :class:`~tiercel_serving.stores.table.Store`.
    failures
        The sources' own counters: source name → number of users for whom it failed.
    """

    def __init__(
        self, stages: Sequence[str], fallbacks: Mapping[str, int], failures: Mapping[str, int] | None = None
    ) -> None:
        labels: dict[str, tuple[str, Sequence[str]]] = {
            STAGE_ERRORS: ("stage", (*stages, ADAPTER)),
            REFUSED: ("", ("",)),
        }
        if ORDERING in stages:
            labels[ANSWERS] = ("status", STATUS_NAMES)
            labels[SHORT_LISTS] = ("", ("",))
        #: Counters kept elsewhere: metric → value of its label → count.
        self._watched = {STORE_FALLBACKS: fallbacks, SOURCE_FAILURES: failures or {}}
        for name, label in ((STORE_FALLBACKS, "why"), (SOURCE_FAILURES, "source")):
            if self._watched[name]:
                labels[name] = (label, tuple(self._watched[name]))
        self._told: Counter[tuple[str, str]] = Counter()
        # The families must outlive their metrics, so both are kept.
        self._families = {
            name: pb_utils.MetricFamily(
                name=name, description=DESCRIPTIONS[name], kind=pb_utils.MetricFamily.COUNTER
            )
            for name in labels
        }
        self._metrics = {
            (name, value): self._families[name].Metric(labels={label: value} if label else {})
            for name, (label, values) in labels.items()
            for value in values
        }
        self._gathered: Counter[tuple[str, str]] = Counter()
        # (status, count, k) of each batch; a deque's append and popleft need no lock.
        self._notes: deque[tuple[Array, Array, Array | int]] = deque()
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._send_often, name="tiercel-metrics", daemon=True)
        self._thread.start()

    def count(self, name: str, value: str = "", by: int = 1) -> None:
        """Add to the metric ``name`` with this label value."""
        if by:
            with self._lock:
                self._gathered[name, value] += by

    def note(self, status: Array, count: Array, k: Array | int) -> None:
        """Queue a batch of answers: ``status`` and ``count`` ``[B, 1]``, and the requested ``k``."""
        self._notes.append((status, count, k))

    def close(self) -> None:
        """Send the remaining counts and stop the thread."""
        self._closed.set()
        self._thread.join()
        self._metrics.clear()
        self._families.clear()

    def _send_often(self) -> None:
        while not self._closed.wait(METRICS_PERIOD_S):
            self._send()
        self._send()

    def _count_notes(self) -> None:
        """Count the queued notes, perhaps thousands, all at once: requests wait for Python meanwhile."""
        notes = [self._notes.popleft() for _ in range(len(self._notes))]
        if not notes:
            return
        users = np.bincount(np.concatenate([note[0] for note in notes])[:, 0], minlength=len(STATUS_NAMES))
        for status, by in zip(STATUS_NAMES, users.tolist(), strict=True):
            self.count(ANSWERS, status, by)
        lengths: dict[int, list[Array]] = defaultdict(list)  # by the number of items that they are short of
        for _, count, k in notes:
            if isinstance(k, np.ndarray):
                lengths[0].append(count - k)
            else:
                lengths[k].append(count)
        for k, counts in lengths.items():
            self.count(SHORT_LISTS, "", int(np.count_nonzero(np.concatenate(counts) < k)))

    def _send(self) -> None:
        self._count_notes()
        for name, counts in self._watched.items():
            for value, users in counts.items():
                self.count(name, value, users - self._told[name, value])
                self._told[name, value] = users
        with self._lock:
            gathered, self._gathered = self._gathered, Counter()
        for key, by in gathered.items():
            self._metrics[key].increment(by)
