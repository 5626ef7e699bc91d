"""Groupby by a session key: each served row is one session, whose events arrive as lists."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..errors import UnsupportedOperator
from .expressions import REFUSED, Columns, Expression, Where, apply, cast, combine, refused_column

#: Aggregations whose result depends on the order of the events: sums because of rounding, float extremes
#: because of the sign of zero.
_ORDERED = ("list", "first", "last", "sum", "mean", "min", "max")
#: Name ending (a regular expression) → the aggregation by whose dtype NVTabular casts such a column.
_CASTS = (("(count|nunique)", "count"), ("(mean|median|std|var|sum)", "sum"))


def lower_groupby(op: Any, names: list[str], columns: Mapping[str, Expression], where: Where) -> Columns:
    """``df.sort_values(sort_cols).groupby(key).agg(aggs)``: one row for each session."""
    out: Columns = {}
    for key in op.groupby_cols:
        if key in columns and columns[key].op != REFUSED:
            try:
                out[key] = _key(op, key, columns[key], where)
            except UnsupportedOperator as error:
                out[key] = refused_column(columns[key], error)  # other columns may still compile
    listed, others = _aggregations(op, where.selector)
    for name in names:
        if name in op.groupby_cols:
            continue
        for aggregation in (*listed.get(name, ()), *others.get(name, ())):
            source = _events(op, name, columns, where)
            if aggregation not in (*_ORDERED, "count"):
                raise where.refuse(
                    name,
                    f"its aggregation {aggregation!r} is not compiled",
                    "Use list, count, first, last, min, max, mean or sum, or compute it before the fit",
                )
            made = f"{name}{op.name_sep}{aggregation}"
            _check_cast(op, made, aggregation, name, where)
            out[made] = _aggregated(op, aggregation, source, name, columns, where)
    return out


def _aggregations(op: Any, selector: Any) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return the aggregations of each column that NVTabular computes with ``list``, and the others."""
    from nvtabular.ops.groupby import _get_agg_dicts

    listed, others = _get_agg_dicts(op.groupby_cols, op.list_aggs, op.conv_aggs, selector)
    return listed, {name: [a for a in aggregations if a is not list] for name, aggregations in others.items()}


def _check_one_key(op: Any, name: str, where: Where) -> None:
    if len(op.groupby_cols) != 1:
        raise where.refuse(
            name,
            f"it groups by {len(op.groupby_cols)} keys, {op.groupby_cols}, and a served row is one session "
            "with one key",
            "Combine the keys into one column of the data, and group by that",
        )


def _key(op: Any, name: str, key: Expression, where: Where) -> Expression:
    _check_one_key(op, name, where)
    if not key.of_key:
        raise where.refuse(
            name,
            "it is the key of sessions, and also a column of their events, or of rows that are sessions "
            "already",
            "Group once, by a raw column that no other step of the events reads",
        )
    if key.time_unit is not None:
        raise where.refuse(
            name,
            f"the key of sessions holds {key.dtype}",
            "Group by a number or text that names the session",
        )
    _check_cast(op, name, "", name, where)
    raw = key
    while raw.sources:
        raw = raw.sources[0]
    if key.axis and key != raw:
        raise where.refuse(
            name,
            "it is the key of sessions whose events are filtered, and an operator before changes it, which "
            "NVTabular does not heed",
            "Give Groupby the raw key, and change it afterwards",
        )
    # NVTabular takes the key from the raw frame and ignores operators on the way.
    return replace(raw, axis=None, of_key=False)


def _events(op: Any, name: str, columns: Mapping[str, Expression], where: Where) -> Expression:
    """Return a column of events, or refuse a column that holds none."""
    _check_one_key(op, name, where)
    source, key = columns[name], columns.get(op.groupby_cols[0])
    if source.axis is None:
        raise where.refuse(
            name,
            "it groups rows that are sessions already: the column has one value for each",
            "Group once; aggregate the rest in the data before the fit",
        )
    if source.of_key:
        raise where.refuse(
            name, "it aggregates the session's key", "Use the key itself, which is an output too"
        )
    if key is not None and key.axis != source.axis:
        raise where.refuse(
            name,
            f"its events have passed other filters than the key {op.groupby_cols[0]!r}, so that NVTabular "
            "puts them beside keys of other rows",
            "Filter all columns of a session together: (keys + columns) >> Filter(...) >> Groupby(...)",
        )
    return source


