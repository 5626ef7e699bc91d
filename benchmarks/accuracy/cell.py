"""One cell: a recipe trained with one seed, exported, and evaluated as served."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np

from tiercel_client import Recommender
from tiercel_pipelines.data import Dataset
from tiercel_pipelines.export.run_export import export_run
from tiercel_pipelines.offline.evaluate import evaluate_served
from tiercel_pipelines.offline.evaluation_data import EvaluationData
from tiercel_pipelines.offline.served_ensemble import Ensemble, LocalEnsemble, ServedEnsemble
from tiercel_pipelines.recipe import Recipe
from tiercel_pipelines.training import train_recipe
from tiercel_serving.supervise.process import start_server

#: The k of the figures, and the largest k of the recall curves.
AT, CURVE_AT = 10, 50
#: Number of timed requests for one user, after as many that warm up.
TIMED = 200


def measure(
    recipe: Recipe, dataset: Dataset, *, served: bool, say: Callable[[str], None] = lambda what: None
) -> dict[str, Any]:
    """Train, export and evaluate a recipe in a temporary folder.

    Parameters
    ----------
    recipe, dataset
        The recipe to train, and its data.
    served
        Whether a real Triton answers; otherwise the same stages answer in this process.
    say
        Called with the name of the next step.

    Returns
    -------
    dict
        ``figures`` at 10 and metrics ``beyond`` accuracy of popularity, retrieval and the final answers;
        ``recall`` of the final answers at 1, 2, …; learning ``curves`` by model; ``train_cpu_s``, the CPU
        seconds of training; ``p50_us`` of an answer to one user; ``bytes`` of the release; and whether
        "triton" or the stages "in process" ``answered``.
    """
    with tempfile.TemporaryDirectory() as folder:
        say("training")
        begun = processor_s()
        run = train_recipe(recipe, dataset, Path(folder) / "run")
        trained = processor_s()
        say("exporting")
        release = export_run(run, Path(folder) / "release")
        say("judging")
        data = EvaluationData.from_run(run)
        found = _served(release.path, data, recipe) if served else _local(release.path, data, recipe)
        return {
            **found,
            "curves": learning_curves(run.metrics["epochs"]),
            "train_cpu_s": round(trained - begun, 1),
            "bytes": sum(file.stat().st_size for file in release.path.rglob("*") if file.is_file()),
            "answered": "triton" if served else "in process",
        }


def processor_s() -> float:
    """Return the CPU seconds of this process and its ended children so far; other load adds nothing."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def seconds(cells: Iterable[Mapping[str, Any]]) -> str:
    """Return the mean CPU seconds of training as text; in brackets, the wall time that older cells have."""
    mine = list(cells)
    spent = [cell["train_cpu_s"] for cell in mine if "train_cpu_s" in cell]
    return f"{mean(spent):.0f}" if spent else f"({mean(cell['train_s'] for cell in mine):.0f})"


def learning_curves(epochs: Mapping[str, Mapping[str, Any]]) -> dict[str, list[float]]:
    """Return each model's validation nDCG@10 before the first epoch and after each."""
    return {name: course["validation"] for name, course in epochs.items() if len(course["validation"]) > 1}


def _local(release: Path, data: EvaluationData, recipe: Recipe) -> dict[str, Any]:
    ensemble = LocalEnsemble(release)
    return judged(ensemble, data, recipe) | {
        "p50_us": _p50_us(lambda user: ensemble.recommend([user], AT), data)
    }


def _served(release: Path, data: EvaluationData, recipe: Recipe) -> dict[str, Any]:
    with start_server(release) as server:
        with ServedEnsemble(server.grpc_url) as ensemble:
            found = judged(ensemble, data, recipe)
        with Recommender(server.grpc_url) as client:
            return found | {"p50_us": _p50_us(lambda user: client.recommend(user, k=AT, titles=False), data)}


def judged(ensemble: Ensemble, data: EvaluationData, recipe: Recipe) -> dict[str, Any]:
    """Return the figures at 10, and recall at 1, 2, … 50 (or the recipe's ``k_max`` if smaller)."""
    report = evaluate_served(ensemble, data, k=AT).to_json()
    curve = evaluate_served(ensemble, data, k=min(CURVE_AT, recipe.serving.k_max)).recall_curves["ranking"]
    return {
        "figures": report["figures"],
        "beyond": report["beyond"],
        "recall": [round(value, 5) for value in curve],
    }


def _p50_us(ask: Callable[[Any], object], data: EvaluationData) -> float:
    users = np.random.default_rng(0).integers(0, len(data.user_ids), 2 * TIMED)
    spent = []
    for user in users:
        begun = time.perf_counter()
        ask(data.user_ids[user])
        spent.append((time.perf_counter() - begun) * 1e6)
    return round(median(spent[TIMED:]), 1)
