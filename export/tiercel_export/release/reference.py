"""The uncompiled recommender as plain NumPy and torch: the oracle of the whole pipeline.

It follows the definition of the served graph one user at a time and shares no code with the stages. The
item and user tables it gathers from are those of the release, which the verification compares with
NVTabular by themselves.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from tiercel_serving.columns import Column
from tiercel_serving.features import OutputColumn
from tiercel_serving.settings import KNOWN, UNKNOWN, Rule, ServingSettings
from tiercel_serving.spec import Array, StageSpec

from ..models.dense import run_module
from .tables import user_tensors

#: Two scores closer than this, relative to the larger, may come in either order from another engine.
TIE = 2e-4


@dataclass(frozen=True)
class Oracle:
    """What is known of a recommender before anything is compiled.

    Parameters
    ----------
    settings
        How it is served.
    stages
        Specs by stage name.
    user_tower, ranker
        Torch modules on the CPU in evaluation mode.
    vectors
        ``[I, D]`` float32.
    user_arrays
        The users' tables as :func:`tiercel_export.release.tables.user_arrays` lays them out.
    item_packed
        Packed item tensors ``[I + 1, …]``.
    history_columns
        Positions within ``item_cat`` that make ``history_cat``.
    popular_rows, popular_scores
        ``[I]``.
    allowed
        ``[I]`` boolean: which items pass all rules.
    item_ids
        ``[I]`` raw ids.
    """

    settings: ServingSettings
    stages: Mapping[str, StageSpec]
    user_tower: torch.nn.Module
    ranker: torch.nn.Module
    vectors: Array
    user_arrays: Mapping[str, Array]
    item_packed: Mapping[str, Array]
    history_columns: Sequence[int]
    popular_rows: Array
    popular_scores: Array
    allowed: Array
    item_ids: Array

    @property
    def items(self) -> int:
        """I, and the pad row."""
        return len(self.vectors)

    def of_users(self, rows: Array) -> dict[str, Array]:
        """Return every tensor that a model may know of the users in ``rows [B]``."""
        return user_tensors(
            self.user_arrays,
            self.item_packed.get("item_cat"),
            rows,
            length=self.settings.history_length,
            history_columns=self.history_columns,
            pad=self.items,
        )

    def tower_inputs(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        """Return those of the tensors that the user tower names."""
        return {spec.name: tensors[spec.name] for spec in self.stages["user_tower"].inputs}

    def ranker_inputs(
        self, tensors: Mapping[str, Array], rows: Array, scores: Array, sources: Array
    ) -> dict[str, Array]:
        """Return what the ranker names, for candidates ``[B, K]``."""
        known = {name: table[rows] for name, table in self.item_packed.items()}
        known |= {**tensors, "kept_score": scores, "kept_source": sources}
        return {spec.name: known[spec.name] for spec in self.stages["ranking"].inputs}

    def query(self, tensors: Mapping[str, Array]) -> Array:
        """Return the users' vectors ``[B, D]``."""
        return run_module(self.user_tower, self.tower_inputs(tensors))


def allowed_items(items: pd.DataFrame, rules: Sequence[Rule]) -> npt.NDArray[np.bool_]:
    """Return ``[I]``: which items pass every rule. A null passes none."""
    allowed = np.ones(len(items), np.bool_)
    for rule in rules:
        allowed &= np.array([_passes(value, rule) for value in items[rule.column]], np.bool_)
    return allowed


