"""``tiercel bench``."""

from __future__ import annotations

import json as json_module
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .serve import Triton
from .shell import FAILED, Debug, Json, Refused, Shell, shell
from .tables import heading

if TYPE_CHECKING:
    from ..bench.report import BenchReport
    from ..bench.run import Load

CLIENTS = ("perf_analyzer", "python")


def command(
    release: Annotated[Path, typer.Argument(metavar="RELEASE", help="Directory of a release.")],
    save: Annotated[
        Path | None, typer.Option("--save", metavar="FILE.json", help="Also write the JSON object here.")
    ] = None,
    seconds: Annotated[
        float, typer.Option("--seconds", min=0.1, help="Length of each single measurement.")
    ] = 3.0,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Rounds for each concurrency.")] = 5,
    concurrency: Annotated[
        str, typer.Option("--concurrency", metavar="N,N,…", help="Requests in flight.")
    ] = "1,8",
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
            help="Where a fetched perf_analyzer lies (else ~/.cache/tiercel/perf_analyzer).",
        ),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Exit with 1 if a figure is beyond its limit.")
    ] = False,
    triton: Triton = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure both layouts of a release on one server, beside models that do nothing and the bare compute.

    Prints p50, p99 and throughput, where each microsecond of the bare compute goes, and how both layouts
    stand against their limits. Uses the perf_analyzer on PATH, or fetches one.

    Example: [bold]tiercel bench releases/movielens --save bench.json[/]
    """
    with shell(json=json, debug=debug) as sh:
        if client not in CLIENTS:
            raise Refused(f"--client {client}: use {' or '.join(CLIENTS)}")
        levels = concurrencies(concurrency)
        with sh.work(f"Measuring {release}") as progress:
            from ..release.opened import check_files, open_release

            opened = open_release(release)
            check_files(opened)
            load = find_load(sh, client, cache)

            from ..bench import run_bench

            report = run_bench(
                opened,
                load,
                seconds=seconds,
                rounds=rounds,
                concurrencies=levels,
                triton=triton,
                command=shlex.join(["tiercel", *sys.argv[1:]]),
                progress=progress,
            )
        document = report.to_json()
        if save is not None:
            write_whole(save, document)
        sh.emit(document, *human(report, save))
        if check and not report.ok:
            sh.note("A figure is beyond its limit.", style="red")
            raise typer.Exit(FAILED)


def concurrencies(text: str) -> tuple[int, ...]:
    """Read ``1,8``."""
    try:
        levels = tuple(int(part) for part in text.split(","))
    except ValueError:
        levels = ()
    if not levels or min(levels) < 1 or len(set(levels)) != len(levels):
        raise Refused(f"--concurrency {text}: expected different whole numbers from 1 up, such as 1,8")
    return levels


def find_load(sh: Shell, client: str, cache: Path | None) -> Load:
    """Return what makes the load, as the command line says; nothing stands in for it silently."""
    from ..bench import PythonClient, find_perf_analyzer

    if client == "python":
        sh.note("The figures include the cost of the Python client.", style="yellow")
        return PythonClient()
    return find_perf_analyzer(cache, say=sh.note)


def write_whole(file: Path, document: dict[str, Any]) -> None:
    """Write a JSON file whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        text = json_module.dumps(document, indent=1, ensure_ascii=False)
        partial.write_text(text + "\n", encoding="utf-8")
        os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)


def human(report: BenchReport, save: Path | None) -> list[Any]:
    """Return what people see."""
    from rich.text import Text

    from ..bench import format_report

    release, machine = report.facts["release"], report.facts["machine"]
    title = (
        f"{release['name']} (build {release['build_id']}): {release['items']} items, "
        f"N = {release['candidates']}, K = {release['kept']}"
    )
    lines = [heading(title), Text(f"{machine['cpu']}, {machine['cores']} cores", style="dim"), Text()]
    lines.append(Text(format_report(report)))
    if save is not None:
        lines += [Text(), Text(f"saved to {save}", style="dim")]
    return lines
