"""``tiercel verify``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from .shell import FAILED, Debug, Json, shell
from .tables import heading, number, table

if TYPE_CHECKING:
    from rich.table import Table


def command(
    release: Annotated[Path, typer.Argument(metavar="RELEASE", help="Directory of a release.")],
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Compare every artefact of a release with its checksum and its golden vectors.

    Needs neither the training data nor NVTabular. Exit code 1 if anything differs.

    Example: [bold]tiercel verify releases/movielens[/]
    """
    with shell(json=json, debug=debug) as sh:
        with sh.work(f"Verifying {release}", steps=True) as progress:
            from ..verify.checks import verify_release

            report = verify_release(release, progress=progress)
        document = {"release": str(release), **report.to_json()}
        sh.emit(document, heading(f"{release}, build {document['build_id']}"), verify_table(document))
        if not document["ok"]:
            sh.note("The release is not what was trained; export it again.", style="red")
            raise typer.Exit(FAILED)


def verify_table(document: dict[str, Any]) -> Table:
    """Return a table with one line for each check."""
    made = table(
        "artefact", "check", "compared", "worst", "allowed", "", right=("compared", "worst", "allowed")
    )
    for row in document["rows"]:
        mark = "[bold red]✗[/]" if not row["ok"] else "[yellow]![/]" if row["warning"] else "[green]✓[/]"
        worst = "" if row["worst"] is None else number(row["worst"])
        note = f"{mark} [dim]{escape(row['detail'])}[/]"
        made.add_row(row["artefact"], row["check"], number(row["compared"]), worst, row["tolerance"], note)
    return made
