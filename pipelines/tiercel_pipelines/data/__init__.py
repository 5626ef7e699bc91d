"""Data sets: three tables (users, items, interactions), where they come from, and how they are split."""

from .dataset import Dataset, Progress
from .load import NAMED, load_dataset
from .specs import DatasetSpec, MovieLens, MovieLens100K, Parquet, Sequences, Synthetic
from .split import Split, count_repeats, split_dataset, stratified_split

__all__ = [
    "NAMED",
    "Dataset",
    "DatasetSpec",
    "MovieLens",
    "MovieLens100K",
    "Parquet",
    "Progress",
    "Sequences",
    "Split",
    "Synthetic",
    "count_repeats",
    "load_dataset",
    "split_dataset",
    "stratified_split",
]
