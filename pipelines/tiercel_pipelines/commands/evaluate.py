"""``tiercel evaluate``."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tiercel_serving.commands.serve import Layout, Triton, start
from tiercel_serving.commands.shell import Debug, Json, Refused, Shell, checked_url, shell
from tiercel_serving.commands.tables import heading, number, table

if TYPE_CHECKING:
    from rich.table import Table

    from ..offline.evaluate import EvaluationReport
    from ..training import TrainedRun

#: Row of the table → its label.
ROWS = {
    "popularity": "popularity (baseline)",
    "retrieval": "served, retrieval alone",
    "ranking": "served, after ranking",
}


def command(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="Directory that `tiercel train` made; holds the test part.")
    ],
    release: Annotated[
        Path | None,
        typer.Option(
            "--release", metavar="RELEASE", help="Start a server on this release, and stop it at the end."
        ),
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(
            "--url",
            metavar="HOST:PORT",
            callback=checked_url,
            help="Ask a server that is already running (gRPC).",
        ),
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Number of items to judge in each list.")] = 10,
    layout: Layout = None,
    triton: Triton = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Ask the served ensemble for every test user's items, and measure the quality of the answers.

    Reports nDCG, precision, recall, hit rate, MRR and coverage after retrieval alone and after ranking,
    beside the most popular items and, where the protocol is theirs, published figures; then how new and
    varied the lists are, and how popular what they show.

    Example: [bold]tiercel evaluate runs/movielens --release releases/movielens[/]
    """
    with shell(json=json, debug=debug) as sh:
        if release is None and url is None:
            raise Refused("name what to ask: --release DIR starts a server on it, --url HOST:PORT asks one")
        if url is not None and (layout or triton):
            raise Refused("--layout and --triton are for a server that this command starts; leave out --url")
        from ..training import TrainedRun

        report = evaluate(sh, TrainedRun.open(run), release, url, k, layout=layout, triton=triton)
        document = {"run": str(run), **report.to_json()}
        sh.emit(document, *human(document))


def evaluate(
    sh: Shell, run: TrainedRun, release: Path | None, url: str | None, k: int, **how: Any
) -> EvaluationReport:
    """Evaluate the server at ``url``, or one started on ``release``; with both, the server must serve it."""
    from tiercel_serving.release.opened import open_release

    from ..offline.evaluate import check_protocol, check_same, check_tables, evaluate_served
    from ..offline.evaluation_data import EvaluationData
    from ..offline.served_ensemble import ServedEnsemble

    data = EvaluationData.from_run(run, k)
    with ExitStack() as stack:
        build_id = None
        if release is not None:
            opened = open_release(release)
            check_tables(opened)
            build_id = opened.build_id
        if url is None:
            assert release is not None
            url = stack.enter_context(start(sh, release, **how)).grpc_url
        served = stack.enter_context(ServedEnsemble(url))
        check_same(served.info, run, build_id)
        check_protocol(served.info, data)
        with sh.work(f"Asking for {len(data.user_ids)} users") as progress:
            return evaluate_served(served, data, k=k, progress=progress)


def human(document: dict[str, Any]) -> list[Any]:
    """Return the output for people."""
    which = which_items(document["allow_seen"], document["seen_again_days"])
    title = (
        f"{document['name']} (build {document['build_id']}), {document['dataset']}: "
        f"{number(document['users'])} users, top {document['k']} of all {which}"
    )
    parts: list[Any] = [heading(title), figures_table(document), beyond_table(document)]
    if document["left_out"]:
        days = document["seen_again_days"]
        why = "allow_seen is off" if days is None else f"seen_again_days is {days:g}"
        had = f"{number(document['left_out'])} pairs of user and item are also in training, and so not served"
        parts.append(f"[dim]left out of the test: {had} ({why})[/]")
    sources = {row["source"] for row in document["published"]}
    if sources:
        parts.append(f"[dim]published figures: {'; '.join(sorted(sources, reverse=True))}[/]")
    return parts


def which_items(allow_seen: bool, seen_again_days: float | None) -> str:
    """Return in words which items of the catalogue could be recommended."""
    if allow_seen:
        return "items, seen or not"
    again = "" if seen_again_days is None else f" and those seen {seen_again_days:g} or more days before"
    return f"unseen items{again}"


def figures_table(document: dict[str, Any]) -> Table:
    """Return one line for each list that was measured, then one for each published figure."""
    k = document["k"]
    figures = ("ndcg", "precision", "recall", "hit_rate", "mrr", "coverage")
    columns = [f"nDCG@{k}", f"precision@{k}", f"recall@{k}", f"hit rate@{k}", f"MRR@{k}", "coverage"]
    made = table("", *columns, right=columns)
    for name, label in ROWS.items():
        values = document["figures"][name]
        cells = [f"{values[figure]:.4f}" for figure in figures]
        made.add_row(label, *cells, style="bold" if name == "ranking" else "")
    if document["published"]:
        made.add_section()
    for row in document["published"]:
        cells = [f"{row[figure]:.4f}" for figure in ("ndcg", "precision", "recall")]
        made.add_row(f"[dim]{row['name']}[/]", *cells, "", "", "")
    return made


def beyond_table(document: dict[str, Any]) -> Table:
    """Return one line for each list: novelty, diversity, and how popular and uneven what it shows is."""
    columns = ["novelty (bits)", "diversity", "popularity", "popularity lift", "Gini"]
    made = table("", *columns, right=columns)
    for name, values in document["beyond"].items():
        figures = (values[key] for key in ("novelty", "diversity", "popularity", "popularity_lift", "gini"))
        made.add_row(ROWS[name], *(f"{figure:.3f}" for figure in figures))
    return made
