"""The optimiser: from column expressions to a short list of vectorised steps.

Columns with the same chain of operators, from the input to every use, become the rows of one register, and
each operator runs as one step. Columns that no served output needs are left out. The dense integer
vocabularies of one step become one table.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from tiercel_serving.features import PROGRAM_FORMAT
from tiercel_serving.lookups.build import Table, build_fused, build_lookup, word_count
from tiercel_serving.lookups.strings import Strings
from tiercel_serving.spec import Array

from ..lowering.expressions import Expression


@dataclass(frozen=True)
class Output:
    """One output column: its name, packing and expression."""

    name: str
    kind: str
    expression: Expression
    length: int | None


Group: TypeAlias = list[Expression]

#: The steps that select rows of their input register themselves, because the columns of one fitted table
#: share one row number.
PICKING = ("gather", "gather_text", "gather_list")

#: The steps that process several text columns at once.
FUSED_TEXT = ("load", "fill_text", "encode_text")


def schedule(
    part: str, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Output]
) -> tuple[dict[str, Any], dict[str, Array]]:
    """Group the expressions that the outputs need into steps.

    Parameters
    ----------
    part
        ``user`` or ``item``.
    inputs
        JSON of the input columns.
    outputs
        The output columns.

    Returns
    -------
    The program's JSON form, and its arrays by ``s<step>.<part>``.
    """
    emitter = _Emitter()
    for group in _groups([output.expression for output in outputs]):
        emitter.emit(group)
    places = [emitter.place[output.expression] for output in outputs]
    _keep_packed(emitter.steps, {register for register, _ in places})
    document = {
        "format": PROGRAM_FORMAT,
        "part": part,
        "inputs": [dict(column) for column in inputs],
        "steps": emitter.steps,
        "outputs": [
            {
                "name": output.name,
                "kind": output.kind,
                "is_list": output.expression.is_list,
                "length": output.length,
                "dtype": output.expression.dtype,
                "register": register,
                "row": row,
            }
            for output, (register, row) in zip(outputs, places, strict=True)
        ],
    }
    return document, emitter.arrays


def _groups(outputs: Sequence[Expression]) -> list[Group]:
    """Return the distinct expressions in groups that run as one step each, in topological order."""
    live: dict[Expression, None] = {}
    users: dict[Expression, list[Expression]] = {}

    def visit(expression: Expression) -> None:
        if expression in live:
            return
        for source in expression.sources:
            visit(source)
            users.setdefault(source, []).append(expression)
        live[expression] = None

    for output in outputs:
        visit(output)
    terminal = set(outputs)
    ahead: dict[Expression, tuple[Any, ...]] = {}
    for expression in sorted(live, key=lambda e: -e.depth):
        uses = sorted(repr((*_step_key(use), ahead[use])) for use in users.get(expression, []))
        ahead[expression] = (expression in terminal, *uses)
    behind: dict[Expression, tuple[Any, ...]] = {}
    groups: dict[tuple[Any, ...], Group] = {}
    for expression in sorted(live, key=lambda e: e.depth):
        source = tuple(behind[source] for source in expression.sources)
        fused = _is_fused(expression, expression in terminal, users.get(expression, []))
        alone = () if fused else (expression,)
        key = (*_step_key(expression), expression.physical, alone, ahead[expression], source)
        behind[expression] = key
        groups.setdefault(key, []).append(expression)
    return list(groups.values())


def _step_key(expression: Expression) -> tuple[Any, ...]:
    """Return what columns of one step must share; for text this includes the width of vocabulary keys."""
    if expression.op != "encode_text":
        return expression.op, expression.shared
    return expression.op, expression.shared, word_count(dict(expression.own)["vocabulary"].keys)


def _is_fused(expression: Expression, is_output: bool, users: Sequence[Expression]) -> bool:
    """Return whether a column may share its step with similar columns.

    Lists differ in length, and a step with several sources holds one column. Text is fused only on its way
    into vocabularies, where processing several columns at once is cheaper.
    """
    if expression.is_ragged or len(expression.sources) > 1:
        return False
    if expression.is_text:
        return expression.op in FUSED_TEXT and not is_output and all(use.op in FUSED_TEXT for use in users)
    return True


class _Emitter:
    """Writes one step for each group and records the register and row of each expression."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Any]] = []
        self.arrays: dict[str, Array] = {}
        self.place: dict[Expression, tuple[int, int]] = {}

    def emit(self, group: Group) -> None:
        """Write the step of a group."""
        first = group[0]
        if not first.sources:
            step = _load(group)
        elif first.op in PICKING:
            rows = [self.place[expression.sources[0]] for expression in group]
            step = {"op": first.op, "in": rows[0][0], "rows": [row for _, row in rows]}
        elif len(first.sources) == 1:
            register = self._register([expression.sources[0] for expression in group])
            step = {"op": first.op, "in": register, **dict(first.shared)}
        else:
            places = [list(self.place[source]) for source in first.sources]
            step = {"op": first.op, "in": places, **dict(first.shared)}
        arrays = ARRAYS[first.op](group, step)
        number = len(self.steps)
        self.steps.append(step)
        self.arrays.update({f"s{number}.{name}": array for name, array in arrays.items()})
        self.place.update({expression: (number, row) for row, expression in enumerate(group)})

    def _register(self, sources: Group) -> int:
        """Return a register with exactly these rows, adding a step that selects them if necessary."""
        places = [self.place[source] for source in sources]
        numbers = {number for number, _ in places}
        assert len(numbers) == 1, "columns of one step come from one register"
        number, rows = numbers.pop(), [row for _, row in places]
        if rows == list(range(sum(place[0] == number for place in self.place.values()))):
            return number
        self.steps.append({"op": "rows", "in": number, "rows": rows})
        return len(self.steps) - 1


