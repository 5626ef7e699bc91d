"""The options that every benchmark's command has."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from tiercel_serving.commands.bench import check_place
from tiercel_serving.commands.shell import Refused

Save: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--save", metavar="FILE.json", help="Also write the JSON object here, and a plot beside it."
    ),
]
Plot: TypeAlias = Annotated[
    Path | None,
    typer.Option("--plot", metavar="FILE", help="Where the plot goes instead: a .png or an .svg."),
]
Check: TypeAlias = Annotated[
    bool, typer.Option("--check", help="Exit with 1 if a figure is beyond its limit.")
]


def chosen(option: str, asked: list[str] | None, known: Collection[str]) -> tuple[str, ...]:
    """Return the values of an option, or all known ones; raise Refused if one is unknown."""
    for name in asked or ():
        if name not in known:
            *most, last = known
            raise Refused(f"{option} {name}: use {', '.join(most)} or {last}")
    return tuple(asked or known)


def plot_file(save: Path | None, plot: Path | None) -> Path | None:
    """Return the plot's file, by default beside ``save``; raise Refused early if it can't be saved."""
    if save is not None:
        check_place(save)
    file = plot or (None if save is None else save.with_suffix(".png"))
    if file is not None and file.suffix not in (".png", ".svg"):
        raise Refused(f"--plot {file}: expected a name that ends with .png or .svg")
    return file
