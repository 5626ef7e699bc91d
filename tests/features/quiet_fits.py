"""Fit NVTabular workflows without its warnings, and make folders for their files."""

from __future__ import annotations

import itertools
import warnings
from pathlib import Path
from typing import Any

import nvtabular as nvt
import pandas as pd
from merlin.schema import Tags
from nvtabular import ops

_NUMBERS = itertools.count()


def path(folder: Path) -> str:
    """Return a new folder: two operators that share one overwrite each other's files."""
    place = folder / f"fitted{next(_NUMBERS)}"
    place.mkdir()
    return str(place)


def fit(node: Any, frame: pd.DataFrame | nvt.Dataset) -> nvt.Workflow:
    """Return a fitted workflow of user features."""
    workflow = nvt.Workflow(node >> ops.AddTags([Tags.USER]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        workflow.fit(frame if isinstance(frame, nvt.Dataset) else nvt.Dataset(frame))
    return workflow
