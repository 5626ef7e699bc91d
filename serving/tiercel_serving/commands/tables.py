"""The style of the commands' output."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table
from rich.text import Text


def heading(text: str) -> Text:
    """Return a line above a table; a table's own title would be wrapped at the table's width."""
    return Text(text, style="bold")


def table(*columns: str, right: Iterable[str] = ()) -> Table:
    """Return an empty table in the common style; the columns in ``right`` are right-aligned."""
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    numbers = set(right)
    for name in columns:
        made.add_column(name, justify="right" if name in numbers else "left", overflow="fold")
    return made


def pairs(values: Mapping[str, Any]) -> Table:
    """Return a table of names and values."""
    made = Table(box=None, show_header=False)
    made.add_column(style="dim")
    made.add_column(overflow="fold")
    for name, value in values.items():
        made.add_row(name, escape(number(value)))
    return made


def number(value: Any) -> str:
    """Return a readable value, with thousands separators and four significant digits."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def seconds(value: float) -> str:
    """Return a readable duration in minutes, seconds or milliseconds."""
    if value >= 60:
        return f"{int(value // 60)} min {value % 60:.0f} s"
    return f"{value:.1f} s" if value >= 0.1 else f"{value * 1000:.1f} ms"
