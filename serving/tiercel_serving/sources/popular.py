r"""``popular``: the items with the most interactions, the same for all users; of all time, or recently.

.. math:: s_i \propto \sum_{(u, i, t)} 2^{-(T - t) / h}

where T is the time of the latest interaction and h the half-life; without h, each interaction counts 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from ..errors import InvalidSettings
from ..kinds import Settings
from ..problems import POSITIVE, Problem, out_of_range
from ..ranked.masks import Mask
from ..ranked.order import Rows, Scores, first_allowed, sort_by_score
from ..release.artefacts import Artefact
from ..spec import Array, Arrays
from .table import Made, Material, UserTensors

_NOTHING = np.float32(-np.inf)

_DAY_S = 86_400


class Popular(Settings, frozen=True, tag="popular"):
    """Items by their number of interactions, recent or overall; the score is that number over the largest.

    Parameters
    ----------
    name
        Its name in ``--explain``.
    quota
        Number of candidates that it may give; None is what the other quotas leave.
    half_life_days
        Age in days at which an interaction counts half; it needs timestamps. None counts all alike.
    """

    name: str = "popular"
    quota: int | None = None
    half_life_days: float | None = None

    personal: ClassVar[bool] = False
    form: ClassVar[str | None] = None

    def problems(self) -> list[Problem]:
        """Return an invalid half-life."""
        return list(out_of_range(self, {"half_life_days": POSITIVE}, none={"half_life_days": "all time"}))

    @property
    def needs_times(self) -> bool:
        """Whether it weights interactions by age."""
        return self.half_life_days is not None

    def make(self, material: Material) -> Made:
        """Return ``rows [A]`` of the allowed items, most interactions first (ties by row), and ``scores``.

        Raises
        ------
        InvalidSettings
            ``half_life_days`` is set, but interactions have no times.
        """
        counts = np.bincount(material.rows, self._weights(material), minlength=material.items)
        order = np.argsort(-counts, kind="stable").astype(np.int32)
        if material.allowed is not None:
            order = order[material.allowed[order]]
        highest = counts.max(initial=0) or 1
        return Made({"rows": order, "scores": (counts[order] / highest).astype(np.float32)})

    def _weights(self, material: Material) -> npt.NDArray[np.float64] | None:
        """Return the weight of each interaction; None means 1 for all."""
        if self.half_life_days is None:
            return None
        times = material.times
        if times is None:
            raise InvalidSettings(
                f"source {self.name!r}: half_life_days={self.half_life_days:g} needs the time of each "
                "interaction, and there is none; give them a timestamp, or leave half_life_days out"
            )
        ages_days = (times.max(initial=-np.inf) - times) / _DAY_S
        return np.asarray(np.exp2(-ages_days / self.half_life_days), np.float64)

    def open(self, artefact: Artefact, items: int, threads: int) -> PopularList:
        """Open the list."""
        rows = artefact.array("rows")
        return PopularList(rows, artefact.array("scores", len(rows)), items)

    def reference(
        self, arrays: Mapping[str, Array], user: UserTensors, allowed: npt.NDArray[np.bool_], count: int
    ) -> list[tuple[int, float]]:
        """Return the first allowed items of the list."""
        listed = zip(arrays["rows"].tolist(), arrays["scores"].tolist(), strict=True)
        return [(row, score) for row, score in listed if allowed[row]][:count]


class PopularList:
    """One list of items for all users.

    Parameters
    ----------
    rows, scores
        ``[A]`` int32 and float32, best first.
    items
        I, the pad row.
    """

    def __init__(self, rows: Array, scores: Array, items: int) -> None:
        # The place after the last holds the pad row.
        self._rows = np.append(rows, items).astype(np.int64)
        self._scores = np.append(scores, _NOTHING).astype(np.float32)
        self._size = len(rows)

    def candidates(self, arrays: Arrays, mask: Mask, count: int) -> tuple[Scores, Rows]:
        """Return the first ``count`` allowed items, reading further only for users who still lack some."""
        places = np.full((mask.users, count), self._size)
        listed, open_ended = 2 * count + 16, np.arange(mask.users)
        while len(open_ended):
            rows = self._rows[: min(listed, self._size)]
            allowed = mask.allows(np.broadcast_to(rows, (len(open_ended), len(rows))), open_ended)
            found, real = first_allowed(allowed, count)
            places[open_ended] = found if real is None else np.where(real, found, self._size)
            if real is None or len(rows) == self._size:
                break
            open_ended = open_ended[~real[:, -1]]
            listed *= 8
        return sort_by_score(self._scores[places], self._rows[places])