def _check_cast(op: Any, made: str, aggregation: str, name: str, where: Where) -> None:
    """Refuse a column whose name makes NVTabular cast it in another way than its aggregation implies."""
    of = {"count": "count", "sum": "sum", "mean": "sum"}.get(aggregation, "")
    for ending, cast_of in _CASTS:
        # NVTabular too reads the separator as a regular expression.
        hit = re.search(f"{op.name_sep}{ending}$", made) is not None
        if hit != (of == cast_of):
            how = "casts" if hit else "does not cast"
            raise where.refuse(
                name,
                f"NVTabular {how} its column {made!r} to {'int32' if cast_of == 'count' else 'float32'}, by "
                f"the name alone, whose separator {op.name_sep!r} it reads as a regular expression",
                "Rename the column before Groupby, or use name_sep='_' or '-'",
            )


def _aggregated(
    op: Any,
    aggregation: Any,
    source: Expression,
    name: str,
    columns: Mapping[str, Expression],
    where: Where,
) -> Expression:
    if aggregation == "count":
        return _row(apply("count_events", source, physical="int64", dtype="int32"))
    if source.time_unit is not None and aggregation in ("list", "sum", "mean"):
        raise where.refuse(
            name,
            f"it makes a {aggregation} of {source.dtype}",
            "Take parts of the dates first, by DatePart of tiercel_export.operators, or make them numbers "
            "by Cast('int64'); count, first, last, min and max of dates are compiled",
        )
    source = _ordered(op, source, name, columns, where)
    if aggregation in ("list", "first", "last"):
        # pandas lists hold Python's own int and float.
        plain = cast(source, "float64") if source.physical == "float32" else source
        wide = plain.physical == "int64" and plain.dtype != "bool" and plain.time_unit is None
        dtype = "int64" if wide else plain.dtype
        if aggregation == "list":
            return _row(apply("collect_events", plain, dtype=dtype, is_list=True))
        # For descending order NVTabular swaps first and last.
        last = (aggregation == "last") == bool(op.ascending)
        return _row(apply("edge_event", plain, shared={"last": last}, dtype=dtype))
    if source.is_text:
        raise where.refuse(name, f"it has no {aggregation} of text", "Use list, count, first or last")
    if aggregation in ("min", "max"):
        return _row(apply("extreme_event", source, shared={"greatest": aggregation == "max"}))
    compute = "float64" if source.physical == "int64" and aggregation == "mean" else source.physical
    shared = {"mean": aggregation == "mean", "compute": compute}
    return _row(apply("sum_events", source, shared=shared, physical="float32", dtype="float32"))


def _ordered(
    op: Any, source: Expression, name: str, columns: Mapping[str, Expression], where: Where
) -> Expression:
    """Return the events of a column in the operator's sort order."""
    if not op.sort_cols:
        return source
    missing = [column for column in op.sort_cols if column not in columns]
    if missing:
        raise where.refuse(
            name, f"it sorts by {missing}, which it is not applied to", "Apply it to its sort_cols, too"
        )
    by = [columns[column] for column in op.sort_cols]
    for column, key in zip(op.sort_cols, by, strict=True):
        if key.op == REFUSED:
            raise dict(key.own)["error"]
        if key.axis != source.axis or key.of_key:
            raise where.refuse(
                name,
                f"it sorts by {column!r}, which is not a column of the same events",
                "Sort by a column that has passed the same filters",
            )
    ascending = op.ascending if isinstance(op.ascending, list) else [op.ascending] * len(by)
    shared = {"ascending": tuple(bool(one) for one in ascending)}
    order = combine("order_events", by, shared=shared, physical="int64", dtype="int64")
    return combine(
        "take_events", (source, order), physical=source.physical, dtype=source.dtype, is_list=source.is_list
    )


def _row(made: Expression) -> Expression:
    return replace(made, axis=None)


def keys_of_groupby(op: Any) -> list[str]:
    """Return the key columns, whose value all events of a session share."""
    return list(op.groupby_cols)


def columns_of_groupby(op: Any, selector: Any) -> dict[str, list[str]]:
    """Return the columns that each output is computed from: its own, and the sort columns."""
    mapping: dict[str, list[str]] = op.column_mapping(selector)
    return {
        made: [*read, *(by for by in op.sort_cols if made not in op.groupby_cols and by not in read)]
        for made, read in mapping.items()
    }
