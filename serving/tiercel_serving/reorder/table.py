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
            tensors that the kind reads, what requests set of its numbers (:mod:`.per_request`), and ``k [B,
            1]``: this many positions of each user are shown. Without it all are.

        Returns
        -------
        ``[B, K]`` float32 new scores, of which -inf drops an item that had another; and ``[B, K]`` int32:
        0, or 1 + the place in the kind's ``reasons`` of why the item was moved or dropped; None where it
        has no reasons.
        """
        ...


@runtime_checkable
class Explores(Protocol):
    """An opened step that draws at random, if requests send a seed, and reports the probabilities."""

    def propensity(self, before: Scores, after: Scores, arrays: Arrays) -> Scores:
        """Return ``[B, K]`` float32, the probability with which each item got its position.

        Parameters
        ----------
        before, after
            ``[B, K]`` scores that the step got, and gave.
        arrays
            What it got.
        """
        ...


@runtime_checkable
class ReorderKind(Protocol):
    """A kind of reorder step: its settings, how it is opened, and its plain reference."""

    #: Whether it works on the ranker's scores, and so leaves alone users who bypass the ranker.
    of_ranker: ClassVar[bool]
    #: Why it moves or drops an item, in words.
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
        """Return what does not fit a ranker with ``tasks`` scores for an item; 0 is no ranker."""
        ...

    def open(self, columns: Mapping[str, Column]) -> Step:
        """Return the step over columns ``[I + 1]``, whose last row is null.

        They are its raw item columns, and what the sources that it reads know (:mod:`.inputs`).
        """
        ...

    def reference(
        self, scores: Sequence[float], candidates: Sequence[Mapping[str, Any]], user: Mapping[str, Any]
    ) -> list[float]:
        """Return one user's new scores in plain Python; -inf drops an item that had another.

        Parameters
        ----------
        scores
            Of the candidates that no step dropped, in the order of ``candidates``.
        candidates
            For each: ``row``, ``kept_score``, ``rank_score`` (one number a task) and its columns.
        user
            The tensors that the kind reads and the numbers that the request sets, of this user; ``item_of``
            (catalogue row → the item's columns), ``greatest`` and ``least_positive`` (column → such a number
            of all items); perhaps ``served``: rows as they were served, to go by where gains nearly tie.
        """
        ...


@runtime_checkable
class HasPlace(Protocol):
    """A kind of step that puts something at one position of the answer."""

    #: Which place; 1 is the top.
    place: int


@runtime_checkable
class Solved(Protocol):
    """A kind of step with numbers that an export solves, over the scores of some users' candidates."""

    def solved(self, lists: Sequence[Array], k: int) -> ReorderKind:
        """Return the step with its numbers, of each user's scores ``[n, T]`` float32, and an answer's k."""
        ...


@runtime_checkable
class NamesTasks(ReorderKind, Protocol):
    """A kind that may name the ranker's tasks; the served form numbers them."""

    def unknown(self, names: Sequence[str]) -> list[Problem]:
        """Return what it names that is none of the ranker's scores."""
        ...

    def placed(self, names: Sequence[str]) -> ReorderKind:
        """Return the step that counts them, for scores in the order of the names."""
        ...


def place_tasks(steps: Sequence[ReorderKind], names: Sequence[str]) -> tuple[ReorderKind, ...]:
    """Return the steps with the places of the tasks that they name; unknown ones stay as they are."""
    return tuple(
        step.placed(names) if isinstance(step, NamesTasks) and not step.unknown(names) else step
        for step in steps
    )


def unknown_tasks(steps: Sequence[ReorderKind], names: Sequence[str]) -> Iterator[Problem]:
    """Yield the tasks that steps name and the ranker does not have, each with its step's place."""
    for place, step in enumerate(steps):
        if isinstance(step, NamesTasks):
            yield from (problem.within(f"reorder[{place}]") for problem in step.unknown(names))


#: Where the forms on a device are of steps that look at each candidate by itself.
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
