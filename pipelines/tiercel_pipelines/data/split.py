"""Training, validation and test parts of the interactions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from .dataset import Dataset


@dataclass(frozen=True)
class Split:
    """Three disjoint parts of a data set's interactions, each in the order of the original."""

    train: pd.DataFrame
    valid: pd.DataFrame
    test: pd.DataFrame

    @property
    def fit(self) -> pd.DataFrame:
        """Training and validation part together: everything that is not the test."""
        return pd.concat([self.train, self.valid]).sort_index()


def stratified_split(
    interactions: pd.DataFrame,
    user_id: str,
    ratio: float = 0.75,
    seed: int = 42,
    *,
    item_id: str | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Split each user's interactions at random, a share of ``ratio`` of them to the first part.

    Row for row the split of the published MovieLens-100K benchmarks (recommenders'
    ``python_stratified_split``), if ``interactions`` has the order of ``u.data`` and seed is 42: one
    uniform number a row, rank of a row among its user's numbers over their count, at most ``ratio``
    goes to the first part. A user's lowest rank always does, so that nobody is without training data.

    Parameters
    ----------
    interactions, user_id
        One row an interaction, and the column to stratify by.
    ratio
        The first part's share of each user's rows, above 0 and below 1.
    seed
        Same seed, same split.
    item_id
        The column of items: all rows of a user and an item then go to the same part, and the shares are of
        such pairs. Where no pair comes twice this is the same split. None splits row by row.

    Returns
    -------
    tuple
        Both parts, each in the order (and with the index) of ``interactions``.
    """
    if not 0 < ratio < 1:
        raise ValueError(f"ratio: expected a share above 0 and below 1, got {ratio}")
    if item_id is None:
        first = _share_of_each(interactions[user_id], ratio, seed)
    else:
        pair, opening = _pairs(interactions[user_id], interactions[item_id])
        first = _share_of_each(interactions[user_id].iloc[opening], ratio, seed)[pair]
    return interactions[first], interactions[~first]


def leave_last_out(
    interactions: pd.DataFrame, user_id: str, timestamp: str, *, item_id: str | None = None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Split off each user's last interaction, by time and then by row; who has but one keeps it.

    Parameters
    ----------
    interactions, user_id, timestamp
        One row an interaction, and the columns of users and of times.
    item_id
        The column of items: all rows of a user and an item then go to the same part, so that nobody shall
        find what he had before. None splits row by row.

    Returns
    -------
    tuple
        The rest and the last, each in the order (and with the index) of ``interactions``.
    """
    users = pd.factorize(interactions[user_id])[0]
    if item_id is None:
        pair = np.arange(len(interactions))
    else:
        pair, _ = _pairs(interactions[user_id], interactions[item_id])
    order = np.lexsort((np.arange(len(users)), interactions[timestamp].to_numpy(), users))
    # The last of each user in this order; a pair is where its latest row is.
    final = order[np.append(users[order][1:] != users[order][:-1], True)[: len(order)]]
    of_user = np.bincount(users[np.unique(pair, return_index=True)[1]], minlength=len(final))
    final = final[of_user[users[final]] > 1]
    last = np.isin(pair, pair[final])
    return interactions[~last], interactions[last]


def split_dataset(
    dataset: Dataset,
    *,
    method: str = "random",
    train: float = 0.75,
    validation: float = 0.1,
    seed: int = 42,
    allow_seen: bool = False,
) -> Split:
    """Split a data set's interactions as :class:`~tiercel_pipelines.recipe.recipe.SplitSettings` says.

    What a user came back to is in one part alone, unless the recommender gives again what a user had
    (``allow_seen``): a test of something that is never served would measure nothing.
    """
    item_id = None if allow_seen else dataset.item_id
    if method == "leave_one_out":
        if dataset.timestamp is None:
            raise ValueError(
                f"{dataset.name}: leave_one_out needs a timestamp, and the interactions have none"
            )
        names = (dataset.user_id, dataset.timestamp)
        fit, test = leave_last_out(dataset.interactions, *names, item_id=item_id)
        if not validation:
            return Split(fit, fit.iloc[:0], test)
        return Split(*leave_last_out(fit, *names, item_id=item_id), test)
    fit, test = stratified_split(dataset.interactions, dataset.user_id, train, seed, item_id=item_id)
    if not validation:
        return Split(fit, fit.iloc[:0], test)
    # Equal seeds would draw the rows of the test split again.
    return Split(*stratified_split(fit, dataset.user_id, 1 - validation, seed + 1, item_id=item_id), test)


def _pairs(users: pd.Series, items: pd.Series) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the number of each row's pair, in order of first appearance, and the row where each appears."""
    item, known = pd.factorize(items)
    pair, _ = pd.factorize(pd.factorize(users)[0] * (len(known) + 1) + item)
    return pair.astype(np.int64), np.unique(pair, return_index=True)[1]


def _share_of_each(users: pd.Series, ratio: float, seed: int) -> npt.NDArray[np.bool_]:
    # The legacy generator is the one of the published split.
    numbers = pd.Series(np.random.RandomState(seed).random_sample(len(users)))
    of_each = numbers.groupby(users.to_numpy())
    rank = of_each.rank(method="first")
    return np.asarray((rank / of_each.transform("size") <= ratio) | (rank == 1))
