"""The columns of users and requests that rules read: checked against tables, or inferred for requests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from tiercel_serving.columns import Column
from tiercel_serving.features import InputColumn
from tiercel_serving.rules.expressions.types import Schema, Type, type_of, type_of_dtype
from tiercel_serving.rules.table import AskingRule, asked

from .fit import refuse
from .given import id_dtype, infer_column
from .parts import Inputs, Programs


def asked_columns(
    inputs: Inputs, programs: Programs, raw_items: Mapping[str, Column]
) -> tuple[InputColumn, ...]:
    """Return the columns of users and requests that rules read, except the user id.

    Parameters
    ----------
    inputs, programs
        The tables, and the workflow's programs, whose user and context columns rules may read too.
    raw_items
        The raw item columns that rules name.

    Raises
    ------
    ExportInputError
        A rule names a column that does not exist, or types do not match.
    """
    asks = asked(inputs.settings.rules)
    known = {column.name: column for column in programs.user.inputs}
    of_users = _of_users(inputs, known, asks.users)
    context = {name: column for name, column in known.items() if column.part == "context"}
    schema = Schema(
        {name: type_of(column) for name, column in raw_items.items()},
        {name: _type(column) for name, column in of_users.items()},
        {name: _type(column) for name, column in context.items()},
    )
    rules = enumerate(inputs.settings.rules)
    refuse(
        problem.within(f"rules[{place}]")
        for place, rule in rules
        if isinstance(rule, AskingRule)
        for problem in rule.unfit(schema)
    )
    users = [of_users[name] for name in asks.users if name != inputs.columns.user_id]
    requests = [
        context.get(name) or InputColumn(name, *schema.requests[name], "context") for name in asks.requests
    ]
    return (*users, *requests)


def _of_users(
    inputs: Inputs, known: Mapping[str, InputColumn], wanted: tuple[str, ...]
) -> dict[str, InputColumn]:
    """Return the columns of users by name; the type of a column that nothing reads is arbitrary."""
    found = {name: column for name, column in known.items() if column.part == "user"}
    if inputs.users is not None:
        for name in map(str, inputs.users.columns):
            if name in wanted and name not in found:
                found[name] = replace(infer_column(inputs.users[name], name, "users"), part="user")
            found.setdefault(name, InputColumn(name, "bytes", False, "user"))
    user_id = inputs.columns.user_id
    return {**found, user_id: InputColumn(user_id, id_dtype(inputs.user_ids), False, "user")}


def _type(column: InputColumn) -> Type:
    return type_of_dtype(column.dtype, column.is_list)
