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

#: Users at once.
BLOCK = 512


@dataclass(frozen=True)
class EvaluationData:
    """Who is asked for, and what counts as right.

    Parameters
    ----------
    dataset
        Name of the data set.
    user_ids, item_ids
        Raw ids of the U users with test items, and of the catalogue in row order.
    relevance
        Each user's test items as catalogue rows.
    masked
        Each user's items of the training and validation part that may not come to the user again.
    popular
        All items that pass the rules, what most users had first, ties by row.
    published
        Figures to stand beside, if they were measured in the same way.
    allow_seen, seen_again_days
        Whether a user may be recommended what is known of the user: at all, or after so many days.
    now_s
        What time it is for each user, in seconds since 1970: that of the latest test interaction. None where
        it does not matter.
    left_out
        How many pairs of a user and a test item do not count, since the user is known to have had the item,
        and so is not given it.
    had
        Who had which catalogue row, ``[n]`` each, of all known interactions.
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
            Interactions that serving may know, and those to be found.
        user_id, item_id
            Names of the id columns.
        timestamp
            Name of the column of seconds since 1970, which ``seen_again_days`` asks for.
        rules
            What an item must pass to be served, and so to stand among the popular ones.
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
        # As in training: who had an item several times had it.
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
        """Take the tables of a run; published figures only if data set, split and k are theirs."""
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
        """Return each user's k most popular items, but for what is masked as seen; ``[U, k]``, pad I."""
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
