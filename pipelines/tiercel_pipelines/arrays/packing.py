"""From raw tables and a fitted workflow to packed arrays."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from tiercel_export.workflow.cut import WorkflowParts, compile_workflow
from tiercel_export.workflow.frames import columns_from_frame
from tiercel_serving.columns import Column, null_column, take_rows
from tiercel_serving.features import FeatureProgram
from tiercel_serving.features.blocks import transform
from tiercel_serving.settings import ServingSettings
from tiercel_serving.spec import list_tensor

from ..data import Dataset, Progress
from ..features.graph_columns import FeatureColumn, list_lengths, packed_columns
from ..features.raw_columns import raw_columns
from .inputs import CategoryColumn, ListColumn, ModelInputs, Side
from .lists import IMPLICIT
from .packed import Contexts, Packed
from .pairs import Array, IntArray, Pairs, narrow

#: Interactions whose contexts are computed at once.
CONTEXTS_AT_ONCE = 1 << 18


def side_of(
    columns: Iterable[FeatureColumn], part: str, packed: Mapping[str, Array], contexts: Contexts | None = None
) -> Side:
    """Describe one side's packed columns for the models.

    A column's cardinality is the workflow's, or one more than the largest id that occurs if that is larger.
    """
    shown = {} if contexts is None else contexts.columns
    cat: list[CategoryColumn] = []
    num: list[str] = []
    lists: list[ListColumn] = []

    def cardinality(column: FeatureColumn, tensor: str, place: int | None = None) -> int:
        ids = packed[tensor] if place is None else packed[tensor][:, place]
        largest = int(ids.max(initial=0))
        if contexts is not None and tensor in shown:
            places = contexts.places.get(tensor)
            if places is None or place in places:
                mine = shown[tensor] if places is None else shown[tensor][:, places.index(place or 0)]
                largest = max(largest, int(mine.max(initial=0)))
        return max(column.cardinality or 0, largest + 1)

    for column in columns:
        name, is_cat = column.name, column.kind == "cat"
        if column.is_list:
            lists.append(ListColumn(name, cardinality(column, list_tensor(part, name)) if is_cat else None))
        elif is_cat:
            vocabulary = any(step.operator == "Categorify" for step in column.operators)
            cat.append(CategoryColumn(name, cardinality(column, f"{part}_cat", len(cat)), vocabulary))
        else:
            num.append(name)
    return Side(part, tuple(cat), tuple(num), tuple(lists))


def inputs_of(cut: WorkflowParts, packed: Packed, settings: ServingSettings) -> ModelInputs:
    """Describe the inputs that the models of a recipe may use."""
    user = side_of(packed_columns(cut, "user"), "user", packed.user, packed.contexts)
    item = side_of(packed_columns(cut, "item"), "item", packed.item)
    return ModelInputs(user, item, tuple(settings.history_columns), len(settings.sources))


def pack_dataset(
    cut: WorkflowParts,
    dataset: Dataset,
    interactions: pd.DataFrame,
    settings: ServingSettings,
    progress: Progress | None = None,
) -> Packed:
    """Pack items, users, and users in the context of each interaction, by the compiled feature programs.

    ``interactions`` are the training and validation part, whose contexts are packed in this order.
    ``progress`` counts rows.
    """
    tell = _Told(progress, len(dataset.items) + len(dataset.users) + len(interactions))
    tell(0)
    lengths = list_lengths(cut.workflow, dataset)
    program = compile_workflow(cut, "item", list_lengths=lengths).program
    item = _packed(program, columns_from_frame(dataset.items, program.inputs), len(dataset.items))
    tell(len(dataset.items))
    user_program = compile_workflow(cut, "user", list_lengths=lengths).program
    user, contexts = _pack_users(user_program, packed_columns(cut, "user"), dataset, interactions, tell)
    categories = [c.name for c in packed_columns(cut, "item") if c.kind == "cat" and not c.is_list]
    return Packed(
        user=user,
        item={name: np.concatenate([array, np.zeros_like(array[:1])]) for name, array in item.items()},
        history_places=tuple(categories.index(name) for name in settings.history_columns),
        history_length=settings.history_length,
        n_users=len(dataset.users),
        raw=raw_columns(dataset.items, settings.raw_columns()),
        contexts=contexts,
    )


class _Told:
    """Reports how many rows are packed."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def __call__(self, rows: int) -> None:
        self._done += rows
        if self._progress is not None:
            self._progress("packing", self._done, self._total)


