"""From raw tables and a fitted workflow to packed arrays."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd

from tiercel_export.workflow.cut import WorkflowParts, compile_workflow
from tiercel_export.workflow.frames import columns_from_frame
from tiercel_serving.columns import Column, null_column, take_rows
from tiercel_serving.features import FeatureProgram
from tiercel_serving.features.blocks import transform
from tiercel_serving.settings import ServingSettings

from ..data import Dataset
from ..features.raw_columns import raw_columns
from ..features.workflow import FeatureColumn, list_lengths, packed_columns
from .inputs import CategoryColumn, ListColumn, ModelInputs, Side
from .packed import Packed
from .pairs import Array, IntArray, Pairs


def side_of(columns: Iterable[FeatureColumn], part: str, packed: Mapping[str, Array]) -> Side:
    """Describe one side's packed columns for the models.

    Where the workflow does not say how many categories a column has, the largest id that occurs does.
    """
    cat: list[CategoryColumn] = []
    num: list[str] = []
    lists: list[ListColumn] = []

    def cardinality(column: FeatureColumn, ids: Array) -> int:
        return max(column.cardinality or 0, int(ids.max(initial=0)) + 1)

    for column in columns:
        name, is_cat = column.name, column.kind == "cat"
        if column.is_list:
            ids = packed[f"{part}_list_{name}"]
            lists.append(ListColumn(name, cardinality(column, ids) if is_cat else None))
        elif is_cat:
            ids = packed[f"{part}_cat"][:, len(cat)]
            vocabulary = any(step.operator == "Categorify" for step in column.operators)
            cat.append(CategoryColumn(name, cardinality(column, ids), vocabulary))
        else:
            num.append(name)
    return Side(part, tuple(cat), tuple(num), tuple(lists))


def inputs_of(cut: WorkflowParts, packed: Packed, settings: ServingSettings) -> ModelInputs:
    """Describe what the models of a recipe may take."""
    user = side_of(packed_columns(cut, "user"), "user", packed.user)
    item = side_of(packed_columns(cut, "item"), "item", packed.item)
    return ModelInputs(user, item, tuple(settings.history_columns), len(settings.sources))


def pack_dataset(
    cut: WorkflowParts, dataset: Dataset, interactions: pd.DataFrame, settings: ServingSettings
) -> Packed:
    """Pack items, users, and users in the context of each interaction, by the compiled feature programs.

    ``interactions`` are the training and validation part, whose contexts are packed in this order.
    """
    lengths = list_lengths(cut.workflow, dataset)
    program = compile_workflow(cut, "item", list_lengths=lengths).program
    item = _packed(program, columns_from_frame(dataset.items, program.inputs), len(dataset.items))
    categories = [c.name for c in packed_columns(cut, "item") if c.kind == "cat" and not c.is_list]
    return Packed(
        user=_pack_users(compile_workflow(cut, "user", list_lengths=lengths).program, dataset, interactions),
        item={name: np.concatenate([array, np.zeros_like(array[:1])]) for name, array in item.items()},
        history_places=tuple(categories.index(name) for name in settings.history_columns),
        history_length=settings.history_length,
        n_users=len(dataset.users),
        raw=raw_columns(dataset.items, settings.raw_columns()),
    )


def _pack_users(program: FeatureProgram, dataset: Dataset, interactions: pd.DataFrame) -> dict[str, Array]:
    """Return all users without context, then each interaction's user in its context."""
    known = [column for column in program.inputs if column.name in dataset.users.columns]
    context = [column for column in program.inputs if column not in known]
    users = columns_from_frame(dataset.users, known)
    count = len(dataset.users)
    nothing = {column.name: null_column(column.dtype, column.is_list, count) for column in context}
    alone = _packed(program, users | nothing, count)
    if not context:
        return alone
    rows, _ = rows_of(dataset, interactions)
    columns = {name: take_rows(column, rows) for name, column in users.items()}
    columns |= columns_from_frame(interactions, context)
    shown = _packed(program, columns, len(interactions))
    return {name: np.concatenate([array, shown[name]]) for name, array in alone.items()}


def _packed(program: FeatureProgram, columns: Mapping[str, Column], n: int) -> dict[str, Array]:
    # What is beyond float32 becomes infinite, as it does online.
    with np.errstate(over="ignore"):
        return transform(program, columns, n)


def rows_of(dataset: Dataset, interactions: pd.DataFrame) -> tuple[IntArray, IntArray]:
    """Return the user rows and catalogue rows of interactions."""
    users = pd.Index(dataset.users[dataset.user_id]).get_indexer(interactions[dataset.user_id])
    items = pd.Index(dataset.items[dataset.item_id]).get_indexer(interactions[dataset.item_id])
    return users.astype(np.int64), items.astype(np.int64)


def build_pairs(
    dataset: Dataset, interactions: pd.DataFrame, weight: str | None, packed: Packed
) -> tuple[Pairs, IntArray]:
    """Return interactions as rows, sorted by user and time.

    An item that a user came back to counts once, at its latest place.

    Parameters
    ----------
    interactions
        The training and validation part, in the order given to :func:`pack_dataset`.
    weight
        A column of the interactions between 0 and 1, or None for 1.

    Returns
    -------
    pairs, source
        The interactions, and ``[n]`` the position in ``interactions`` of each.
    """
    users, items = rows_of(dataset, interactions)
    position = np.arange(len(interactions))
    time = position if dataset.timestamp is None else interactions[dataset.timestamp].to_numpy()
    order = np.lexsort((position, time, users))
    frame = pd.DataFrame({"user": users[order], "item": items[order]})
    order = order[~frame.duplicated(keep="last").to_numpy()]
    weights = np.ones(len(interactions)) if weight is None else interactions[weight].to_numpy(np.float64)
    pairs = Pairs.build(
        users[order],
        items[order],
        packed.n_users + order if packed.has_context else users[order],
        np.nan_to_num(weights[order]),
        packed.n_users,
    )
    return pairs, order.astype(np.int64)
