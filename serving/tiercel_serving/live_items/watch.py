"""Watching of a store's journal while a release is served."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections import deque
from collections.abc import Callable, Mapping

import numpy as np

from ..engines.table import Engine
from ..errors import MachineFault, StoreError, StoreUnavailable
from ..ranked.order import Rows
from ..release.manifest import IdDtype
from ..spec import Array
from ..stores.table import Records
from .journal import Entry, read_journal, read_version
from .overlay import Overlay, Overlays
from .table import LiveItemTable

#: Interval, in seconds, at which the store is checked for a new version.
EVERY_S = 0.1

#: The engine of item towers; every serving host can run it.
TOWER_ENGINE = "onnx"


def item_tower(source: str) -> str:
    """Return the artefact name of the model of a source's item vectors, which also names its output."""
    return f"item_tower_{source}"


class LiveItems:
    """Changes of items while a release is served.

    A thread checks for new versions of the journal and reads them; the latest is applied between two batches.
    While the store does not answer, the last state stays in effect.

    Parameters
    ----------
    table
        The items that stages read.
    overlays
        Makes the overlay of a journal.
    records
        The opened store.
    towers
        Source → function that opens the model of its item vectors, for sources that have one.
    ids
        The dtype of item ids.
    build_id
        The release's build.

    Attributes
    ----------
    version : int
        Number of overlays applied so far.

    Raises
    ------
    StoreDamaged, StoreMismatch
        The journal is damaged, or has ids of another type.
    """

    def __init__(
        self,
        table: LiveItemTable,
        overlays: Overlays,
        records: Records,
        towers: Mapping[str, Callable[[], Engine]],
        ids: IdDtype,
        build_id: str,
    ) -> None:
        self.table, self.version = table, 0
        self._overlays, self._records, self._towers = overlays, records, towers
        self._ids, self._build_id = ids, build_id
        self._opened: dict[str, Engine] = {}
        self._made: dict[tuple[str, int | str], tuple[Entry, Array]] = {}
        self._lock = threading.Lock()
        self._seen: bytes | None = None
        # The latest overlay that is not applied yet. The thread appends while a batch may pop, both of which
        # are atomic, and a newer overlay replaces an older one.
        self._next: deque[Overlay] = deque(maxlen=1)
        with contextlib.suppress(StoreUnavailable):  # it may become available later
            self._look()
        self.take_up()
        stop = threading.Event()
        thread = threading.Thread(
            target=_watch, args=(weakref.ref(self), stop), name="tiercel-items", daemon=True
        )
        thread.start()
        weakref.finalize(self, stop.set)

    @property
    def overlay(self) -> Overlay:
        """The overlay in effect."""
        return self.table.overlay

    def take_up(self, newest: int = -1) -> None:
        """Apply the latest version; called between batches.

        Parameters
        ----------
        newest
            The largest item row that another process has sent; if it is unknown here, read the journal now.
        """
        if newest >= self.table.own + len(self.overlay.keys):
            self.look()
        if self._next:
            self.table.apply(self._next.pop())
            self.version += 1

    def look(self) -> None:
        """Read the journal if its version is new; if that fails, the last state stays in effect."""
        with contextlib.suppress(StoreError, MachineFault):
            self._look()

    def _look(self) -> None:
        with self._lock:
            version = read_version(self._records)
            if version != self._seen:
                self._next.append(self._overlays.of(read_journal(self._records, self._ids)))
                self._seen = version

    def vectors(self, source: str) -> tuple[Rows, Array]:
        """Return the rows ``[m]`` of new and changed items with a vector in a source, and the vectors.

        The vectors ``[m, D]`` float32 are those given for this build, else computed by the release's item
        tower.
        """
        rows, vectors = [], []
        for place, (row, entry) in enumerate(zip(self.overlay.rows, self.overlay.entries, strict=True)):
            vector = self._vector(source, entry, place)
            if vector is not None and np.isfinite(vector).all():
                rows.append(row)
                vectors.append(vector)
        if not rows:
            return np.zeros(0, np.int64), np.zeros((0, 0), np.float32)
        return np.array(rows, np.int64), np.stack(vectors)

    def _vector(self, source: str, entry: Entry, place: int) -> Array | None:
        given = entry.vectors.get(source)
        if given is not None and entry.build_id == self._build_id:
            return np.array(given, np.float32)
        if source not in self._towers:
            return None
        before, vector = self._made.get((source, entry.item_id), (None, None))
        if before != entry or vector is None:
            # One item at a time, so that its vector does not depend on the others.
            packed = {name: table[place : place + 1] for name, table in self.overlay.packed.items()}
            if source not in self._opened:
                self._opened[source] = self._towers[source]()
            vector = self._opened[source].run(packed)[item_tower(source)][0]
            self._made[source, entry.item_id] = (entry, vector)
        return vector


def _watch(items: weakref.ref[LiveItems], stop: threading.Event) -> None:
    while not stop.wait(EVERY_S):
        watched = items()
        if watched is None:
            return
        # An error must not end this thread; the last complete state stays in effect.
        with contextlib.suppress(Exception):
            watched.look()
        del watched
