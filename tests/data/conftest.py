"""Data fixtures shared by this folder's tests."""

import pytest

from tiercel_pipelines.data import Dataset, MovieLens100K, load_dataset
from tiercel_pipelines.data.movielens_100k import find_ml_100k


@pytest.fixture(scope="session")
def ml_100k() -> Dataset:
    folder = find_ml_100k()
    if folder is None:
        pytest.skip("ml-100k is not on this machine: set TIERCEL_DATA_DIR to the folder that holds it")
    return load_dataset(MovieLens100K())
