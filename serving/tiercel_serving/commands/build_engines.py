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
        typer.Option("--to", metavar="DIR", help="Where the result goes; else its own place."),
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option("--cache", metavar="DIR", help="Keeps what was built, by GPU and library version."),
    ] = None,
    refittable: Annotated[
        bool, typer.Option("--refittable", help="Plans take the weights of a later release.")
    ] = False,
    refit: Annotated[
        Path | None,
        typer.Option("--refit", metavar="OLD", help="Release whose plans get the new weights, if they fit."),
    ] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Build a release's TensorRT plans on the GPU that will run them, verify them, and install them.

    Run it in the container that will serve, before Triton starts: plans are bound to the GPU's model and to
    the version of TensorRT. The release changes only if every engine computes what its graph computes.

    After a training that changed weights alone, `--refit OLD` puts them into the plans of the release OLD,
    which was built with `--refittable`, in place of a build.

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
        sh.emit(document, heading(title), *([made] if built else ["no engine of this release is built so"]))
