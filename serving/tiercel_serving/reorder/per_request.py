"""Numbers of a reorder step that a request may set, within limits that the recipe sets.

Each is an optional float64 tensor ``[B, 1]`` of its name, NaN where a request leaves it out. Clients see it
as one more request column, so ``features={"diversity": 0.5}`` and ``--feature diversity=0.5`` set it.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from math import isnan, nan
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from ..errors import InvalidRequest
from ..problems import Problem, Range
from ..spec import Arrays, TensorSpec

Floats = npt.NDArray[np.float64]


class PerRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A number that a request may set.

    Parameters
    ----------
    name
        Its name in requests. Steps that use the same name share the number.
    default
        Value if a request leaves it out; None if that has a meaning of its own (without a seed, nothing is
        explored).
    low, high
        Limits of the request's value and of the default.
    whole
        Whether only whole numbers are allowed.
    """

    name: str
    default: float | None = None
    low: float = 0.0
    high: float = 1.0
    whole: bool = False

    @property
    def tensor(self) -> TensorSpec:
        """The tensor ``[B, 1]`` that carries it."""
        said = "" if self.default is None else f"; default {self.default:g}"
        doc = f"From {self.low:g} to {self.high:g}{said}."
        return TensorSpec(self.name, "float64", (1,), True, nan, doc)

    def in_batch(self, arrays: Arrays) -> Floats:
        """Return the number of each user, ``[B, 1]``; without its tensor, the default as ``[1, 1]``."""
        sent = arrays.get(self.name)
        if sent is None:
            return np.array([[nan if self.default is None else self.default]])
        # Without a default, a number that was not sent stays NaN.
        return sent if self.default is None else np.where(np.isnan(sent), self.default, sent)

    def of_user(self, user: Mapping[str, Any]) -> float | None:
        """Return one user's number for a plain reference; None if there is neither number nor default."""
        sent = user.get(self.name)
        return self.default if sent is None or isnan(sent) else float(sent)

    def check(self, arrays: Arrays) -> None:
        """Check a request's value.

        Raises
        ------
        InvalidRequest
            It is outside the limits, or not whole where it must be.
        """
        sent = arrays.get(self.name)
        if sent is None:
            return
        wrong = (sent < self.low) | (sent > self.high)
        if self.whole:
            wrong |= sent != np.where(np.isnan(sent), sent, np.rint(sent))
            wrong &= ~np.isnan(sent)
        if wrong.any():
            what = "a whole number" if self.whole else "a number"
            raise InvalidRequest(
                f"{self.name}: expected {what} from {self.low:g} to {self.high:g} (the recipe's limits), "
                f"got {sent[wrong][0]:g}; send one within them, or leave it out"
            )


#: A number of a step: fixed, or set by requests.
Amount = float | PerRequest


def batch_amount(amount: Amount, arrays: Arrays) -> Floats:
    """Return a step's number for each user, ``[B, 1]`` or ``[1, 1]`` float64."""
    return amount.in_batch(arrays) if isinstance(amount, PerRequest) else np.array([[float(amount)]])


def user_amount(amount: Amount, user: Mapping[str, Any]) -> float:
    """Return a step's number for one user, for a plain reference; NaN if there is none."""
    said = amount.of_user(user) if isinstance(amount, PerRequest) else amount
    return nan if said is None else float(said)


def amount_problems(
    kind: Any, ranges: Mapping[str, Range], *, optional: Container[str] = ()
) -> Iterator[Problem]:
    """Yield the problems of a step's numbers, both fixed ones and those that requests set.

    Parameters
    ----------
    kind
        The step's settings, with values of the right types.
    ranges
        Field → valid range.
    optional
        Fields that may be without a number.
    """
    for field, wanted in ranges.items():
        amount = getattr(kind, field)
        if isinstance(amount, PerRequest):
            yield from (problem.within(field) for problem in _problems(amount, wanted))
            if amount.default is None and field not in optional:
                problem = "a request that says nothing would leave the step without a number"
                yield Problem(f"{field}.default", problem, "give a default within the limits")
        elif not wanted.holds(amount):
            yield Problem(field, f"expected {wanted}, got {amount!r}", "give such a number")


def _problems(amount: PerRequest, wanted: Range) -> Iterator[Problem]:
    if not amount.name.isidentifier() or not amount.name.isascii():
        problem = f"{amount.name!r} cannot name a tensor"
        yield Problem("name", problem, "use letters, digits and _, and begin with a letter")
    if wanted.whole and not amount.whole:
        yield Problem("whole", f"{amount.name!r} may be any number", "write whole=True")
    for field in ("low", "high"):
        value = getattr(amount, field)
        if not wanted.holds(int(value) if wanted.whole and float(value).is_integer() else value):
            yield Problem(field, f"expected {wanted}, got {value!r}", "give such a limit")
    default = amount.default
    if amount.low > amount.high:
        yield Problem("low", f"{amount.low:g} is above high ({amount.high:g})", "swap them")
    elif default is not None and wanted.whole and not float(default).is_integer():
        yield Problem("default", f"expected a whole number, got {default!r}", "give such a number")
    elif default is not None and not amount.low <= default <= amount.high:
        problem = f"{default:g} is outside of its own limits, {amount.low:g} to {amount.high:g}"
        yield Problem("default", problem, "widen the limits, or give another")


def per_request(steps: Iterable[Any]) -> tuple[PerRequest, ...]:
    """Return the numbers that a request may set, each once, in the order of the steps' fields."""
    found: dict[str, PerRequest] = {}
    for step in steps:
        for field in step.__struct_fields__:
            value = getattr(step, field)
            if isinstance(value, PerRequest):
                found.setdefault(value.name, value)
    return tuple(found.values())


def shared_problems(placed: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield a problem for each name used for different numbers; ``placed`` is place → settings."""
    known: dict[str, PerRequest] = {}
    for place, step in placed.items():
        for field in step.__struct_fields__:
            value = getattr(step, field)
            if isinstance(value, PerRequest) and known.setdefault(value.name, value) != value:
                problem = f"another step's {value.name!r} has other limits or another default"
                yield Problem(field, problem, "give the same everywhere, or another name").within(place)


def name_problems(placed: Mapping[str, Any], taken: Iterable[str], whose: str) -> Iterator[Problem]:
    """Yield a problem for each number whose name is already taken by another part of the request."""
    names = set(taken)
    for place, step in placed.items():
        for field in step.__struct_fields__:
            value = getattr(step, field)
            if isinstance(value, PerRequest) and value.name in names:
                problem = f"{value.name!r} is the name of {whose} already"
                yield Problem(f"{field}.name", problem, "give it another").within(place)
