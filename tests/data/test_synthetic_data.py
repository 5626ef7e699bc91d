"""The synthetic data set: reproducible, with every type of column, and with structure to learn."""

import numpy as np
import pandas as pd
import pytest

from tiercel_pipelines.data import Dataset, Synthetic, load_dataset, stratified_split
from tiercel_pipelines.errors import DataError

SMALL = Synthetic(users=60, items=50, interactions=900)


def frames(dataset: Dataset) -> list[pd.DataFrame]:
    return [dataset.users, dataset.items, dataset.interactions]


def test_same_arguments_same_data() -> None:
    for first, second in zip(frames(load_dataset(SMALL)), frames(load_dataset(SMALL)), strict=True):
        pd.testing.assert_frame_equal(first, second)


def test_another_seed_is_another_data_set() -> None:
    other = load_dataset(Synthetic(users=60, items=50, interactions=900, seed=8))
    assert not other.interactions.equals(load_dataset(SMALL).interactions)


@pytest.mark.parametrize("ids", ["int", "str"])
def test_every_type_of_column(ids: str) -> None:
    dataset = load_dataset(Synthetic(users=80, items=50, interactions=900, ids=ids))  # type: ignore[arg-type]
    users, items, interactions = frames(dataset)
    assert users.age.dtype == np.int64
    assert users.income.dtype == np.float64
    assert 0 < users.income.isna().mean() < 0.5
    assert users.country.isna().any()
    assert any(not text.isascii() for text in users.country.dropna())
    assert any(not row for row in users.interests)
    assert all(isinstance(genre, str) for row in items.genres for genre in row)
    assert all(isinstance(topic, int) for row in items.topics for topic in row)
    assert items.released.dtype == np.int64
    assert items.year.isna().any()
    assert interactions.device.isna().any()
    assert interactions.hour.between(0, 23).all()
    assert dataset.context_columns == ("device", "hour")
    if ids == "int":
        assert users.user_id.dtype == np.int64
        # No id may happen to be a row number.
        assert not set(items.item_id) & set(range(len(items)))
    else:
        assert all(not text.isascii() for text in users.user_id)


def test_nobody_has_an_item_twice_and_everybody_has_one() -> None:
    dataset = load_dataset(SMALL)
    assert not dataset.interactions.duplicated(["user_id", "item_id"]).any()
    assert set(dataset.interactions.user_id) == set(dataset.users.user_id)
    assert abs(len(dataset.interactions) - 900) < 50


def test_more_items_than_a_block_meets() -> None:
    dataset = load_dataset(Synthetic(users=30, items=6_000, interactions=600))
    assert not dataset.interactions.duplicated(["user_id", "item_id"]).any()
    assert len(dataset.interactions) > 500


def test_progress_reaches_the_end() -> None:
    told: list[tuple[str, int, int | None]] = []
    load_dataset(SMALL, progress=lambda *args: told.append(args))
    assert told[-1] == ("drawing interactions", 60, 60)


def test_there_is_something_to_learn() -> None:
    """A linear item-to-item model (EASE) clearly beats popularity on held-out interactions."""
    dataset = load_dataset(Synthetic())
    train, test = stratified_split(dataset.interactions, "user_id")
    users = pd.Index(dataset.users.user_id)
    items = pd.Index(dataset.items.item_id)

    def matrix(part: pd.DataFrame) -> np.ndarray:
        dense = np.zeros((len(users), len(items)))
        dense[users.get_indexer(part.user_id), items.get_indexer(part.item_id)] = 1
        return dense

    seen, wanted = matrix(train), matrix(test)
    inverse = np.linalg.inv(seen.T @ seen + 100 * np.eye(len(items)))
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0)

    def precision(scores: np.ndarray) -> float:
        top = np.argsort(-np.where(seen > 0, -np.inf, scores), axis=1)[:, :10]
        return float(np.take_along_axis(wanted, top, axis=1).mean())

    popular = precision(np.broadcast_to(seen.sum(axis=0), seen.shape))
    assert precision(seen @ weights) > 1.3 * popular > 0


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        (Synthetic(users=0), r"Synthetic\.users: expected a whole number of at least 1, got 0"),
        (Synthetic(users=10, items=10, interactions=5), "do not fit"),
        (Synthetic(users=10, items=10, interactions=99), "do not fit"),
        (Synthetic(ids="uuid"), "'int', 'str'"),  # type: ignore[arg-type]
    ],
)
def test_sizes_that_make_no_data_set(spec: Synthetic, match: str) -> None:
    with pytest.raises(DataError, match=match):
        load_dataset(spec)


def test_what_is_no_data_set() -> None:
    with pytest.raises(
        DataError, match=r"expected a data set, got 'ml-1b'; write MovieLens100K\(…\) or .* or Sequences\(…\)"
    ):
        load_dataset("ml-1b")  # type: ignore[arg-type]
