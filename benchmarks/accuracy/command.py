"""``python -m benchmarks.accuracy``."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
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
    ranking: Annotated[
        list[str] | None,
        typer.Option("--ranking", metavar="RETRIEVAL", help="Instead: rankers over it (repeat), or 'all'."),
    ] = None,
    sampled: Annotated[bool, typer.Option("--sampled", help="Instead: the 1 + 99 protocol.")] = False,
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
        from benchmarks.accuracy.contenders import COMPARISONS, RANKED, RANKERS, SAMPLED
        from benchmarks.accuracy.ranking import run_rankings
        from benchmarks.accuracy.report import markdown, misses
        from benchmarks.accuracy.run import Kept, cells_of, run_cells
        from benchmarks.accuracy.sampled import run_sampled

        picture = plot_file(save, plot)
        sets = chosen("--data", data or list(DATA), COMPARISONS)
        if ranking and sampled:
            raise Refused("--ranking and --sampled: name one of them, they are measured apart")
        known = list(dict.fromkeys(name for one in sets for name in COMPARISONS[one].contenders))
        known = list(RANKERS if ranking else SAMPLED) if ranking or sampled else known
        families = chosen("--family", family, known)
        over = chosen("--ranking", [] if ranking == ["all"] else ranking, RANKED)
        if served:
            chosen("--served", served, families)
        with sh.work("Measuring accuracy") as progress:
            try:
                kept = Kept(save, " ".join([NAME, shlex.join(sys.argv[1:])]).rstrip())
                what: dict[str, Any] = {"data_dir": data_dir, "progress": progress}
                if ranking:
                    run_rankings(over, families, seeds, kept, **what)
                elif sampled:
                    run_sampled(families, seeds, kept, **what)
                else:
                    run_cells(cells_of(sets, families, seeds), kept, served=served or (), **what)
            except ValueError as error:
                raise Refused(str(error)) from error
        document = kept.document
        if docs is not None:
            docs.write_text(markdown(document), encoding="utf-8")
        if picture is not None and document["cells"]:
            from benchmarks.accuracy.plot import draw

            draw(document, picture)
        missed = misses(document, sets)
        sh.emit({**document, "missed": missed}, *human(document, sets, missed, [save, picture, docs]))
        if check and missed:
            raise typer.Exit(FAILED)


def human(
    document: dict[str, Any], sets: tuple[str, ...], missed: list[str], files: list[Path | None]
) -> list[Any]:
    """Return the report's lines for the terminal."""
    from rich.text import Text

    from benchmarks.accuracy import ranking, sampled
    from benchmarks.accuracy.report import HEAD, popularity, rows_of

    parts: list[Any] = []
    for name in [one for one in sets if rows_of(document, one)]:
        rows = rows_of(document, name)
        parts += _part(f"Accuracy: {name}", HEAD, [*(row.table() for row in rows), popularity(rows)])
    for name in dict.fromkeys(cell["retrieval"] for cell in document.get("rankings", ())):
        cells = [cell for cell in document["rankings"] if cell["retrieval"] == name]
        parts += _part(f"Rankers over {name}", ranking.HEAD, ranking.table(cells))
    if "sampled" in document:
        parts += _part("One item among 100", sampled.HEAD, sampled.table(document["sampled"]))
    parts += [Text(line, style="red") for line in missed]
    saved = [str(file) for file in files if file is not None]
    return parts + ([Text(f"saved to {', '.join(saved)}", style="dim")] if saved else [])


def _part(title: str, head: Sequence[str], rows: list[list[str]]) -> list[Any]:
    from rich.markup import escape
    from rich.text import Text

    from tiercel_serving.bench.report import format_table

    return [heading(title), Text(), escape(format_table(list(head), rows)), Text()]
