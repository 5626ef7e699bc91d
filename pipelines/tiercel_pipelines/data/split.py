"""Training, validation and test parts of the interactions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from ..errors import DataError
from .dataset import Dataset

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

TRAIN, VALID, TEST = 0, 1, 2


@dataclass(frozen=True)
class Split:
    """Three disjoint parts of a data set's interactions, each a table in the order of the original.

    Every access to a part selects its rows again, so that the interactions are held only once.

    Parameters
    ----------
    interactions
        All of them.
    parts
        ``[n]`` int8: TRAIN, VALID or TEST.
    """

    interactions: pd.DataFrame
    parts: npt.NDArray[np.int8]

    @classmethod
    def of(cls, interactions: pd.DataFrame, test: Bools, valid: Bools) -> Split:
        """Return the split with the mask ``test [n]``, and the mask ``valid`` over the other rows."""
        parts = np.where(test, np.int8(TEST), np.int8(TRAIN))
        parts[np.flatnonzero(~test)[valid]] = VALID
        return cls(interactions, parts)

    @property
    def train(self) -> pd.DataFrame:
        """The interactions to learn from."""
        return self.interactions[self.parts == TRAIN]

    @property
    def valid(self) -> pd.DataFrame:
        """The interactions that early stopping measures."""
        return self.interactions[self.parts == VALID]

    @property
    def test(self) -> pd.DataFrame:
        """The interactions that are used once, at the end."""
        return self.interactions[self.parts == TEST]

    @property
    def fit(self) -> pd.DataFrame:
        """Training and validation part together: everything but the test part."""
        return self.interactions[self.parts != TEST]

    @property
    def counts(self) -> tuple[int, int, int]:
        """Number of interactions of the three parts."""
        train, valid, test = np.bincount(self.parts, minlength=3).tolist()
        return train, valid, test


def stratified_split(
    interactions: pd.DataFrame,
    user_id: str,
    ratio: float = 0.75,
    seed: int = 42,
    *,
    item_id: str | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Split each user's interactions at random, a share of ``ratio`` of them to the first part.

    If ``interactions`` has the order of ``u.data`` and the seed is 42, this is row for row the split of
    the published MovieLens-100K benchmarks (recommenders' ``python_stratified_split``). Each row gets a
    uniform random number, and goes to the first part if its rank among its user's numbers, divided by
    their count, is at most ``ratio``. A user's lowest rank always does, so that nobody is without
    training data.

    Parameters
    ----------
    interactions, user_id
        One row an interaction, and the column to stratify by.
    ratio
        The first part's share of each user's rows, above 0 and below 1.
    seed
        Same seed, same split.
    item_id
        The column of items: all rows of a user and an item then go to the same part, and shares count such
        pairs. If no pair occurs twice, the split does not change. None splits row by row.

    Returns
    -------
    tuple
        Both parts, each in the order (and with the index) of ``interactions``.
    """
    if not 0 < ratio < 1:
        raise ValueError(f"ratio: expected a share above 0 and below 1, got {ratio}")
    items = None if item_id is None else _codes(interactions[item_id])
    first = _first_share(_codes(interactions[user_id]), items, ratio, seed)
    return interactions[first], interactions[~first]


def split_dataset(
    dataset: Dataset,
    *,
    train: float = 0.75,
    validation: float = 0.1,
    seed: int = 42,
    by: str = "random",
    given_again: bool = False,
) -> Split:
    """Split a data set's interactions as :class:`~tiercel_pipelines.recipe.recipe.SplitSettings` says.

    All interactions of a user with an item go to one part, unless seen items may be recommended again
    (``given_again``): a test of something that is never served would measure nothing.

    Raises
    ------
    DataError
        If it is split ``by`` time or leave_one_out, and the interactions have no time.
    """
    if by != "random":
        return _split_by_time(dataset, by, train, validation, given_again)
    everything = dataset.interactions
    users = _codes(everything[dataset.user_id])
    items = None if given_again else _codes(everything[dataset.item_id])
    fit = _first_share(users, items, train, seed)
    if not validation:
        return Split.of(everything, ~fit, np.zeros(int(fit.sum()), np.bool_))
    # Equal seeds would draw the rows of the test split again.
    learned = _first_share(users[fit], None if items is None else items[fit], 1 - validation, seed + 1)
    return Split.of(everything, ~fit, ~learned)


def _split_by_time(dataset: Dataset, by: str, train: float, validation: float, given_again: bool) -> Split:
    """Split by the time of the interactions; the index of a part is that of the original."""
    if dataset.timestamp is None:
        raise DataError(
            f"{dataset.name}: a split by {by!r} needs the time of the interactions, and there is none; "
            "name the data set's timestamp, or write split=SplitSettings(by='random')"
        )
    later = _latest_share if by == "time" else _latest_of_each
    everything = dataset.interactions
    test = later(dataset, everything, 1 - train, given_again)
    fit = everything[~test]
    valid = later(dataset, fit, validation, given_again) if validation else np.zeros(len(fit), np.bool_)
    return Split.of(everything, test, valid)


