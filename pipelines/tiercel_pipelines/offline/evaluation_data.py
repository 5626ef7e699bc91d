"""The users of an evaluation, and their relevant items."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pandas as pd

from tiercel_serving.ranked.masks import make_mask
from tiercel_serving.rules.kept import allowed_items
from tiercel_serving.rules.table import RuleKind
from tiercel_serving.settings import ServingSettings
from tiercel_serving.sources.popular import Popular, PopularList
from tiercel_serving.sources.table import Material
from tiercel_serving.stages.seen_again import days_again, given_again

from ..errors import EvaluationError
from ..features.raw_columns import raw_columns
from .had import Had, latest_s
from .metrics import IntArray, Relevance
from .published import PUBLISHED, PUBLISHED_K, PUBLISHED_SPLIT, Published
from .served_ensemble import Id

if TYPE_CHECKING:
    from ..training import TrainedRun

#: Number of users in a block.
BLOCK = 512


@dataclass(frozen=True)
class EvaluationData:
    """The users to evaluate, and their relevant items.

    Parameters
    ----------
    dataset
        Name of the data set.
    user_ids, item_ids
        Raw ids of the U users with test items, and of the catalogue in row order.
    relevance
        Each user's test items that may be recommended, as catalogue rows.
    masked
        Each user's items of the training and validation parts that may not be recommended again.
    popular
        All items that pass the rules, sorted by the number of users who had them, ties by row.
    published
        Published figures to compare with, if they were measured in the same way.
    allow_seen, seen_again_days
        Whether items that a user is known to have had may be recommended again: always, or after that many
        days.
    now_s
        ``[U]`` float64 request time of each user, in seconds since 1970, which is that of the latest test
        interaction. None without ``seen_again_days``.
    left_out
        How many (user, test item) pairs are not counted because the user is known to have had the item and
        may not be recommended it again.
    had
        All known interactions: users (any distinct integers) and catalogue rows, ``[n]`` int64 each.
    """

    dataset: str
    user_ids: list[Id]
    item_ids: list[Id]
    relevance: Relevance
    masked: Relevance
    popular: PopularList
    published: tuple[Published, ...] = ()
    allow_seen: bool = False
    seen_again_days: float | None = None
    now_s: npt.NDArray[np.float64] | None = None
    left_out: int = 0
    had: tuple[IntArray, IntArray] = (np.zeros(0, np.int64), np.zeros(0, np.int64))

    @classmethod
    def from_frames(
        cls,
        dataset: str,
        items: pd.DataFrame,
        known: pd.DataFrame,
        test: pd.DataFrame,
        *,
        user_id: str = "user_id",
        item_id: str = "item_id",
        timestamp: str = "timestamp",
        published: tuple[Published, ...] = (),
        allow_seen: bool = False,
        seen_again_days: float | None = None,
        rules: Sequence[RuleKind] = (),
    ) -> EvaluationData:
        """Build from tables with raw ids.

        Parameters
        ----------
        dataset, published, allow_seen, seen_again_days
            See the class.
        items
            The catalogue; a row's position is the catalogue row.
        known, test
            Interactions that serving may know, and those to predict.
        user_id, item_id
            Names of the id columns.
        timestamp
            Name of the column of seconds since 1970; read only with ``seen_again_days``.
        rules
            Rules that an item must pass to be served, and so to be in ``popular``.

        Raises
        ------
        EvaluationError
            If the test part is empty, its users already had all of its items and may not be recommended them
            again, or an interaction names an item that is not in the catalogue.
        """
        if not len(test):
            raise EvaluationError(f"{dataset}: the test part is empty, so there is nobody to ask about")
        settings = ServingSettings(allow_seen=allow_seen, seen_again_days=seen_again_days)
        catalogue = pd.Index(items[item_id])
        users = pd.Index(test[user_id].unique())
        of_test = _rows(catalogue, test[item_id], dataset)
        of_known = _rows(catalogue, known[item_id], dataset)
        at, by = users.get_indexer(test[user_id]), users.get_indexer(known[user_id])
        now_s = times_s = None
        if seen_again_days is not None:
            now_s = latest_s(at, test[timestamp].to_numpy(np.float64), len(users))
            times_s = known[timestamp].to_numpy(np.float64)[by >= 0]
        had = Had.of_events(by[by >= 0], of_known[by >= 0], times_s, len(users), settings, now_s)
        findable = had.findable(at, of_test, len(catalogue))
        left_out = len(np.unique((at * len(catalogue) + of_test)[~findable]))
        asked, at = np.unique(at[findable], return_inverse=True)
        if not len(asked):
            raise EvaluationError(
                f"{dataset}: the users already had all of the {left_out} items that are to be found, and are "
                "not given them again; split pairs of user and item, or allow what was seen (allow_seen, "
                "seen_again_days)"
            )
        rows, counts = had.masked(asked)
        columns = raw_columns(items, {name for rule in rules for name in rule.columns()})
        allowed = allowed_items(rules, columns, len(catalogue))
        # As in training, repeated interactions of a user with an item count once.
        everybody = pd.factorize(known[user_id])[0].astype(np.int64)
        owners, had_rows = np.divmod(np.unique(everybody * len(catalogue) + of_known), len(catalogue))
        made = Popular().make(Material(len(catalogue), owners, had_rows, allowed=allowed))
        return cls(
            dataset=dataset,
            user_ids=users[asked].tolist(),
            item_ids=catalogue.tolist(),
            relevance=Relevance.from_pairs(at, of_test[findable], len(asked)),
            masked=Relevance.from_pairs(np.repeat(np.arange(len(asked)), counts), rows, len(asked)),
            popular=PopularList(made.arrays["rows"], made.arrays["scores"], len(catalogue)),
            published=published,
            allow_seen=allow_seen,
            seen_again_days=seen_again_days,
            now_s=None if now_s is None else now_s[asked],
            left_out=left_out,
            had=(everybody, of_known),
        )

    @classmethod
    def from_run(cls, run: TrainedRun, k: int = PUBLISHED_K) -> EvaluationData:
        """Build from a run's tables; add published figures only if data set, split and k match theirs."""
        data, split = run.record.data, run.record.recipe.split
        serving = run.record.recipe.serving
        same = not given_again(serving) and k == PUBLISHED_K and split.by == "random"
        same = same and (split.train, split.seed) == PUBLISHED_SPLIT
        return cls.from_frames(
            data.name,
            run.items,
            run.interactions,
            run.test,
            user_id=data.user_id,
            item_id=data.item_id,
            timestamp=data.timestamp or "",
            published=PUBLISHED.get(data.name, ()) if same else (),
            allow_seen=serving.allow_seen,
            seen_again_days=days_again(serving),
            rules=serving.rules,
        )

    def popularity_lists(self, k: int) -> IntArray:
        """Return each user's k most popular items that are not masked: rows ``[U, k]`` padded with I."""
        found = []
        for start in range(0, len(self.user_ids), BLOCK):
            offsets = self.masked.offsets[start : start + BLOCK + 1]
            masked = self.masked.rows[offsets[0] : offsets[-1]]
            mask = make_mask(len(offsets) - 1, len(self.item_ids), masked, np.diff(offsets))
            found.append(self.popular.candidates({}, mask, k)[1])
        return np.concatenate(found)


def _rows(catalogue: pd.Index, ids: pd.Series, dataset: str) -> IntArray:
    rows: IntArray = catalogue.get_indexer(ids).astype(np.int64)
    if (rows < 0).any():
        raise EvaluationError(
            f"{dataset}: item {ids.to_numpy()[rows < 0][0]!r} of the interactions is not in the catalogue"
        )
    return rows
