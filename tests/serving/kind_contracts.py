"""The contract of every kind: its settings survive serialisation, validate themselves, and are found by name.

The suite of each table (``test_source_kinds.py`` and so on) tests the rest of the contract for each row.
A new kind needs only a few lines of test data in that suite's ``EXAMPLES``.
"""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from tiercel_serving.kinds import Kinds
from tiercel_serving.mistyped import mistyped
from tiercel_serving.problems import Problem

#: Values of the wrong type: settings must report them and never raise.
ODDITIES: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    2.5,
    "x",
    "",
    b"x",
    (),
    (None,),
    [[]],
    {},
    {"a": "b"},
    object(),
    int,
)


def check_settings(table: Kinds[Any], name: str, settings: Any, protocol: type) -> None:
    assert isinstance(settings, protocol)
    assert table.name_of(settings) == name
    assert table.find(name) is type(settings)
    assert settings.problems() == []
    data = msgspec.json.decode(msgspec.json.encode(settings))
    assert data["kind"] == name
    read = table.read(data)
    assert type(read) is type(settings)
    assert msgspec.json.encode(read) == msgspec.json.encode(settings)
    with pytest.raises(ValueError, match="unknown field `no such field`"):
        table.read({**data, "no such field": 1})
    for field in type(settings).__struct_fields__:
        for value in ODDITIES:
            odd = msgspec.structs.replace(settings, **{field: value})
            # The driver checks types first, so ``problems()`` only ever sees values of the right type.
            problems = list(mistyped(odd)) or odd.problems()
            assert all(isinstance(problem, Problem) for problem in problems), (field, value)


def check_rows(table: Kinds[Any], examples: dict[str, Any]) -> None:
    missing = set(table) - set(examples)
    assert not missing, f"give an example of each {table.what}: {missing}"
