"""The types that are passed between the steps of an export."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from tiercel_serving.columns import Column
from tiercel_serving.features import InputColumn
from tiercel_serving.release.manifest import Catalogue, Packed
from tiercel_serving.settings import ServingSettings
from tiercel_serving.spec import Array

from ..forms import ServedForm
from ..workflow.cut import CompiledProgram, WorkflowParts


@dataclass(frozen=True)
class TableColumns:
    """Names of columns in the raw tables.

    Parameters
    ----------
    item_id, user_id
        The id columns.
    timestamp
        The column that orders interactions; None keeps the order of the rows.
    """

    item_id: str = "item_id"
    user_id: str = "user_id"
    timestamp: str | None = "timestamp"


@dataclass(frozen=True)
class FeatureOptions:
    """How the feature workflow is read.

    Parameters
    ----------
    parts
        Part (``user``, ``item``, ``context``) of output columns whose tags are missing or wrong.
    target_encoding
        ``no_fold`` serves TargetEncoding over all folds; None refuses one that has folds. See
        :func:`~tiercel_export.workflow.cut.cut_workflow`.
    rows
        ``keep`` makes ``Filter`` and ``Dropna`` pass every served row; None refuses them if they could drop
        one. See :func:`~tiercel_export.workflow.cut.cut_workflow`.
    expected_packed
        Columns of ``user_cat``, ``user_num``, ``item_cat`` and ``item_num`` in the order in which the
        models were trained on them; another order is refused. None assumes the workflow's own order.
    """

    parts: Mapping[str, str] | None = None
    target_encoding: str | None = None
    rows: str | None = None
    expected_packed: Mapping[str, Sequence[str]] | None = None


@dataclass(frozen=True)
class Goal:
    """The choices for a release: its name, target and engine (rows of their tables), layout and runner.

    ``origin`` describes where each raw table comes from; ``tasks`` are the names of the ranker's scores.
    """

    name: str
    target: str
    engine: str
    layout: str
    runner: str
    origin: Mapping[str, Mapping[str, Any]]
    tasks: tuple[str, ...]


@dataclass(frozen=True)
class Events:
    """Interactions by rows instead of raw ids, in order of time.

    Parameters
    ----------
    users
        ``[n]`` user rows; -1 for a user who is not in the store.
    items
        ``[n]`` catalogue rows.
    times
        ``[n]`` float64 seconds since 1970 (numbers are taken as such); None without usable timestamps.
    """

    users: npt.NDArray[np.int64]
    items: npt.NDArray[np.int64]
    times: npt.NDArray[np.float64] | None = None


@dataclass(frozen=True)
class Inputs:
    """The caller's data after checks; ``settings`` include sources, and every step may add ``notes``."""

    items: pd.DataFrame
    users: pd.DataFrame | None
    interactions: pd.DataFrame | None
    item_ids: Array
    user_ids: Array
    events: Events
    columns: TableColumns
    settings: ServingSettings
    retrieval: Mapping[str, ServedForm]
    seed: int
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Programs:
    """The workflow, cut and compiled."""

    parts: WorkflowParts
    user: CompiledProgram
    item: CompiledProgram

    def packed(self, part: str, kind: str) -> tuple[str, ...]:
        """Return the scalar outputs of one kind, in the order in which they are packed."""
        outputs = (self.user if part == "user" else self.item).outputs
        return tuple(column.name for column in outputs if column.kind == kind and not column.is_list)


@dataclass(frozen=True)
class Tables:
    """The tables that serving gathers from, in memory.

    Parameters
    ----------
    user_arrays, item_arrays
        The arrays of the artefacts ``users`` and ``items``.
    user_packed, item_packed
        The arrays among them that models take, ``[U + 1, …]`` and ``[I + 1, …]``.
    raw_items
        Raw item columns ``[I]``.
    asked
        The columns of users and requests that rules read, which may include those of the workflow.
    catalogue, packed
        As in the manifest.
    """

    user_arrays: Mapping[str, Array]
    item_arrays: Mapping[str, Array]
    user_packed: Mapping[str, Array]
    item_packed: Mapping[str, Array]
    raw_items: Mapping[str, Column]
    asked: tuple[InputColumn, ...]
    catalogue: Catalogue
    packed: Packed
