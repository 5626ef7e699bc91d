"""Served forms: what a retrieval model leaves for its source, named by source in ``build_release``.

A form has the name that the kinds of source that take it give as their ``form``
(:class:`tiercel_serving.sources.table.SourceKind`). A model that turns a user into a query also brings a
torch module, which becomes the stage ``query_<source>``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

import numpy as np

from tiercel_serving.spec import Array, TensorSpec

from .errors import ExportInputError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class ItemTensors:
    """The catalogue as an item module sees it.

    Parameters
    ----------
    size
        I.
    specs
        Its tensors by name; their dims are those of one item.
    packed
        ``[I, …]`` by the same names.
    """

    size: int
    specs: Mapping[str, TensorSpec]
    packed: Mapping[str, Array]


@dataclass(frozen=True)
class FormArrays:
    """A served form, made for a catalogue.

    Parameters
    ----------
    arrays
        What :attr:`~tiercel_serving.sources.table.Material.form` holds.
    dimension
        The D that its query module must give; None is any.
    stand_ins
        ``[Q, D]`` vectors that may stand for queries where no user is known.
    """

    arrays: Mapping[str, Any]
    dimension: int | None = None
    stand_ins: Array | None = None


@runtime_checkable
class ServedForm(Protocol):
    """What a retrieval model leaves for its source."""

    @property
    def form(self) -> str:
        """The name of the form."""
        ...

    @property
    def query(self) -> torch.nn.Module | None:
        """The module that makes a user's query from user tensors; None for a form without."""
        ...

    def make(self, items: ItemTensors, what: str) -> FormArrays:
        """Return its arrays for a catalogue.

        Parameters
        ----------
        items
            The catalogue.
        what
            What the caller calls the form, for messages.

        Raises
        ------
        ExportInputError
            It does not fit the catalogue.
        """
        ...


@dataclass(frozen=True)
class Vectors:
    """Queries and item vectors: what is near is a candidate.

    Parameters
    ----------
    query
        Torch module; the parameters of its ``forward`` are named after the tensors it takes: of
        ``user_cat [B, C]`` int64, ``user_num [B, F]`` float32, ``user_list_<column> [B, L]``,
        ``history_row [B, L]``, ``history_cat [B, L, H]`` int64 and ``history_length [B, 1]`` int32. Gives
        ``[B, D]`` float32.
    items
        ``[I, D]`` float32 in the order of the item table, or a torch module that makes them from
        ``item_cat [B, C]``, ``item_num [B, F]`` and ``item_list_<column> [B, L]``.
    index
        A FAISS index over these vectors, position = row of the item table, to take instead of building one.
    """

    form: ClassVar[str] = "vectors"

    query: torch.nn.Module
    items: Array | torch.nn.Module
    index: Any = None

    def make(self, items: ItemTensors, what: str) -> FormArrays:
        """Return ``vectors [I, D]``, and ``index`` if one was given."""
        import torch

        from .models.dense import run_over_rows

        what = f"{what}.items"
        given = self.items
        if isinstance(given, torch.nn.Module):
            given = run_over_rows(given, items.specs, items.packed, items.size, what)
        vectors = check_vectors(given, items.size, what)
        arrays = {"vectors": vectors} | ({} if self.index is None else {"index": self.index})
        return FormArrays(arrays, vectors.shape[1], vectors)


@dataclass(frozen=True)
class Given:
    """Arrays as they are, for a form that has no query module.

    Parameters
    ----------
    form
        The name of the form.
    arrays
        Its arrays by name, in the order of the item table.
    """

    form: str
    arrays: Mapping[str, Array]

    @property
    def query(self) -> None:
        """There is none."""
        return

    def make(self, items: ItemTensors, what: str) -> FormArrays:
        """Return the arrays."""
        return FormArrays(dict(self.arrays))


def check_vectors(vectors: Any, items: int, what: str) -> Array:
    """Return item vectors as ``[I, D]`` float32, C-contiguous.

    Raises
    ------
    ExportInputError
        For another shape, a dtype that is no float, or values that are not finite.
    """
    array = np.asarray(vectors)
    if array.ndim != 2 or len(array) != items or array.shape[1] == 0:
        raise ExportInputError(
            f"{what}: expected [{items}, D], one row for each row of `items` in its order; "
            f"came {list(array.shape)}"
        )
    if array.dtype.kind != "f":
        raise ExportInputError(f"{what}: expected float32, came {array.dtype}")
    bad = ~np.isfinite(array).all(axis=1)
    if bad.any():
        raise ExportInputError(
            f"{what}: {int(bad.sum())} of {items} vectors hold NaN or infinity, the first in row "
            f"{int(np.argmax(bad))}"
        )
    return np.ascontiguousarray(array, np.float32)
