"""Two recommenders, trained, exported and served on a real Triton once for all end-to-end tests.

``movielens`` is what a reader of the README trains and exports, on real data where available; ``synthetic``
has string ids, context, lists and nulls. Both are trained for one epoch: parity does not need good models.
One server holds both layouts: ``recommend`` is fused, ``recommend_staged`` is staged.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from brief_server import brief_server
from cached_export import cached_export
from e2e.readme_reader import ROOT, Reader
from e2e.served import RUNNERS, Served
from tiercel_pipelines.data import load_dataset
from tiercel_pipelines.export.run_export import export_run
from tiercel_pipelines.recipe import Synthetic, load_recipe, replace
from tiercel_pipelines.training import TrainedRun, train_recipe
from tiercel_serving.release.opened import Release, open_release
from tiercel_serving.repository.graph import render_repository
from tiercel_serving.stores.embedded import Embedded


def ml_100k_missing() -> str | None:
    if (data_dir() / "ml-100k" / "u.data").is_file():
        return None
    return "ml-100k is not here: set TIERCEL_DATA_DIR, or say `tiercel data ml-100k`"


def data_dir() -> Path:
    """Return the folder of data sets."""
    return Path(os.environ.get("TIERCEL_DATA_DIR", ROOT / "data"))


def trained_synthetic(place: Path) -> tuple[TrainedRun, Release]:
    """Train the recipe that covers all features, only as long as parity needs, and export it."""
    recipe = load_recipe("synthetic")
    recipe = replace(
        recipe,
        dataset=Synthetic(users=500, items=300, interactions=12_000, ids="str"),
        retrieval=replace(recipe.retrieval, max_epochs=1),
        ranking=replace(recipe.ranking, max_epochs=1, task=replace(recipe.ranking.task, folds=2)),
    )
    run = train_recipe(recipe, load_dataset(recipe.dataset), place / "run")
    return run, export_run(run, place / "release")


@pytest.fixture(scope="session", autouse=True)
def _cached_export() -> Iterator[None]:
    """Exporting a run again with another index reuses its models."""
    with cached_export():
        yield


@pytest.fixture(scope="session")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    """Return a reader of the README who has not typed any command yet."""
    return Reader(tmp_path_factory.mktemp("reader"), data_dir(), ml_100k_missing() is None)


@pytest.fixture(scope="session", params=["movielens", "synthetic"])
def served(
    request: pytest.FixtureRequest, reader: Reader, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    """Serve both layouts of one release."""
    place = tmp_path_factory.mktemp(request.param)
    if request.param == "synthetic":
        run, made = trained_synthetic(place)
    elif reason := ml_100k_missing():
        pytest.skip(reason)
    else:
        reader.type_through("tiercel export")
        run = TrainedRun.open(reader.place / "runs" / "movielens")
        made = open_release(reader.place / "releases" / "movielens")
    recipe = run.record.recipe
    dataset = load_dataset(recipe.dataset)
    # A store changes no answer until something is written; `test_live_store.py` undoes its writes.
    release = Release(made.path, made.manifest, Embedded(path=str(place / "store")))
    repository = place / "repository"
    runner = RUNNERS[request.param]
    render_repository(release, repository, "fused", runner=runner)
    render_repository(release, repository, "staged", suffix="_staged", runner=runner)
    with brief_server(repository) as server:
        yield Served(recipe, dataset, run, release, server)
