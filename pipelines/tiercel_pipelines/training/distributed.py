"""Training by several processes that ``torchrun`` started; see :mod:`tiercel_pipelines.families.ranks`."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

from tiercel_serving.release.writing import check_destination

from ..data import Dataset, Progress
from ..families.ranks import process_group
from ..recipe.check import check_recipe
from ..recipe.recipe import Recipe
from .checkpoint import Checkpoint, recipe_document, sole_training
from .record import RUN_NAME
from .run import TrainedRun
from .train import train_and_write


def train_distributed(
    recipe: Recipe,
    dataset: Dataset,
    run_dir: str | Path,
    *,
    replace: bool = False,
    progress: Progress | None = None,
) -> TrainedRun | None:
    """Train a recipe together with the other processes, which all call this with the same arguments.

    The processes divide the batches of ``TwoTower`` and of the rankers that gradient descent trains; they all
    do everything else in full. No checkpoint is written. The parameters are those of
    :func:`~tiercel_pipelines.training.train.train_recipe`.

    Returns
    -------
    TrainedRun or None
        The run, which only the first process writes; None in the others.

    Raises
    ------
    TrainingError
        If ``torchrun`` did not start this process, or the processes see different data; and what
        ``train_recipe`` raises.
    """
    recipe = check_recipe(recipe, dataset)
    destination, document = Path(run_dir).resolve(), recipe_document(recipe)
    with process_group(True) as ranks, tempfile.TemporaryDirectory() as folder:
        checkpoint = Checkpoint(Path(folder) / "checkpoint", math.inf, document, resume=False)
        if ranks.rank:
            train_and_write(recipe, dataset, Path(folder) / "run", checkpoint, False, None, None, ranks)
        else:
            check_destination(destination, replace, "run", RUN_NAME)
            with sole_training(destination):
                train_and_write(recipe, dataset, destination, checkpoint, replace, None, progress, ranks)
        ranks.wait()
        return None if ranks.rank else TrainedRun.open(Path(run_dir))
