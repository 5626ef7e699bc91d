"""``python -m benchmarks.training_scale``."""

from __future__ import annotations

import datetime
import shlex
import sys
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from benchmarks.options import Check, Save, chosen
from tiercel_serving.bench.machine import describe_machine, installed_versions
from tiercel_serving.commands.bench import write_whole
from tiercel_serving.commands.shell import FAILED, Debug, Json, Refused, shell
from tiercel_serving.commands.tables import heading

NAME = "python -m benchmarks.training_scale"
PACKAGES = ("tiercel", "numpy", "pandas", "torch", "nvtabular")


def command(
    size: Annotated[
        list[str] | None,
        typer.Option("--size", metavar="SIZE", help="tiny, 1x or 10x (repeat); 1x and 10x if none is named."),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option("--epochs", min=1, help="At most so many of each model; else the defaults.")
    ] = None,
    batches: Annotated[
        int | None,
        typer.Option(
            "--batches", min=1, help="At most so many of an epoch, with --epochs: memory, not time."
        ),
    ] = None,
    save: Save = None,
    check: Check = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Train two-tower and DLRM on made-up data of two sizes, each in a fresh process: time and memory.

    Example: [bold]python -m benchmarks.training_scale --size 1x --save training.json[/]
    """
    with shell(json=json, debug=debug) as sh:
        from benchmarks.scale.exporting import output_of
        from benchmarks.training_scale.sizes import SIZES

        runs: dict[str, Any] = {}
        document = {
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "command": " ".join([NAME, shlex.join(sys.argv[1:])]).rstrip(),
            "machine": describe_machine(),
            "versions": installed_versions(PACKAGES),
            "epochs": epochs,
            "batches": batches,
            "runs": runs,
        }
        if batches is not None and epochs is None:
            raise Refused("--batches needs --epochs: shortened epochs need not be many")
        few = [str(count) for count in (epochs, batches) if count is not None]
        sizes = chosen("--size", size or ["1x", "10x"], SIZES)
        with sh.work("Measuring training") as progress:
            for number, name in enumerate(sizes):
                progress(name, number, len(sizes))
                told = [sys.executable, "-m", "benchmarks.training_scale.one", name]
                runs[name] = output_of(told + few)
        if save is not None:
            write_whole(save, document)
        missed = misses(runs, whole=epochs is None)
        sh.emit({**document, "missed": missed}, *human(runs, missed))
        if check and missed:
            raise typer.Exit(FAILED)


def misses(runs: Mapping[str, Any], *, whole: bool) -> list[str]:
    """Return a message for each missed limit; time is checked only if the training was not shortened."""
    from benchmarks.training_scale.sizes import MOST_BYTES, MOST_S, MOST_TIMES

    found = []
    if "1x" in runs:
        one = runs["1x"]
        if whole and one["train_s"] > MOST_S:
            found.append(f"1x: trained in {one['train_s']:.0f} s, wanted {MOST_S} s at most")
        if one["peak_bytes"] > MOST_BYTES:
            found.append(f"1x: {one['peak_bytes'] / 1e9:.2f} GB, wanted {MOST_BYTES / 1e9:.1f} GB at most")
        if "10x" in runs:
            times = runs["10x"]["peak_bytes"] / one["peak_bytes"]
            if times > MOST_TIMES:
                found.append(f"10x: {times:.2f} times the memory of 1x, wanted {MOST_TIMES} at most")
    return found


def human(runs: Mapping[str, Any], missed: list[str]) -> list[Any]:
    """Return the report's lines for the terminal."""
    from rich.markup import escape
    from rich.text import Text

    from tiercel_serving.bench.report import format_table

    head = ["size", "interactions", "train, s", "processor, s", "data set, GB", "peak, GB", "nDCG@10"]
    rows = [
        [
            name,
            f"{run['interactions']:,}",
            f"{run['train_s']:.0f}",
            f"{run['train_cpu_s']:.0f}",
            f"{run['dataset_bytes'] / 1e9:.2f}",
            f"{run['peak_bytes'] / 1e9:.2f}",
            f"{run['ndcg']:.4f}",
        ]
        for name, run in runs.items()
    ]
    parts: list[Any] = [heading("Training"), Text(), escape(format_table(head, rows)), Text()]
    return parts + [Text(line, style="red") for line in missed]
