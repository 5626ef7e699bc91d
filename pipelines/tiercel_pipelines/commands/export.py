"""``tiercel export``."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from tiercel_serving.commands.bench import check_place, write_whole
from tiercel_serving.commands.shell import Debug, Json, Refused, Shell, shell
from tiercel_serving.commands.tables import heading, number, pairs, seconds, table

from .train import Replace, check_free

if TYPE_CHECKING:
    from rich.table import Table

    from tiercel_serving.release.opened import Release


def command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Directory that `tiercel train` made.")],
    release: Annotated[
        Path | None,
        typer.Option("--release", metavar="DIR", help="Folder of the release. Default: releases/<name>."),
    ] = None,
    layout: Annotated[
        str, typer.Option("--layout", metavar="fused|staged", help="One Triton model, or one for each stage.")
    ] = "fused",
    runner: Annotated[
        str,
        typer.Option(
            "--runner",
            metavar="python|tiercel",
            help="What runs the stages: Triton's Python backend, or Tiercel's backend in Triton's process.",
        ),
    ] = "python",
    items: Annotated[
        Path | None,
        typer.Option("--items", metavar="FILE", help="Parquet table to use instead of the run's items."),
    ] = None,
    users: Annotated[
        Path | None,
        typer.Option("--users", metavar="FILE", help="Parquet table to use instead of the run's users."),
    ] = None,
    interactions: Annotated[
        Path | None,
        typer.Option(
            "--interactions", metavar="FILE", help="Parquet table to use instead of the run's interactions."
        ),
    ] = None,
    target: Annotated[
        str, typer.Option("--target", help="Target to compile for: see docs/engines.md.")
    ] = "cpu",
    engine: Annotated[
        str | None,
        typer.Option(
            "--engine",
            metavar="NAME",
            help="Engine of the dense models: see docs/engines.md. Default: the target's.",
        ),
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show the graph with each hop and copy; write no release.")
    ] = False,
    svg: Annotated[
        Path | None,
        typer.Option("--svg", metavar="FILE", help="With --explain: also draw the graph to this file."),
    ] = None,
    replace: Replace = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Compile a run into a release: workflow, models, sources, tables, Triton configs.

    Ends by verifying every artefact against what was trained; the release appears under its name only if
    nothing differs. With `--items`, `--users` or `--interactions` the same models serve another catalogue,
    without training: see docs/release.md. `--explain` says what would run where, of a run or of a release;
    see docs/engines.md.

    Example: [bold]tiercel export runs/movielens --layout staged[/]
    """
    with shell(json=json, debug=debug) as sh:
        begun = time.perf_counter()
        if explain or svg is not None:
            if not explain:
                raise Refused("--svg draws what --explain tells; add --explain")
            if svg is not None:
                check_picture(svg, replace)
            files = {"items": items, "users": users, "interactions": interactions}
            explain_export(sh, run, files, (target, layout, engine), svg)
            return
        with sh.work(f"Exporting {run}", steps=True) as progress:
            refuse_unknown_rows(target, layout, engine, runner)
            files = {"items": items, "users": users, "interactions": interactions}
            refuse_missing(files)

            from ..export.catalogue import load_table
            from ..export.run_export import export_run
            from ..training import TrainedRun

            trained = TrainedRun.open(run)
            where = release if release is not None else Path("releases") / trained.record.recipe.name
            check_free(where, replace, "release")
            made = export_run(
                trained,
                where,
                **{name: load_table(path, name, trained) for name, path in files.items() if path is not None},
                layout=layout,
                runner=runner,
                target=target,
                engine=engine,
                replace=replace,
                progress=progress,
            )
        document = describe(made, time.perf_counter() - begun)
        title = f"{document['name']}: exported and verified in {seconds(document['seconds'])} → {where}"
        after = f"tiercel {_next(made)} {where}"
        sh.emit(document, heading(title), release_table(document), f"\nnext: [bold]{after}[/]")


def _next(made: Release) -> str:
    """Return the next command: ``build-engines`` if an engine is still to be built, else ``serve``."""
    from tiercel_serving.engines.install import engines_to_build

    files = (made.path / "artefacts" / stage / kind.file for stage, _, kind in engines_to_build(made))
    return "serve" if all(file.is_file() for file in files) else "build-engines"


def explain_export(
    sh: Shell,
    run: Path,
    files: Mapping[str, Path | None],
    goal: tuple[str, str, str | None],
    svg: Path | None,
) -> None:
    """Print what would run where for ``goal`` (target, layout, engine), and compare it with all others."""
    refuse_unknown_rows(*goal)
    refuse_missing(files)
    with sh.work(f"Looking at {run}", steps=True) as progress:
        from tiercel_serving.repository.drawing import as_document, as_svg, as_text

        from ..export.explained import every_placement, manifest_of, placement_of

        tables = {name: path for name, path in files.items() if path is not None}
        manifest = manifest_of(run, tables, progress)
        placement, others = placement_of(manifest, *goal), every_placement(manifest)
    if svg is not None:
        write_whole(svg, as_svg(placement))
        sh.note(f"picture: {svg}")
    compared = table("target", "layout", "models", "hops", "copies", right=("models", "hops", "copies"))
    for one in others:
        counts = (len(one.models), len(one.hops), len(one.copies))
        compared.add_row(one.target, one.layout, *map(str, counts))
    document = {**as_document(placement), "others": [as_document(one) for one in others]}
    sh.emit(document, f"[not bold]{escape(as_text(placement))}[/]\n", compared)


