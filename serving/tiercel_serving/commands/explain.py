"""``tiercel explain``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .recommend import Candidate, Exclude, History, Include, Url, parse_features, parse_id, parse_items
from .shell import Debug, Json, shell
from .tables import heading, pairs

if TYPE_CHECKING:
    from rich.table import Table

    from tiercel_client import Recommender


def command(
    item: Annotated[str, typer.Option("--item", "-i", metavar="ID", help="The item.")],
    user: Annotated[
        str | None, typer.Option("--user", "-u", metavar="ID", help="The user. Default: an anonymous user.")
    ] = None,
    k: Annotated[int | None, typer.Option("-k", help="Number of items. Default: the server's.")] = None,
    url: Url = "localhost:8001",
    release: Annotated[
        Path | None,
        typer.Option(
            "--release", metavar="DIR", help="Use this release in this process instead of a server."
        ),
    ] = None,
    exclude: Exclude = None,
    include: Include = None,
    candidate: Candidate = None,
    history: History = None,
    feature: Annotated[
        list[str] | None,
        typer.Option(
            "--feature", metavar="NAME=VALUE", help="A column of the user or the context (may be repeated)."
        ),
    ] = None,
    allow_seen: Annotated[
        bool | None,
        typer.Option(
            "--allow-seen/--no-allow-seen", help="Whether items that the user already had may be recommended."
        ),
    ] = None,
    timeout_s: Annotated[float, typer.Option("--timeout-s", min=0.001, help="Deadline in seconds.")] = 5.0,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Explain why a user gets an item or not: the stage that dropped it, and what would have to change.

    Example: [bold]tiercel explain --user 42 --item 50[/]
    """
    with shell(json=json, debug=debug) as sh, _recommender(url, release, timeout_s) as recommender:
        from tiercel_client import ANONYMOUS

        info = recommender.server_info()
        request: dict[str, Any] = {
            "features": parse_features(feature or (), info.request_columns),
            **parse_items(info.item_id_dtype, exclude, include, candidate, history),
        }
        who = ANONYMOUS if user is None else parse_id(user, info.user_id_dtype, "--user")
        wanted = parse_id(item, info.item_id_dtype, "--item")
        document = recommender.why(who, wanted, k, allow_seen=allow_seen, **request).to_json()
        sh.emit(document, heading(_line(document)), _view(document))


def _recommender(url: str, release: Path | None, timeout_s: float) -> Recommender:
    from tiercel_client import Recommender

    if release is None:
        return Recommender(url, timeout_s=timeout_s)
    from ..runtime.local import LocalTransport

    return Recommender(transport=LocalTransport(release), timeout_s=timeout_s)


def _line(document: Mapping[str, Any]) -> str:
    who = "Anonymous user" if document["user_id"] is None else f"User {document['user_id']}"
    title = f" ({document['title']})" if document["title"] else ""
    verb = "gets" if document["stage"] == "answer" else "does not get"
    return f"{who} {verb} item {document['item_id']}{title}"


def _view(document: Mapping[str, Any]) -> Table:
    """Return a table of the facts, one per line."""
    score = document["score"]
    rows = {"stage": document["stage"], "because": document["reason"], "place": document["rank"]}
    rows |= {"score": None if score is None else f"{score:.4f}", "needed": document["needed"] or None}
    return pairs({name: value for name, value in rows.items() if value is not None})
