"""Fitted statistics by group: the files that JoinGroupby and TargetEncoding read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import WorkflowError
from .expressions import Columns, Expression, Where, refused_column

#: Reason and remedy in the refusal of an operator without fitted state.
UNFITTED = ("it has no fitted statistics", "Fit the workflow before it is compiled")


def read_statistics(path: str, keys: Sequence[str], statistics: Sequence[str]) -> Any:
    """Read one ``cat_stats.<name>.parquet``, with one row for each group.

    Parameters
    ----------
    path
        The file, or the folder of parts.
    keys
        The key columns.
    statistics
        The columns that the fit wrote beside the keys. A file with others was overwritten by another operator
        that shares the folder.

    Raises
    ------
    WorkflowError
        The file is missing or unreadable, or is not what the fit wrote: a key column or a statistic is
        missing, or a key occurs twice.
    """
    import pandas as pd

    again = "save the workflow again, or fit it again"
    if not Path(path).exists():
        raise WorkflowError(
            f"{path}: expected the statistics by {list(keys)}, but there is no such file; {again}"
        )
    try:
        frame = pd.read_parquet(path)
    except Exception as error:
        raise WorkflowError(
            f"{path}: not readable statistics by {list(keys)} ({type(error).__name__}: {error}); {again}"
        ) from error
    if set(frame.columns) != {*keys, *statistics}:
        raise WorkflowError(
            f"{path}: expected the columns {[*keys, *statistics]}, found {list(frame.columns)}: the file was "
            "changed, or another operator keeps its statistics by the same keys in the same folder (as saved "
            f"workflows do); {again}, each such operator in a workflow of its own"
        )
    twice = frame.duplicated(list(keys))
    if twice.any():
        first = frame.loc[twice, list(keys)].iloc[0].tolist()
        raise WorkflowError(f"{path}: the key {first} occurs twice; {again}")
    return frame


def group_names(where: Where, names: Sequence[str]) -> list[tuple[str, ...]]:
    """Return the node's groups whose columns are all in ``names``; a single column is a group of one."""
    groups = [(group,) if isinstance(group, str) else tuple(group) for group in where.selector.grouped_names]
    return [group for group in groups if set(group) <= set(names)]


def each_group(where: Where, names: Sequence[str], columns: Any, lower: Any, outputs: Any) -> Columns:
    """Lower group by group; a refusal blocks only the outputs of its group.

    Parameters
    ----------
    where, names, columns
        As a lowering gets them.
    lower
        ``lower(group, sources)`` returns the group's output columns.
    outputs
        ``outputs(group)`` returns their names.
    """
    made: Columns = {}
    for group in group_names(where, names):
        sources: list[Expression] = [columns[name] for name in group]
        try:
            made |= lower(group, sources)
        except WorkflowError as error:
            made |= dict.fromkeys(outputs(group), refused_column(sources[0], error))
    return made
