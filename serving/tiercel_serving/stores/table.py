"""The contract of a user store, and the table of stores.

The users of a release are in its memory-mapped tables. A store holds what was written since: values of user
columns and new items of users' histories, in one *record* per user (``records.py``), under the user's raw id.
A kind of store handles records as opaque bytes: it reads those of a batch at once, and changes one
atomically. Putting a value and appending to a history are such changes (``feature_store.py``). Applying
records to the release's tables does not depend on the kind (``live.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from ..columns import Column
from ..kinds import Kind, Kinds, Settings
from ..problems import COUNT, Problem, out_of_range
from ..ranked.order import Rows
from ..spec import Array

#: Maps the current record, or None, to the new one, or None to remove it. May be called more than once.
Change = Callable[[bytes | None], bytes | None]


@dataclass(frozen=True)
class StorePlace:
    """Where a store is opened: the folder that contains the release, and the release's name.

    ``patient`` says that no request is waiting, so a read may take as long as a write.
    """

    folder: Path
    name: str
    patient: bool = False


class Records(Protocol):
    """An opened store: records by key. Keys are 1 to 500 bytes."""

    def read(self, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        """Return the record of each key, all read at once; None if there is none.

        Raises
        ------
        StoreUnavailable, StoreDamaged, MachineFault
            The store does not answer in time, or can't be read.
        """
        ...

    def change(self, changes: Sequence[tuple[bytes, Change]]) -> None:
        """Change the records of some keys, each atomically; return once the changes are durable.

        A key may occur more than once.

        Raises
        ------
        StoreUnavailable, StoreDamaged, MachineFault
            Some of the changes may have been applied; all of them can be applied again.
        """
        ...

    def scan(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield every key with its record, in any order."""
        ...

    def check(self) -> str:
        """Check the whole store, which may take a while, and return a line about it for people.

        Raises
        ------
        StoreUnavailable, StoreDamaged
            It does not answer, or is damaged.
        """
        ...


@runtime_checkable
class StoreKind(Protocol):
    """A kind of store: its settings, and how it is opened.

    ``history_most`` is the largest number of appended items kept per user; the oldest are dropped.
    """

    @property
    def history_most(self) -> int:
        """See the class."""
        ...

    @classmethod
    def of_text(cls, text: str) -> StoreKind:
        """Return the settings for ``--store KIND:text``; raise InvalidSettings if it is wrong."""
        ...

    def problems(self) -> list[Problem]:
        """Return what is wrong with the settings by themselves."""
        ...

    def open(self, place: StorePlace) -> Records | None:
        """Open the store; None if nothing is ever written to it.

        Raises
        ------
        StoreUnavailable, StoreDamaged, MachineFault
            It can't be opened.
        """
        ...


class LiveSettings(Settings, frozen=True, kw_only=True):
    """Base of the settings of a store that can be written.

    Parameters
    ----------
    history_most
        Largest number of appended items kept per user; the oldest are dropped.
    """

    history_most: int = 1000

    def problems(self) -> list[Problem]:
        """Return numbers out of range."""
        return list(out_of_range(self, {"history_most": COUNT}))

    @classmethod
    def of_text(cls, text: str) -> LiveSettings:
        """Return settings whose first field is the text."""
        fields: dict[str, Any] = {cls.__struct_fields__[0]: text}
        return cls(**fields)


class Users(Protocol):
    """One snapshot of the users of a batch."""

    @property
    def known(self) -> npt.NDArray[np.bool_]:
        """``[B]``: which users are in the release or in the store."""
        ...

    @property
    def stale(self) -> npt.NDArray[np.bool_] | None:
        """``[B]``: whose :meth:`packed` tensors do not match their columns; None if all match."""
        ...

    @property
    def appended(self) -> Rows | None:
        """``[B, M]``: item rows appended since the export, oldest first, padded; None if no user has any."""
        ...

    @property
    def filtered(self) -> Rows | None:
        """``[B, M]``: rows of items appended earlier, by a Bloom filter, padded; None if no user has one."""
        ...

    @property
    def appended_ms(self) -> Rows:
        """``[B, M]``: when each of :attr:`appended` was appended, in milliseconds since 1970."""
        ...

    def packed(self, names: tuple[str, ...]) -> dict[str, Array]:
        """Return model-ready tensors ``[B, …]`` as the export made them; the dummy row for unknown users."""
        ...

    def raw(self, name: str) -> Column | None:
        """Return a raw column of ``B`` rows, null for unknown users; None if nothing holds the column."""
        ...

    def history(self, length: int, pad: int) -> tuple[Rows, npt.NDArray[np.int32]]:
        """Return the latest items ``[B, length]``, oldest first, left aligned, and their number ``[B]``."""
        ...


class Store(Protocol):
    """The users of a release, with their live values from a store."""

    @property
    def size(self) -> int:
        """Number of users in the release."""
        ...

    @property
    def fallbacks(self) -> Mapping[str, int]:
        """Reason (a metric's label) → number of users answered without their live values so far."""
        ...

    def read(self, user_ids: Array) -> Users:
        """Read the users ``[B, 1]`` of a batch at once.

        Stages of one chain that pass the same array object get the same snapshot.
        """
        ...


#: Every kind of store.
STORES: Kinds[StoreKind] = Kinds(
    "store",
    {
        "memory_mapped": Kind("tiercel_serving.stores.memory_mapped:MemoryMapped"),
        "embedded": Kind("tiercel_serving.stores.embedded:Embedded"),
        "redis": Kind("tiercel_serving.stores.redis:Redis", extra="redis"),
    },
)
