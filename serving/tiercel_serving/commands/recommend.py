"""``tiercel recommend``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from .shell import Debug, Json, Refused, checked_url, shell
from .tables import heading, number, table

if TYPE_CHECKING:
    from rich.table import Table

    from tiercel_client import Explanation, Recommendation, RequestColumn

Url = Annotated[
    str,
    typer.Option("--url", metavar="HOST:PORT", callback=checked_url, help="Address of the server's gRPC."),
]
Exclude = Annotated[
    list[str] | None, typer.Option("--exclude", metavar="ID", help="Exclude this item (may be repeated).")
]
Include = Annotated[
    list[str] | None,
    typer.Option("--include", metavar="ID", help="Recommend only such items (may be repeated)."),
]
Candidate = Annotated[
    list[str] | None,
    typer.Option(
        "--candidate", metavar="ID", help="Rank these items instead of searching (may be repeated)."
    ),
]
History = Annotated[
    list[str] | None,
    typer.Option(
        "--history",
        metavar="ID",
        help="An item of the user's history, oldest first, instead of the stored history (may be repeated).",
    ),
]

#: How many of the candidates that were dropped for one reason are named.
NAMED = 6


def command(
    user: Annotated[
        str | None, typer.Option("--user", "-u", metavar="ID", help="The user. Default: an anonymous user.")
    ] = None,
    k: Annotated[int | None, typer.Option("-k", help="Number of items. Default: the server's.")] = None,
    url: Url = "localhost:8001",
    exclude: Exclude = None,
    include: Include = None,
    candidate: Candidate = None,
    history: History = None,
    feature: Annotated[
        list[str] | None,
        typer.Option(
            "--feature",
            metavar="NAME=VALUE",
            help="A column of the user or the context, instead of the stored value (may be repeated). "
            "Commas separate a list; an empty value is null.",
        ),
    ] = None,
    allow_seen: Annotated[
        bool | None,
        typer.Option(
            "--allow-seen/--no-allow-seen",
            help="Whether items that the user already had may be recommended. Default: as the recipe says.",
        ),
    ] = None,
    explain: Annotated[
        bool,
        typer.Option("--explain", help="Show what each stage did, what it dropped and why, and its time."),
    ] = False,
    timeout_s: Annotated[float, typer.Option("--timeout-s", min=0.001, help="Deadline in seconds.")] = 5.0,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Ask a server for recommendations, and with --explain for their reasons.

    Example: [bold]tiercel recommend --user 42 -k 10 --explain[/]
    """
    with shell(json=json, debug=debug) as sh:
        from tiercel_client import ANONYMOUS, Recommender

        with Recommender(url, timeout_s=timeout_s) as recommender:
            info = recommender.server_info()
            request: dict[str, Any] = {
                "user_id": ANONYMOUS if user is None else parse_id(user, info.user_id_dtype, "--user"),
                "k": k,
                "features": parse_features(feature or (), info.request_columns),
                "allow_seen": allow_seen,
                **parse_items(info.item_id_dtype, exclude, include, candidate, history),
            }
            if explain:
                explained = recommender.explain(**request)
                document = explanation_document(explained)
                sh.emit(document, *explanation_view(document))
            else:
                document = document_of(recommender.recommend(**request))
                sh.emit(document, heading(answer_line(document)), items_table(document))


def parse_id(text: str, dtype: str, option: str) -> int | str:
    """Return a typed raw id in the type of the server's ids."""
    if dtype == "bytes":
        return text
    try:
        return int(text)
    except ValueError:
        raise Refused(f"{option} {text}: this server's ids are integers") from None


def parse_items(
    dtype: str, exclude: Exclude, include: Include, candidate: Candidate, history: History
) -> dict[str, list[int | str]]:
    """Return the given lists of items by the names of the client's parameters."""
    lists = {"exclude": exclude, "include": include, "candidates": candidate, "history": history}
    return {
        name: [parse_id(text, dtype, f"--{name.removesuffix('s')}") for text in given]
        for name, given in lists.items()
        if given is not None
    }


def parse_features(given: Sequence[str], columns: Sequence[RequestColumn]) -> dict[str, Any]:
    """Return ``NAME=VALUE`` pairs as features, in the types of the server's columns."""
    known = {column.name: column for column in columns}
    features: dict[str, Any] = {}
    for pair in given:
        name, equals, text = pair.partition("=")
        if not equals:
            raise Refused(f"--feature {pair}: write NAME=VALUE, as in --feature age=31")
        if name not in known:
            raise Refused(f"--feature {pair}: this server knows no such column; it takes {', '.join(known)}")
        if name in features:
            raise Refused(f"--feature {pair}: {name} was given twice; give it once")
        features[name] = _parse_value(text, known[name], pair)
    return features


def _parse_value(text: str, column: RequestColumn, pair: str) -> Any:
    kinds: Mapping[str, Any] = {"int64": int, "int32": int, "float32": float, "float64": float}
    parse = _yes_or_no if column.dtype == "bool" else kinds.get(column.dtype, str)
    if column.unit is not None and not text.lstrip("-").isdigit():
        parse = str  # a date, which the client reads
    try:
        if column.is_list:
            return [parse(part) for part in text.split(",")] if text else []
        return parse(text) if text else None
    except ValueError:
        raise Refused(f"--feature {pair}: {column.name} has the type {column.dtype}") from None


