"""Splits: the published one for MovieLens-100K, and properties for any data."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drawing import examples
from tiercel_pipelines.data import Dataset, Synthetic, load_dataset, split_dataset, stratified_split
from tiercel_pipelines.errors import DataError


def published_split(data: pd.DataFrame, ratio: float, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the split of the published benchmarks, following its description: a slow, plain oracle."""
    random = pd.Series(np.random.RandomState(seed).rand(len(data)), index=data.index)
    rank = random.groupby(data.user_id).rank(method="first")
    first = rank / data.user_id.map(data.user_id.value_counts()) <= ratio
    return data[first], data[~first]


def test_movielens_is_split_as_published(ml_100k: Dataset) -> None:
    train, test = stratified_split(ml_100k.interactions, "user_id")
    expected_train, expected_test = published_split(ml_100k.interactions, 0.75, 42)
    pd.testing.assert_frame_equal(train, expected_train)
    pd.testing.assert_frame_equal(test, expected_test)
    assert train.user_id.nunique() == test.user_id.nunique() == 943


@examples(20)
@given(
    users=st.lists(st.sampled_from(["ann", "bo", "çelik", ""]), max_size=60),
    ratio=st.floats(0.05, 0.95),
    seed=st.integers(0, 2**31),
)
def test_each_user_keeps_the_share(users: list[str], ratio: float, seed: int) -> None:
    data = pd.DataFrame({"user_id": pd.Series(users, dtype=object), "row": range(len(users))})
    train, test = stratified_split(data, "user_id", ratio, seed)
    assert sorted([*train.row, *test.row]) == list(range(len(users)))
    assert train.row.is_monotonic_increasing
    assert test.row.is_monotonic_increasing
    for user in set(users):
        total, kept = users.count(user), int((train.user_id == user).sum())
        assert kept >= 1
        assert kept == 1 or kept <= ratio * total + 1e-9 < kept + 1
    again, _ = stratified_split(data, "user_id", ratio, seed)
    pd.testing.assert_frame_equal(train, again)


def test_validation_is_part_of_training_and_independent_of_the_test() -> None:
    dataset = load_dataset(Synthetic())
    split = split_dataset(dataset, train=0.75, validation=0.1, seed=3)
    train, test = stratified_split(dataset.interactions, "user_id", 0.75, 3)
    pd.testing.assert_frame_equal(split.test, test)
    pd.testing.assert_frame_equal(split.fit, train)
    assert 0.08 < len(split.valid) / len(train) < 0.14
    parts = [set(part.index) for part in (split.train, split.valid, split.test)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == len(dataset.interactions)


def test_no_validation() -> None:
    dataset = load_dataset(Synthetic())
    split = split_dataset(dataset, validation=0)
    pd.testing.assert_frame_equal(split.train, split.fit)
    assert len(split.valid) == 0
    assert list(split.valid.columns) == list(dataset.interactions.columns)


@examples(20)
@given(
    rows=st.lists(st.tuples(st.sampled_from(["ann", "bo", ""]), st.integers(-2, 6)), max_size=60),
    ratio=st.floats(0.05, 0.95),
    seed=st.integers(0, 2**31),
)
def test_what_a_user_came_back_to_is_in_one_part(
    rows: list[tuple[str, int]], ratio: float, seed: int
) -> None:
    data = pd.DataFrame(rows, columns=["user_id", "item_id"]).astype({"user_id": object})
    data.index = data.index * 3 + 1
    parts = stratified_split(data, "user_id", ratio, seed, item_id="item_id")
    assert sorted([*parts[0].index, *parts[1].index]) == data.index.tolist()
    pairs = [set(zip(part.user_id, part.item_id, strict=True)) for part in parts]
    assert not pairs[0] & pairs[1]
    # Equals the split of the data without repeats, row by row.
    once = data.drop_duplicates()
    for part, alone in zip(parts, stratified_split(once, "user_id", ratio, seed), strict=True):
        pd.testing.assert_frame_equal(part[part.index.isin(once.index)], alone)
        pd.testing.assert_frame_equal(data.loc[part.index], part)


def test_pairs_and_rows_are_one_where_nothing_repeats() -> None:
    dataset = load_dataset(Synthetic())
    by_pairs, by_rows = split_dataset(dataset), split_dataset(dataset, given_again=True)
    for name in ("train", "valid", "test"):
        pd.testing.assert_frame_equal(getattr(by_pairs, name), getattr(by_rows, name))


@pytest.mark.parametrize("ratio", [0, 1, -0.5, 1.5])
def test_a_share_that_is_none(ratio: float) -> None:
    with pytest.raises(ValueError, match="expected a share"):
        stratified_split(pd.DataFrame({"user_id": [1]}), "user_id", ratio)


def timed(rows: list[tuple[str, int, int]], timestamp: str | None = "timestamp") -> Dataset:
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"])
    users = pd.DataFrame({"user_id": sorted(set(frame["user_id"]))})
    items = pd.DataFrame({"item_id": sorted(set(frame["item_id"]))})
    return Dataset("timed", users, items, frame, timestamp=timestamp)


EVENTS = [("a", 1, 5), ("a", 2, 9), ("b", 1, 3), ("a", 1, 11), ("c", 4, 1), ("b", 3, 2), ("a", 3, 10)]


def test_leave_one_out_takes_the_latest_of_each() -> None:
    split = split_dataset(timed(EVENTS), by="leave_one_out")
    # The latest of a is item 1 again: both events go to the test. The one of c stays: there is no other.
    assert split.test.index.tolist() == [0, 2, 3]
    assert split.valid.index.tolist() == [6]
    assert split.train.index.tolist() == [1, 4, 5]
    seen = split_dataset(timed(EVENTS), by="leave_one_out", validation=0, given_again=True)
    assert seen.test.index.tolist() == [2, 3]


def test_time_cuts_once_for_all() -> None:
    split = split_dataset(timed(EVENTS), by="time", train=0.6, validation=0.25)
    # Pairs by their first event: c4, b3, b1, a1 | a2, a3.
    assert split.test.index.tolist() == [1, 6]
    assert split.valid.index.tolist() == [0, 3]
    assert split.train.index.tolist() == [2, 4, 5]


def test_a_split_by_time_without_any_is_refused() -> None:
    with pytest.raises(DataError, match="needs the time of the interactions"):
        split_dataset(timed(EVENTS, timestamp=None), by="time")
