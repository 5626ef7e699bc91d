"""The contract of every family: it is in its table; its settings can be serialised and report mistakes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import msgspec

from tiercel_pipelines.recipe import replace
from tiercel_pipelines.training.record import _read_kind
from tiercel_serving.kinds import Kinds
from tiercel_serving.mistyped import mistyped
from tiercel_serving.problems import Problem
from tiercel_serving.release.manifest import encode

#: Values that a setting may wrongly get.
ODDITIES: tuple[Any, ...] = (None, True, -1, 2.5, "x", (), (None,), {}, object())


class FamilyContract:
    """The base of the contracts of retrieval and of ranking families."""

    #: Small settings that learn the pattern of the contract's world.
    settings: ClassVar[Any]
    #: Other settings of the family, which lead to different models.
    variants: ClassVar[tuple[Any, ...]] = ()
    #: The table of these families, and the protocol of its rows.
    table: ClassVar[Kinds[Any]]
    protocol: ClassVar[type]

    def each(self) -> Iterator[Any]:
        yield from (self.settings, *self.variants)

    def test_it_is_in_the_table_and_its_settings_travel(self) -> None:
        for settings in self.each():
            assert isinstance(settings, self.protocol)
            assert self.table.find(self.table.name_of(settings)) is type(settings)
            assert settings.problems() == []
            assert self.table.read(msgspec.json.decode(encode(settings)), _read_kind) == settings

    def test_odd_settings_are_told_and_break_nothing(self) -> None:
        fields = type(self.settings).__struct_fields__
        for field in fields:
            for value in ODDITIES:
                odd = replace(self.settings, **{field: value})
                problems = list(mistyped(odd)) or odd.problems()
                assert all(isinstance(problem, Problem) for problem in problems), (field, value)
        if "learning_rate" in fields:
            wrong = replace(self.settings, learning_rate=0.0, max_epochs=0).problems()
            assert {problem.field for problem in wrong} == {"learning_rate", "max_epochs"}