_COMPARE: Mapping[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def _passes(value: Any, rule: Rule) -> bool:
    if isinstance(value, (list, tuple, np.ndarray)):
        hit = any(element in rule.value for element in value)
        return hit if rule.operator == "in" else not hit
    if value is None or value is pd.NA or value != value:
        return False
    if rule.operator in ("in", "not in"):
        return (value in rule.value) == (rule.operator == "in")
    return bool(_COMPARE[rule.operator](value, rule.value))


@dataclass(frozen=True)
class Answers:
    """What the whole pipeline should answer.

    Parameters
    ----------
    clear
        ``[B]`` boolean: whether no cut-off falls between scores so close that another engine might
        order them differently.
    outputs
        ``item_id``, ``score`` ``[B, k_max]``, ``count``, ``status`` ``[B, 1]``.
    """

    clear: npt.NDArray[np.bool_]
    outputs: dict[str, Array]


def answer(
    oracle: Oracle,
    rows: Array,
    retrieved: tuple[Array, Array] | None = None,
) -> Answers:
    """Answer for users as the definition of the served graph says, one user at a time.

    Parameters
    ----------
    oracle
        The uncompiled parts.
    rows
        ``[B]`` user rows; the last row stands for an unknown user without features.
    retrieved
        Rows and sources ``[B, N]`` to start from, if the index is approximate.
    """
    settings = oracle.settings
    tensors = oracle.of_users(rows)
    queries = oracle.query(tensors)
    answers, clear = [], []
    unknown_row = len(oracle.user_arrays["seen_offsets"]) - 2
    for number, row in enumerate(rows):
        popular = row == unknown_row and settings.unknown_users == "popular"
        if retrieved is None or popular:
            candidates = _retrieve(oracle, int(row), queries[number], popular)
        else:
            candidates = _given(oracle, queries[number], retrieved[0][number], retrieved[1][number])
        kept, kept_clear = _keep(oracle, candidates)
        own = {name: tensor[number : number + 1] for name, tensor in tensors.items()}
        answers.append(_order(oracle, own, kept, popular))
        # Popularity is the same number in every engine.
        clear.append(popular or (candidates.clear and kept_clear))
    ids, scores, counts = zip(*answers, strict=True)
    outputs = {
        "item_id": np.stack(ids),
        "score": np.stack(scores),
        "count": np.array(counts, np.int32)[:, None],
        "status": np.where(rows == unknown_row, UNKNOWN, KNOWN).astype(np.int32)[:, None],
    }
    return Answers(np.array(clear), outputs)


@dataclass(frozen=True)
class _Candidates:
    rows: Array
    scores: Array
    sources: Array
    clear: bool


def _given(oracle: Oracle, query: Array, rows: Array, sources: Array) -> _Candidates:
    real = rows < oracle.items
    scores = np.asarray(oracle.vectors[rows[real]] @ query, np.float32)
    return _sorted(rows[real], scores, sources[real], True)


def _retrieve(oracle: Oracle, row: int, query: Array, popular: bool) -> _Candidates:
    settings, arrays = oracle.settings, oracle.user_arrays
    free = np.ones(oracle.items, np.bool_)
    free[arrays["seen_rows"][arrays["seen_offsets"][row] : arrays["seen_offsets"][row + 1]]] = False
    code = 1 + next(i for i, source in enumerate(settings.sources) if source.kind == "popular")
    if popular:
        listed = oracle.popular_rows[free[oracle.popular_rows]][: settings.candidates]
        scores = np.empty(oracle.items, np.float32)
        scores[oracle.popular_rows] = oracle.popular_scores
        return _sorted(listed, scores[listed], np.full(len(listed), code, np.int32), True)
    scores = np.asarray(oracle.vectors @ query, np.float32)
    taken: list[Array] = []
    codes: list[int] = []
    clear = True
    left = settings.candidates - sum(source.quota or 0 for source in settings.sources)
    for number, source in enumerate(settings.sources):
        quota = left if source.quota is None else source.quota
        if source.kind == "index":
            order = np.argsort(np.where(free, -scores, np.inf), kind="stable")[: int(free.sum())]
            best = order[:quota]
            clear &= _gap(scores[order], quota)
        else:
            best = oracle.popular_rows[free[oracle.popular_rows]][:quota]
        free[best] = False
        taken.append(best)
        codes += [number + 1] * len(best)
    missing = settings.candidates - len(codes)
    filling = oracle.popular_rows[free[oracle.popular_rows]][:missing]
    rows = np.concatenate([*taken, filling]).astype(np.int64)
    sources = np.array([*codes, *[code] * len(filling)], np.int32)
    return _sorted(rows, scores[rows], sources, clear)


def _sorted(rows: Array, scores: Array, sources: Array, clear: bool) -> _Candidates:
    order = np.lexsort((rows, -scores))
    return _Candidates(rows[order], scores[order], sources[order], clear)


def _gap(scores: Array, cut: int) -> bool:
    """Whether the scores, best first, are clearly apart at the cut-off."""
    if cut <= 0 or cut >= len(scores):
        return True
    return bool(scores[cut - 1] - scores[cut] > TIE * max(abs(float(scores[cut - 1])), 1e-3))


def _keep(oracle: Oracle, candidates: _Candidates) -> tuple[_Candidates, bool]:
    passing = np.flatnonzero(oracle.allowed[candidates.rows])
    kept = passing[: oracle.settings.kept]
    clear = _gap(candidates.scores[passing], oracle.settings.kept)
    return _Candidates(candidates.rows[kept], candidates.scores[kept], candidates.sources[kept], True), clear


def _order(
    oracle: Oracle, user: Mapping[str, Array], kept: _Candidates, popular: bool
) -> tuple[Array, Array, int]:
    settings, n = oracle.settings, len(kept.rows)
    if popular:
        final = kept.scores
    else:
        inputs = oracle.ranker_inputs(
            user,
            _filled(kept.rows, settings.kept, oracle.items)[None],
            _filled(kept.scores, settings.kept, 0)[None],
            _filled(kept.sources, settings.kept, 0)[None],
        )
        tasks = run_module(oracle.ranker, inputs)[0, :n]
        final = tasks[:, 0]
        if settings.task_weights:
            final = (tasks * np.array(settings.task_weights, np.float32)).sum(1, dtype=np.float32)
    order = np.lexsort((kept.rows, -final))[: settings.k_max]
    empty = b"" if oracle.item_ids.dtype == np.object_ else 0
    ids = _filled(oracle.item_ids[kept.rows[order]], settings.k_max, empty)
    return ids, _filled(np.asarray(final[order], np.float32), settings.k_max, 0), len(order)


def _filled(values: Array, width: int, pad: Any) -> Array:
    full = np.full(width, pad, values.dtype)
    full[: len(values)] = values
    return full


def oracle_columns(frame: pd.DataFrame, outputs: Sequence[OutputColumn]) -> dict[str, Column]:
    """Convert what NVTabular gave into columns, without changing a bit.

    Parameters
    ----------
    frame
        The transformed rows.
    outputs
        The compiled program's outputs. Their dtypes matter only where pandas had to make floats of
        integers with nulls.
    """
    columns = {}
    for output in outputs:
        series = frame[output.name]
        if output.is_list:
            rows = [row if isinstance(row, (list, tuple, np.ndarray)) else None for row in series]
            lists = [np.asarray([] if row is None else row) for row in rows]
            offsets = np.concatenate([[0], np.cumsum([len(row) for row in lists])]).astype(np.int64)
            flat = pd.Series(np.concatenate([row for row in lists if len(row)] or [np.zeros(0)]))
            if not len(flat):
                flat = flat.astype(object if output.dtype == "bytes" else output.dtype)
            columns[output.name] = Column(*_values(flat, output), offsets)
        else:
            columns[output.name] = Column(*_values(series, output))
    return columns


def _values(series: pd.Series, output: OutputColumn) -> tuple[Array, npt.NDArray[np.bool_] | None]:
    null = series.isna().to_numpy()
    if output.dtype == "bytes":
        values = np.empty(len(series), object)
        values[:] = [
            b"" if absent else value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value
            for value, absent in zip(series, null, strict=True)
        ]
        return values, ~null if null.any() else None
    if null.any() and np.dtype(output.dtype).kind in "iub":
        return series.where(~null, 0).to_numpy().astype(output.dtype), ~null
    return np.asarray(series.to_numpy()), None
