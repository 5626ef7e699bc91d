"""The contract of a reorder step, and the table of steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from ..columns import Column
from ..kinds import Kind, Kinds
from ..problems import Problem
from ..ranked.order import Scores
from ..spec import Array, Arrays


class Step(Protocol):
    """An opened step."""

    def apply(self, scores: Scores, arrays: Arrays) -> tuple[Scores, npt.NDArray[np.int32] | None]:
        """Change the order of the kept candidates.

        Parameters
        ----------
        scores
            ``[B, K]`` float32: the ranker's scores after the previous steps; -inf in empty slots, for items
            dropped before, and where the ranker gave NaN.
        arrays
            ``kept_row``, ``kept_score`` ``[B, K]``, ``rank_score [B, K, T]`` if there is a ranker, the
            tensors that the kind reads, the numbers that requests set (:mod:`.per_request`), and perhaps
            ``k [B, 1]``, how many positions each user sees; without it, all K.

        Returns
        -------
        ``[B, K]`` float32 new scores: -inf drops an item that had another score. And ``[B, K]`` int32: 0, or
        1 + the index in the kind's ``reasons`` of why the item was moved or dropped; None if the kind has no
        reasons.
        """
        ...


@runtime_checkable
class Explores(Protocol):
    """An opened step that randomises the order if requests send a seed, and reports probabilities."""

    def propensity(self, before: Scores, after: Scores, arrays: Arrays) -> Scores:
        """Return ``[B, K]`` float32, the probability with which each item got its position.

        Parameters
        ----------
        before, after
            ``[B, K]`` scores before and after the step.
        arrays
            The arrays that :meth:`Step.apply` got.
        """
        ...


@runtime_checkable
class ReorderKind(Protocol):
    """A kind of reorder step: its settings, how it is opened, and its plain reference."""

    #: Whether it needs the ranker's scores. If so, users who bypass the ranker also bypass the step.
    of_ranker: ClassVar[bool]
    #: Texts of why it moves or drops an item.
    reasons: ClassVar[tuple[str, ...]]

    def problems(self) -> list[Problem]:
        """Return what is wrong with the settings by themselves."""
        ...

    def columns(self) -> tuple[str, ...]:
        """Return the raw item columns that it reads."""
        ...

    def reads(self) -> tuple[str, ...]:
        """Return the names of further tensors that it reads, such as ``history_row``."""
        ...

    def misfits(self, tasks: int) -> list[Problem]:
        """Return what does not fit a ranker with ``tasks`` scores per item; 0 is no ranker."""
        ...

    def open(self, columns: Mapping[str, Column]) -> Step:
        """Return the step over columns ``[I + 1]``, whose last row is null.

        They are its raw item columns, and the item data of sources that it reads (:mod:`.inputs`).
        """
        ...

    def reference(
        self, scores: Sequence[float], candidates: Sequence[Mapping[str, Any]], user: Mapping[str, Any]
    ) -> list[float]:
        """Return one user's new scores in plain Python; -inf drops an item that had another score.

        Parameters
        ----------
        scores
            Scores of the candidates that no step dropped, in the order of ``candidates``.
        candidates
            For each: ``row``, ``kept_score``, ``rank_score`` (one number per task) and its columns.
        user
            This user's tensors that the kind reads and numbers that the request sets; ``item_of`` (catalogue
            row → the item's columns); ``greatest`` and ``least_positive`` (column → that number over all
            items); optionally ``served``, the rows as served, which decide where gains nearly tie.
        """
        ...


@runtime_checkable
class HasPlace(Protocol):
    """A kind of step that affects one place of the answer."""

    #: The place; 1 is the top.
    place: int


@runtime_checkable
class Solved(Protocol):
    """A kind of step with numbers that the export solves for, over scores of some users' candidates."""

    def solved(self, lists: Sequence[Array], k: int) -> ReorderKind:
        """Return the step with its numbers, given each user's scores ``[n, T]`` float32 and an answer's k.

        Raises
        ------
        InvalidSettings
            No numbers fulfil the constraint.
        """
        ...


@runtime_checkable
class NamesTasks(ReorderKind, Protocol):
    """A kind that may name the ranker's tasks; its served form refers to them by number."""

    def unknown(self, names: Sequence[str]) -> list[Problem]:
        """Return a problem for each named task that the ranker does not have."""
        ...

    def placed(self, names: Sequence[str]) -> ReorderKind:
        """Return the step with task numbers in place of names, for scores in the order of ``names``."""
        ...


def place_tasks(steps: Sequence[ReorderKind], names: Sequence[str]) -> tuple[ReorderKind, ...]:
    """Return the steps with task numbers in place of names; a step with unknown names stays unchanged."""
    return tuple(
        step.placed(names) if isinstance(step, NamesTasks) and not step.unknown(names) else step
        for step in steps
    )


def unknown_tasks(steps: Sequence[ReorderKind], names: Sequence[str]) -> Iterator[Problem]:
    """Yield a problem, with the step's place, for each named task that the ranker does not have."""
    for place, step in enumerate(steps):
        if isinstance(step, NamesTasks):
            yield from (problem.within(f"reorder[{place}]") for problem in step.unknown(names))


#: Module of the device forms of steps that treat each candidate independently.
_ELEMENTWISE = "tiercel_serving.reorder.elementwise_torch:"

#: Every kind of reorder step.
REORDER: Kinds[ReorderKind] = Kinds(
    "reorder step",
    {
        "weighted_sum": Kind(
            "tiercel_serving.reorder.weighted_sum:WeightedSum", on_device=_ELEMENTWISE + "TensorWeightedSum"
        ),
        "constrained_sum": Kind("tiercel_serving.reorder.constrained_sum:ConstrainedSum"),
        "freshness": Kind(
            "tiercel_serving.reorder.freshness:Freshness", on_device=_ELEMENTWISE + "TensorFreshness"
        ),
        "popularity_correction": Kind(
            "tiercel_serving.reorder.popularity_correction:PopularityCorrection",
            on_device=_ELEMENTWISE + "TensorCorrection",
        ),
        "boost_items": Kind(
            "tiercel_serving.reorder.boost_items:BoostItems", on_device=_ELEMENTWISE + "TensorBoost"
        ),
        "score_floor": Kind(
            "tiercel_serving.reorder.score_floor:ScoreFloor", on_device=_ELEMENTWISE + "TensorFloor"
        ),
        "mmr": Kind("tiercel_serving.reorder.mmr:MMR"),
        "dpp": Kind("tiercel_serving.reorder.dpp:DPP"),
        "spread": Kind("tiercel_serving.reorder.spread:Spread"),
        "calibration": Kind("tiercel_serving.reorder.calibration:Calibration"),
        "fair_shares": Kind("tiercel_serving.reorder.fair_shares:FairShares"),
        "cap": Kind("tiercel_serving.reorder.cap:Cap"),
        "gumbel_top_k": Kind("tiercel_serving.reorder.gumbel_top_k:GumbelTopK"),
        "epsilon_slot": Kind("tiercel_serving.reorder.epsilon_slot:EpsilonSlot"),
        "pin_items": Kind("tiercel_serving.reorder.pin_items:PinItems"),
    },
)
