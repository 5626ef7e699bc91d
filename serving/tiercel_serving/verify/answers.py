"""Compare whole answers with the plain reference: equal candidates except for near ties, in equal order.

A cut-off may fall between scores so close that another engine may swap them. The golden vectors therefore
mark which candidates are certain and which are near the cut-off. If the served candidates differ there, the
reference orders those that were served.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..release.opened import Release
from ..reorder.inputs import source_columns
from ..settings import UNKNOWN
from ..spec import Array
from .compare import ENGINE, EXACT, Difference, Tolerance, compare_arrays, compare_rankings, merge
from .reference import Candidate, order, plain_items


class StoredAnswers:
    """The golden answers of a release.

    Parameters
    ----------
    release
        The release.
    want
        The golden tensors.
    tolerance
        The allowed difference of final scores, which also defines a tie.
    """

    def __init__(self, release: Release, want: Mapping[str, Array], tolerance: Tolerance = ENGINE) -> None:
        self._tolerance = tolerance
        self._settings, self._items, self._want = release.settings, release.items, want
        columns = release.items.columns(release.settings.raw_columns())
        columns |= source_columns(
            release.settings.reorder,
            lambda source: release.artefact(f"source_{source}", "source").arrays,
            release.items.size,
        )
        self._item_of = plain_items(columns)
        self._places = any(getattr(step, "places", False) for step in release.settings.reorder)
        figures = release.manifest.sources.values()
        #: The lowest recall of the approximate sources, as the export measured it; None if all are exact.
        self.recall = min(
            (one.get("recall", 1.0) for one in figures if not one.get("exact", True)), default=None
        )

    def compare(self, got: Mapping[str, Array]) -> tuple[Difference, float]:
        """Compare served tensors; return the difference, and the mean share of certain candidates kept."""
        pairs = [self._compare(got, user) for user in range(len(self._want["status"]))]
        status = compare_arrays(got["status"], self._want["status"], EXACT, "status")
        return merge([status, *(one for one, _ in pairs)]), float(np.mean([share for _, share in pairs]))

    def _compare(self, got: Mapping[str, Array], user: int) -> tuple[Difference, float]:
        want = {name: array[user] for name, array in self._want.items() if name != "wanted"}
        place_of = {
            row: at for at, row in enumerate(want["candidate_row"].tolist()) if row != self._items.size
        }
        pairs = zip(got["kept_row"][user].tolist(), got["kept_source"][user].tolist(), strict=True)
        source_of = {row: source for row, source in pairs if row != self._items.size}
        kept = list(source_of)
        strange = [row for row in kept if row not in place_of]
        certain = {row for row, at in place_of.items() if want["candidate_certain"][at]}
        # Candidates from another source than expected, because one missed them or they nearly tied. A ranker
        # may read the source, so their scores are not compared.
        moved = {row for row in kept if source_of[row] != want["candidate_source"][place_of.get(row, 0)]}
        moved.difference_update(strange)
        if self.recall is None:
            strange += sorted(moved & certain)
        apart = moved.union(strange)
        lacking = sorted(certain.difference(kept))
        share = 1 - len(lacking) / max(len(certain), 1)
        count = int(want["candidate_kept"].sum())
        if len(kept) != count or (self.recall is None and (lacking or strange)):
            text = (
                f"user {user}: {count} candidates expected, {len(kept)} kept; catalogue rows lacking: "
                f"{lacking[:3]}, kept and not expected: {strange[:3]}"
            )
            return Difference(count, np.inf, np.inf, False, text), share
        served = int(got["count"][user, 0])
        ids, scores = got["item_id"][user, :served], got["score"][user, :served]
        if apart:
            known = ~np.isin(self._items.lookup.find(ids), list(apart))
            ids, scores = ids[known], scores[known]
        places = [place_of[row] for row in kept if row not in apart]
        if self._places:
            # Each pick decides the next, so check whether the served scores were ordered correctly.
            best_ids, best = self._ordered(want, places, {name: array[user] for name, array in got.items()})
        elif want["candidate_kept"][places].all() and len(places) == count:
            size = int(want["count"][0])
            best_ids, best = want["item_id"][:size], want["score"][:size]
        else:
            best_ids, best = self._ordered(want, places)
        if apart:
            size = min(len(ids), len(best))
            ids, scores, best_ids, best = ids[:size], scores[:size], best_ids[:size], best[:size]
        return compare_rankings(ids[None], scores[None], best_ids[None], best[None], self._tolerance), share

    def _ordered(
        self, want: Mapping[str, Array], places: list[int], served: Mapping[str, Array] | None = None
    ) -> tuple[Array, Array]:
        """Return ids and scores in the reference's order, of these candidates or of their served scores."""
        numbers = zip(
            *(want[f"candidate_{name}"].tolist() for name in ("row", "score", "source")), strict=True
        )
        candidates = [Candidate(*one) for one in numbers]
        tasks = want["candidate_tasks"].tolist() if want["candidate_tasks"].shape[1] else None
        chosen = [candidates[at] for at in places]
        own = None if tasks is None else [tasks[at] for at in places]
        user: dict[str, Any] = {}
        if served is not None:
            slot = {row: at for at, row in enumerate(served["kept_row"].tolist())}
            chosen = [Candidate(c.row, float(served["kept_score"][slot[c.row]]), c.source) for c in chosen]
            own = own and [served["rank_score"][slot[c.row]].tolist() for c in chosen]
            rows = self._items.lookup.find(served["item_id"][: int(served["count"][0])])
            user = {**served, "served": rows.tolist()}
        unknown = bool(want["status"][0] == UNKNOWN)
        made = order(self._settings, self._item_of, chosen, own, unknown=unknown, user=user)[
            : self._settings.k_max
        ]
        return self._items.ids(np.array([row for row, _ in made], np.int64)), np.array(
            [score for _, score in made], np.float32
        )
