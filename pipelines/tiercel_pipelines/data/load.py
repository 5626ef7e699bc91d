"""The single entry point to data: from a recipe's spec to a checked data set."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tiercel_serving.mistyped import mistyped

from ..errors import DataError
from .dataset import Dataset, Progress
from .movielens_100k import MovieLens100K
from .synthetic import Synthetic
from .table import DATASETS, DatasetSpec

#: Data sets that have a name on the command line.
NAMED: Mapping[str, DatasetSpec] = {"ml-100k": MovieLens100K(), "synthetic": Synthetic()}


def load_dataset(
    spec: DatasetSpec, *, data_dir: str | Path | None = None, progress: Progress | None = None
) -> Dataset:
    """Load and check a data set.

    Parameters
    ----------
    spec
        A data set's spec.
    data_dir, progress
        See :meth:`.table.DatasetSpec.load`; downloads also go to the folder.

    Raises
    ------
    DataError
        If the spec itself is invalid, or from its :meth:`~.table.DatasetSpec.load`: the data are missing
        (``DataMissing``) or not what they should be (``DataCorrupt``).
    """
    wrong = DATASETS.misfit(spec, "data set")
    if not wrong:
        settings: Any = spec
        own = list(mistyped(settings)) or spec.problems()
        wrong = [problem.within(f"data set {type(spec).__name__}") for problem in own]
    if wrong:
        raise DataError(str(wrong[0]))
    return spec.load(data_dir, progress)
