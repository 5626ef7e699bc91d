"""``python -m benchmarks.engines RELEASE RELEASE …``, from the repository's root."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.engines.run import measure
from tiercel_serving.commands.bench import write_whole
from tiercel_serving.commands.cli import app_of
from tiercel_serving.commands.extras import extra_of_command
from tiercel_serving.commands.shell import Debug, Json, shell
from tiercel_serving.commands.tables import heading, table

NAME = "python -m benchmarks.engines"


def command(
    releases: Annotated[list[Path], typer.Argument(metavar="RELEASE…", help="One for each engine.")],
    rounds: Annotated[int, typer.Option("--rounds", help="Calls of each at a batch of 1.")] = 2000,
    seconds: Annotated[float, typer.Option("--seconds", help="How long eight callers ask.")] = 10.0,
    save: Annotated[Path | None, typer.Option("--save", help="Where the figures go as JSON.")] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure the same recommender in several engines: its ranker in process, and the served answer.

    Example: [bold]python -m benchmarks.engines releases/onnx releases/aoti[/]
    """
    with shell(json=json, debug=debug) as sh:
        document: dict[str, Any] = {}
        with sh.work("Measuring"):
            typed = " ".join([NAME, shlex.join(sys.argv[1:])])
            document = measure(releases, rounds=rounds, seconds=seconds, command=typed)
        if save is not None:
            write_whole(save, document)
        made = table(
            "engine", *(f"B = {batch}, µs" for batch in document["ranker_us"]), "served p50, µs", "answers/s"
        )
        for engine, figures in document["served"].items():
            ranker = [f"{of[engine]:,.0f}" for of in document["ranker_us"].values()]
            made.add_row(
                engine, *ranker, f"{figures['p50_us']:,.0f}", f"{figures['answers_per_s_at_8']:,.0f}"
            )
        sh.emit(document, heading(f"{document['recommender']}, K = {document['kept']}"), made)


app = app_of(NAME, command)

if __name__ == "__main__":
    extra_of_command.set("dev")
    app(prog_name=NAME)
