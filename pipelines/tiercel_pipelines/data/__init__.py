"""Data sets: three tables (users, items, interactions), where they come from, and how they are split."""

from .dataset import Dataset, Progress
from .load import NAMED, load_dataset
from .movielens import MovieLens
from .movielens_100k import MovieLens100K
from .parquet import Parquet
from .sequences import Sequences
from .split import Split, count_repeats, split_dataset, stratified_split
from .synthetic import Synthetic
from .table import DATASETS, DatasetSpec

__all__ = [
    "DATASETS",
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
