"""How operators of ``tiercel_export.operators`` are drawn for random graphs: name, arguments, options."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import strategies as st

from tiercel_export import operators

Draw = Callable[[Any], Any]
Drawn = tuple[str, tuple[Any, ...], dict[str, Any]]

OPERATORS = {name: getattr(operators, name) for name in operators.__all__}
OF_TEXT = ("TextSlice", "TextCase", "TextStrip", "TextLength", "TextSplitCount")
OWN_KEYS = " ".join(f"tiercel_export.{name}" for name in OPERATORS)

SIGNS = ("+", "-", "*", "/", "//", "%", "**", "min", "max")
RELATIONS = ("==", "!=", "<", "<=", ">", ">=")
VALUES = [0, 1, -3, 7, 0.5, 2.25, -1.0]
PARTS = ("year", "quarter", "month", "week", "weekday", "dayofyear", "hour", "second", "is_weekend")
ZONES = (None, "Europe/Zurich")
UNITS = ("s", "ms", "us", "ns")


def draw_number_operator(draw: Draw, others: Sequence[str]) -> Drawn:
    """Draw an operator on numbers; ``others`` are raw columns that may be the second operand."""
    pick = lambda values: draw(st.sampled_from(list(values)))  # noqa: E731
    constant = not others or draw(st.booleans())
    operand = (pick(VALUES),) if constant else ()
    options = {} if constant else {"column": pick(others)}
    alone = {
        "Arithmetic": lambda: (
            "Arithmetic",
            (pick(SIGNS), *operand),
            {**options, "swap": draw(st.booleans())},
        ),
        "Compare": lambda: ("Compare", (pick(RELATIONS), *operand), options),
        "Function": lambda: ("Function", (pick(["sign", "sqrt", "floor", "log1p", "abs"]),), {}),
        "Cyclical": lambda: ("Cyclical", (pick([7, 24, 0.5]),), {}),
        "Cast": lambda: ("Cast", (pick(["int32", "int64", "float32", "float64", "bool", "str"]),), {}),
        "IsIn": lambda: ("IsIn", (draw(st.lists(st.sampled_from(VALUES), min_size=1)),), {}),
        "IsNull": lambda: ("IsNull", (), {}),
        "Not": lambda: ("Not", (), {}),
        "DatePart": lambda: (
            "DatePart",
            (pick(PARTS), "minute"),
            {"unit": pick(UNITS), "zone": pick(ZONES)},
        ),
    }
    if others:
        alone["Logic"] = lambda: ("Logic", (pick(["and", "or", "xor"]),), {"column": pick(others)})
        alone["TimeDifference"] = lambda: (
            "TimeDifference",
            (pick(others), pick(["D", "s", "us"])),
            {"of": pick(UNITS)},
        )
    return alone[pick(alone)]()


def draw_text_operator(draw: Draw) -> Drawn:
    """Draw an operator on text."""
    name = draw(st.sampled_from(OF_TEXT))
    bounds = st.none() | st.integers(-3, 3)
    arguments: dict[str, Any] = {
        "TextSlice": (draw(bounds), draw(bounds)),
        "TextCase": (draw(st.sampled_from(["lower", "upper", "title"])),),
        "TextStrip": (draw(st.sampled_from([None, "a", " é"])),),
        "TextSplitCount": (draw(st.sampled_from(["a", "aa", "\0", "é"])),),
    }
    return name, arguments.get(name, ()), {}
