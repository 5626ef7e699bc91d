"""``python -m benchmarks.peers RUN RELEASE``."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.options import Check, Save
from tiercel_pipelines.training import TrainedRun
from tiercel_serving.bench.text_table import format_table
from tiercel_serving.commands.bench import write_whole
from tiercel_serving.errors import TiercelError
from tiercel_serving.release.opened import open_release

from .environment import find_python
from .prepare import prepare
from .run import run_peers


def command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The trained run.")],
    release: Annotated[Path, typer.Argument(metavar="RELEASE", help="A release of it.")],
    python: Annotated[
        Path | None, typer.Option("--python", help="A Python with the service's packages; else one is made.")
    ] = None,
    cache: Annotated[Path, typer.Option("--cache", help="Where that is made.")] = Path("build/handwritten"),
    seconds: Annotated[float, typer.Option("--seconds", min=0.1)] = 3.0,
    rounds: Annotated[int, typer.Option("--rounds", min=1)] = 5,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Processes of the service.")] = 2,
    save: Save = None,
    check: Check = False,
) -> None:
    """Measure Tiercel beside the service that people write by hand: FastAPI, pandas, torch, FAISS."""
    try:
        opened = open_release(release)
        with tempfile.TemporaryDirectory(prefix="tiercel-peers-") as folder:
            prepare(TrainedRun.open(run), opened, Path(folder))
            service = find_python(python, cache)
            found = run_peers(opened, Path(folder), service, seconds=seconds, rounds=rounds, workers=workers)
    except TiercelError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from error
    rows = [
        [level, name, *(f"{one[key]:.0f}" for key in ("p50_us", "p99_us", "throughput"))]
        for level, models in found["measured"].items()
        for name, one in models.items()
    ]
    typer.echo(format_table(["in flight", "what", "p50 µs", "p99 µs", "answers/s"], rows, left=(1,)))
    typer.echo(f"\nprocessor ms of an answer: {found['processor_ms_of_an_answer']}")
    typer.echo(f"{found['set_against_the_service']}; limits: 4 times the answers, half of p50")
    if save is not None:
        write_whole(save, found)
    if check and not found["ok"]:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(command)
