"""Base of the families of item-item weights: the interaction matrix, the fitted model, and pruning."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import scipy.sparse as sp
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from tiercel_export.forms import ItemWeights
from tiercel_serving.kinds import Settings
from tiercel_serving.machine_faults import fault_of
from tiercel_serving.problems import COUNT, Problem, Range, out_of_range
from tiercel_serving.spec import Array, Arrays

from ..arrays.inputs import ModelInputs
from ..arrays.pairs import Pairs
from ..errors import TrainingError
from .table import Course, Plan, RetrievalData

_FILE = "item_weights.safetensors"

#: Largest number of elements of a dense block of an item × item matrix.
_CELLS = 20_000_000


class WeightsFamily(Settings, frozen=True):
    """Base of the settings of a family that fits item-item weights.

    Parameters
    ----------
    name
        Name of its candidate source.
    weights
        Number of weights kept for each item, the largest by magnitude; None keeps all.
    """

    name: str
    weights: int | None = 200

    form: ClassVar[str] = "item weights"
    dimension: ClassVar[None] = None
    scale: ClassVar[float] = 1.0
    #: Ranges of the family's own numeric settings.
    ranges: ClassVar[Mapping[str, Range]] = {}

    def problems(self) -> list[Problem]:
        """Return a problem for each number outside its range."""
        return list(out_of_range(self, {**self.ranges, "weights": COUNT}, none={"weights": "all"}))

    def needs(self) -> Mapping[str, str]:
        """Return ``history_length``, since the weights are applied to the history."""
        return {"history_length": "say how many of a user's items it may look at, such as 100"}

    def values(self, pairs: Pairs, label: str) -> Array:
        """Return the value of each interaction, ``[n]`` float64: 1."""
        return np.ones(len(pairs))

    def solve(self, had: Any, plan: Plan) -> Any:
        """Return sparse weights ``[I, I]``, given the values of the interactions, ``had [U, I]`` (CSR)."""
        raise NotImplementedError

    def fit(self, data: RetrievalData, plan: Plan) -> tuple[FittedItemWeights, Course]:
        """Fit the weights at once; there are no epochs."""
        pairs, items = data.pairs, data.packed.n_items
        if not len(pairs):
            raise TrainingError(f"{plan.label}: there are no interactions to learn from")
        values = self.values(pairs, plan.label)
        had = sp.csr_matrix((values, (pairs.users, pairs.items)), shape=(pairs.n_users, items))
        if plan.progress is not None:
            plan.progress(plan.label, 0, 1)
        solved = sp.csr_matrix(self.solve(had, plan))
        if not np.isfinite(solved.data).all():
            raise TrainingError(f"{plan.label}: a weight is not finite; raise the regularisation")
        column, categories = telling_column(data.packed.item["item_cat"][:-1])
        fitted = FittedItemWeights(
            ItemWeights(
                solved.indptr.astype(np.int64),
                solved.indices.astype(np.int32),
                solved.data.astype(np.float32),
                categories,
                column,
            )
        )
        if plan.progress is not None:
            plan.progress(plan.label, 1, 1)
        judged = () if plan.judge is None else (plan.judge(fitted),)
        return fitted, Course(0, (), judged)

    def load(self, folder: Path, inputs: ModelInputs) -> FittedItemWeights:
        """Read the weights."""
        file = folder / _FILE
        arrays = read_arrays(file, "item weights")
        try:
            column = int(arrays.pop("column")[0])
            return FittedItemWeights(ItemWeights(**arrays, column=column))
        except (KeyError, TypeError) as error:
            raise TrainingError(f"{file}: these are not item weights ({error}); train again") from error


class FittedItemWeights:
    """A fitted model of item-item weights."""

    def __init__(self, weights: ItemWeights) -> None:
        self.weights = weights

    def query(self, users: Arrays) -> None:
        """Return None, since the weights are applied to the history."""
        return

    def form(self, items: Arrays) -> dict[str, Array]:
        """Return ``offsets``, ``columns`` and ``weights`` over a catalogue."""
        arrays: dict[str, Array] = self.weights.over(items["item_cat"])
        return arrays

    def save(self, folder: Path) -> None:
        """Write the weights, and the category id of each catalogue row."""
        found = self.weights
        assert found.categories is not None
        arrays = {
            "offsets": found.offsets,
            "columns": found.columns,
            "weights": found.weights,
            "categories": found.categories,
            "column": np.array([found.column]),
        }
        save_file(arrays, folder / _FILE)

    def served(self) -> ItemWeights:
        """Return the weights, which can be mapped to any catalogue."""
        return self.weights


def read_arrays(file: Path, what: str) -> dict[str, Array]:
    """Read arrays from a safetensors file; raise TrainingError if it is missing or not readable."""
    if not file.is_file():
        raise TrainingError(f"{file}: expected {what}, found no file; train again")
    try:
        arrays: dict[str, Array] = load_file(file)
    except (SafetensorError, OSError) as error:
        raise fault_of(error, file) or TrainingError(
            f"{file}: there is no {what} in it ({error}); train again"
        ) from error
    return arrays


def telling_column(item_cat: Array) -> tuple[int, Array]:
    """Return position and values ``[I]`` of the column with the most distinct categories: the item id."""
    distinct = [len(np.unique(item_cat[:, place])) for place in range(item_cat.shape[1])]
    place = int(np.argmax(distinct))
    return place, np.ascontiguousarray(item_cat[:, place])


def row_blocks(items: int) -> Iterator[slice]:
    """Yield slices of rows of an item × item matrix that are small enough to be dense."""
    size = max(1, _CELLS // max(items, 1))
    for start in range(0, items, size):
        yield slice(start, min(start + size, items))


def largest(block: Array, count: int | None) -> Any:
    """Return a dense block ``[b, I]`` as a sparse one, with the ``count`` largest entries of each row."""
    if count is not None and count < block.shape[1]:
        place = np.argpartition(-np.abs(block), count - 1, axis=1)[:, :count]
        kept = np.zeros_like(block)
        np.put_along_axis(kept, place, np.take_along_axis(block, place, axis=1), axis=1)
        block = kept
    return sp.csr_matrix(block)


class DenseFamily(WeightsFamily, frozen=True):
    """Base of a family whose fit holds a dense item × item matrix, of at most ``most_items`` items."""

    def too_large(self, n_items: int) -> list[Problem]:
        """Return a problem if there are more than ``most_items`` items."""
        settings: Any = self
        most, size = settings.most_items, f"{8 * n_items**2 / 1e9:.1f} GB"
        if n_items <= most:
            return []
        what = f"{type(self).__name__} takes a dense matrix of {n_items} × {n_items} items, {size}"
        remedy = "raise it where there is the memory, or take ItemKNN(…)"
        return [Problem("most_items", f"{what}, and {most} are the most", remedy)]

    def gram(self, had: Any, plan: Plan) -> Array:
        """Return how many users had both items, ``[I, I]`` dense; raise TrainingError for too many items."""
        for problem in self.too_large(had.shape[1]):
            raise TrainingError(f"{plan.label}: {problem}")
        found: Array = (had.T @ had).toarray()
        return found
