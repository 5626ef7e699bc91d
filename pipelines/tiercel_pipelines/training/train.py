"""From a recipe and its data set to a run: split → fit the workflow → train → figures → write."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path

import msgspec

from tiercel_serving.release.writing import check_destination, staging_directory

from ..arrays.packing import rows_of
from ..data import Dataset, Progress, Split, split_dataset
from ..errors import TrainingError
from ..features.workflow import fit_workflow
from ..recipe.check import check_recipe
from ..recipe.recipe import Recipe
from .figures import offline_figures
from .record import RUN_FORMAT, RUN_NAME, DataRecord, ModelsRecord, RecipeRecord, RunRecord
from .run import TrainedRun, write_run
from .trainer import Trainer, timed


def train_recipe(
    recipe: Recipe,
    dataset: Dataset,
    run_dir: str | Path,
    *,
    replace: bool = False,
    progress: Progress | None = None,
) -> TrainedRun:
    """Train a recipe on its loaded data set, write a run, and open it.

    Parameters
    ----------
    run_dir
        Where the run goes. It appears there only when it is whole.
    replace
        Whether a run that is already there may be replaced.
    progress
        Called as ``progress(what, done, total)``.

    Raises
    ------
    RecipeError
        If the recipe does not fit the data set.
    TrainingError
        If there is nothing to learn from, or a loss is not finite.
    DestinationTaken
        If the directory is taken.
    """
    destination = Path(run_dir)
    check_destination(destination, replace, "run", RUN_NAME)
    check_recipe(recipe, dataset)
    how = msgspec.structs.asdict(recipe.split)
    split = split_dataset(dataset, **how, allow_seen=recipe.serving.allow_seen)
    if not len(split.train):
        raise TrainingError(f"recipe {recipe.name!r}: the training part is empty; give more interactions")
    with staging_directory(destination, replace=replace, what="run", mark=RUN_NAME) as directory:
        seconds: dict[str, float] = {}
        with timed(seconds, "workflow"):
            if progress is not None:
                progress("workflow", 0, None)
            workflow = fit_workflow(recipe, dataset, split.fit, directory=directory / "workflow")
            trainer = Trainer.prepare(recipe, dataset, split, workflow, progress)
        trained = trainer.fit()
        seconds |= trainer.seconds
        with timed(seconds, "figures"):
            test_users, test_items = rows_of(dataset, split.test)
            figures = offline_figures(trainer, trained, test_users, test_items)
        record = RunRecord(
            format=RUN_FORMAT,
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            recipe=RecipeRecord.of(recipe),
            data=_describe(dataset, split),
            inputs=trainer.inputs,
            models=ModelsRecord({family.name: family for family in recipe.models}, recipe.ranking),
            metrics={**figures, "epochs": dict(trained.courses), "seconds": seconds},
        )
        tables = {
            "users": dataset.users,
            "items": dataset.items,
            "train": split.train,
            "valid": split.valid,
            "test": split.test,
        }
        write_run(directory, record, trained.retrieval, trained.ranking, tables)
    return TrainedRun.open(destination)


def _describe(dataset: Dataset, split: Split) -> DataRecord:
    return DataRecord(
        name=dataset.name,
        source=dataset.source,
        user_id=dataset.user_id,
        item_id=dataset.item_id,
        timestamp=dataset.timestamp,
        users=len(dataset.users),
        items=len(dataset.items),
        train=len(split.train),
        valid=len(split.valid),
        test=len(split.test),
        repeats=int(dataset.interactions.duplicated([dataset.user_id, dataset.item_id]).sum()),
    )