def _timed_pairs(dataset: Dataset, interactions: pd.DataFrame, given_again: bool) -> tuple[Ints, Ints, Ints]:
    """Return each row's pair, the row where each pair appears first, and each row's rank in time."""
    rows = np.arange(len(interactions))
    place = np.empty_like(rows)
    place[np.lexsort((rows, interactions[dataset.timestamp].to_numpy()))] = rows
    if given_again:
        return rows, rows, place
    pair, opening = _pairs(_codes(interactions[dataset.user_id]), _codes(interactions[dataset.item_id]))
    return pair, opening, place


def _latest_share(dataset: Dataset, interactions: pd.DataFrame, share: float, given_again: bool) -> Bools:
    """Mark the latest share of all pairs, by the time of their first interaction."""
    pair, opening, place = _timed_pairs(dataset, interactions, given_again)
    first = np.full(len(opening), len(interactions))
    np.minimum.at(first, pair, place)
    chosen = np.zeros(len(opening), np.bool_)
    chosen[np.argsort(first)[len(opening) - round(share * len(opening)) :]] = True
    return np.asarray(chosen[pair])


def _latest_of_each(dataset: Dataset, interactions: pd.DataFrame, share: float, given_again: bool) -> Bools:
    """Mark each user's latest pair, with all its interactions, unless it is the user's only one."""
    pair, opening, place = _timed_pairs(dataset, interactions, given_again)
    user = pd.factorize(interactions[dataset.user_id])[0]
    latest = np.zeros(user.max(initial=-1) + 1, np.int64)
    order = np.argsort(place)
    latest[user[order]] = pair[order]  # later rows overwrite earlier ones
    several = np.bincount(user[opening], minlength=len(latest)) > 1
    chosen = np.zeros(len(opening), np.bool_)
    chosen[latest[several]] = True
    return np.asarray(chosen[pair])


def count_repeats(dataset: Dataset) -> int:
    """Return how many interactions repeat an earlier pair of user and item."""
    everything = dataset.interactions
    keys = _keys(_codes(everything[dataset.user_id]), _codes(everything[dataset.item_id]))
    keys.sort()
    return int(np.count_nonzero(keys[1:] == keys[:-1]))


def _codes(ids: pd.Series) -> npt.NDArray[np.int32]:
    """Return numbers that stand for ids, in order of first appearance."""
    codes: npt.NDArray[np.int32] = pd.factorize(ids)[0].astype(np.int32)
    return codes


def _keys(users: npt.NDArray[np.int32], items: npt.NDArray[np.int32]) -> Ints:
    """Return one number for each row's user and item."""
    keys: Ints = users.astype(np.int64)
    keys *= int(items.max(initial=-1)) + 1
    keys += items
    return keys


def _pairs(users: npt.NDArray[np.int32], items: npt.NDArray[np.int32]) -> tuple[Ints, Ints]:
    """Return each row's pair, numbered by first appearance, and the row where each pair first appears."""
    keys = _keys(users, items)
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    opens = np.append(True, keys[1:] != keys[:-1])[: len(keys)]
    del keys
    if opens.all():
        # The usual case: no pair occurs twice.
        return (rows := np.arange(len(order))), rows
    first = order[np.flatnonzero(opens)[np.cumsum(opens) - 1]]
    row = np.empty_like(first)
    row[order] = first  # where each row's pair appeared
    opening = np.flatnonzero(row == np.arange(len(row)))
    return np.searchsorted(opening, row).astype(np.int64), opening


def _first_share(
    users: npt.NDArray[np.int32], items: npt.NDArray[np.int32] | None, ratio: float, seed: int
) -> Bools:
    """Mark a share of each user's rows, drawn at random; with ``items``, a share of the user's pairs."""
    if items is None:
        return _share_of_each(users, ratio, seed)
    pair, opening = _pairs(users, items)
    return _share_of_each(users[opening], ratio, seed)[pair]


def _share_of_each(users: npt.NDArray[np.int32], ratio: float, seed: int) -> Bools:
    # The legacy generator is the one of the published split.
    order = np.lexsort((np.random.RandomState(seed).random_sample(len(users)), users))
    counts = np.bincount(users, minlength=1)
    rank = np.arange(1, len(users) + 1) - np.repeat(np.cumsum(counts) - counts, counts)
    first = np.empty(len(users), np.bool_)
    first[order] = (rank / np.repeat(counts, counts) <= ratio) | (rank == 1)
    return first
