"""``tiercel related``."""

from __future__ import annotations

from typing import Annotated

import typer

from .recommend import Url, items_table, parse_id
from .shell import Debug, Json, shell
from .tables import heading


def command(
    item: Annotated[
        list[str], typer.Option("--item", "-i", metavar="ID", help="The item (may be repeated).")
    ],
    k: Annotated[int | None, typer.Option("-k", help="Number of items. Default: the server's.")] = None,
    url: Url = "localhost:8001",
    exclude: Annotated[
        list[str] | None, typer.Option("--exclude", metavar="ID", help="Exclude this item (may be repeated).")
    ] = None,
    timeout_s: Annotated[float, typer.Option("--timeout-s", min=0.001, help="Deadline in seconds.")] = 5.0,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Ask a server for the items most similar to one item, or to several taken together.

    The recipe's ServingSettings(related=…) chooses the sources that answer this.

    Example: [bold]tiercel related --item 50 -k 10[/]
    """
    with shell(json=json, debug=debug) as sh:
        from tiercel_client import Recommender

        with Recommender(url, timeout_s=timeout_s) as recommender:
            dtype = recommender.server_info().item_id_dtype
            given = [parse_id(text, dtype, "--item") for text in item]
            gone = None if exclude is None else [parse_id(text, dtype, "--exclude") for text in exclude]
            found = recommender.related(given, k, exclude=gone)
            document = {"item_ids": given, "items": [one.to_json() for one in found]}
            like = f"{len(found)} items like {', '.join(map(str, given))}"
            sh.emit(document, heading(like), items_table(document))