def _keep_packed(steps: Sequence[dict[str, Any]], outputs: Collection[int]) -> None:
    """Mark loads of text that only vocabulary lookups read, so that they keep it packed."""
    readers: dict[int, set[str]] = {number: {"output"} for number in outputs}
    for step in steps:
        source = step.get("in", [])
        for number in [source] if isinstance(source, int) else [register for register, _ in source]:
            readers.setdefault(number, set()).add(step["op"])
    for number, step in enumerate(steps):
        if step["op"] in ("load", "load_list", "load_events") and step["dtype"] == "object":
            step["packed"] = readers.get(number) == {"encode_text"}


def _load(group: Group) -> dict[str, Any]:
    first = group[0]
    names = [dict(expression.own)["name"] for expression in group]
    dtype = "object" if first.is_text else first.physical
    if first.is_ragged:
        return {"op": first.op, "column": names[0], "dtype": dtype, **dict(first.shared)}
    return {"op": "load", "columns": names, "dtype": dtype}


# ---------------------------------------------------------------------------------- tables of each step


def _own(group: Group, name: str) -> list[Any]:
    return [dict(expression.own)[name] for expression in group]


def _column_vector(values: Sequence[Any] | Array, dtype: str) -> Array:
    return np.array(values, dtype).reshape(-1, 1)


def _no_arrays(group: Group, step: dict[str, Any]) -> dict[str, Array]:
    return {}


def _fill_arrays(group: Group, step: dict[str, Any]) -> dict[str, Array]:
    return {"value": _column_vector(_own(group, "value"), group[0].physical)}


def _clip_arrays(group: Group, step: dict[str, Any]) -> dict[str, Array]:
    given = [name for name in ("low", "high") if step.pop(name, False)]
    return {name: _column_vector(_own(group, name), group[0].physical) for name in given}


def _normalize_arrays(group: Group, step: dict[str, Any]) -> dict[str, Array]:
    compute = step.pop("compute")
    return {name: _column_vector(_own(group, name), compute) for name in ("mean", "std")}


def _min_max_arrays(group: Group, step: dict[str, Any]) -> dict[str, Array]:
    compute = step.pop("compute")
    return {
        "low": _column_vector(_own(group, "low"), compute),
        "span": _column_vector(_own(group, "span"), "float32" if compute == "float32" else "float64"),
    }


def _similarity_arrays(group: Group, step: dict[str, Any]) -> dict[str, Array]:
    arrays: dict[str, Array] = _own(group, "features")[0].arrays()
    return arrays


def _bucketize_arrays(group: Group, step: dict[str, Any]) -> dict[str, Array]:
    step["columns"] = len(group)
    return {f"boundaries{i}": np.array(values) for i, values in enumerate(_own(group, "boundaries"))}


def _contained_arrays(group: Group, step: dict[str, Any]) -> dict[str, Array]:
    return {"values": np.array(step.pop("values"))}


def _ids(group: Group) -> dict[str, Array]:
    return {name: _column_vector(_own(group, name), "int64") for name in ("null", "unseen")}


def _distinct_tables(group: Group) -> tuple[list[Table], list[int]]:
    """Return the distinct lookup tables of the columns, and the index of each column's table."""
    number: dict[tuple[Any, int], int] = {}
    tables: list[Table] = []
    which: list[int] = []
    for vocabulary, missing in zip(_own(group, "vocabulary"), _own(group, "unseen"), strict=True):
        name = (vocabulary, missing)
        if name not in number:
            number[name] = len(tables)
            tables.append(Table(vocabulary.keys, vocabulary.vocabulary.ids, missing))
        which.append(number[name])
    return tables, which


def _direct_arrays(group: Group, step: dict[str, Any]) -> dict[str, Array]:
    tables, which = _distinct_tables(group)
    parts = [build_lookup(table.keys, codes=table.codes, missing=table.missing) for table in tables]
    sizes = np.array([len(part["table"]) for part in parts], np.int64)
    return {
        "table": np.concatenate([part["table"] for part in parts]),
        "lowest": np.array([part["lowest"] for part in parts], np.int64)[which],
        "span": _column_vector(sizes - 1, "int64")[which],
        "base": _column_vector(np.cumsum(sizes) - sizes, "int64")[which],
        **_ids(group),
    }


