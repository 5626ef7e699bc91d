"""``python -m benchmarks.accuracy``."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.options import Check, Plot, Save, chosen, plot_file
from tiercel_pipelines.commands.data import DataDir
from tiercel_serving.commands.shell import FAILED, Debug, Json, Refused, shell
from tiercel_serving.commands.tables import heading

NAME = "python -m benchmarks.accuracy"
DATA = ("ml-100k",)


def command(
    data: Annotated[
        list[str] | None,
        typer.Option("--data", metavar="DATA", help="ml-100k, amazon-beauty or tiny (repeat). Else ml-100k."),
    ] = None,
    family: Annotated[
        list[str] | None, typer.Option("--family", metavar="NAME", help="Only these (repeat). Else all.")
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="How many seeds of each.")] = 3,
    served: Annotated[
        list[str] | None,
        typer.Option("--served", metavar="NAME", help="Families that a real Triton answers for (repeat)."),
    ] = None,
    docs: Annotated[
        Path | None, typer.Option("--docs", metavar="FILE.md", help="Write the table of all cells here.")
    ] = None,
    data_dir: DataDir = None,
    save: Save = None,
    plot: Plot = None,
    check: Check = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Train, export and judge model families by several seeds; with --save what is finished is not run again.

    Example: [bold]python -m benchmarks.accuracy --family ease --family als --save accuracy.json[/]
    """
    with shell(json=json, debug=debug) as sh:
        from benchmarks.accuracy.contenders import COMPARISONS
        from benchmarks.accuracy.report import markdown, misses
        from benchmarks.accuracy.run import cells_of, run_cells

        picture = plot_file(save, plot)
        sets = chosen("--data", data or list(DATA), COMPARISONS)
        known = list(dict.fromkeys(name for one in sets for name in COMPARISONS[one].contenders))
        families = chosen("--family", family, known)
        if served:
            chosen("--served", served, families)
        with sh.work("Measuring accuracy") as progress:
            try:
                document = run_cells(
                    cells_of(sets, families, seeds),
                    served=served or (),
                    data_dir=data_dir,
                    save=save,
                    command=" ".join([NAME, shlex.join(sys.argv[1:])]).rstrip(),
                    progress=progress,
                )
            except ValueError as error:
                raise Refused(str(error)) from error
        if docs is not None:
            docs.write_text(markdown(document), encoding="utf-8")
        if picture is not None:
            from benchmarks.accuracy.plot import draw

            draw(document, picture)
        missed = misses(document, sets)
        sh.emit({**document, "missed": missed}, *human(document, sets, missed, [save, picture, docs]))
        if check and missed:
            raise typer.Exit(FAILED)


def human(
    document: dict[str, Any], sets: tuple[str, ...], missed: list[str], files: list[Path | None]
) -> list[Any]:
    """Return what people see."""
    from rich.markup import escape
    from rich.text import Text

    from benchmarks.accuracy.report import HEAD, popularity, rows_of
    from tiercel_serving.bench.report import format_table

    parts: list[Any] = []
    for name in sets:
        rows = rows_of(document, name)
        parts += [heading(f"Accuracy: {name}"), Text()]
        parts += [
            escape(format_table(list(HEAD), [*(row.table() for row in rows), popularity(rows)])),
            Text(),
        ]
    parts += [Text(line, style="red") for line in missed]
    saved = [str(file) for file in files if file is not None]
    return parts + ([Text(f"saved to {', '.join(saved)}", style="dim")] if saved else [])
