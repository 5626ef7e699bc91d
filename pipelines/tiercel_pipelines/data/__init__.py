"""Data sets: three tables (users, items, interactions), where they come from, and how they are split."""

from .dataset import Dataset, Progress
from .load import NAMED, load_dataset
from .specs import DatasetSpec, MovieLens100K, Parquet, Sequences, Synthetic
from .split import Split, split_dataset, stratified_split

__all__ = [
    "NAMED",
    "Dataset",
    "DatasetSpec",
    "MovieLens100K",
    "Parquet",
    "Progress",
    "Sequences",
    "Split",
    "Synthetic",
    "load_dataset",
    "split_dataset",
    "stratified_split",
]
