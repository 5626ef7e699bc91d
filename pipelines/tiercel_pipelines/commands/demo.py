"""``tiercel demo``."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from tiercel_serving.commands.recommend import document_of, items_table
from tiercel_serving.commands.serve import example_user, start
from tiercel_serving.commands.shell import Debug, Json, Refused, Shell, shell
from tiercel_serving.commands.tables import number, seconds

from .train import Epochs, adjusted

if TYPE_CHECKING:
    from ..data import Dataset

#: Data set → the most accurate recipe for it that comes with Tiercel.
RECIPES = {"ml-100k": "movielens_blend", "synthetic": "synthetic"}


def command(
    data: Annotated[
        str,
        typer.Option(
            "--data",
            metavar="auto|ml-100k|synthetic",
            help="auto takes ml-100k if it is here or can be downloaded, else synthetic.",
        ),
    ] = "auto",
    folder: Annotated[Path, typer.Option("--dir", help="Folder for runs/ and releases/.")] = Path(),
    epochs: Epochs = None,
    reuse: Annotated[
        bool, typer.Option("--reuse", help="Use an existing run and release instead of making them.")
    ] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Do everything once: data, training, export, verification, a real Triton, ten recommendations.

    Takes MovieLens-100K if it is here or can be downloaded, else synthetic data, and says which.

    Example: [bold]tiercel demo[/]
    """
    with shell(json=json, debug=debug) as sh:
        if data not in ("auto", *RECIPES):
            raise Refused(f"--data {data}: use auto, {' or '.join(RECIPES)}")
        demo = _Demo(sh, folder, epochs, reuse)
        document = demo.run(data)
        sh.emit(document, *_human(document))


class _Demo:
    """The steps of the demo, and how long each took, in seconds."""

    def __init__(self, sh: Shell, folder: Path, epochs: int | None, reuse: bool) -> None:
        self.sh, self.folder, self.epochs, self.reuse = sh, folder, epochs, reuse
        self.steps: dict[str, float] = {}

    def run(self, data: str) -> dict[str, Any]:
        """Run every step, and return the results as JSON."""
        begun = time.perf_counter()
        dataset = self.data(data)
        name = RECIPES[dataset.name]
        run, release = self.folder / "runs" / name, self.folder / "releases" / name
        metrics = self.train(dataset, run)
        self.export(run, release)
        answer = self.serve(release)
        return {
            "data": dataset.name,
            "source": dataset.source,
            "run": str(run),
            "release": str(release),
            "metrics": metrics,
            "recommendation": answer,
            "seconds": {**self.steps, "total": time.perf_counter() - begun},
        }

    def data(self, wanted: str) -> Dataset:
        """Load the ``wanted`` data set; ``auto`` takes ml-100k if it is available, else synthetic data."""
        from ..data import NAMED, load_dataset
        from ..errors import DataError

        with self.step("data") as came, self.sh.work("Loading data") as progress:
            name = "ml-100k" if wanted == "auto" else wanted
            try:
                dataset = load_dataset(NAMED[name], progress=progress)
            except DataError as error:
                if wanted != "auto":
                    raise
                self.sh.note(f"{error}\nTaking made-up data instead.", style="yellow")
                dataset = load_dataset(NAMED["synthetic"], progress=progress)
            count = number(len(dataset.interactions))
            came(f"{dataset.name} ({dataset.source}), {count} interactions")
        return dataset

    def train(self, dataset: Dataset, run: Path) -> Any:
        """Train the data set's recipe, and return the metrics."""
        with self.step("train") as came, self.sh.work("Training") as progress:
            from ..recipe.load import load_recipe
            from ..training import TrainedRun, train_recipe

            if self.reuse and run.exists():
                trained = TrainedRun.open(run)
            else:
                recipe = adjusted(load_recipe(RECIPES[dataset.name]), None, self.epochs)
                trained = train_recipe(recipe, dataset, run, replace=True, progress=progress)
            came(f"workflow and models → {run}")
        return trained.metrics

    def export(self, run: Path, release: Path) -> None:
        """Compile and verify the run."""
        with self.step("export") as came, self.sh.work("Exporting", steps=True) as progress:
            from ..export.run_export import export_run
            from ..training import TrainedRun

            if not (self.reuse and release.exists()):
                trained = TrainedRun.open(run)
                export_run(trained, release, layout="fused", target="cpu", replace=True, progress=progress)
            came(f"compiled and verified → {release}")

    def serve(self, release: Path) -> dict[str, Any]:
        """Serve the release, ask it once, and stop it."""
        from tiercel_client import Recommender

        with self.step("serve") as came:
            server = start(self.sh, release)
            came(f"Triton answers at {server.grpc_url} (gRPC) and {server.http_url}")
        try:
            assert server.release is not None
            user = example_user(server.release)
            with self.step("recommend") as came, Recommender(server.grpc_url) as recommender:
                answer = recommender.recommend(user_id=user, k=10)
                came(f"{len(answer.items)} items for user {user}, over gRPC")
        finally:
            with self.step("stop") as came:
                server.stop()
                came("the server is gone, and left nothing")
        return document_of(answer)

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[Callable[[str], None]]:
        """Time a step, and print its result at the end, which the block passes to the yielded function."""
        came: list[str] = []
        begun = time.perf_counter()
        yield came.append
        self.steps[name] = time.perf_counter() - begun
        line = f"[green]✓[/] {name:<10}{escape(''.join(came))}  [dim]{seconds(self.steps[name])}[/]"
        self.sh.err.print(line, highlight=False, soft_wrap=True)


def _human(document: Mapping[str, Any]) -> list[Any]:
    release, user = document["release"], document["recommendation"]["user_id"]
    total = seconds(document["seconds"]["total"])
    return [
        "",
        items_table(document["recommendation"]),
        "",
        f"All of it took {total}. What to type next:",
        f"  tiercel serve {escape(release)}",
        f"  tiercel recommend --user {escape(str(user))} -k 10 --explain     [dim]# in another terminal[/]",
        f"  tiercel evaluate {escape(document['run'])} --release {escape(release)}",
    ]
