"""JoinExternal: columns of a table that the operator holds or names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import WorkflowError
from .expressions import Columns, Expression, Where, refused_column
from .gather import gather
from .keys import find_row


def lower_join_external(
    op: Any, names: list[str], columns: Mapping[str, Expression], where: Where
) -> Columns:
    """``merge(table, how="left")``; a row whose key is not in the table gets nulls.

    The table is read when the workflow is compiled. Its integer, boolean and list columns keep their
    dtypes, which pandas changes as soon as a key of the batch is not in the table.
    """
    made = dict(columns)
    on = _listed(op.on)
    if not made:
        return made
    try:
        table = _table(op, on, where)
        if not set(on) <= set(columns):
            return made  # the keys belong to another part of the workflow
        index = _index(op, table, on, [columns[name] for name in on], where)
    except WorkflowError as error:
        source = next(iter(made.values()))
        return dict.fromkeys(columns_joined(op, where.selector), refused_column(source, error))
    joined = [name for name in table.columns if name not in on]
    return made | {name: _joined(op, index, table[name], name in made, where) for name in joined}


def _index(op: Any, table: Any, on: list[str], sources: list[Expression], where: Where) -> Expression:
    """Return the table's row number for each row's keys."""
    keys = table[_listed(op.on_ext)].set_axis(on, axis=1)
    for (name, series), source in zip(keys.items(), sources, strict=True):
        if (series.dtype == np.bool_) != (source.dtype == "bool") or not isinstance(series.dtype, np.dtype):
            raise where.refuse(
                str(name),
                f"the column is {source.dtype} and the table's key {series.dtype}, which changes the "
                "column's dtype",
                "Give both the same type",
            )
    rows = np.arange(len(table), dtype=np.int64)
    return find_row(sources, keys, rows, missing=len(rows), source=_source(op), cast=False, where=where)


def _joined(op: Any, index: Expression, series: Any, is_given: bool, where: Where) -> Expression:
    """Return one column of the table, or a placeholder with its refusal, which affects no other column."""
    try:
        if is_given:
            raise where.refuse(
                str(series.name),
                "a column of the data and one of the table have that name, so that pandas renames both",
                "Rename one of them",
            )
        return gather(index, series, source=_source(op), where=where)
    except WorkflowError as error:
        return refused_column(index, error)


def _source(op: Any) -> str:
    return f"JoinExternal {id(op)}"


def columns_joined(op: Any, selector: Any) -> dict[str, list[str]]:
    """Return the columns that each output reads: the keys for a joined column, itself for any other."""
    own = {name: [name] for name in selector.names}
    return {name: own.get(name, _listed(op.on)) for name in op.column_mapping(selector)}


def columns_of_keys(op: Any) -> list[str]:
    """Return the key columns, which NVTabular joins by regardless of the outputs that are asked for."""
    return _listed(op.on)


def _table(op: Any, on: list[str], where: Where) -> Any:
    """Read the table as the operator's transform does; refuse a join that would change the batch's rows."""
    column = ", ".join(on)
    if op.how != "left":
        raise where.refuse(
            column,
            f"how={op.how!r} drops rows, and a served batch must keep every row",
            "Use how='left', or join the data before the workflow",
        )
    try:
        table = op._ext
    except Exception as error:
        raise WorkflowError(
            f"JoinExternal on {on}: its table can't be read ({type(error).__name__}: {error}); put the file "
            "back where it was at fit, or give the operator a data frame"
        ) from error
    on_ext = _listed(op.on_ext)
    missing = [name for name in (*on_ext, *(op.columns_ext or ())) if name not in table.columns]
    if missing:
        raise WorkflowError(
            f"JoinExternal on {on}: its table has no columns {missing}, only {list(table.columns)}; fit the "
            "workflow again with the table as it is now"
        )
    if hasattr(table, "compute"):
        table = _one_partition(table, on_ext, column, where)
    twice = table.duplicated(on_ext)
    if twice.any():
        key = table.loc[twice, on_ext].iloc[0].tolist()
        raise where.refuse(
            column,
            f"its table has the key {key} more than once, which multiplies rows",
            "Keep one row for each key in the table",
        )
    return table.reset_index(drop=True)


def _one_partition(table: Any, on_ext: list[str], column: str, where: Where) -> Any:
    """Compute a table of several partitions; refuse numeric keys, whose hash in Dask depends on the dtype."""
    partitions, table = table.npartitions, table.compute()
    numbers = [name for name in on_ext if table[name].dtype != np.object_]
    if numbers:
        raise where.refuse(
            column,
            f"its table has {partitions} partitions, and a number is then only found in the dtype of the "
            "table: an integer is not, as soon as the batch has a null",
            "Give it a data frame, or a Dataset with npartitions=1",
        )
    return table


def _listed(names: Any) -> list[str]:
    return [names] if isinstance(names, str) else list(names)
