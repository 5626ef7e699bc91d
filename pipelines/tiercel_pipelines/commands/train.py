"""``tiercel train``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tiercel_serving.commands.shell import Debug, Json, Refused, shell
from tiercel_serving.commands.tables import heading, number, pairs, seconds, table

from .data import DataDir
from .evaluate import which_items

if TYPE_CHECKING:
    from rich.table import Table

    from ..recipe.recipe import Recipe

Epochs = Annotated[
    int | None, typer.Option("--epochs", min=1, help="Maximum number of epochs of each model.")
]
Replace = Annotated[bool, typer.Option("--replace", help="Overwrite what already exists.")]


def command(
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE",
            help="movielens, movielens_blend, sequences, synthetic, a .py file, or a module's name.",
        ),
    ],
    run: Annotated[
        Path | None, typer.Option("--run", metavar="DIR", help="Folder of the run. Default: runs/<recipe>.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Use this seed instead of the recipe's.")] = None,
    epochs: Epochs = None,
    replace_run: Replace = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue a killed training, if it left a checkpoint.")
    ] = False,
    dask_scheduler: Annotated[
        str | None,
        typer.Option(
            "--dask-scheduler",
            metavar="ADDRESS",
            help="Fit the workflow on this Dask cluster (tcp://HOST:PORT).",
        ),
    ] = None,
    distributed: Annotated[
        bool, typer.Option("--distributed", help="Train in several processes that torchrun started.")
    ] = False,
    data_dir: DataDir = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Train a recipe: fit its workflow, train its models, measure them offline.

    The run appears under its name only when it is whole. What a killed training left beside it,
    <run>.checkpoint, is where --resume goes on: the run is the same as without the kill.

    Example: [bold]tiercel train movielens --resume[/]
    """
    with shell(json=json, debug=debug) as sh:
        begun = time.perf_counter()
        with sh.work(f"Training {recipe}") as progress:
            from tiercel_serving.stages.seen_again import days_again, given_again

            from ..data import load_dataset
            from ..recipe.load import load_recipe
            from ..training import train_recipe
            from ..training.distributed import train_distributed

            loaded = adjusted(load_recipe(recipe), seed, epochs)
            where = run if run is not None else Path("runs") / loaded.name
            check_free(where, replace_run, "run")
            if distributed and (resume or dask_scheduler):
                raise Refused(
                    "--distributed writes no checkpoint and fits in each process; leave out --resume "
                    "and --dask-scheduler"
                )
            dataset = load_dataset(loaded.dataset, data_dir=data_dir, progress=progress)
            trained = (
                train_distributed(loaded, dataset, where, replace=replace_run, progress=progress)
                if distributed
                else train_recipe(
                    loaded,
                    dataset,
                    where,
                    replace=replace_run,
                    resume=resume,
                    dask_scheduler=dask_scheduler,
                    progress=progress,
                )
            )
        if trained is None:
            return  # the first process writes the run, and says so
        metrics, repeats = trained.metrics, trained.record.data.repeats
        took = time.perf_counter() - begun
        document = {
            "run": where,
            "recipe": loaded.name,
            "seconds": took,
            "metrics": metrics,
            "repeats": repeats,
            "notes": trained.record.notes,
        }
        title = f"{loaded.name}: trained in {seconds(took)} → {where}"
        served = loaded.serving
        which = which_items(served.allow_seen, days_again(served))
        parts: list[Any] = metrics_tables(metrics, which)
        if repeats:
            kept = "may be in several parts" if given_again(served) else "is in one part alone"
            said = f"{number(repeats)} interactions repeat an earlier pair of user and item"
            parts.append(f"[dim]{said}; such a pair {kept}[/]")
        sh.emit(document, heading(title), *parts, f"\nnext: [bold]tiercel export {where}[/]")
        for note in trained.record.notes:
            sh.note(note, style="yellow")


def adjusted(recipe: Recipe, seed: int | None, epochs: int | None) -> Recipe:
    """Return the recipe with the seed and number of epochs of the command line, if given."""
    from msgspec.structs import replace

    if seed is not None:
        recipe = replace(recipe, seed=seed)
    if epochs is not None:
        models = tuple(with_epochs(family, epochs) for family in recipe.models)
        recipe = replace(recipe, retrieval=models, ranking=with_epochs(recipe.ranking, epochs))
    return recipe


def with_epochs(family: Any, epochs: int) -> Any:
    """Return a family's settings with at most ``epochs`` epochs; one without epochs stays as it is."""
    from msgspec.structs import replace

    return replace(family, max_epochs=epochs) if hasattr(family, "max_epochs") else family


def check_free(path: Path, may_replace: bool, what: str) -> None:
    """Refuse to overwrite something that exists, before hours of work."""
    if path.exists() and not may_replace:
        option = "--run" if what == "run" else "--release"
        raise Refused(f"{path}: exists already; --replace overwrites it, {option} names another folder")


def metrics_tables(metrics: dict[str, Any], which: str = "unseen items") -> list[Table]:
    """Return the figures as tables: one with a line for each model that makes lists, and one of the rest."""
    models = {name: value for name, value in metrics.items() if isinstance(value, dict) and "ndcg" in value}
    rest = {name: value for name, value in metrics.items() if name not in models}
    made = []
    if models:
        figures = [name for name in next(iter(models.values())) if name not in ("k", "users")]
        ranked = table(f"offline, top 10 of all {which}", *figures, right=figures)
        for name, values in models.items():
            ranked.add_row(name, *(f"{values[figure]:.4f}" for figure in figures))
        made.append(ranked)
    if rest:
        # Learning curves are only in the JSON output.
        shown = {name: value for name, value in flat(rest) if not isinstance(value, list)}
        made.append(pairs(shown))
    return made


def flat(values: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """Return the leaves of nested mappings with dotted names."""
    if not isinstance(values, dict):
        return [(prefix, values)]
    return [leaf for key, value in values.items() for leaf in flat(value, f"{prefix} {key}".strip())]
