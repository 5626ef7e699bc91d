"""The look of what commands print."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table


def table(title: str, *columns: str, right: Iterable[str] = (), caption: str | None = None) -> Table:
    """Return an empty table in the house style.

    Parameters
    ----------
    title
        What it is about.
    columns
        The headings.
    right
        The headings of the columns that hold numbers.
    caption
        A line below it.
    """
    made = Table(
        title=escape(title), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False,
        caption=None if caption is None else escape(caption), caption_justify="left", show_edge=False,
    )  # fmt: skip
    numbers = set(right)
    for heading in columns:
        made.add_column(heading, justify="right" if heading in numbers else "left", overflow="fold")
    return made


def pairs(title: str, values: Mapping[str, Any]) -> Table:
    """Return a table of names and values."""
    made = Table(title=escape(title), title_justify="left", title_style="bold", box=None, show_header=False)
    made.add_column(style="dim")
    made.add_column(overflow="fold")
    for name, value in values.items():
        made.add_row(name, escape(number(value)))
    return made


def number(value: Any) -> str:
    """Return a value as people read it: thousands apart, four significant digits."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def seconds(value: float) -> str:
    """Return a duration as people read it."""
    if value >= 60:
        return f"{int(value // 60)} min {value % 60:.0f} s"
    return f"{value:.1f} s" if value >= 0.1 else f"{value * 1000:.1f} ms"
