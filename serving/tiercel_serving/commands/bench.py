"""``tiercel bench``."""

from __future__ import annotations

import contextlib
import json as json_module
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..machine_faults import machine_faults
from .serve import Awake, Triton, kept
from .shell import FAILED, Debug, Json, Refused, Shell, shell
from .tables import heading

if TYPE_CHECKING:
    from ..bench import OpenLoops
    from ..bench.report import BenchReport
    from ..bench.run import Load

CLIENTS = ("perf_analyzer", "python")


def command(
    release: Annotated[
        Path | None, typer.Argument(metavar="RELEASE", help="Directory of a release.", show_default=False)
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option("--save", metavar="FILE.json", help="Also write the JSON object to this file."),
    ] = None,
    seconds: Annotated[
        float, typer.Option("--seconds", min=0.1, max=3600.0, help="Length of each measurement in seconds.")
    ] = 3.0,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Rounds for each concurrency.")] = 5,
    concurrency: Annotated[
        str, typer.Option("--concurrency", metavar="N,N,…", help="Numbers of requests in flight.")
    ] = "1,8",
    client: Annotated[
        str,
        typer.Option(
            "--client",
            metavar="perf_analyzer|python",
            help="Load generator; python adds the cost of the Python client to every figure.",
        ),
    ] = "perf_analyzer",
    cache: Annotated[
        Path | None,
        typer.Option(
            "--cache",
            metavar="DIR",
            help="Folder of a downloaded perf_analyzer. Default: ~/.cache/tiercel/perf_analyzer.",
        ),
    ] = None,
    runner: Annotated[
        str,
        typer.Option("--runner", metavar="python|tiercel|all", help="Runners to measure."),
    ] = "all",
    rates: Annotated[
        str,
        typer.Option(
            "--rates",
            metavar="SHARE,…",
            help="Open loops at these shares of each model's saturated throughput; none skips them.",
        ),
    ] = "0.25,0.5,0.75,0.9",
    mix: Annotated[
        str,
        typer.Option(
            "--mix", metavar="MIX", help="Kind of requests in the open loops; see docs/benchmarks.md."
        ),
    ] = "zipf",
    p99_ms: Annotated[
        float,
        typer.Option(
            "--p99-ms",
            min=0.1,
            max=1e6,
            help="Search for the highest rate whose p99 stays within this many milliseconds.",
        ),
    ] = 20.0,
    instances: Annotated[
        int | None,
        typer.Option(
            "--instances",
            min=1,
            help="Instances of each model. Default: the release's.",
            show_default=False,
        ),
    ] = None,
    growth: Annotated[
        bool,
        typer.Option("--growth", help="Also measure batch sizes and index types, without a server."),
    ] = False,
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE.html", help="Also write a report with plots to this file."),
    ] = None,
    beside: Annotated[
        list[Path] | None,
        typer.Option(
            "--beside",
            metavar="FILE.json",
            help="With --html: a saved result of another release, or of `python -m benchmarks.scale`, for "
            "plots over items, users and candidates. May be repeated.",
        ),
    ] = None,
    compared: Annotated[
        tuple[Path, Path] | None,
        typer.Option(
            "--compare",
            metavar="BEFORE.json AFTER.json",
            help="Measure nothing; report what changed between two saved results beyond the noise of rounds.",
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="With --compare: also compare results of different machines.")
    ] = False,
    check: Annotated[bool, typer.Option("--check", help="Exit with 1 if a figure misses its limit.")] = False,
    awake: Awake = False,
    triton: Triton = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure both layouts of a release on each runner, compared with empty models and the bare compute.

    Prints p50, p99 and throughput, where each microsecond of the bare compute goes, how latency grows with
    load, what the server spends, and how all of it stands against its limits. Uses the perf_analyzer on PATH,
    or fetches one.

    Example: [bold]tiercel bench releases/movielens --save bench.json --html bench.html[/]
    """
    with shell(json=json, debug=debug) as sh:
        if compared is not None:
            compare_results(sh, *compared, force=force)
            return
        if release is None:
            raise Refused("which release? Name its directory, or two saved results with --compare")
        if client not in CLIENTS:
            raise Refused(f"--client {client}: use {' or '.join(CLIENTS)}")
        levels = concurrencies(concurrency)
        runners, loops = chosen_runners(runner), open_loops(rates, mix, p99_ms)
        for file in (save, html):
            if file is not None:
                check_place(file)
        others = read_others(beside or [], html)
        with sh.work(f"Measuring {release}") as progress:
            from ..release.opened import check_files, open_release

            opened = open_release(release)
            check_files(opened)
            load = find_load(sh, client, cache)

            from ..bench import run_bench

            with kept(awake):
                report = run_bench(
                    opened,
                    load,
                    seconds=seconds,
                    rounds=rounds,
                    concurrencies=levels,
                    runners=runners,
                    loops=loops,
                    instances=instances,
                    growth=growth,
                    triton=triton,
                    command=shlex.join(["tiercel", *sys.argv[1:]]),
                    progress=progress,
                )
        document = report.to_json()
        if save is not None:
            write_whole(save, document)
        if html is not None:
            from ..bench.html_report import html_report

            write_whole(html, html_report(document, others))
        sh.emit(document, *human(report, save))
        if check and not report.ok:
            sh.note("A figure is beyond its limit.", style="red")
            raise typer.Exit(FAILED)


def concurrencies(text: str) -> tuple[int, ...]:
    """Parse concurrencies such as ``1,8``."""
    try:
        levels = tuple(int(part) for part in text.split(","))
    except ValueError:
        levels = ()
    if not levels or min(levels) < 1 or len(set(levels)) != len(levels):
        raise Refused(f"--concurrency {text}: expected different whole numbers from 1 up, such as 1,8")
    return levels


def chosen_runners(text: str) -> tuple[str, ...]:
    """Return the runners to measure, always with the stock one, with which the others are compared."""
    from ..bench.run import all_runners
    from ..repository.targets import RUNNERS
    from ..supervise.launch import check_runner

    if text == "all":
        return all_runners()
    if text not in RUNNERS:
        raise Refused(f"--runner {text}: use {', '.join(RUNNERS)} or all")
    check_runner(text)
    return tuple(dict.fromkeys(("python", text)))


def open_loops(rates: str, mix: str, p99_ms: float) -> OpenLoops:
    """Parse rates such as ``0.25,0.5`` or ``none``, and the name of a mix."""
    from ..bench import OpenLoops
    from ..bench.mixes import MIXES

    if mix not in MIXES:
        raise Refused(f"--mix {mix}: use {', '.join(MIXES)}")
    if rates == "none":
        return OpenLoops()
    try:
        shares = tuple(float(part) for part in rates.split(","))
    except ValueError:
        shares = ()
    if not shares or not all(0 < share <= 2 for share in shares):
        raise Refused(f"--rates {rates}: expected shares of what saturates a model, such as 0.5,0.9, or none")
    return OpenLoops(shares, mix, p99_ms * 1000)


def read_others(files: list[Path], html: Path | None) -> list[dict[str, Any]]:
    """Read the results that ``--beside`` names, before anything is measured."""
    from ..bench.compare import read_any

    if files and html is None:
        raise Refused("--beside: its plots are in the page that --html FILE.html writes; name one")
    return [read_any(file) for file in files]


def compare_results(sh: Shell, before: Path, after: Path, *, force: bool) -> None:
    """Print the changes between two saved results."""
    from rich.text import Text

    from ..bench.compare import compare, format_changes, read_result, to_json

    changes = compare(read_result(before), read_result(after), force=force)
    sh.emit({"changes": to_json(changes)}, Text(format_changes(changes)))


def find_load(sh: Shell, client: str, cache: Path | None) -> Load:
    """Return the load client that the command line names, without a silent fallback to another."""
    from ..bench import PythonClient, find_perf_analyzer

    if client == "python":
        sh.note("The figures include the cost of the Python client.", style="yellow")
        return PythonClient()
    return find_perf_analyzer(cache, say=sh.note)


def write_whole(file: Path, document: dict[str, Any] | str) -> None:
    """Write a text or JSON file atomically."""
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    with machine_faults(file.parent, f"writing {file.name}", partial):
        file.parent.mkdir(parents=True, exist_ok=True)
        _write_whole(file, partial, document)


def check_place(file: Path) -> None:
    """Refuse, before the work, a file that :func:`write_whole` could not write after it."""
    if file.is_dir():
        raise Refused(f"{file}: is a folder; name the file to write")
    there = file.exists()
    with machine_faults(file.parent, f"writing {file.name}"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.open("ab").close()
    if not there:
        file.unlink()


def _write_whole(file: Path, partial: Path, document: dict[str, Any] | str) -> None:
    try:
        text = (
            document
            if isinstance(document, str)
            else json_module.dumps(document, indent=1, ensure_ascii=False)
        )
        partial.write_text(text.rstrip("\n") + "\n", encoding="utf-8")
        os.replace(partial, file)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def human(report: BenchReport, save: Path | None) -> list[Any]:
    """Return the output for people."""
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
