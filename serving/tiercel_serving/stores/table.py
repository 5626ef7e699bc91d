"""The contract of a user store, and the table of stores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from ..columns import Column
from ..kinds import Kind, Kinds
from ..problems import Problem
from ..ranked import Rows
from ..release.artefacts import Artefact
from ..spec import Array


class Users(Protocol):
    """One snapshot of the users of a batch."""

    @property
    def known(self) -> npt.NDArray[np.bool_]:
        """``[B]``: who is in the store."""
        ...

    def packed(self, name: str) -> Array:
        """Return a model-ready tensor ``[B, …]`` as the export made it; nobody's row for the unknown."""
        ...

    def raw(self, name: str) -> Column | None:
        """Return a raw column of ``B`` rows, null for the unknown; None if the store does not hold it."""
        ...

    def history(self, length: int, pad: int) -> tuple[Rows, npt.NDArray[np.int32]]:
        """Return the latest items ``[B, length]``, oldest first and left aligned, and ``[B]`` how many."""
        ...

    def seen(self) -> tuple[Rows, Rows]:
        """Return all item rows that they have had, end to end, and how many ``[B]`` belong to each."""
        ...


class Store(Protocol):
    """An opened store."""

    @property
    def size(self) -> int:
        """How many users it holds."""
        ...

    def read(self, user_ids: Array) -> Users:
        """Read the users ``[B, 1]`` of a batch at once.

        Stages of one chain that ask with the same array get the same snapshot.
        """
        ...


@runtime_checkable
class StoreKind(Protocol):
    """A kind of store: its settings, and how it is opened."""

    def problems(self) -> list[Problem]:
        """Return what is wrong with the settings by themselves."""
        ...

    def open(self, users: Callable[[], Artefact]) -> Store:
        """Open the store; ``users`` opens the release's own artefact of users."""
        ...


#: Every kind of store.
STORES: Kinds[StoreKind] = Kinds(
    "store",
    {
        "memory_mapped": Kind("tiercel_serving.stores.memory_mapped:MemoryMapped"),
    },
)
