"""``fit_workflow`` that fits equal data once: NVTabular takes a second or two, and is tested by itself."""

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
    """Fits are equal that are of one function of features and of tables with the same values."""

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
        # As fit_workflow does: what was saved may move.
        shutil.copytree(self._fits[key], directory, dirs_exist_ok=True)
        return nvtabular.Workflow.load(str(directory))


@contextmanager
def cached_fit() -> Iterator[None]:
    """Let a training fit so."""
    with tempfile.TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patch:
        patch.setattr("tiercel_pipelines.recipe.check_fit.fit_workflow", CachedFit(Path(place)))
        yield
