"""Who is asked for in an evaluation, and what counts as right."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from tiercel_serving.ranked import make_mask
from tiercel_serving.sources.popular import Popular, PopularList
from tiercel_serving.sources.table import Material

from ..errors import EvaluationError
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
    known
        Each user's items of the training and validation part.
    popular
        All items, most known interactions first, ties by row.
    published
        Figures to stand beside, if they were measured in the same way.
    allow_seen
        Whether a user may be recommended what is known of the user.
    left_out
        How many pairs of a user and a test item do not count, since the user is known to have had the item,
        and so is never given it.
    had
        Who had which catalogue row, ``[n]`` each, of all known interactions.
    """

    dataset: str
    user_ids: list[Id]
    item_ids: list[Id]
    relevance: Relevance
    known: Relevance
    popular: PopularList
    published: tuple[Published, ...] = ()
    allow_seen: bool = False
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
        published: tuple[Published, ...] = (),
        allow_seen: bool = False,
    ) -> EvaluationData:
        """Build from tables with raw ids.

        Parameters
        ----------
        dataset, published, allow_seen
            See the class.
        items
            The catalogue; a row's position is the catalogue row.
        known, test
            Interactions that serving may know, and those to be found.
        user_id, item_id
            Names of the id columns.
        """
        if not len(test):
            raise EvaluationError(f"{dataset}: the test part is empty, so there is nobody to ask about")
        catalogue = pd.Index(items[item_id])
        users = pd.Index(test[user_id].unique())
        of_test = _rows(catalogue, test[item_id], dataset)
        of_known = _rows(catalogue, known[item_id], dataset)
        at, by = users.get_indexer(test[user_id]), users.get_indexer(known[user_id])
        left_out = 0
        if not allow_seen:
            key, had = at * len(catalogue) + of_test, by * len(catalogue) + of_known
            again = np.isin(key, had)
            left_out = len(np.unique(key[again]))
            asked, at = np.unique(at[~again], return_inverse=True)
            users, of_test = users[asked], of_test[~again]
            by = users.get_indexer(known[user_id])
        if not len(users):
            raise EvaluationError(
                f"{dataset}: the users already had all of the {left_out} items that are to be found, and are "
                "given nothing again; split pairs of user and item, or allow what was seen (allow_seen)"
            )
        made = Popular().make(Material(items=len(catalogue), users=by, rows=of_known))
        return cls(
            dataset=dataset,
            user_ids=users.tolist(),
            item_ids=catalogue.tolist(),
            relevance=Relevance.from_pairs(at, of_test, len(users)),
            known=Relevance.from_pairs(by[by >= 0], of_known[by >= 0], len(users)),
            popular=PopularList(made.arrays["rows"], made.arrays["scores"], len(catalogue)),
            published=published,
            allow_seen=allow_seen,
            left_out=left_out,
            had=(pd.factorize(known[user_id])[0].astype(np.int64), of_known),
        )

    @classmethod
    def from_run(cls, run: TrainedRun, k: int = PUBLISHED_K) -> EvaluationData:
        """Take the tables of a run; published figures only if data set, split and k are theirs."""
        data, split = run.record.data, run.record.recipe.split
        allow_seen = run.record.recipe.serving.allow_seen
        same = not allow_seen and k == PUBLISHED_K and split.by == "random"
        same = same and (split.train, split.seed) == PUBLISHED_SPLIT
        return cls.from_frames(
            data.name,
            run.items,
            run.interactions,
            run.test,
            user_id=data.user_id,
            item_id=data.item_id,
            published=PUBLISHED.get(data.name, ()) if same else (),
            allow_seen=allow_seen,
        )

    def popularity_lists(self, k: int) -> IntArray:
        """Return each user's k most popular items, but for what is masked as seen; ``[U, k]``, pad I."""
        found = []
        for start in range(0, len(self.user_ids), BLOCK):
            offsets = self.known.offsets[start : start + BLOCK + 1]
            if self.allow_seen:
                offsets = np.zeros_like(offsets)
            known = self.known.rows[offsets[0] : offsets[-1]]
            mask = make_mask(len(offsets) - 1, len(self.item_ids), known, np.diff(offsets))
            found.append(self.popular.candidates({}, mask, k)[1])
        return np.concatenate(found)


def _rows(catalogue: pd.Index, ids: pd.Series, dataset: str) -> IntArray:
    rows: IntArray = catalogue.get_indexer(ids).astype(np.int64)
    if (rows < 0).any():
        raise EvaluationError(
            f"{dataset}: item {ids.to_numpy()[rows < 0][0]!r} of the interactions is not in the catalogue"
        )
    return rows
