"""The contract of a rule, and the table of rules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from ..columns import Column
from ..kinds import Kind, Kinds
from ..problems import Problem


@runtime_checkable
class RuleKind(Protocol):
    """A kind of rule: which items may be recommended."""

    @property
    def name(self) -> str:
        """What ``--explain`` calls it."""
        ...

    @property
    def reason(self) -> str:
        """Why an item that fails it was dropped, in words."""
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


#: Every kind of rule.
RULES: Kinds[RuleKind] = Kinds(
    "rule",
    {
        "compare": Kind("tiercel_serving.rules.compare:Compare"),
    },
)
