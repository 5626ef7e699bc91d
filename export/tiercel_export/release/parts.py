"""What passes between the steps of an export."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch

from tiercel_serving.settings import ServingSettings
from tiercel_serving.spec import Array, StageSpec

from ..workflow.cut import CompiledProgram, WorkflowParts
from .given import Events


@dataclass(frozen=True)
class Given:
    """The caller's data, checked."""

    name: str
    items: pd.DataFrame
    users: pd.DataFrame | None
    interactions: pd.DataFrame | None
    item_ids: Array
    user_ids: Array
    events: Events
    settings: ServingSettings
    item_id: str
    user_id: str
    target: str
    layout: str
    seed: int
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Programs:
    """The workflow, cut and compiled."""

    parts: WorkflowParts
    user: CompiledProgram
    item: CompiledProgram

    def request_columns(self, id_column: str) -> list[dict[str, Any]]:
        """Return the raw columns that a request may carry: all of the user's side but the id."""
        return [
            {"name": column.name, "dtype": column.dtype, "list": column.is_list, "part": column.part}
            for column in self.user.inputs
            if column.name != id_column
        ]

    def packed(self, part: str, kind: str) -> list[str]:
        """Return the scalar outputs of one kind, in the order in which they are packed."""
        outputs = (self.user if part == "user" else self.item).outputs
        return [column.name for column in outputs if column.kind == kind and not column.is_list]


@dataclass(frozen=True)
class Tables:
    """What serving gathers from, in memory."""

    user_arrays: dict[str, Array]
    item_arrays: dict[str, Array]
    item_packed: dict[str, Array]
    raw_items: list[str]


@dataclass(frozen=True)
class Models:
    """The dense models: modules ready to export, and what they take."""

    vectors: Array
    user_tower: torch.nn.Module
    ranker: torch.nn.Module
    stages: tuple[StageSpec, ...]
    engines: dict[str, Any]
