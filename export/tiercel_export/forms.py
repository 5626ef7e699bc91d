"""Served forms: what a source needs from its retrieval model, by source in ``build_release``.

A form has the name that the kinds of source that take it give as their ``form``
(:class:`tiercel_serving.sources.table.SourceKind`). A model that turns a user into a query also brings a
torch module, which becomes the stage ``query_<source>``.
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
    def query(self) -> DenseGiven | None:
        """The model that makes a user's query from user tensors; None for a form without."""
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


@runtime_checkable
class HasItems(Protocol):
    """A form of item vectors: they, or the module that makes them."""

    @property
    def items(self) -> Any:
        """See :class:`Vectors`."""
        ...


@dataclass(frozen=True)
class Vectors:
    """Queries and item vectors: the items nearest to a query are candidates.

    Parameters
    ----------
    query
        Torch module; the parameters of its ``forward`` are named after the tensors it takes: of
        ``user_cat [B, C]`` int64, ``user_num [B, F]`` float32, ``user_list_<column> [B, L]``,
        ``history_row [B, L]``, ``history_cat [B, L, H]`` int64 and ``history_length [B, 1]`` int32. Gives
        ``[B, D]`` float32. Or the path of an ONNX file (or an ``onnx.ModelProto``) whose inputs have those
        names.
    items
        ``[I, D]`` float32 in the order of the item table, or a torch module or ONNX file that makes them from
        ``item_cat [B, C]``, ``item_num [B, F]`` and ``item_list_<column> [B, L]``.
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
    """What the items of a history weigh for others: a sparse matrix item × item, in CSR.

    Parameters
    ----------
    offsets, columns, weights
        ``[J + 1]`` int64, ``[n]`` int32 and ``[n]`` float32. Row j holds the weights of item j for the items
        ``columns``; a user's score of an item is the sum over the history.
    categories
        ``[J]`` the category of each row's item in the categorical column ``column``: a catalogue is then
        matched by that, and its new items have no weights. None: the rows are those of the item table.
    column
        The place of that column in ``item_cat [I, C]``.
    """

    form: ClassVar[str] = "item weights"

    offsets: Array
    columns: Array
    weights: Array
    categories: Array | None = None
    column: int = 0

    @property
    def query(self) -> None:
        """There is none: the history is what it is applied to."""
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
    """Who had what, in which the users most like a history are looked for.

    Parameters
    ----------
    arrays
        What :class:`tiercel_serving.sources.user_neighbours.UserNeighbours` takes, over J items.
    categories, column
        ``[J]`` which item is which, and the place of that column in ``item_cat [I, C]``: a catalogue is
        matched by that, and nobody had its new items. None: the items are those of the item table.
    """

    form: ClassVar[str] = "user neighbours"

    arrays: Mapping[str, Array]
    categories: Array | None = None
    column: int = 0

    @property
    def query(self) -> None:
        """There is none: the history is what neighbours are found by."""
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
    """Lists of items, of which a user's query chooses the one with the nearest key.

    Parameters
    ----------
    query
        Torch module, as for :class:`Vectors`.
    arrays
        ``keys [C, D]`` float32, and lists over J items: ``offsets [C + 1]`` int64, ``rows [n]`` int32 and
        ``scores [n]`` float32.
    categories, column
        ``[J]`` which item is which, and the place of that column in ``item_cat [I, C]``: a catalogue is
        matched by that, and its new items are in no list. None: the items are those of the item table.
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
    """Return for rows of categories ``[J]`` those of another catalogue ``[I]`` that are the same; else -1."""
    names, first, counts = np.unique(categories, return_index=True, return_counts=True)
    # A category that several items share, such as the unknown one, says of none which it is.
    names, first = names[counts == 1], first[counts == 1]
    known = np.isin(wanted, names) & np.isin(wanted, _single(wanted))
    new = np.full(len(categories), -1)
    new[first[np.searchsorted(names, wanted[known])]] = np.flatnonzero(known)
    return new


def _single(values: Array) -> Array:
    """Return the values that occur once."""
    found, counts = np.unique(values, return_counts=True)
    return np.asarray(found[counts == 1])


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
