"""Served forms: what a retrieval model provides for its source, given to ``build_release`` by source.

A kind of source accepts the form whose name is its ``form``
(:class:`tiercel_serving.sources.table.SourceKind`). A form that turns a user into a query also has a dense
model, which becomes the stage ``query_<source>``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

import numpy as np

from tiercel_serving.spec import Array, TensorSpec

from .errors import ExportInputError

if TYPE_CHECKING:
    import onnx
    import torch

    #: A dense model, as a caller may give it: a torch module, the path of an ONNX file, or an ONNX graph.
    DenseGiven = torch.nn.Module | onnx.ModelProto | str | Path


@dataclass(frozen=True)
class ItemTensors:
    """The tensors of a catalogue that an item module may take.

    Parameters
    ----------
    size
        The number of items I.
    specs
        Name → spec of a tensor; the dims are those of one item.
    packed
        Name → that tensor, ``[I, …]``.
    """

    size: int
    specs: Mapping[str, TensorSpec]
    packed: Mapping[str, Array]


@dataclass(frozen=True)
class FormArrays:
    """The arrays of a served form for a catalogue.

    Parameters
    ----------
    arrays
        The contents of :attr:`~tiercel_serving.sources.table.Material.form`.
    dimension
        The dimension D that its query module must return; None allows any.
    stand_ins
        ``[Q, D]`` vectors to use in place of queries if there are no users.
    """

    arrays: Mapping[str, Any]
    dimension: int | None = None
    stand_ins: Array | None = None


@runtime_checkable
class ServedForm(Protocol):
    """What a retrieval model provides for its source."""

    @property
    def form(self) -> str:
        """The name of the form."""
        ...

    @property
    def query(self) -> DenseGiven | None:
        """The model that computes a user's query from user tensors; None for a form without queries."""
        ...

    def make(self, items: ItemTensors, what: str) -> FormArrays:
        """Return its arrays for a catalogue.

        Parameters
        ----------
        items
            The catalogue.
        what
            The caller's name for the form, for messages.

        Raises
        ------
        ExportInputError
            It does not fit the catalogue.
        """
        ...


@runtime_checkable
class HasItems(Protocol):
    """A form with item vectors, or with the module that computes them."""

    @property
    def items(self) -> Any:
        """See :class:`Vectors`."""
        ...


@dataclass(frozen=True)
class Vectors:
    """Queries and item vectors; the candidates are the items nearest to a query.

    Parameters
    ----------
    query
        Torch module whose ``forward`` parameters are named after the tensors it takes, any of
        ``user_cat [B, C]`` int64, ``user_num [B, F]`` float32, ``user_list_<column> [B, L]``,
        ``history_row [B, L]`` int64, ``history_cat [B, L, H]`` int64 and ``history_length [B, 1]`` int32. It
        returns ``[B, D]`` float32. Or the path of an ONNX file (or an ``onnx.ModelProto``) whose inputs have
        those names.
    items
        ``[I, D]`` float32 in the order of the item table, or a torch module or ONNX model that computes them
        from ``item_cat [B, C]`` int64, ``item_num [B, F]`` float32 and ``item_list_<column> [B, L]``.
    index
        A FAISS index over these vectors (position = row of the item table), used instead of building one.
    """

    form: ClassVar[str] = "vectors"

    query: DenseGiven
    items: Array | DenseGiven
    index: Any = None

    def make(self, items: ItemTensors, what: str) -> FormArrays:
        """Return ``vectors [I, D]``, and ``index`` if one was given."""
        import onnx
        import torch

        from .models.opened import run_over_rows

        what = f"{what}.items"
        given: Any = self.items
        if isinstance(given, torch.nn.Module | onnx.ModelProto | str | Path):
            given = run_over_rows(given, items.specs, items.packed, items.size, what)
        vectors = check_vectors(given, items.size, what)
        arrays = {"vectors": vectors} | ({} if self.index is None else {"index": self.index})
        return FormArrays(arrays, vectors.shape[1], vectors)


