"""``python -m benchmarks.stages``."""

from __future__ import annotations

import shlex
import sys
from typing import Annotated

import typer

from benchmarks.options import Check, Plot, Save, chosen, plot_file
from tiercel_serving.commands.bench import write_whole
from tiercel_serving.commands.shell import FAILED, Debug, Json, shell
from tiercel_serving.commands.tables import heading

NAME = "python -m benchmarks.stages"


def command(
    size: Annotated[str, typer.Option("--size", metavar="SIZE", help="full, or tiny for a try.")] = "full",
    save: Save = None,
    plot: Plot = None,
    check: Check = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure reorder steps (beside pyversity, if installed), rules, filtered search, and reads of users.

    Example: [bold]python -m benchmarks.stages --save stages.json[/]
    """
    with shell(json=json, debug=debug) as sh:
        from rich.markup import escape
        from rich.text import Text

        from benchmarks.stages.report import SIZES, format_stages

        picture = plot_file(save, plot)
        [name] = chosen("--size", [size], SIZES)
        with sh.work("Measuring stages") as progress:
            from benchmarks.stages.run import measure

            typed = " ".join([NAME, shlex.join(sys.argv[1:])]).rstrip()
            report = measure(name, command=typed, progress=progress)
        document = report.to_json()
        if save is not None:
            write_whole(save, document)
        if picture is not None:
            from benchmarks.stages.plot import draw

            draw(report, picture)
        saved = [str(file) for file in (save, picture) if file is not None]
        after = [Text(), Text(f"saved to {' and '.join(saved)}", style="dim")] if saved else []
        sh.emit(document, heading("Stages"), Text(), escape(format_stages(report)), *after)
        if check and not report.ok:
            sh.note("A figure is beyond its limit.", style="red")
            raise typer.Exit(FAILED)
