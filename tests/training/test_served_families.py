"""Every family from training to the client: the release's answers match the figures of training."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from brief_server import brief_server
from tiercel_pipelines.data import Dataset, load_dataset
from tiercel_pipelines.export.run_export import export_run
from tiercel_pipelines.families.table import RANKING_FAMILIES, RETRIEVAL_FAMILIES
from tiercel_pipelines.offline.evaluate import evaluate_served
from tiercel_pipelines.offline.evaluation_data import EvaluationData
from tiercel_pipelines.offline.served_ensemble import LocalEnsemble, ServedEnsemble
from tiercel_pipelines.recipe import EASE, ListwiseSoftmax, Recipe, Synthetic, load_recipe, replace
from tiercel_pipelines.training import train_recipe

pytestmark = pytest.mark.slow

BASE = load_recipe("synthetic")
#: Length of the vectors that items have.
LENGTH = 6
#: Settings that make a family small, or that it needs for this data set.
SMALL: dict[str, dict[str, Any]] = {
    **{name: {"l2": 5.0} for name in ("ease", "slim")},
    "vbpr": {"length": LENGTH, "vector_dimension": 4, "dimension": 16},
}


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    """Return synthetic tables, with ratings and with given item vectors."""
    found, rng = load_dataset(Synthetic(users=120, items=80, interactions=2_500)), np.random.default_rng(0)
    vectors = list(rng.normal(size=(len(found.items), LENGTH)).astype(np.float32))
    ratings = rng.integers(1, 6, len(found.interactions)).astype(np.float64)
    return dataclasses.replace(
        found,
        items=found.items.assign(embedding=vectors),
        interactions=found.interactions.assign(rating=ratings),
    )


def features() -> Any:
    """Return the recipe's graph, extended by the given vectors."""
    from nvtabular import ops

    return BASE.features() + (["embedding"] >> ops.TagAsItemFeatures())


def small(table: Any, name: str) -> Any:
    """Return a family's settings that train in a moment."""
    settings = table.find(name)()
    fields = settings.__struct_fields__
    changes = {"max_epochs": 2, "embedding_dimension": 8, "trees_per_epoch": 5, **SMALL.get(name, {})}
    return replace(settings, **{field: value for field, value in changes.items() if field in fields})


def hold(recipe: Recipe, dataset: Dataset, folder: Path) -> None:
    """Train, export with verification, and recommend to all users: the figures must equal the training's."""
    run = train_recipe(recipe, dataset, folder / "run")
    ensemble = LocalEnsemble(export_run(run, folder / "release").path)
    data = EvaluationData.from_run(run)
    figures = evaluate_served(ensemble, data).figures
    for part in ("popularity", "retrieval", "ranking"):
        assert figures[part].to_json() == pytest.approx(run.metrics[part]), part
    one, most = (ensemble.recommend(data.user_ids[:20], k) for k in (1, recipe.serving.k_max))
    for alone, whole in zip(one, most, strict=True):
        assert list(alone[:1]) == list(whole[:1])


@pytest.mark.parametrize("name", RETRIEVAL_FAMILIES)
def test_retrieval_is_served_as_trained(name: str, dataset: Dataset, tmp_path: Path) -> None:
    serving = replace(BASE.serving, candidates=60, kept=50, k_max=50, sources=())
    recipe = replace(BASE, features=features, ranking=None, serving=serving)
    hold(replace(recipe, retrieval=small(RETRIEVAL_FAMILIES, name)), dataset, tmp_path)


@pytest.mark.parametrize("name", RANKING_FAMILIES)
def test_ranking_is_served_as_trained(name: str, dataset: Dataset, tmp_path: Path) -> None:
    ranker = replace(small(RANKING_FAMILIES, name), task=ListwiseSoftmax(folds=2))
    serving = replace(BASE.serving, candidates=60, kept=50, k_max=50, sources=())
    recipe = replace(BASE, retrieval=EASE(l2=5.0), ranking=ranker, serving=serving)
    hold(recipe, dataset, tmp_path)


def test_a_real_triton_says_what_retrieval_gave_where_no_model_stands_between(
    dataset: Dataset, tmp_path: Path
) -> None:
    serving = replace(BASE.serving, candidates=60, kept=50, k_max=50, sources=())
    recipe = replace(BASE, retrieval=EASE(l2=5.0), ranking=None, serving=serving)
    run = train_recipe(recipe, dataset, tmp_path / "run")
    release = export_run(run, tmp_path / "release", layout="staged")
    users = EvaluationData.from_run(run).user_ids[:20]
    with brief_server(release) as server, ServedEnsemble(server.grpc_url) as served:
        np.testing.assert_array_equal(served.retrieve(users), LocalEnsemble(release.path).retrieve(users))
