"""``python -m benchmarks.features``."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from benchmarks.options import Check, Plot, Save, chosen, plot_file
from tiercel_serving.commands.bench import CLIENTS, find_load, write_whole
from tiercel_serving.commands.serve import Triton
from tiercel_serving.commands.shell import FAILED, Debug, Json, Refused, Shell, shell
from tiercel_serving.commands.tables import heading

NAME = "python -m benchmarks.features"

if TYPE_CHECKING:
    from benchmarks.features.report import FeatureReport
    from benchmarks.features.run import Serving
    from tiercel_serving.bench.run import Load


def command(
    save: Save = None,
    plot: Plot = None,
    case: Annotated[
        list[str] | None,
        typer.Option(
            "--case",
            metavar="CASE",
            help="Only three, three-small, movielens, criteo-int, criteo-text (repeat).",
        ),
    ] = None,
    part: Annotated[
        list[str] | None,
        typer.Option("--part", metavar="PART", help="Only cases, lookups, opening, served (repeat)."),
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option("--run", metavar="RUN", help="Also time one row of this run's workflow, both ways."),
    ] = None,
    quick: Annotated[
        bool,
        typer.Option("--quick", help="Tiny sizes, no server, no limits: whether it works, not how fast."),
    ] = False,
    no_merlin: Annotated[
        bool, typer.Option("--no-merlin", help="Leave out Merlin Systems and its environment.")
    ] = False,
    seconds: Annotated[
        float, typer.Option("--seconds", min=0.1, help="Length of each single measurement of a server.")
    ] = 2.0,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Rounds of those.")] = 5,
    client: Annotated[
        str,
        typer.Option(
            "--client",
            metavar="perf_analyzer|python",
            help="What makes the load; python adds the cost of the Python client to every figure.",
        ),
    ] = "perf_analyzer",
    cache: Annotated[
        Path | None,
        typer.Option(
            "--cache",
            metavar="DIR",
            help="Where perf_analyzer and Merlin Systems' environment lie, or go (else ~/.cache/tiercel).",
        ),
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option("--data-dir", metavar="DIR", help="Folder that holds ml-100k; else as `tiercel data`."),
    ] = None,
    check: Check = False,
    triton: Triton = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure compiled features beside NVTabular, pandas, bare NumPy gathers, and Merlin Systems on Triton.

    Takes 10 to 15 minutes, 8 GB of memory and, the first time, a minute more to build an environment for
    Merlin Systems, which needs PyPI. MovieLens-100K is used where it is found, else made-up data of its
    form.

    Example: [bold]python -m benchmarks.features --save features.json[/]
    """
    with shell(json=json, debug=debug) as sh:
        if client not in CLIENTS:
            raise Refused(f"--client {client}: use {' or '.join(CLIENTS)}")
        picture = plot_file(save, plot)
        with sh.work("Measuring features") as progress:
            from benchmarks.features.cases import CASES
            from benchmarks.features.plan import FULL, QUICK
            from benchmarks.features.run import PARTS, run_features

            cases, parts = chosen("--case", case, CASES), chosen("--part", part, PARTS)
            serving = how_to_serve(sh, client, cache, rounds, seconds, triton)
            report = run_features(
                QUICK if quick else FULL,
                serving=None if quick or no_merlin else serving,
                cases=cases,
                parts=parts,
                data_dir=data_dir,
                trained=run,
                command=" ".join([NAME, shlex.join(sys.argv[1:])]).rstrip(),
                progress=progress,
            )
        document = report.to_json()
        if save is not None:
            write_whole(save, document)
        if picture is not None:
            from benchmarks.features.plot import draw

            draw(report, picture)
        sh.emit(document, *human(report, save, picture))
        if check and not report.ok:
            sh.note("A figure is beyond its limit.", style="red")
            raise typer.Exit(FAILED)


def how_to_serve(
    sh: Shell, client: str, cache: Path | None, rounds: int, seconds: float, triton: Path | None
) -> Serving:
    """Return the settings of the part ``served``."""
    from benchmarks.features.run import Serving
    from tiercel_serving.bench.perf_analyzer import default_cache

    root = cache or default_cache().parent

    def load() -> Load:
        return find_load(sh, client, root / "perf_analyzer")

    return Serving(load, root / "merlin-systems", rounds, seconds, triton)


def human(report: FeatureReport, save: Path | None, picture: Path | None) -> list[Any]:
    """Return the report's lines for the terminal."""
    from rich.markup import escape
    from rich.text import Text

    from benchmarks.features.report import format_features

    machine = report.facts["machine"]
    lines: list[Any] = [
        heading("Compiled features"),
        Text(f"{machine['cpu']}, {machine['cores']} cores", style="dim"),
        Text(),
    ]
    if report.facts["quick"]:
        lines.append(Text("A quick run: these are no figures.\n", style="yellow"))
    lines.append(escape(format_features(report)))
    saved = [str(file) for file in (save, picture) if file is not None]
    if saved:
        lines += [Text(), Text(f"saved to {' and '.join(saved)}", style="dim")]
    return lines
