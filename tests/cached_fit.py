"""``fit_workflow`` with a cache: a fit by NVTabular takes a second or two, and has its own tests."""

from __future__ import annotations

import pickle
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nvtabular
import pandas as pd
import pytest

from tiercel_pipelines.data import Dataset
from tiercel_pipelines.features.workflow import fit_workflow


class CachedFit:
    """Caches by the function of features and by the values of the tables."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._fits: dict[Any, Path] = {}

    def __call__(
        self, recipe: Any, dataset: Dataset, interactions: pd.DataFrame, directory: Path, **options: Any
    ) -> Any:
        key = recipe.features, pickle.dumps((dataset, interactions, options))
        if key not in self._fits:
            workflow = fit_workflow(recipe, dataset, interactions, directory, **options)
            self._fits[key] = self._place / f"{len(self._fits)}"
            shutil.copytree(directory, self._fits[key])
            return workflow
        # As fit_workflow does, because a saved workflow can be moved.
        shutil.copytree(self._fits[key], directory, dirs_exist_ok=True)
        return nvtabular.Workflow.load(str(directory))


@contextmanager
def cached_fit() -> Iterator[None]:
    """Make trainings use the cache."""
    with tempfile.TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patch:
        patch.setattr("tiercel_pipelines.recipe.check_fit.fit_workflow", CachedFit(Path(place)))
        yield