def _yes_or_no(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError(text)
    return text == "true"


def document_of(answer: Recommendation) -> dict[str, Any]:
    """Return an answer as JSON."""
    return answer.to_json()


def explanation_document(explained: Explanation) -> dict[str, Any]:
    """Return an explained answer as JSON: the answer's own document with ``explain`` in it."""
    document = document_of(explained.recommendation)
    inner = explained.to_json()
    del inner["recommendation"]
    inner["stages"] = [
        {"stage": stage, "what": _what(stage, explained), "time_us": explained.times_us.get(stage)}
        for stage in explained.stages
    ]
    del inner["times_us"]
    return {**document, "explain": inner}


def explanation_view(document: Mapping[str, Any]) -> list[Any]:
    """Return the output of an explained answer for people."""
    explained = document["explain"]
    view: list[Any] = [heading(answer_line(document)), journeys_table(document), ""]
    view += [heading("What each stage did"), stages_table(explained)]
    dropped = dropped_table(explained)
    if dropped.row_count:
        view += ["", heading("What was dropped before the ranker"), dropped]
    return view


def answer_line(document: Mapping[str, Any]) -> str:
    """Return one line about the answer as a whole."""
    who = "Anonymous user" if document["user_id"] is None else f"User {document['user_id']}"
    count = len(document["items"])
    return f"{who} ({document['status'].replace('_', ' ')}): {count} item{'' if count == 1 else 's'}"


def items_table(document: Mapping[str, Any]) -> Table:
    """Return the recommendations, best first."""
    made = table("#", "title", "item", "score", right=("#", "score"))
    for item in document["items"]:
        made.add_row(*_item_cells(item))
    return made


def journeys_table(document: Mapping[str, Any]) -> Table:
    """Return a table of the recommendations with the place of each in retrieval."""
    made = table(
        "#",
        "title",
        "item",
        "score",
        "found by",
        "retrieval",
        "was",
        "",
        right=("#", "score", "retrieval", "was"),
    )
    found = {candidate["rank"]: candidate for candidate in document["explain"]["candidates"]}
    for item in document["items"]:
        cells = _item_cells(item)
        candidate = found.get(item["rank"])
        if candidate is not None:
            move = _move(candidate["position"] - item["rank"])
            place = f"#{candidate['position']}"
            cells += [escape(candidate["source"]), f"{candidate['retrieval_score']:.4f}", place, move]
        made.add_row(*cells)
    return made


def stages_table(explained: Mapping[str, Any]) -> Table:
    """Return a table of what each stage did to the candidates, and how long it took."""
    made = table("stage", "what it did", "time", right=("time",))
    for stage in explained["stages"]:
        made.add_row(stage["stage"], escape(stage["what"]), _time(stage["time_us"]))
    total = sum(stage["time_us"] or 0.0 for stage in explained["stages"])
    made.add_row("[dim]total[/]", "", _time(total))
    return made


def dropped_table(explained: Mapping[str, Any]) -> Table:
    """Return a table of why candidates were dropped, with the best ones for each reason."""
    by_reason: dict[str, list[str]] = {}
    for candidate in explained["candidates"]:
        if not candidate["kept"]:
            name = candidate["title"] or f"item {candidate['item_id']}"
            by_reason.setdefault(candidate["reason"], []).append(escape(name))
    made = table("because", "items", "which, best first", right=("items",))
    for reason, names in by_reason.items():
        more = f" [dim]and {len(names) - NAMED} more[/]" if len(names) > NAMED else ""
        made.add_row(escape(reason), number(len(names)), ", ".join(names[:NAMED]) + more)
    return made


def _what(stage: str, explained: Explanation) -> str:
    """Return a description of what a stage did for this user."""
    candidates, kept = explained.candidates, explained.kept
    if stage == "user_features":
        store = "in the store" if explained.status.value == "known" else "not in the store"
        return f"user is {store}; the latest {len(explained.history)} items of the history"
    if stage.startswith("query_"):
        return "made the query"
    if stage == "retrieval":
        sources = [candidate.source for candidate in candidates]
        parts = ", ".join(f"{sources.count(name)} by {name}" for name in dict.fromkeys(sources))
        return f"found {len(candidates)} candidates: {parts}" if parts else "found nothing"
    if stage == "filtering":
        return f"kept {len(kept)}, dropped {len(candidates) - len(kept)}"
    if stage == "candidate_features":
        return f"looked up the features of {len(kept)} items"
    if stage == "ranking":
        scores = [candidate.rank_scores[0] for candidate in kept if candidate.rank_scores]
        return f"scored {len(scores)}, from {min(scores):.4f} to {max(scores):.4f}" if scores else "not asked"
    if stage == "ordering":
        return f"answered the best {len(explained.items)}"
    return ""


def _item_cells(item: Mapping[str, Any]) -> list[str]:
    name = escape(item["title"] or "")
    return [str(item["rank"]), name, escape(str(item["item_id"])), f"{item['score']:.4f}"]


def _move(places: int) -> str:
    if places > 0:
        return f"[green]▲ {places}[/]"
    return f"[red]▼ {-places}[/]" if places < 0 else "[dim]=[/]"


def _time(microseconds: float | None) -> str:
    return "[dim]by Triton[/]" if microseconds is None else f"{microseconds / 1000:.3f} ms"
