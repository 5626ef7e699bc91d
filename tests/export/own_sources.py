"""Kinds of sources defined by the tests alone, which the drivers must serve without knowing them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from tiercel_serving.kinds import Kind, Settings
from tiercel_serving.ranked.order import order_by_score, pick
from tiercel_serving.release.artefacts import Artefact
from tiercel_serving.sources.table import Made, Material

ROWS = {
    "own_best": Kind(f"{__name__}:Best"),
    "own_weights": Kind(f"{__name__}:Weights"),
}


class Scored:
    """Scores items by one score each, or by one score per user and item."""

    def __init__(self, score: Any) -> None:
        self._score = score

    def candidates(self, arrays: Mapping[str, Any], mask: Any, count: int) -> tuple[Any, Any]:
        blocked = mask.table()
        items = blocked.shape[1] - 1
        scores = np.where(blocked[:, :-1], -np.inf, self._score(arrays)).astype(np.float32)
        rows = np.where(np.isneginf(scores), items, np.arange(items))
        missing = ((0, 0), (0, max(count - items, 0)))
        scores = np.pad(scores, missing, constant_values=-np.inf)
        rows = np.pad(rows, missing, constant_values=items)
        order = order_by_score(scores, rows)[:, :count]
        return pick(scores, order), pick(rows, order)


def plainly(score_of: Any, allowed: Any, count: int) -> list[tuple[int, float]]:
    free = [row for row in range(len(allowed)) if allowed[row]]
    return [
        (row, float(score_of(row))) for row in sorted(free, key=lambda row: (-score_of(row), row))[:count]
    ]


class Best(Settings, frozen=True, tag="own_best"):
    """The items with the highest values of a raw column."""

    name: str
    column: str = "stock"
    quota: int | None = None
    personal: ClassVar[bool] = False
    form: ClassVar[str | None] = None

    def columns(self) -> tuple[str, ...]:
        return (self.column,)

    def make(self, material: Material) -> Made:
        values = material.columns[self.column].values.astype(np.float32)
        return Made({"values": values}, figures={"most": float(values.max())}, notes=["best: made"])

    def open(self, artefact: Artefact, items: int, threads: int) -> Scored:
        values = artefact.array("values", items)
        return Scored(lambda arrays: values)

    def reference(self, arrays: Any, user: Any, allowed: Any, count: int) -> list[tuple[int, float]]:
        return plainly(lambda row: arrays["values"][row], allowed, count)


class Weights(Settings, frozen=True, tag="own_weights"):
    """Item × item weights, summed over the history."""

    name: str
    quota: int | None = None
    personal: ClassVar[bool] = True
    form: ClassVar[str | None] = "item weights"

    def reads(self) -> tuple[str, ...]:
        return ("history_row",)

    def make(self, material: Material) -> Made:
        return Made({"weights": np.asarray(material.form["weights"], np.float32)})

    def open(self, artefact: Artefact, items: int, threads: int) -> Scored:
        # The pad row has weight 0.
        weights = np.pad(artefact.array("weights", items), ((0, 1), (0, 0)))
        return Scored(lambda arrays: weights[arrays["history_row"]].sum(1, dtype=np.float32))

    def reference(self, arrays: Any, user: Any, allowed: Any, count: int) -> list[tuple[int, float]]:
        history = [row for row in user["history_row"] if row < len(allowed)]
        return plainly(lambda row: sum(arrays["weights"][seen][row] for seen in history), allowed, count)
