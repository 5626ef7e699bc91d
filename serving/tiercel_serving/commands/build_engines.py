"""``tiercel build-engines``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .shell import Debug, Json, shell
from .tables import heading, table


def command(
    release: Annotated[Path, typer.Argument(metavar="RELEASE", help="Directory of a release.")],
    to: Annotated[
        Path | None,
        typer.Option("--to", metavar="DIR", help="Folder of the result. Default: the release's own."),
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(
            "--cache", metavar="DIR", help="Folder that keeps built engines, by GPU and library version."
        ),
    ] = None,
    refittable: Annotated[
        bool, typer.Option("--refittable", help="Build plans that can take the weights of a later release.")
    ] = False,
    refit: Annotated[
        Path | None,
        typer.Option(
            "--refit", metavar="OLD", help="Release whose plans are reused with the new weights, if they fit."
        ),
    ] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Build a release's GPU engines on the GPU that will run them, verify them, and install them.

    These are TensorRT plans, bound to the GPU's model and the version of TensorRT, and packages of
    `aoti-cuda`. Run it in the container that will serve, before Triton starts. The release changes only if
    every engine computes what its graph computes.

    After a training that changed only weights, `--refit OLD` puts them into the plans of the release OLD,
    which was built with `--refittable`, instead of building plans.

    Example: [bold]tiercel build-engines releases/movielens --cache /var/cache/tiercel[/]
    """
    with shell(json=json, debug=debug) as sh:
        with sh.work(f"Building the engines of {release}", steps=True) as progress:
            from ..engines.install import build_engines

            built, report = build_engines(
                release, destination=to, cache=cache, refittable=refittable, refit=refit, progress=progress
            )
        document = {
            "release": str(to or release),
            "build_id": report.build_id,
            "engines": [{"stage": one.stage, "engine": one.engine, "detail": one.detail} for one in built],
            "verified": report.ok,
        }
        made = table("stage", "engine", "")
        for one in built:
            made.add_row(one.stage, one.engine, one.detail)
        title = f"{document['release']}: {len(built)} engines built and verified"
        sh.emit(
            document, heading(title), *([made] if built else ["no engine of this release needs building"])
        )
