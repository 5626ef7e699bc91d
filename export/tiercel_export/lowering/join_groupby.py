"""JoinGroupby: group statistics, joined by the keys of the groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .expressions import Columns, Expression, Where
from .fitted_tables import UNFITTED, each_group, read_statistics
from .gather import gather
from .keys import find_row


def lower_join_groupby(op: Any, names: list[str], columns: Mapping[str, Expression], where: Where) -> Columns:
    """``merge(stats, how="left")`` for each group of key columns.

    An unseen key has count 0, where NVTabular raises, and null for other statistics. Integer statistics stay
    integers, whereas pandas makes them floats as soon as a key of the batch is unseen.
    """
    keys = keys_of_statistics(op, where.whole)

    def lower(group: tuple[str, ...], sources: Sequence[Expression]) -> Columns:
        made = _group(op, group, sources, where)
        return {name: made[name] for name in outputs(group)}

    def outputs(group: tuple[str, ...]) -> list[str]:
        return [name for name, read in keys.items() if read == [*group]]

    return each_group(where, names, columns, lower, outputs)


def keys_of_statistics(op: Any, selector: Any) -> dict[str, list[str]]:
    """Return the columns that each output reads: the keys, not the columns that were aggregated.

    If two groups make an output of one name (``a_b`` of ``c``, ``a`` of ``b_c``), the first group wins.
    """
    from merlin.dag import ColumnSelector

    read: dict[str, list[str]] = {}
    for group in selector.grouped_names:
        keys = [group] if isinstance(group, str) else [*group]
        alone = ColumnSelector(keys if isinstance(group, str) else [keys])
        read = dict.fromkeys(op.column_mapping(alone), keys) | read
    return read


def files_of_statistics(op: Any, selector: Any) -> list[tuple[str, str]]:
    """Return each of a node's groups of keys with the file that its fit wrote."""
    names = [g if isinstance(g, str) else op.name_sep.join(g) for g in selector.grouped_names]
    stored = [(name, op.storage_name.get(name, name)) for name in names]
    return [(name, op.categories[key]) for name, key in stored if key in op.categories]


def _statistics(op: Any, keys: Sequence[str]) -> list[str]:
    """Return the columns of a fitted file other than its keys."""
    of_values = [statistic for statistic in dict.fromkeys(op.stats) if statistic != "count"]
    names = [[value, statistic] for value in op.cont_names.names for statistic in of_values]
    names += [["count"]] if "count" in op.stats else []
    return [op.name_sep.join([*keys, *name]) for name in names]


def _group(op: Any, group: tuple[str, ...], sources: Sequence[Expression], where: Where) -> Columns:
    from nvtabular.ops.join_groupby import AGG_DTYPES

    name = op.name_sep.join(group)
    storage = op.storage_name.get(name, name)
    if storage not in op.categories:
        raise where.refuse(name, *UNFITTED)
    path = where.own_file(name, op.categories[storage])
    keys = list(group) if len(group) > 1 else [storage]
    frame = read_statistics(path, keys, _statistics(op, keys))
    rows = np.arange(len(frame), dtype=np.int64)
    index = find_row(sources, frame[keys], rows, missing=len(rows), source=path, cast=False, where=where)
    made: Columns = {}
    for column in frame.columns.drop(keys):
        series, unseen = frame[column], None
        for statistic, dtype in AGG_DTYPES.items():
            if column.endswith(f"{op.name_sep}{statistic}"):
                series = series.astype(dtype)
                unseen = 0 if statistic == "count" else None
        made[column] = gather(index, series, source=path, where=where, unseen=unseen)
    return made
