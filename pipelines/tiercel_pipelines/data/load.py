"""The one door to data: from a recipe's spec to a checked data set."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..errors import DataError
from .dataset import Dataset, Progress
from .movielens import load_ml_100k
from .movielens_files import load_movielens
from .parquet import load_parquet
from .sequences import load_sequences
from .specs import DatasetSpec, MovieLens, MovieLens100K, Parquet, Sequences, Synthetic
from .synthetic import make_synthetic

#: What the command line calls some data sets.
NAMED: Mapping[str, DatasetSpec] = {"ml-100k": MovieLens100K(), "synthetic": Synthetic()}


def load_dataset(
    spec: DatasetSpec, *, data_dir: str | Path | None = None, progress: Progress | None = None
) -> Dataset:
    """Load and check a data set.

    Parameters
    ----------
    spec
        A data set's spec.
    data_dir
        The folder that holds (or gets) ``ml-100k``, and where relative paths start.
    progress
        Called as ``progress(what, done, total)`` during long work.

    Raises
    ------
    DataMissing
        If it is not where it was looked for, and could not be fetched.
    DataCorrupt
        If it is truncated, changed, or not what its schema says.
    DataError
        If the spec itself cannot be.
    """
    if isinstance(spec, DatasetSpec) and (wrong := spec.problems()):
        raise DataError(f"data set: {wrong[0].within(type(spec).__name__)}")
    if isinstance(spec, MovieLens100K):
        return load_ml_100k(data_dir=data_dir, progress=progress)
    if isinstance(spec, MovieLens):
        return load_movielens(spec, data_dir=data_dir)
    if isinstance(spec, Synthetic):
        return make_synthetic(spec, progress)
    if isinstance(spec, Parquet):
        return load_parquet(spec, data_dir=data_dir, progress=progress)
    if isinstance(spec, Sequences):
        return load_sequences(spec, data_dir=data_dir, progress=progress)
    raise DataError(
        "data set: expected MovieLens100K, MovieLens, Synthetic, Parquet or Sequences, got "
        f"{type(spec).__name__}"
    )
