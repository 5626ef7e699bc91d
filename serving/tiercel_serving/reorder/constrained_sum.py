"""``constrained_sum``: one task is maximised, with a floor on another; the weight is solved at export."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import msgspec
import numpy as np
import numpy.typing as npt

from ..columns import Column
from ..kinds import Settings
from ..problems import COUNT_OR_0, Problem, Range, out_of_range
from ..ranked.order import Scores
from ..spec import Array, Arrays

_SHARE = Range(0, 1)

#: Doublings of the multiplier to find one that is enough, and halvings of what is left.
_DOUBLINGS, _HALVINGS = 40, 40


class ConstrainedSum(Settings, frozen=True, tag="constrained_sum"):
    r"""Score by :math:`s_m + \lambda s_f`, with the least λ that keeps the floor.

    Over the lists of the best k, the mean of task m is as large as can be while that of task f is at least a
    share of the way from what it is without the floor to the most that it can be. λ is the Lagrange
    multiplier of that constraint: every list by :math:`s_m + \lambda s_f` maximises m among all lists of no
    smaller f (Everett 1963, "Generalized Lagrange multiplier method for solving problems of optimum
    allocation of resources"), and f rises with λ. It is found by bisection at export, over users of the
    release.

    Parameters
    ----------
    maximise, floor
        The numbers of the two tasks, from 0.
    share
        Where the floor lies: 0 is none, 1 the most that can be.
    multiplier
        λ. None leaves it to the export; until then it is 0.
    """

    maximise: int = 0
    floor: int = 1
    share: float = 0.5
    multiplier: float | None = None

    of_ranker: ClassVar[bool] = True
    reasons: ClassVar[tuple[str, ...]] = ()

    def problems(self) -> list[Problem]:
        """Return tasks that are one, a share outside of 0 … 1, and a multiplier below 0."""
        wrong = list(out_of_range(self, {"maximise": COUNT_OR_0, "floor": COUNT_OR_0, "share": _SHARE}))
        if not wrong and self.maximise == self.floor:
            wrong.append(Problem("floor", f"{self.floor} is the task that is maximised", "name another task"))
        if self.multiplier is not None and not 0 <= self.multiplier < float("inf"):
            problem = f"expected a number from 0 on, got {self.multiplier!r}"
            wrong.append(Problem("multiplier", problem, "leave it out: the export solves it"))
        return wrong

    def misfits(self, tasks: int) -> list[Problem]:
        """Return tasks that the ranker does not have."""
        return [
            Problem(field, f"there is no task {number}: the ranker has {tasks or 'none'}", "count from 0")
            for field, number in (("maximise", self.maximise), ("floor", self.floor))
            if number >= tasks
        ]

    def solved(self, lists: Sequence[Array], k: int) -> ConstrainedSum:
        """Return the step with its multiplier, of what a ranker gives the candidates of some users.

        Parameters
        ----------
        lists
            For each user ``[n, T]`` float32.
        k
            How many items an answer has.
        """
        if self.multiplier is not None or not any(len(one) for one in lists):
            return self
        pairs = [(one[:, self.maximise], one[:, self.floor]) for one in lists if len(one)]
        lowest, most = _mean(pairs, 0.0, k), float(np.mean([np.sort(f)[-k:].mean() for _, f in pairs]))
        least = lowest + self.share * (most - lowest)
        # What rounding alone makes of the mean is no breach.
        least -= 1e-6 * max(abs(least), abs(most - lowest))
        below, above = 0.0, 0.0
        for doubling in range(_DOUBLINGS):
            if _mean(pairs, above, k) >= least:
                break
            below, above = above, 2.0 ** (doubling - _DOUBLINGS // 2)
        for _ in range(_HALVINGS if above else 0):
            middle = (below + above) / 2
            below, above = (below, middle) if _mean(pairs, middle, k) >= least else (middle, above)
        return msgspec.structs.replace(self, multiplier=float(np.float32(above)))

    def open(self, columns: Mapping[str, Column]) -> ConstrainedTasks:
        """Return the step."""
        return ConstrainedTasks(self.maximise, self.floor, np.float32(self.multiplier or 0.0))

    def reference(
        self, scores: Sequence[float], candidates: Sequence[Mapping[str, Any]], user: Mapping[str, Any]
    ) -> list[float]:
        """Return the sums."""
        weight = np.float32(self.multiplier or 0.0)
        tasks = [candidate["rank_score"] for candidate in candidates]
        return [float(np.float32(t[self.maximise]) + weight * np.float32(t[self.floor])) for t in tasks]


def _mean(pairs: Sequence[tuple[Array, Array]], multiplier: float, k: int) -> float:
    """Return the mean of the second task over the best k of each list, the least where sums tie."""
    best = [np.lexsort((-f, m + np.float32(multiplier) * f))[-k:] for m, f in pairs]
    return float(np.mean([f[places].mean() for (_, f), places in zip(pairs, best, strict=True)]))


class ConstrainedTasks:
    """The two tasks, and the multiplier."""

    def __init__(self, maximise: int, floor: int, multiplier: np.float32) -> None:
        self._maximise, self._floor, self._multiplier = maximise, floor, multiplier

    def apply(self, scores: Scores, arrays: Arrays) -> tuple[Scores, npt.NDArray[np.int32] | None]:
        """Sum the two."""
        tasks = arrays["rank_score"]
        total: Scores = tasks[:, :, self._maximise] + self._multiplier * tasks[:, :, self._floor]
        return total, None
