"""Kinds defined by the tests alone: the tables must allow more than today's kinds need."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pytest

from tiercel_serving.columns import Column
from tiercel_serving.kinds import Kind, Settings
from tiercel_serving.problems import Problem
from tiercel_serving.ranked.masks import Mask
from tiercel_serving.ranked.order import Rows, Scores, sort_by_score
from tiercel_serving.release.artefacts import Artefact
from tiercel_serving.reorder.table import REORDER
from tiercel_serving.sources.table import SOURCES, Made, Material, UserTensors
from tiercel_serving.spec import Arrays


@contextmanager
def own_kinds() -> Iterator[None]:
    """Add the kinds of this module to their tables."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SOURCES.rows, "beside", Kind(f"{__name__}:Beside"))
        patch.setitem(REORDER.rows, "even_years", Kind(f"{__name__}:EvenYears"))
        yield


class Beside(Settings, frozen=True, tag="beside"):
    """Items whose rows are close to the latest row of the history: a source that cannot score given items."""

    name: str
    quota: int | None = None

    personal: ClassVar[bool] = True
    form: ClassVar[str | None] = None

    def reads(self) -> tuple[str, ...]:
        return ("history_row", "history_length")

    def make(self, material: Material) -> Made:
        return Made({"reach": np.array([3])})

    def open(self, artefact: Artefact, items: int, threads: int) -> Neighbours:
        return Neighbours(int(artefact.array("reach")[0]), items)

    def reference(
        self, arrays: Mapping[str, Any], user: UserTensors, allowed: npt.NDArray[np.bool_], count: int
    ) -> list[tuple[int, float]]:
        if not user["history_length"][0]:
            return []
        latest, reach = int(user["history_row"][user["history_length"][0] - 1]), int(arrays["reach"][0])
        near = [row for row in range(len(allowed)) if abs(row - latest) <= reach and allowed[row]]
        return [(row, -float(abs(row - latest))) for row in sorted(near, key=lambda r: (abs(r - latest), r))][
            :count
        ]


class Neighbours:
    def __init__(self, reach: int, items: int) -> None:
        self._steps, self._items = np.arange(-reach, reach + 1), items

    def candidates(self, arrays: Arrays, mask: Mask, count: int) -> tuple[Scores, Rows]:
        last = np.maximum(arrays["history_length"] - 1, 0)
        rows = np.take_along_axis(arrays["history_row"], last, axis=1) + self._steps
        there = (rows >= 0) & (rows < self._items) & (arrays["history_length"] > 0)
        there &= mask.allows(np.where(there, rows, self._items))
        rows = np.where(there, rows, self._items)
        scores = np.where(there, -np.abs(self._steps), -np.inf).astype(np.float32)
        missing = ((0, 0), (0, max(count - len(self._steps), 0)))
        rows = np.pad(rows, missing, constant_values=self._items)
        scores, rows = sort_by_score(np.pad(scores, missing, constant_values=-np.inf), rows)
        return scores[:, :count], rows[:, :count]


class EvenYears(Settings, frozen=True, tag="even_years"):
    """Items of even years lose a point, and those of unknown year are removed."""

    points: float = 1.0

    of_ranker: ClassVar[bool] = False
    reasons: ClassVar[tuple[str, ...]] = ("its year is even", "nobody knows its year")

    def columns(self) -> tuple[str, ...]:
        return ("year",)

    def misfits(self, tasks: int) -> list[Problem]:
        return []

    def open(self, columns: Mapping[str, Column]) -> EvenStep:
        return EvenStep(columns["year"], np.float32(self.points))

    def reference(
        self, scores: Sequence[float], candidates: Sequence[Mapping[str, Any]], user: Mapping[str, Any]
    ) -> list[float]:
        changed = []
        for score, candidate in zip(scores, candidates, strict=True):
            year = candidate["year"]
            lower = float(np.float32(score) - np.float32(self.points))
            changed.append(float("-inf") if year is None else lower if year % 2 == 0 else score)
        return changed


class EvenStep:
    def __init__(self, year: Column, points: np.float32) -> None:
        assert year.valid is not None
        self._even, self._known, self._points = year.values % 2 == 0, year.valid, points

    def apply(self, scores: Scores, arrays: Arrays) -> tuple[Scores, npt.NDArray[np.int32]]:
        known, even = self._known[arrays["kept_row"]], self._even[arrays["kept_row"]]
        there = scores > -np.inf
        why = np.where(known, even, 2).astype(np.int32) * there
        return np.where(known, np.where(even, scores - self._points, scores), -np.inf).astype(np.float32), why