def _pack_users(
    program: FeatureProgram,
    outputs: Sequence[FeatureColumn],
    dataset: Dataset,
    interactions: pd.DataFrame,
    tell: _Told,
) -> tuple[dict[str, Array], Contexts | None]:
    """Return all users without context, and what each interaction adds to its user."""
    known = [column for column in program.inputs if column.name in dataset.users.columns]
    context = [column for column in program.inputs if column not in known]
    users = columns_from_frame(dataset.users, known)
    count = len(dataset.users)
    nothing = {column.name: null_column(column.dtype, column.is_list, count) for column in context}
    alone = _packed(program, users | nothing, count)
    tell(count)
    if not context:
        tell(len(interactions))  # they have nothing to pack
        return alone, None
    places = _context_places(outputs, {column.name for column in context})
    rows, _ = rows_of(dataset, interactions)
    parts: dict[str, list[Array]] = {name: [] for name in places}
    for start in range(0, len(interactions), CONTEXTS_AT_ONCE):
        some = slice(start, start + CONTEXTS_AT_ONCE)
        columns = {name: take_rows(column, rows[some]) for name, column in users.items()}
        columns |= columns_from_frame(interactions.iloc[some], context)
        shown = _packed(program, columns, len(rows[some]))
        for name, place in places.items():
            parts[name].append(narrow(shown[name] if place is None else shown[name][:, place]))
        tell(len(rows[some]))
    made = {name: np.concatenate(arrays) for name, arrays in parts.items() if arrays}
    known_places = {name: place for name, place in places.items() if place is not None}
    return alone, Contexts(narrow(rows), made, known_places)


def _context_places(outputs: Sequence[FeatureColumn], context: set[str]) -> dict[str, tuple[int, ...] | None]:
    """Return the positions of columns made from context in each packed user tensor; None for a list."""
    made: dict[str, tuple[int, ...] | None] = {}
    counts = {"user_cat": 0, "user_num": 0}
    for column in outputs:
        name = list_tensor("user", column.name) if column.is_list else f"user_{column.kind}"
        of_context = bool(context.intersection(column.inputs))
        if column.is_list:
            made |= {name: None} if of_context else {}
            continue
        if of_context:
            made[name] = (*(made.get(name) or ()), counts[name])
        counts[name] += 1
    return made


def _packed(program: FeatureProgram, columns: Mapping[str, Column], n: int) -> dict[str, Array]:
    # Values beyond float32 become infinite, as they do online.
    with np.errstate(over="ignore"):
        return transform(program, columns, n)


def rows_of(dataset: Dataset, interactions: pd.DataFrame) -> tuple[IntArray, IntArray]:
    """Return the user rows and catalogue rows of interactions, ``[n]`` int64 each."""
    users = pd.Index(dataset.users[dataset.user_id]).get_indexer(interactions[dataset.user_id])
    items = pd.Index(dataset.items[dataset.item_id]).get_indexer(interactions[dataset.item_id])
    return users.astype(np.int64), items.astype(np.int64)


def build_pairs(
    dataset: Dataset,
    interactions: pd.DataFrame,
    weight: str | None,
    packed: Packed,
    numbers: Iterable[str] = (),
    targets: Sequence[str] = (),
) -> tuple[Pairs, IntArray]:
    """Return interactions as rows, sorted by user and time.

    Several interactions of a user with an item count as one, the latest.

    Parameters
    ----------
    interactions
        The training and validation part, in the order given to :func:`pack_dataset`.
    weight
        A column of the interactions between 0 and 1, or None for 1.
    numbers
        Columns of the interactions that models learn from.
    targets
        The column of each target of a multi-task ranker, or :data:`~.lists.IMPLICIT`, whose values are 1.

    Returns
    -------
    pairs, source
        The interactions, and ``[n]`` the position in ``interactions`` of each.
    """
    users, items = rows_of(dataset, interactions)
    position = np.arange(len(interactions))
    time = position if dataset.timestamp is None else interactions[dataset.timestamp].to_numpy()
    order = np.lexsort((position, time, users))
    pair = pd.Series(users[order] * (packed.n_items + 1) + items[order])
    order = order[~pair.duplicated(keep="last").to_numpy()]
    del pair
    if weight is None:
        weights: Array = np.ones(len(order), np.float32)
    else:
        weights = np.nan_to_num(interactions[weight].to_numpy(np.float64)[order])
    pairs = Pairs.build(
        users[order],
        items[order],
        users[order] if packed.contexts is None else packed.n_users + order,
        weights,
        packed.n_users,
        None if dataset.timestamp is None else time[order].astype(np.float64),
        {name: interactions[name].to_numpy(np.float64)[order] for name in numbers},
        _targets(interactions, targets, order) if targets else None,
    )
    return pairs, order.astype(np.int64)


def _targets(interactions: pd.DataFrame, names: Sequence[str], order: IntArray) -> npt.NDArray[np.float32]:
    """Return the targets' columns ``[n, T]`` of the interactions, in the given order."""
    columns = [
        np.ones(len(order), np.float32)
        if name == IMPLICIT
        else interactions[name].to_numpy(np.float32, na_value=np.nan)[order]
        for name in names
    ]
    return np.stack(columns, axis=1)