def _hash_arrays(group: Group, step: dict[str, Any]) -> dict[str, Array]:
    tables, which = _distinct_tables(group)
    return _ids(group) | build_fused(tables, "lookup", which=which)


def _key_arrays(group: Group, step: dict[str, Any]) -> dict[str, Array]:
    table = dict(group[0].own)["table"]
    return build_lookup(table.keys, "lookup0", codes=table.answers, missing=table.missing)


def _gather_arrays(group: Group, step: dict[str, Any]) -> dict[str, Array]:
    columns = _own(group, "column")
    sizes = np.array([len(column.values) for column in columns], np.int64)
    arrays = {"table": np.concatenate([column.values for column in columns])}
    if any(column.valid is not None for column in columns):
        every = [np.ones(len(c.values), np.bool_) if c.valid is None else c.valid for c in columns]
        arrays["valid"] = np.concatenate(every)
    return arrays | {"base": _column_vector(np.cumsum(sizes) - sizes, "int64")}


def _gather_text_arrays(group: Group, step: dict[str, Any]) -> dict[str, Array]:
    column = dict(group[0].own)["column"]
    return _texts(column.values) | {"valid": column.valid}


def _gather_list_arrays(group: Group, step: dict[str, Any]) -> dict[str, Array]:
    column = dict(group[0].own)["column"]
    arrays = _texts(column.values) if group[0].is_text else {"values": column.values}
    if column.valid is not None:
        arrays["valid"] = column.valid
    return arrays | {"row_offsets": column.offsets, "row_valid": column.row_valid}


def _zone_arrays(group: Group, step: dict[str, Any]) -> dict[str, Array]:
    table = dict(group[0].own).get("table")
    return {} if table is None else {"instants": table.table.instants, "offsets": table.table.offsets}


def _value_arrays(group: Group, step: dict[str, Any]) -> dict[str, Array]:
    """Return the constant operands of the columns; a step on two columns has none."""
    if "value" not in dict(group[0].own):
        return {}
    return {"value": _column_vector(_own(group, "value"), step["compute"])}


def _period_arrays(group: Group, step: dict[str, Any]) -> dict[str, Array]:
    return {"period": _column_vector(_own(group, "period"), "float64")}


def _texts(values: Array) -> dict[str, Array]:
    strings = Strings.of(values)
    return {"offsets": strings.offsets, "blob": strings.blob}


#: Step → what makes its arrays. It may also change the step's JSON.
ARRAYS: Mapping[str, Callable[[Group, dict[str, Any]], dict[str, Array]]] = {
    "load": _no_arrays,
    "load_list": _no_arrays,
    "load_events": _no_arrays,
    "cast": _no_arrays,
    "widen": _no_arrays,
    "wrap": _no_arrays,
    "fill": _fill_arrays,
    "fill_text": _no_arrays,
    "fill_rows": _no_arrays,
    "is_null": _no_arrays,
    "row_is_null": _no_arrays,
    "clip": _clip_arrays,
    "log": _no_arrays,
    "normalize": _normalize_arrays,
    "min_max": _min_max_arrays,
    "min_max_constant": _no_arrays,
    "bucketize": _bucketize_arrays,
    "bucketize_down": _bucketize_arrays,
    "list_slice": _no_arrays,
    "contained": _contained_arrays,
    "contained_text": _no_arrays,
    "keep_events": _no_arrays,
    "order_events": _no_arrays,
    "take_events": _no_arrays,
    "collect_events": _no_arrays,
    "edge_event": _no_arrays,
    "count_events": _no_arrays,
    "sum_events": _no_arrays,
    "extreme_event": _no_arrays,
    "similarity": _similarity_arrays,
    "encode_direct": _direct_arrays,
    "encode_hash": _hash_arrays,
    "encode_text": _hash_arrays,
    "combine_keys": _key_arrays,
    "gather": _gather_arrays,
    "gather_text": _gather_text_arrays,
    "gather_list": _gather_list_arrays,
    "date_part": _zone_arrays,
    "time_difference": _no_arrays,
    "compute": _value_arrays,
    "compare": _value_arrays,
    "logic": _no_arrays,
    "not": _no_arrays,
    "function": _no_arrays,
    "wave": _period_arrays,
    "to_whole": _no_arrays,
    "to_truth": _no_arrays,
    "text_length": _no_arrays,
    "text_parts": _no_arrays,
    "text_slice": _no_arrays,
    "text_case": _no_arrays,
    "text_strip": _no_arrays,
    "text_to_number": _no_arrays,
    "number_to_text": _no_arrays,
}
