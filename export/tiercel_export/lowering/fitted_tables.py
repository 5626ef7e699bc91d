"""Statistics that operators keep by group: the files that JoinGroupby and TargetEncoding read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import WorkflowError
from .expressions import Columns, Expression, Where, refused_column

#: A refusal's words for an operator whose state is missing.
UNFITTED = ("it has no fitted statistics", "Fit the workflow before it is compiled")


def read_statistics(path: str, keys: Sequence[str], statistics: Sequence[str]) -> Any:
    """Read one ``cat_stats.<name>.parquet``: a row for each group, its keys distinct.

    Parameters
    ----------
    path
        The file, or the folder of parts.
    keys
        The key columns.
    statistics
        The columns that the fit wrote beside the keys. Two operators that share a folder overwrite each
        other's file, which shows here.

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
    """Return the node's groups of columns that are all among the names, single columns as groups of one."""
    groups = [(group,) if isinstance(group, str) else tuple(group) for group in where.selector.grouped_names]
    return [group for group in groups if set(group) <= set(names)]


def each_group(where: Where, names: Sequence[str], columns: Any, lower: Any, outputs: Any) -> Columns:
    """Lower group by group; what is refused stops that group's outputs alone.

    Parameters
    ----------
    where, names, columns
        As a lowering gets them.
    lower
        ``lower(group, sources)`` gives the group's columns.
    outputs
        ``outputs(group)`` names them.
    """
    made: Columns = {}
    for group in group_names(where, names):
        sources: list[Expression] = [columns[name] for name in group]
        try:
            made |= lower(group, sources)
        except WorkflowError as error:
            made |= dict.fromkeys(outputs(group), refused_column(sources[0], error))
    return made
