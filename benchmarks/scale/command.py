"""``python -m benchmarks.scale``."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from benchmarks.options import Check, Plot, Save, chosen, plot_file
from tiercel_serving.commands.bench import write_whole
from tiercel_serving.commands.shell import FAILED, Debug, Json, shell
from tiercel_serving.commands.tables import heading

NAME = "python -m benchmarks.scale"

if TYPE_CHECKING:
    from benchmarks.scale.report import ScaleReport


def command(
    size: Annotated[
        list[str] | None,
        typer.Option(
            "--size", metavar="SIZE", help="tiny, S0, S1 or S2 (repeat); S0 and S1 if none is named."
        ),
    ] = None,
    index: Annotated[
        list[str] | None,
        typer.Option(
            "--index",
            metavar="FACTORY",
            help="Only these FAISS index types (repeat); the first is exported. Else those of each size.",
        ),
    ] = None,
    text_ids: Annotated[bool, typer.Option("--text-ids", help="Users and items have text ids.")] = False,
    save: Save = None,
    plot: Plot = None,
    check: Check = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure export, memory, answers and masked search on made-up catalogues of up to a million items.

    S0 takes a minute, S1 a few, S2 half an hour and 10 GB of memory.

    Example: [bold]python -m benchmarks.scale --size S0 --size S1 --save scale.json[/]
    """
    with shell(json=json, debug=debug) as sh:
        picture = plot_file(save, plot)
        with sh.work("Measuring scale") as progress:
            from benchmarks.scale.run import run_scale
            from benchmarks.scale.sizes import SIZES

            report = run_scale(
                chosen("--size", size or ["S0", "S1"], SIZES),
                indexes=index or (),
                text_ids=text_ids,
                command=" ".join([NAME, shlex.join(sys.argv[1:])]).rstrip(),
                progress=progress,
            )
        document = report.to_json()
        if save is not None:
            write_whole(save, document)
        if picture is not None:
            from benchmarks.scale.plot import draw

            draw(report, picture)
        sh.emit(document, *human(report, save, picture))
        if check and not report.ok:
            sh.note("A figure is beyond its limit.", style="red")
            raise typer.Exit(FAILED)


def human(report: ScaleReport, save: Path | None, picture: Path | None) -> list[Any]:
    """Return the report's lines for the terminal."""
    from rich.markup import escape
    from rich.text import Text

    from benchmarks.scale.report import format_scale

    machine = report.facts["machine"]
    lines: list[Any] = [
        heading("Scale"),
        Text(f"{machine['cpu']}, {machine['cores']} cores", style="dim"),
        Text(),
        escape(format_scale(report)),
    ]
    saved = [str(file) for file in (save, picture) if file is not None]
    if saved:
        lines += [Text(), Text(f"saved to {' and '.join(saved)}", style="dim")]
    return lines
