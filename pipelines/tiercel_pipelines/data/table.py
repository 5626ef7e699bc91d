"""The contract of a kind of data set, and the table of them: the values of a recipe's ``dataset``."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, runtime_checkable

from tiercel_serving.kinds import Kind, Kinds
from tiercel_serving.problems import Problem

from .dataset import Dataset, Progress


@runtime_checkable
class DatasetSpec(Protocol):
    """A recipe's description of its data, and how it becomes three tables."""

    def problems(self) -> list[Problem]:
        """Return what is wrong with the settings by themselves."""
        ...

    def load(self, data_dir: str | Path | None, progress: Progress | None) -> Dataset:
        """Return the tables, checked (:meth:`Dataset.check`).

        Parameters
        ----------
        data_dir
            The folder of data sets, where relative paths start; None uses the places of :mod:`.places`.
        progress
            Called as ``progress(what, done, total)`` during long work.

        Raises
        ------
        DataMissing
            If it is not found, and could not be downloaded.
        DataCorrupt
            If it is truncated, changed, or not what its schema says.
        DataError
            If the settings ask for something impossible.
        """
        ...


#: Every kind of data set. Runs keep these names.
DATASETS: Kinds[DatasetSpec] = Kinds(
    "data set",
    {
        "MovieLens100K": Kind("tiercel_pipelines.data.movielens_100k:MovieLens100K"),
        "MovieLens": Kind("tiercel_pipelines.data.movielens:MovieLens"),
        "Synthetic": Kind("tiercel_pipelines.data.synthetic:Synthetic"),
        "Parquet": Kind("tiercel_pipelines.data.parquet:Parquet"),
        "Sequences": Kind("tiercel_pipelines.data.sequences:Sequences"),
    },
)
