"""TargetEncoding without folds: smoothed means of the targets by group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .expressions import Columns, Expression, Where, refused_column
from .fitted_tables import UNFITTED, each_group, read_statistics
from .gather import gather
from .keys import find_row

#: Value of ``target_encoding`` that compiles without folds.
NO_FOLD = "no_fold"


def lower_target_encoding(
    op: Any, names: list[str], columns: Mapping[str, Expression], where: Where
) -> Columns:
    """``(sum + p_smooth * mean) / (count + p_smooth)`` of each group, else the mean; then ``out_dtype``.

    NVTabular's transform computes a row's value from the other folds, and derives the fold from the row's
    position in the batch. So only ``kfold=1`` is compiled as it is; any other on request, as if it were 1.
    """
    outputs = output_names(op, where.whole)

    def lower(group: tuple[str, ...], sources: Sequence[Expression]) -> Columns:
        return _group(op, group, sources, outputs[group], where)

    made = each_group(where, names, columns, lower, lambda group: outputs[group])
    if op.kfold > 1 and not op.drop_folds and names:
        error = where.refuse(
            op.fold_name, "it is the fold, drawn by the row's position in the batch", "Use drop_folds=True"
        )
        made[op.fold_name] = refused_column(columns[names[0]], error)
    return made


def keys_of_encodings(op: Any, selector: Any) -> dict[str, list[str]]:
    """Return the columns that each output reads: the keys, not the targets."""
    read = {name: list(group) for group, names in output_names(op, selector).items() for name in names}
    return read | ({op.fold_name: list(selector.names)} if op.kfold > 1 and not op.drop_folds else {})


def files_of_encodings(op: Any, selector: Any) -> list[tuple[str, str]]:
    """Return each of a node's groups of keys with the file that its fit wrote."""
    names = [g if isinstance(g, str) else op.name_sep.join(g) for g in selector.grouped_names]
    return [(name, op.stats[name]) for name in names if name in op.stats]


def output_names(op: Any, selector: Any) -> dict[tuple[str, ...], list[str]]:
    """Return the output columns of each group, one for each target.

    ``out_col`` lists names for all groups of the node, including those that are not served.
    """
    groups = [(group,) if isinstance(group, str) else tuple(group) for group in selector.grouped_names]
    if not isinstance(op.out_col, list):
        return {group: op._make_te_name(group, op.target_columns, op.name_sep) for group in groups}
    given = [[name] if isinstance(name, str) else list(name) for name in op.out_col]
    return dict(zip(groups, given, strict=False))


def keep_output_names(op: Any, before: Any, after: Any) -> None:
    """Reduce ``out_col`` of a copied operator to the groups that remain in a smaller selector."""
    if isinstance(op.out_col, list):
        names = output_names(op, before)
        groups = [(group,) if isinstance(group, str) else tuple(group) for group in after.grouped_names]
        op.out_col = [names[group] for group in groups]


def why_folds(op: Any) -> tuple[str, str] | None:
    """Return the reason and remedy for an operator with folds; None for one without."""
    if op.kfold == 1:
        return None
    return (
        f"kfold={op.kfold}: it applies its folds at transform too, by the row's position in the batch",
        f"Compile it without folds, with target_encoding={NO_FOLD!r}, or fit it with kfold=1",
    )


def _group(
    op: Any, group: tuple[str, ...], sources: Sequence[Expression], outputs: list[str], where: Where
) -> Columns:
    name = op.name_sep.join(group)
    folds = why_folds(op)
    if folds is not None and where.target_encoding != NO_FOLD:
        raise where.refuse(name, *folds)
    means = op.target_mean or op.means
    if name not in op.stats or not set(op.target_columns) <= set(means):
        raise where.refuse(name, *UNFITTED)
    path = where.own_file(name, op.stats[name])
    count = op.name_sep.join([*group, "count"])
    sums = {target: op.name_sep.join([*group, target, "sum"]) for target in op.target_columns}
    frame = read_statistics(path, group, [count, *sums.values()])
    rows = np.arange(len(frame), dtype=np.int64)
    index = find_row(
        sources, frame[list(group)], rows, missing=len(rows), source=path, cast=False, where=where
    )
    made: Columns = {}
    for target, output in zip(op.target_columns, outputs, strict=True):
        smoothed = frame[sums[target]] + op.p_smooth * means[target]
        smoothed = smoothed / (frame[count] + op.p_smooth)
        # Two operators may share a file and differ in smoothing.
        source = f"{path} by {id(op)}"
        made[output] = _encoding(op, index, smoothed, means[target], output, source, where)
    return made


def _encoding(
    op: Any, index: Expression, smoothed: Any, mean: float, output: str, source: str, where: Where
) -> Expression:
    import pandas as pd

    column = pd.concat([smoothed, pd.Series([np.nan])], ignore_index=True).fillna(mean)
    dtype = np.dtype(op.output_dtype)
    if dtype.kind in "iu" and not np.isfinite(column).all():
        raise where.refuse(
            output, f"an encoding is infinite, which {dtype.name} can't hold", "Use a float out_dtype"
        )
    column = column.astype(dtype).rename(output)
    return gather(index, column.iloc[:-1], source=source, where=where, unseen=column.iloc[-1])