@dataclass(frozen=True)
class ItemWeights:
    """Weights from the items of a history to other items: a sparse item × item matrix, in CSR.

    Parameters
    ----------
    offsets, columns, weights
        ``[J + 1]`` int64, ``[n]`` int32 and ``[n]`` float32. Row j holds the weights of item j for the items
        ``columns``; a user's score of an item is the sum over the history.
    categories
        ``[J]`` the category id of each row's item in the categorical column ``column``, by which the rows are
        matched to the items of a catalogue; unmatched items have no weights. With None, the rows are those of
        the item table.
    column
        The position of that column in ``item_cat [I, C]``.
    """

    form: ClassVar[str] = "item weights"

    offsets: Array
    columns: Array
    weights: Array
    categories: Array | None = None
    column: int = 0

    @property
    def query(self) -> None:
        """None, because the matrix is applied to the history."""
        return

    def make(self, items: ItemTensors, what: str) -> FormArrays:
        """Return the matrix over a catalogue."""
        if self.categories is None:
            return FormArrays(self._arrays())
        if "item_cat" not in items.packed:
            raise ExportInputError(f"{what}: the items have no categorical column to match its rows by")
        return FormArrays(self.over(items.packed["item_cat"]))

    def over(self, item_cat: Array) -> dict[str, Array]:
        """Return the matrix with the rows and columns of items ``item_cat [I, C]``."""
        wanted = item_cat[:, self.column]
        if self.categories is None or np.array_equal(wanted, self.categories):
            return self._arrays()
        new = _new_rows(self.categories, wanted)
        row = new[np.repeat(np.arange(len(new)), np.diff(self.offsets))]
        column = new[self.columns]
        kept = np.flatnonzero((row >= 0) & (column >= 0))
        kept = kept[np.argsort(row[kept], kind="stable")]
        offsets = np.append(0, np.cumsum(np.bincount(row[kept], minlength=len(wanted))))
        return {"offsets": offsets, "columns": column[kept].astype(np.int32), "weights": self.weights[kept]}

    def _arrays(self) -> dict[str, Array]:
        return {"offsets": self.offsets, "columns": self.columns, "weights": self.weights}


@dataclass(frozen=True)
class UserNeighbours:
    """Histories of users, in which the users most similar to a history are found.

    Parameters
    ----------
    arrays
        The arrays of :class:`tiercel_serving.sources.user_neighbours.UserNeighbours`, over J items.
    categories, column
        As for :class:`ItemWeights`; unmatched items of a catalogue are in no history.
    """

    form: ClassVar[str] = "user neighbours"

    arrays: Mapping[str, Array]
    categories: Array | None = None
    column: int = 0

    @property
    def query(self) -> None:
        """None, because neighbours are found by the history."""
        return

    def make(self, items: ItemTensors, what: str) -> FormArrays:
        """Return the arrays over a catalogue."""
        if self.categories is None:
            return FormArrays(dict(self.arrays))
        if "item_cat" not in items.packed:
            raise ExportInputError(f"{what}: the items have no categorical column to match them by")
        return FormArrays(self.over(items.packed["item_cat"]))

    def over(self, item_cat: Array) -> dict[str, Array]:
        """Return the arrays with the items ``item_cat [I, C]``."""
        wanted, arrays = item_cat[:, self.column], dict(self.arrays)
        if self.categories is None or np.array_equal(wanted, self.categories):
            return arrays
        new = _new_rows(self.categories, wanted)
        item = new[np.repeat(np.arange(len(new)), np.diff(arrays["offsets"]))]
        kept = np.flatnonzero(item >= 0)
        kept = kept[np.argsort(item[kept], kind="stable")]
        weights = np.zeros(len(wanted), np.float32)
        weights[new[new >= 0]] = arrays["weights"][new >= 0]
        voted = new[arrays["voted"]]
        return arrays | {
            "offsets": np.append(0, np.cumsum(np.bincount(item[kept], minlength=len(wanted)))),
            "users": arrays["users"][kept],
            "likeness": arrays["likeness"][kept],
            "weights": weights,
            "vote_offsets": np.append(0, np.cumsum(voted >= 0))[arrays["vote_offsets"]],
            "voted": voted[voted >= 0].astype(np.int32),
            "votes": arrays["votes"][voted >= 0],
        }


