"""Follows a store's journal while a release serves."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections import deque
from collections.abc import Callable, Mapping

import numpy as np

from ..engines.table import Engine
from ..errors import StoreError, StoreUnavailable
from ..ranked.order import Rows
from ..release.manifest import IdDtype
from ..spec import Array
from ..stores.table import Records
from .journal import Entry, read_journal, read_version
from .overlay import Overlay, Overlays
from .table import LiveItemTable

#: How often the store is asked whether something was written, in seconds.
EVERY_S = 0.1

#: The engine of item towers: it runs on any host that serves.
TOWER_ENGINE = "onnx"


def item_tower(source: str) -> str:
    """Return the artefact of the model that makes a source's item vectors, and the name of its output."""
    return f"item_tower_{source}"


class LiveItems:
    """What is put and withdrawn while a release serves.

    A thread looks for new versions of the journal and reads them; between two batches the latest is taken up.
    What a store that does not answer held last goes on to count.

    Parameters
    ----------
    table
        The items that stages read.
    overlays
        Makes of journals what they mean to the release.
    records
        The opened store.
    towers
        Source → what opens the model of its item vectors, for the sources that have one.
    ids
        The dtype of item ids.
    build_id
        The release's build.

    Attributes
    ----------
    version : int
        How many overlays were taken up.

    Raises
    ------
    StoreDamaged, StoreMismatch
        The journal is not what was written, or speaks of other ids.
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
        # What is read and not taken up yet. The thread puts it there while a batch may take it: a queue
        # of one loses nothing between a look and a taking.
        self._next: deque[Overlay] = deque(maxlen=1)
        with contextlib.suppress(StoreUnavailable):  # it may come up later
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
        """What counts now."""
        return self.table.overlay

    def take_up(self, newest: int = -1) -> None:
        """Let the latest version count; called between batches.

        Parameters
        ----------
        newest
            The largest row of an item that another process has named: if it is not known, this one looks now.
        """
        if newest >= self.table.own + len(self.overlay.keys):
            self.look()
        if self._next:
            self.table.apply(self._next.pop())
            self.version += 1

    def look(self) -> None:
        """Read the journal if it is another; a store that fails changes nothing."""
        with contextlib.suppress(StoreError):
            self._look()

    def _look(self) -> None:
        with self._lock:
            version = read_version(self._records)
            if version != self._seen:
                self._next.append(self._overlays.of(read_journal(self._records, self._ids)))
                self._seen = version

    def vectors(self, source: str) -> tuple[Rows, Array]:
        """Return the rows ``[m]`` of new and changed items that have a vector in a source, and these.

        ``[m, D]`` float32: those that were given for this build, else what the release's item tower makes.
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
            # One by one, so that an item's vector does not depend on which others there are.
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
        # A fault of this thread's must not end it: what counts is the last that was whole.
        with contextlib.suppress(Exception):
            watched.look()
        del watched
