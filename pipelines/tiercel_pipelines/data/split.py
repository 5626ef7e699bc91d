"""Training, validation and test parts of the interactions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from ..errors import DataError
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


def split_dataset(
    dataset: Dataset,
    *,
    train: float = 0.75,
    validation: float = 0.1,
    seed: int = 42,
    by: str = "random",
    allow_seen: bool = False,
) -> Split:
    """Split a data set's interactions as :class:`~tiercel_pipelines.recipe.recipe.SplitSettings` says.

    What a user came back to is in one part alone, unless the recommender gives again what a user had
    (``allow_seen``): a test of something that is never served would measure nothing.

    Raises
    ------
    DataError
        If it is split ``by`` time or leave_one_out, and the interactions have no time.
    """
    if by != "random":
        return _split_by_time(dataset, by, train, validation, allow_seen)
    item_id = None if allow_seen else dataset.item_id
    fit, test = stratified_split(dataset.interactions, dataset.user_id, train, seed, item_id=item_id)
    if not validation:
        return Split(fit, fit.iloc[:0], test)
    # Equal seeds would draw the rows of the test split again.
    return Split(*stratified_split(fit, dataset.user_id, 1 - validation, seed + 1, item_id=item_id), test)


def _split_by_time(dataset: Dataset, by: str, train: float, validation: float, allow_seen: bool) -> Split:
    """Split by the time of the interactions; the index of a part is that of the original."""
    if dataset.timestamp is None:
        raise DataError(
            f"{dataset.name}: a split by {by!r} needs the time of the interactions, and there is none; "
            "name the data set's timestamp, or write split=SplitSettings(by='random')"
        )
    later = _latest_share if by == "time" else _latest_of_each
    everything = dataset.interactions
    test = later(dataset, everything, 1 - train, allow_seen)
    fit = everything[~test]
    if not validation:
        return Split(fit, fit.iloc[:0], everything[test])
    valid = later(dataset, fit, validation, allow_seen)
    return Split(fit[~valid], fit[valid], everything[test])


def _timed_pairs(
    dataset: Dataset, interactions: pd.DataFrame, allow_seen: bool
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return each row's pair, the row where each pair appears first, and each row's place in time."""
    rows = np.arange(len(interactions))
    place = np.empty_like(rows)
    place[np.lexsort((rows, interactions[dataset.timestamp].to_numpy()))] = rows
    if allow_seen:
        return rows, rows, place
    pair, opening = _pairs(interactions[dataset.user_id], interactions[dataset.item_id])
    return pair, opening, place


def _latest_share(
    dataset: Dataset, interactions: pd.DataFrame, share: float, allow_seen: bool
) -> npt.NDArray[np.bool_]:
    """Mark the latest share of all interactions; a pair goes by its first one."""
    pair, opening, place = _timed_pairs(dataset, interactions, allow_seen)
    first = np.full(len(opening), len(interactions))
    np.minimum.at(first, pair, place)
    chosen = np.zeros(len(opening), np.bool_)
    chosen[np.argsort(first)[len(opening) - round(share * len(opening)) :]] = True
    return np.asarray(chosen[pair])


def _latest_of_each(
    dataset: Dataset, interactions: pd.DataFrame, share: float, allow_seen: bool
) -> npt.NDArray[np.bool_]:
    """Mark each user's latest interaction, with the earlier ones of the same item; who has one keeps it."""
    pair, opening, place = _timed_pairs(dataset, interactions, allow_seen)
    user = pd.factorize(interactions[dataset.user_id])[0]
    latest = np.zeros(user.max(initial=-1) + 1, np.int64)
    order = np.argsort(place)
    latest[user[order]] = pair[order]  # the last one written stays
    several = np.bincount(user[opening], minlength=len(latest)) > 1
    chosen = np.zeros(len(opening), np.bool_)
    chosen[latest[several]] = True
    return np.asarray(chosen[pair])


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