@dataclass(frozen=True)
class Lists:
    """Lists of items; a user's query selects the list with the nearest key.

    Parameters
    ----------
    query
        Torch module, as for :class:`Vectors`.
    arrays
        ``keys [C, D]`` float32, and lists over J items: ``offsets [C + 1]`` int64, ``rows [n]`` int32 and
        ``scores [n]`` float32.
    categories, column
        As for :class:`ItemWeights`; unmatched items of a catalogue are in no list.
    """

    form: ClassVar[str] = "lists"

    query: torch.nn.Module
    arrays: Mapping[str, Array]
    categories: Array | None = None
    column: int = 0

    def make(self, items: ItemTensors, what: str) -> FormArrays:
        """Return the arrays over a catalogue."""
        keys = np.asarray(self.arrays["keys"])
        if self.categories is None:
            return FormArrays(dict(self.arrays), keys.shape[1], keys)
        if "item_cat" not in items.packed:
            raise ExportInputError(f"{what}: the items have no categorical column to match its lists by")
        return FormArrays(self.over(items.packed["item_cat"]), keys.shape[1], keys)

    def over(self, item_cat: Array) -> dict[str, Array]:
        """Return the arrays with the items ``item_cat [I, C]``."""
        wanted, arrays = item_cat[:, self.column], dict(self.arrays)
        if self.categories is None or np.array_equal(wanted, self.categories):
            return arrays
        rows = _new_rows(self.categories, wanted)[arrays["rows"]]
        arrays["offsets"] = np.append(0, np.cumsum(rows >= 0))[arrays["offsets"]]
        arrays["rows"], arrays["scores"] = rows[rows >= 0].astype(np.int32), arrays["scores"][rows >= 0]
        return arrays


def _new_rows(categories: Array, wanted: Array) -> Array:
    """Return the row in ``wanted [I]`` of each item of ``categories [J]``, or -1 without a unique match."""
    names, first, counts = np.unique(categories, return_index=True, return_counts=True)
    # A category that several items share, such as that of unseen values, identifies none of them.
    names, first = names[counts == 1], first[counts == 1]
    known = np.isin(wanted, names) & np.isin(wanted, _single(wanted))
    new = np.full(len(categories), -1)
    new[first[np.searchsorted(names, wanted[known])]] = np.flatnonzero(known)
    return new


def _single(values: Array) -> Array:
    """Return the values that occur exactly once."""
    found, counts = np.unique(values, return_counts=True)
    return np.asarray(found[counts == 1])


@dataclass(frozen=True)
class Given:
    """Arrays that are used unchanged, for a form without a query module.

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
        """None, because the form has no query module."""
        return

    def make(self, items: ItemTensors, what: str) -> FormArrays:
        """Return the arrays."""
        return FormArrays(dict(self.arrays))


def check_vectors(vectors: Any, items: int, what: str) -> Array:
    """Return item vectors as ``[I, D]`` float32, C-contiguous.

    Raises
    ------
    ExportInputError
        For another shape, a dtype that is not a float, or values that are not finite.
    """
    array = np.asarray(vectors)
    if array.ndim != 2 or len(array) != items or array.shape[1] == 0:
        raise ExportInputError(
            f"{what}: expected [{items}, D], one row for each row of `items` in its order; "
            f"got {list(array.shape)}"
        )
    if array.dtype.kind != "f":
        raise ExportInputError(f"{what}: expected float32, got {array.dtype}")
    bad = ~np.isfinite(array).all(axis=1)
    if bad.any():
        raise ExportInputError(
            f"{what}: {int(bad.sum())} of {items} vectors hold NaN or infinity, the first in row "
            f"{int(np.argmax(bad))}"
        )
    return np.ascontiguousarray(array, np.float32)
