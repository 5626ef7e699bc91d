"""A synthetic data set as Parquet files: ``python -m benchmarks.training_scale.made SIZE FOLDER``."""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.training_scale.sizes import SIZES
from tiercel_pipelines.data import load_dataset

#: Names of the files that :mod:`benchmarks.training_scale.recipe` reads.
TABLES = ("users", "items", "interactions")


def make(size: str, folder: Path) -> None:
    """Write the three tables of a size, a key of ``SIZES``."""
    dataset = load_dataset(SIZES[size])
    folder.mkdir(parents=True, exist_ok=True)
    for name in TABLES:
        getattr(dataset, name).to_parquet(folder / f"{name}.parquet", index=False)


if __name__ == "__main__":
    make(sys.argv[1], Path(sys.argv[2]))
