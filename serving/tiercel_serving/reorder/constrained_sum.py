"""``constrained_sum``: one task is maximised with a floor on another; the export solves for the weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import msgspec
import numpy as np
import numpy.typing as npt

from ..columns import Column
from ..errors import InvalidSettings
from ..kinds import Settings
from ..problems import COUNT_OR_0, Problem, Range, out_of_range
from ..ranked.order import Scores
from ..spec import Array, Arrays

_SHARE = Range(0, 1)

#: The multipliers that are tried until one suffices, and halvings of the remaining interval.
_TRIED, _HALVINGS = (0.0, *(2.0**power for power in range(-20, 65))), 40


class ConstrainedSum(Settings, frozen=True, tag="constrained_sum"):
    r"""Score by :math:`s_m + \lambda s_f`, with the smallest λ that keeps the floor.

    Over the lists of the best k, this maximises the mean of task m, while the mean of task f stays above a
    floor. The floor lies a given share of the way from the mean of f without a floor to its largest possible
    mean. λ is the Lagrange multiplier of that constraint: a list sorted by :math:`s_m + \lambda s_f`
    maximises m among all lists with no smaller f (Everett 1963, "Generalized Lagrange multiplier method for
    solving problems of optimum allocation of resources"), and f rises with λ. The export finds λ by
    bisection, over users of the release.

    Parameters
    ----------
    maximise, floor
        The numbers of the two tasks, from 0.
    share
        Position of the floor: 0 is no floor, 1 the largest possible mean.
    multiplier
        λ. None lets the export solve for it; until then it is 0.
    """

    maximise: int = 0
    floor: int = 1
    share: float = 0.5
    multiplier: float | None = None

    of_ranker: ClassVar[bool] = True
    reasons: ClassVar[tuple[str, ...]] = ()

    def problems(self) -> list[Problem]:
        """Return equal tasks, a share outside of 0 … 1, and a negative or infinite multiplier."""
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
        """Return the step with its multiplier, solved from the ranker's scores for some users' candidates.

        Parameters
        ----------
        lists
            For each user, the scores ``[n, T]`` float32.
        k
            Number of items in an answer.

        Raises
        ------
        InvalidSettings
            No multiplier keeps the floor.
        """
        if self.multiplier is not None or not any(len(one) for one in lists):
            return self
        pairs = [(one[:, self.maximise], one[:, self.floor]) for one in lists if len(one)]
        lowest, most = _mean(pairs, 0.0, k), _largest_mean(pairs, k)
        least = lowest + self.share * (most - lowest)
        # Allow for rounding of the mean.
        least -= 1e-6 * max(abs(least), abs(most - lowest))
        enough = next((place for place, one in enumerate(_TRIED) if _mean(pairs, one, k) >= least), None)
        if enough is None:
            raise InvalidSettings(
                f"constrained_sum: no multiplier up to {_TRIED[-1]:.3g} raises the mean of task {self.floor} "
                f"to {least:.6g} (it goes from {lowest:.6g} to {most:.6g}); give a smaller share, or tasks "
                "with finite scores of similar scales"
            )
        below, above = _TRIED[max(enough - 1, 0)], _TRIED[enough]
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
    """Return the mean of the second task over the best k of each list; ties go to its lower values."""
    best = [np.lexsort((-f, m + np.float32(multiplier) * f))[-k:] for m, f in pairs]
    # In float64, as a rounding error must not look like a floor that is not kept.
    return float(
        np.mean([f[places].mean(dtype=np.float64) for (_, f), places in zip(pairs, best, strict=True)])
    )


def _largest_mean(pairs: Sequence[tuple[Array, Array]], k: int) -> float:
    """Return the largest possible mean of the second task over k of each list."""
    return float(np.mean([np.sort(f)[-k:].mean(dtype=np.float64) for _, f in pairs]))


class ConstrainedTasks:
    """The opened step: the two tasks, and the multiplier."""

    def __init__(self, maximise: int, floor: int, multiplier: np.float32) -> None:
        self._maximise, self._floor, self._multiplier = maximise, floor, multiplier

    def apply(self, scores: Scores, arrays: Arrays) -> tuple[Scores, npt.NDArray[np.int32] | None]:
        """Add the two tasks."""
        tasks = arrays["rank_score"]
        total: Scores = tasks[:, :, self._maximise] + self._multiplier * tasks[:, :, self._floor]
        return total, None
