"""From raw tables and a fitted workflow to packed arrays."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt
import pandas as pd

from tiercel_serving.settings import ServingSettings

from ..data import Dataset
from ..families.layers import CategoryColumn, ListColumn, Side
from ..features.workflow import FeatureColumn, packed_columns, packed_frame
from .pairs import Array, IntArray, Packed, Pairs


def side_of(columns: Iterable[FeatureColumn], part: str, packed: Mapping[str, Array]) -> Side:
    """Describe one side's packed columns for the models.

    Parameters
    ----------
    columns
        As :func:`~tiercel_pipelines.features.workflow.packed_columns` gives them.
    part
        ``user`` or ``item``.
    packed
        The packed tensors: where the workflow does not say how many categories a column has, the
        largest id that occurs does.
    """
    found = list(columns)
    scalars = [column for column in found if not column.is_list]
    cat = []
    for place, column in enumerate(c for c in scalars if c.kind == "cat"):
        largest = int(packed[f"{part}_cat"][:, place].max(initial=0))
        vocabulary = any(step.operator == "Categorify" for step in column.operators)
        cat.append(CategoryColumn(column.name, max(column.cardinality or 0, largest + 1), vocabulary))
    lists = []
    for column in found:
        if column.is_list and column.kind == "cat":
            largest = int(packed[f"{part}_list_{column.name}"].max(initial=0))
            lists.append(ListColumn(column.name, max(column.cardinality or 0, largest + 1)))
        elif column.is_list:
            lists.append(ListColumn(column.name, None))
    num = tuple(column.name for column in scalars if column.kind == "num")
    return Side(part, tuple(cat), num, tuple(lists))


def pack_dataset(
    workflow: object, dataset: Dataset, interactions: pd.DataFrame, settings: ServingSettings
) -> Packed:
    """Pack items, users, and users in the context of each interaction.

    Parameters
    ----------
    workflow
        The fitted workflow.
    dataset
        Gives the user and item tables.
    interactions
        The training and validation part, whose contexts are packed, in this order.
    settings
        History length and columns.
    """
    item = packed_frame(workflow, "item", dataset.items)
    item = {name: np.concatenate([array, np.zeros_like(array[:1])]) for name, array in item.items()}
    categories = [c.name for c in packed_columns(workflow, "item") if c.kind == "cat" and not c.is_list]
    return Packed(
        user=packed_frame(workflow, "user", _user_frame(workflow, dataset, interactions)),
        item=item,
        history_places=tuple(categories.index(name) for name in settings.history_columns),
        history_length=settings.history_length,
        n_users=len(dataset.users),
    )


def _user_frame(workflow: object, dataset: Dataset, interactions: pd.DataFrame) -> pd.DataFrame:
    """Return all users without context, then each interaction's user in its context."""
    columns = {name for c in packed_columns(workflow, "user") if c.part == "context" for name in c.inputs}
    context = [name for name in interactions.columns if name in columns]
    if not context:
        return dataset.users
    alone = dataset.users.copy()
    for name in context:
        alone[name] = _nulls(interactions[name], len(alone))
    joined = interactions[[dataset.user_id, *context]].merge(dataset.users, on=dataset.user_id, how="left")
    return pd.concat([alone, joined[list(alone.columns)]], ignore_index=True)


def _nulls(column: pd.Series, count: int) -> npt.NDArray[np.object_] | npt.NDArray[np.float64]:
    """Return nulls of the column's kind; a null list is an empty one."""
    if column.dtype != object:
        return np.full(count, np.nan)
    values = np.empty(count, dtype=object)
    first = next((value for value in column if value is not None), None)
    if isinstance(first, list | np.ndarray):
        values[:] = [[] for _ in range(count)]
    return values


def build_pairs(
    dataset: Dataset, interactions: pd.DataFrame, weight: str | None, packed: Packed
) -> tuple[Pairs, IntArray]:
    """Return interactions as rows, sorted by user and time.

    An item that a user came back to counts once, at its latest place.

    Parameters
    ----------
    dataset
        Gives the ids' rows.
    interactions
        The training and validation part, in the order given to :func:`pack_dataset`.
    weight
        A column of the interactions between 0 and 1, or None for 1.
    packed
        The packed tensors.

    Returns
    -------
    pairs
        The interactions.
    source
        ``[n]`` the position in ``interactions`` of each.
    """
    users = pd.Index(dataset.users[dataset.user_id]).get_indexer(interactions[dataset.user_id])
    items = pd.Index(dataset.items[dataset.item_id]).get_indexer(interactions[dataset.item_id])
    position = np.arange(len(interactions))
    time = position if dataset.timestamp is None else interactions[dataset.timestamp].to_numpy()
    order = np.lexsort((position, time, users))
    frame = pd.DataFrame({"user": users[order], "item": items[order]})
    order = order[~frame.duplicated(keep="last").to_numpy()]
    with_context = len(next(iter(packed.user.values()))) > packed.n_users
    weights = np.ones(len(interactions)) if weight is None else interactions[weight].to_numpy(np.float64)
    pairs = Pairs.build(
        users[order].astype(np.int64),
        items[order].astype(np.int64),
        (packed.n_users + order if with_context else users[order]).astype(np.int64),
        np.nan_to_num(weights[order]),
        packed.n_users,
    )
    return pairs, order.astype(np.int64)
