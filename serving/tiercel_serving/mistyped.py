"""Type checks of settings against the annotations of their fields."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import msgspec
import numpy as np

from .problems import Problem, choose


def builtin(value: Any) -> Any:
    """Return a NumPy scalar as a Python one; the codec's hook for values that it does not know."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} cannot be written")


def plain(value: Any) -> Any:
    """Return a value with Python numbers in place of NumPy scalars, also in nested settings."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, msgspec.Struct):
        own = {name: getattr(value, name) for name in value.__struct_fields__}
        changed = {name: new for name, old in own.items() if (new := plain(old)) is not old}
        return msgspec.structs.replace(value, **changed) if changed else value
    if type(value) in (tuple, list):
        new = [plain(one) for one in value]
        return value if all(one is old for one, old in zip(new, value, strict=True)) else type(value)(new)
    return value


def mistyped(settings: msgspec.Struct) -> Iterator[Problem]:
    """Yield a problem for each value, also in nested settings, that the codec would not read back.

    Values whose type is a contract, such as a source or a model, are only checked inside; their table checks
    whether they are of that contract.
    """
    for name, kind in _fields(type(settings)):
        yield from _misfits(getattr(settings, name), kind, name)


@functools.cache
def _fields(of: type[msgspec.Struct]) -> tuple[tuple[str, Any], ...]:
    """Return the fields with their types; cached, since reading annotations takes longest."""
    return tuple((field.name, field.type) for field in msgspec.structs.fields(of))


def _misfits(value: Any, kind: Any, place: str) -> Iterator[Problem]:
    kinds = tuple(_alternatives(kind))
    sequence = next((one for one in kinds if get_origin(one) is tuple), None)
    if isinstance(value, msgspec.Struct) and (_contract(kinds) or isinstance(value, _structs(kinds))):
        yield from (problem.within(place) for problem in mistyped(value))
    elif isinstance(value, tuple | list) and sequence is not None:
        of = get_args(sequence)
        if of[-1] is not ... and len(value) != len(of):
            yield _problem(value, kind, place)
            return
        for at, one in enumerate(value):
            yield from _misfits(one, of[0] if of[-1] is ... else of[at], f"{place}[{at}]")
    elif not _contract(kinds):
        # Leave out settings and tuples: the codec would accept a mapping for settings, and a set for a tuple.
        plain = [one for one in kinds if one is not sequence and one not in _structs(kinds)]
        if not any(_readable(value, one) for one in plain):
            yield _problem(value, kind, place)


def _alternatives(kind: Any) -> Iterator[Any]:
    """Yield the types of a union, or the type itself."""
    if get_origin(kind) in (Union, UnionType):
        for one in get_args(kind):
            yield from _alternatives(one)
    else:
        yield kind


def _structs(kinds: tuple[Any, ...]) -> tuple[type, ...]:
    return tuple(one for one in kinds if isinstance(one, type) and issubclass(one, msgspec.Struct))


def _contract(kinds: tuple[Any, ...]) -> bool:
    """Whether any of the types is a protocol or a function, which the codec does not know."""
    of = [get_args(one)[0] if get_origin(one) is tuple and get_args(one) else one for one in kinds]
    return any(getattr(one, "_is_protocol", False) or get_origin(one) is Callable for one in of)


def _readable(value: Any, kind: Any) -> bool:
    try:
        msgspec.convert(msgspec.to_builtins(value, builtin_types=(bytes,), enc_hook=builtin), kind)
    except (msgspec.ValidationError, TypeError, ValueError, OverflowError, RecursionError):
        return False
    return True


def _problem(value: Any, kind: Any, place: str) -> Problem:
    options = [
        option for one in _alternatives(kind) if get_origin(one) is Literal for option in get_args(one)
    ]
    structs = [one.__name__ for one in _structs(tuple(_alternatives(kind)))]
    remedy = "give a value of that type"
    if options and isinstance(value, str):
        remedy = choose(value, options)
    elif structs:
        remedy = f"write {' or '.join(f'{name}(…)' for name in structs)}"
    elif get_origin(kind) is tuple and get_args(kind)[-1] is ...:
        remedy = "write a tuple; one of a single value needs its comma"
    return Problem(place, f"expected {_said(kind)}, got {value!r}", remedy)


#: Type → its name in messages, singular and plural.
_WORDS: Mapping[Any, tuple[str, str]] = {
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    bool: ("True or False", "True or False"),
    str: ("text", "texts"),
    type(None): ("None", "None"),
    Any: ("plain data", "plain data"),
}


def _said(kind: Any, several: bool = False) -> str:
    """Return the name of a type in messages."""
    kinds, origin = list(_alternatives(kind)), get_origin(kind)
    if len(kinds) > 1:
        return " or ".join(dict.fromkeys(_said(one, several) for one in kinds))
    if origin is Literal:
        options = ", ".join(map(repr, get_args(kind)))
        return f"one of {options}" if len(get_args(kind)) > 1 else options
    if origin is tuple and get_args(kind)[-1] is ...:
        return f"{'tuples' if several else 'a tuple'} of {_said(get_args(kind)[0], several=True)}"
    if origin is tuple:
        return f"({', '.join(map(_said, get_args(kind)))})"
    if kind in _WORDS:
        return _WORDS[kind][several]
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return f"{kind.__name__}(…)"
    return str(kind).replace("collections.abc.", "")