def check_picture(file: Path, replace: bool) -> None:
    """Refuse a file that can't be written, or already exists, before anything is loaded."""
    check_place(file)
    if file.exists() and not replace:
        raise Refused(f"--svg {file}: is there already; name another file, or add --replace")


def refuse_unknown_rows(target: str, layout: str, engine: str | None, runner: str | None = None) -> None:
    """Refuse an unknown target, layout, engine or runner."""
    from tiercel_serving.engines.table import ENGINES
    from tiercel_serving.repository.targets import LAYOUTS, RUNNERS, TARGETS

    refuse_unknown("layout", layout, LAYOUTS)
    refuse_unknown("runner", runner, RUNNERS)
    refuse_unknown("target", target, TARGETS)
    refuse_unknown("engine", engine, ENGINES)


def refuse_unknown(option: str, given: str | None, known: Iterable[str]) -> None:
    """Refuse a value that is not a known one."""
    names = list(known)
    if given is not None and given not in names:
        raise Refused(f"--{option} {given}: expected one of {', '.join(names)}")


def refuse_missing(files: Mapping[str, Path | None]) -> None:
    """Refuse tables that do not exist, before anything is loaded."""
    for name, path in files.items():
        if path is not None and not path.exists():
            raise Refused(f"--{name} {path}: there is no such file; name a Parquet file")


def describe(release: Release, took_s: float) -> dict[str, Any]:
    """Return a description of a release as JSON."""
    import msgspec

    from tiercel_serving.engines.table import form_of, unlowered_of
    from tiercel_serving.stages.specs import RANKING, query_stage

    manifest = release.manifest
    queries = {query_stage(name): model.engine for name, model in manifest.queries.items()}
    ranking = {} if manifest.ranking is None else {RANKING: manifest.ranking.engine}
    engines = {**queries, **ranking}
    folders = {stage: (engine, release.path / "artefacts" / stage) for stage, engine in engines.items()}
    forms = {stage: form_of(*found) for stage, found in folders.items()}
    unlowered = {stage: unlowered_of(*found) for stage, found in folders.items()}
    return {
        "release": str(release.path),
        "seconds": took_s,
        "name": manifest.name,
        "build_id": manifest.build_id,
        "layout": manifest.layout,
        "runner": manifest.runner,
        "target": manifest.target,
        "engines": engines,
        "forms": {stage: form for stage, form in forms.items() if form is not None},
        "unlowered": {stage: why for stage, why in unlowered.items() if why is not None},
        "catalogue": msgspec.to_builtins(manifest.catalogue),
        "tables": manifest.tables,
        "sources": manifest.sources,
        "bytes": sum(entry.bytes for entry in manifest.files.values()),
        "files": len(manifest.files),
    }


def release_table(document: dict[str, Any]) -> Table:
    """Return a summary of the release."""
    catalogue = document["catalogue"]
    values = {
        "build": document["build_id"],
        "layout, target": f"{document['layout']}, {document['target']}",
        "runner": document["runner"],
        **{f"model {stage}": engine_of(document, stage) for stage in document["engines"]},
        "items": f"{catalogue['items']:,}{replaced(document, 'items')}",
        "users": f"{catalogue['users']:,}{replaced(document, 'users')}",
        "interactions": f"{catalogue['interactions']:,}{replaced(document, 'interactions')}",
        **{f"source {name}": measured(figures) for name, figures in document["sources"].items() if figures},
        "size": f"{document['bytes'] / 1e6:.1f} MB in {document['files']} files",
    }
    return pairs(values)


def engine_of(document: Mapping[str, Any], stage: str) -> str:
    """Return the engine of a model and its form, such as loops, or why it has none (see docs/engines.md)."""
    form, why = document["forms"].get(stage), document["unlowered"].get(stage)
    more = "" if why is None else f"; {why}"
    return f"{document['engines'][stage]}{more if form is None else f', as {form}'}"


def measured(figures: Mapping[str, Any]) -> str:
    """Return the measured figures of a source in one line."""
    return ", ".join(
        str(value) if key == "factory" else f"{key} {number(value) if isinstance(value, float) else value}"
        for key, value in figures.items()
        if value != {}
    )


def replaced(document: Mapping[str, Any], name: str) -> str:
    """Return the remark on a table that replaced the run's; empty if it is the run's own."""
    table = document["tables"].get(name, {"from": "run"})
    if table["from"] == "run":
        return ""
    counts = [f"{table[key]:,} {key}" for key in ("new", "gone") if key in table]
    return f" ({', '.join(['given', *counts])})"
