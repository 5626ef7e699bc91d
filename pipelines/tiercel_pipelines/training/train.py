"""From a recipe and its data set to a run: split → fit the workflow → train → figures → write."""

from __future__ import annotations

import dataclasses
import shutil
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from tiercel_export.errors import ExportError
from tiercel_serving.release.writing import check_destination, staging_directory
from tiercel_serving.stages.seen_again import given_again

from ..arrays.packing import rows_of
from ..data import Dataset, Progress, Split, count_repeats, split_dataset
from ..data.split import TRAIN
from ..errors import RecipeError, TrainingError
from ..families.ranks import ALONE, Ranks
from ..features.dask_cluster import dask_cluster
from ..features.fit_progress import fit_progress
from ..recipe.check import check_recipe
from ..recipe.check_fit import fit_checked, problem_of
from ..recipe.recipe import Recipe
from .checkpoint import Checkpoint, data_digest, recipe_document, sole_training
from .figures import offline_figures
from .record import RUN_FORMAT, RUN_NAME, DataRecord, ModelsRecord, RecipeRecord, RunRecord, kept_problems
from .run import TrainedRun, write_run
from .trainer import Trainer, timed


def train_recipe(
    recipe: Recipe,
    dataset: Dataset,
    run_dir: str | Path,
    *,
    replace: bool = False,
    resume: bool = False,
    dask_scheduler: str | None = None,
    progress: Progress | None = None,
) -> TrainedRun:
    """Train a recipe on its loaded data set, write a run, and open it.

    Parameters
    ----------
    run_dir
        The run's directory, which appears only when it is complete.
    replace
        Whether an existing run may be replaced.
    resume
        Whether to resume from the checkpoint that an interrupted training of the same recipe and data left
        beside the run; without one, training starts from the beginning. The result is that of an
        uninterrupted training, unless another version of torch resumes it: then the run's ``notes`` say so.
    dask_scheduler
        Address of a Dask scheduler, whose workers fit the workflow; they must see the run's folder. None
        fits in this process.
    progress
        Called as ``progress(what, done, total)``.

    Raises
    ------
    RecipeError
        If the recipe does not fit the data set.
    TrainingError
        If there is nothing to learn from, a loss is not finite, or a checkpoint is of another recipe or data.
    ReleaseError
        If a file of a checkpoint is missing or changed.
    DestinationTaken
        If the directory is taken or being written, or there is a checkpoint and neither ``resume`` nor
        ``replace``.
    MachineFault
        If the disk is full; the previous checkpoint stays.
    """
    destination = Path(run_dir).resolve()
    check_destination(destination, replace, "run", RUN_NAME)
    recipe = check_recipe(recipe, dataset)
    with sole_training(destination):
        folder = destination.with_name(f"{destination.name}.checkpoint")
        document = recipe_document(recipe)
        if replace and not resume:
            shutil.rmtree(folder, ignore_errors=True)
        checkpoint = Checkpoint(folder, recipe.training.checkpoint_s, document, resume=resume)
        train_and_write(recipe, dataset, destination, checkpoint, replace, dask_scheduler, progress)
        checkpoint.remove()
    return TrainedRun.open(Path(run_dir))


def train_and_write(
    recipe: Recipe,
    dataset: Dataset,
    destination: Path,
    checkpoint: Checkpoint,
    replace: bool,
    dask_scheduler: str | None,
    progress: Progress | None,
    ranks: Ranks = ALONE,
) -> None:
    """Train and write a run; processes that train together each write one of their own."""
    lost = list(kept_problems(recipe))
    if lost:
        raise RecipeError(recipe.title, lost)
    how = msgspec.structs.asdict(recipe.split)
    split = split_dataset(dataset, **how, given_again=given_again(recipe.serving))
    if not split.counts[TRAIN]:
        raise TrainingError(f"recipe {recipe.name!r}: the training part is empty; give more interactions")
    with staging_directory(destination, replace=replace, what="run", mark=RUN_NAME) as directory:
        seconds: dict[str, float] = {}
        with timed(seconds, "workflow"):
            if progress is not None:
                progress("workflow", 0, None)
            with dask_cluster(dask_scheduler) as client, fit_progress(progress, client):
                workflow = fit_checked(recipe, dataset, split.fit, directory / "workflow", client)
            trainer = _prepared(recipe, dataset, split, workflow, progress)
            digest = data_digest(trainer.packed, trainer.pairs, trainer.folds)
            ranks.check_same(digest)
            checkpoint.check_data(digest)
            trainer = dataclasses.replace(trainer, checkpoint=checkpoint, ranks=ranks)
        trained = trainer.fit()
        seconds |= trainer.seconds
        with timed(seconds, "figures"):
            test_users, test_items = rows_of(dataset, split.test)
            timed_by = dataset.timestamp
            times_s = None if timed_by is None else split.test[timed_by].to_numpy(np.float64)
            figures = offline_figures(trainer, trained, test_users, test_items, times_s)
        if recipe.training.choose_blend:
            figures["blend"] = dict(trained.settings.blend)
        record = RunRecord(
            format=RUN_FORMAT,
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            recipe=msgspec.structs.replace(RecipeRecord.of(recipe), serving=trained.settings),
            data=_describe(dataset, split),
            inputs=trainer.inputs,
            models=ModelsRecord({family.name: family for family in recipe.models}, recipe.ranking),
            metrics={**figures, "epochs": dict(trained.courses), "seconds": seconds},
            notes=(*unjudged(split), *checkpoint.notes()),
        )
        write_run(directory, record, trained.retrieval, trained.ranking, dataset, split)


def _prepared(
    recipe: Recipe, dataset: Dataset, split: Split, workflow: Any, progress: Progress | None
) -> Trainer:
    """Pack the data; raise RecipeError for a column that a release could not hold."""
    try:
        return Trainer.prepare(recipe, dataset, split, workflow, progress)
    except ExportError as error:
        raise RecipeError(recipe.title, [problem_of(error)]) from error


def unjudged(split: Split) -> tuple[str, ...]:
    """Return a note on each part that is empty, and on what could therefore not be measured."""
    _, valid, test = split.counts
    few = "part is empty: by this split nothing of any user's interactions goes there"
    notes = []
    if not valid:
        notes.append(f"the validation {few}; nothing stopped early, and a ranker keeps retrieval's order")
    if not test:
        notes.append(f"the test {few}; so there are no figures of how good the answers are")
    return tuple(notes)


def _describe(dataset: Dataset, split: Split) -> DataRecord:
    train, valid, test = split.counts
    return DataRecord(
        name=dataset.name,
        source=dataset.source,
        user_id=dataset.user_id,
        item_id=dataset.item_id,
        timestamp=dataset.timestamp,
        users=len(dataset.users),
        items=len(dataset.items),
        train=train,
        valid=valid,
        test=test,
        repeats=count_repeats(dataset),
    )
