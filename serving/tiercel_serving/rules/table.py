"""The contract of a rule, and the table of rules."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from ..columns import Column
from ..kinds import Kind, Kinds
from ..problems import Problem
from ..ranked.order import Rows


@runtime_checkable
class RuleKind(Protocol):
    """A kind of rule: which items may be recommended."""

    @property
    def name(self) -> str:
        """Its name in ``--explain``."""
        ...

    @property
    def reason(self) -> str:
        """Text of why an item that fails the rule was dropped."""
        ...

    def problems(self) -> list[Problem]:
        """Return what is wrong with the settings by themselves."""
        ...

    def columns(self) -> tuple[str, ...]:
        """Return the raw item columns that it reads."""
        ...

    def misfits(self, columns: Mapping[str, Column]) -> list[Problem]:
        """Return what does not fit the raw item columns that :meth:`columns` names."""
        ...

    def passes(self, columns: Mapping[str, Column]) -> npt.NDArray[np.bool_]:
        """Return ``[n]``: which items pass, from their raw columns ``[n]``."""
        ...

    def reference(self, item: Mapping[str, Any]) -> bool:
        """Return whether one item passes, in plain Python; None is null, text is str."""
        ...


class Asks(NamedTuple):
    """The inputs that a rule reads besides item columns: user columns, request columns, the time."""

    users: tuple[str, ...] = ()
    requests: tuple[str, ...] = ()
    now: bool = False


class OpenedRule(Protocol):
    """A rule over the items of a release, ready for users and requests."""

    def allows(self, given: Any, rows: Rows | None = None) -> npt.NDArray[np.bool_]:
        """Return which items pass for which users, ``[B or 1, I or 1]``; for rows ``[B, n]``, likewise.

        ``given`` is a :class:`~tiercel_serving.rules.expressions.given.Given`.
        """
        ...


@runtime_checkable
class AskingRule(Protocol):
    """A rule that also depends on the user, the request or the time.

    Its :meth:`RuleKind.passes` is the part that depends only on the item.
    """

    def asks(self) -> Asks:
        """Return the inputs that it reads besides item columns."""
        ...

    def unfit(self, schema: Any) -> list[Problem]:
        """Return what does not fit the columns of items, users and requests.

        Inferred types of request columns are added to ``schema``, a
        :class:`~tiercel_serving.rules.expressions.types.Schema`.
        """
        ...

    def open(self, columns: Mapping[str, Column]) -> OpenedRule | None:
        """Open the part that depends on more than the item, over columns ``[I]``; None if there is none."""
        ...

    def reference_of(
        self, item: Mapping[str, Any], user: Mapping[str, Any], request: Mapping[str, Any], now: float
    ) -> bool:
        """Return whether one item passes for one user, in plain Python; ``request`` has only sent columns."""
        ...


def asked(rules: Iterable[RuleKind]) -> Asks:
    """Return the inputs that rules together read besides item columns, each column once."""
    all_asks = [rule.asks() for rule in rules if isinstance(rule, AskingRule)]
    users = dict.fromkeys(name for one in all_asks for name in one.users)
    requests = dict.fromkeys(name for one in all_asks for name in one.requests)
    return Asks(tuple(users), tuple(requests), any(one.now for one in all_asks))


#: Every kind of rule.
RULES: Kinds[RuleKind] = Kinds(
    "rule",
    {
        "compare": Kind("tiercel_serving.rules.compare:Compare"),
        "expression": Kind("tiercel_serving.rules.expression:Expression"),
    },
)
