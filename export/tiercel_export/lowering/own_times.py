"""DatePart and TimeDifference, of ``tiercel_export.operators``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from .expressions import REFUSED, Columns, Expression, Where, apply, combine, refused_column


class ZoneTable:
    """The table of a time zone. Compared by the zone's name."""

    def __init__(self, name: str, table: Any) -> None:
        self.name, self.table = name, table

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ZoneTable) and other.name == self.name

    def __hash__(self) -> int:
        return hash(self.name)


def lower_date_part(op: Any, names: list[str], columns: Mapping[str, Expression], where: Where) -> Columns:
    """``<column>_<part>`` for each part."""
    made = {}
    for name in names:
        source = columns[name]
        shared = {"unit": _unit(source, op.unit, name, where), "zone": op.zone}
        own = {} if op.zone is None else {"table": ZoneTable(op.zone, op.zone_table)}
        for part in op.parts:
            dtype = "bool" if part.startswith("is_") else "int64"
            made[f"{name}_{part}"] = apply(
                "date_part", source, shared={**shared, "part": part}, own=own, physical="int64", dtype=dtype
            )
    return made


def lower_time_difference(
    op: Any, names: list[str], columns: Mapping[str, Expression], where: Where
) -> Columns:
    """``later - earlier`` in whole units, rounded down."""
    made = {}
    for name in names:
        if name == op.operand_name or op.operand_name not in columns:
            continue
        sources = (columns[name], columns[op.operand_name])
        units = (
            _unit(sources[0], op.of, name, where),
            _unit(sources[1], op.column_of, op.operand_name, where),
        )
        shared = {"units": units, "unit": op.unit}
        made[name] = combine("time_difference", sources, shared=shared, physical="int64", dtype="int64")
    return made


def _unit(source: Expression, given: str | None, name: str, where: Where) -> str:
    """Return the unit in which a column counts since 1970, or refuse a column that is no time."""
    scalar(source, name, where)
    if source.time_unit is not None:
        return source.time_unit
    if source.is_text:
        raise where.refuse(name, "the column holds text", "Convert it to dates or numbers before the fit")
    if given is None:
        raise where.refuse(name, f"the column holds {source.dtype} and no unit is given", "Give it a unit")
    return given


def scalar(source: Expression, name: str, where: Where) -> Expression:
    """Return the column, or refuse lists."""
    if source.is_list:
        raise where.refuse(name, "the column holds lists", "Apply it before the lists are built")
    return source


def stopped_times(names: list[str], columns: Mapping[str, Expression], where: Where) -> Columns:
    """Return placeholders for datetime columns where an operator takes only numbers or text."""
    stopped = {}
    for name in names:
        source = columns[name]
        if source.op != REFUSED and source.time_unit is not None:
            error = where.refuse(
                name,
                f"the column holds {source.dtype}",
                "Take its parts first, by DatePart of tiercel_export.operators, or make it a number, by "
                "Cast('int64')",
            )
            stopped[name] = refused_column(source, error)
    return stopped


def units_read(outputs: Iterable[Expression]) -> dict[str, str]:
    """Return the unit of each raw column that is read as a time, which counts since 1970."""
    units: dict[str, str] = {}
    seen: set[int] = set()
    waiting = list(outputs)
    while waiting:
        expression = waiting.pop()
        if id(expression) in seen:
            continue
        seen.add(id(expression))
        waiting += expression.sources
        shared = dict(expression.shared)
        given = {"date_part": [shared.get("unit")], "time_difference": shared.get("units")}
        for source, unit in zip(expression.sources, given.get(expression.op) or (), strict=False):
            if source.op in ("load", "load_events"):
                units[dict(source.own)["name"]] = str(unit)
    return units
