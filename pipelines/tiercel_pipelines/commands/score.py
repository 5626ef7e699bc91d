"""``tiercel score``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from tiercel_serving.commands.shell import Debug, Json, shell
from tiercel_serving.commands.tables import heading, number, pairs, seconds


def command(
    release: Annotated[Path, typer.Argument(metavar="RELEASE", help="Directory that `tiercel export` made.")],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="The Parquet file to write.")],
    users: Annotated[
        Path | None,
        typer.Option(
            "--users",
            metavar="FILE",
            help="Parquet file with the ids of the users to score. Default: every user.",
        ),
    ] = None,
    k: Annotated[
        int | None, typer.Option("-k", min=1, help="Items for each user. Default: the recipe's.")
    ] = None,
    batch_users: Annotated[
        int, typer.Option("--batch-users", min=1, help="Users at a time; fewer need less memory.")
    ] = 256,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Overwrite an existing OUTPUT.")] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Write every user's recommendations, as a server would answer, to a Parquet file; no server is needed.

    One row a user: the user's id, lists item_id and score, best first, and status. Memory does not grow
    with the users. The output appears under its name only when it is whole.

    Example: [bold]tiercel score releases/movielens lists.parquet -k 20[/]
    """
    with shell(json=json, debug=debug) as sh:
        with sh.work(f"Scoring {release}") as progress:
            from ..features.parquet_files import check_output
            from ..offline.score import score_release

            check_output(output, [] if users is None else [users], overwrite)
            scored = score_release(
                release, output, users=users, k=k, batch_users=batch_users, progress=progress
            )
        title = f"{number(scored.users)} users scored in {seconds(scored.seconds)} → {output}"
        facts = {
            "known users": number(scored.known),
            "items a user": f"{scored.items / max(scored.users, 1):.1f}",
            "users a second": number(round(scored.users_per_s)),
        }
        sh.emit({**asdict(scored), "users_per_s": scored.users_per_s}, heading(title), pairs(facts))
