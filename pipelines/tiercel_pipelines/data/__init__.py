"""Data sets: three tables (users, items, interactions), where they come from, and how they are split."""

from .dataset import Dataset, Progress
from .load import LOADERS, load_dataset
from .specs import DatasetSpec, MovieLens100K, Parquet, Synthetic
from .split import Split, carve_validation, split_dataset, stratified_split

__all__ = [
    "LOADERS",
    "Dataset",
    "DatasetSpec",
    "MovieLens100K",
    "Parquet",
    "Progress",
    "Split",
    "Synthetic",
    "carve_validation",
    "load_dataset",
    "split_dataset",
    "stratified_split",
]
