"""The offline reference: what the served graph must answer, computed from the parts as trained.

NVTabular transforms, torch scores, and NumPy searches exactly, one user at a time in plain Python. It uses
no compiled part: no feature program, no ONNX, no FAISS, no stage. It follows DESIGN.md,
section 2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch

from nvtabular_tensors import packed_frame
from tiercel_pipelines.features.graph_columns import packed_columns
from tiercel_serving.release.manifest import Packed
from tiercel_serving.settings import KNOWN, UNKNOWN, UNKNOWN_WITH_FEATURES, ServingSettings

#: Scores this close may swap: float32 sums in another order differ by as much.
TIE = 1e-5

COMPARE = {
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
    "in": lambda a, b: a in b,
    "not in": lambda a, b: a not in b,
}


@dataclass(frozen=True)
class Question:
    """One user's request. None and absent features are null."""

    user_id: Any
    k: int | None = None
    exclude: Sequence[Any] = ()
    history: Sequence[Any] | None = None
    features: Mapping[str, Any] = field(default_factory=dict)
    allow_seen: bool | None = None


@dataclass(frozen=True)
class Expected:
    """The expected ranking of all kept candidates, best first; the answer is its head."""

    status: int
    item_ids: list[Any]
    scores: list[float]
    retrieved: list[int]
    k: int
    #: Another item's retrieval score lies within TIE of a cut, so another candidate set is right too.
    ambiguous: bool


def call(module: torch.nn.Module, tensors: Mapping[str, np.ndarray]) -> np.ndarray:
    """Run a torch module on the packed tensors that it names."""
    module.eval()
    with torch.no_grad():
        out = module(*(torch.from_numpy(np.ascontiguousarray(tensors[n])) for n in module.input_names))
    return out.numpy()


class OfflineReference:
    """The answers computed from everything that was trained, and the training tables.

    Parameters
    ----------
    workflow
        The fitted NVTabular workflow.
    towers
        Source → the torch modules for its queries and its item vectors.
    ranker
        The torch module, or None to keep the order of retrieval.
    users, items, interactions
        Raw tables; the interactions are those that serving may know, without the test part.
    packed
        The manifest's column map, used only for the lengths of lists.
    """

    def __init__(
        self,
        *,
        workflow: Any,
        towers: Mapping[str, tuple[torch.nn.Module, torch.nn.Module]],
        ranker: torch.nn.Module | None,
        users: pd.DataFrame,
        items: pd.DataFrame,
        interactions: pd.DataFrame,
        settings: ServingSettings,
        packed: Packed,
        user_id: str = "user_id",
        item_id: str = "item_id",
        timestamp: str | None = "timestamp",
    ) -> None:
        self.workflow, self.settings, self.users, self.items = workflow, settings, users, items
        self.towers, self.ranker = towers, ranker
        self.user_id, self.item_id = user_id, item_id
        self.lengths = {entry.name: entry.length for entry in (*packed.user_lists, *packed.item_lists)}
        self.raw_ids = items[item_id].tolist()
        self.row_of = {raw: row for row, raw in enumerate(self.raw_ids)}
        self.user_at = {raw: at for at, raw in enumerate(users[user_id].tolist())}

        table = packed_frame(workflow, "item", items, self.lengths)
        self.vectors = {name: call(item_tower, table) for name, (_, item_tower) in towers.items()}
        # The pad row is a row of zeros at the end.
        self.table = {name: np.concatenate([rows, np.zeros_like(rows[:1])]) for name, rows in table.items()}
        cats = [c.name for c in packed_columns(workflow, "item") if c.kind == "cat" and not c.is_list]
        self.history_columns = [cats.index(name) for name in settings.history_columns]

        ordered = interactions if timestamp is None else interactions.sort_values(timestamp, kind="stable")
        self.history: dict[Any, list[int]] = {}
        for user, item in zip(ordered[user_id].tolist(), ordered[item_id].tolist(), strict=True):
            rows = self.history.setdefault(user, [])
            row = self.row_of[item]
            if row in rows:  # an item that a user came back to counts once, at its latest place
                rows.remove(row)
            rows.append(row)
        counts = np.bincount([self.row_of[item] for item in interactions[item_id]], minlength=len(items))
        self.popularity = (counts / counts.max()).astype(np.float32)
        self.popular = sorted(range(len(items)), key=lambda row: (-counts[row], row))
        self.failed_rule = [self._passes(row) for row in range(len(items))]
        self.context = {c.inputs[0] for c in packed_columns(workflow, "user") if c.part == "context"}
        self.dtypes = {**interactions.dtypes, **users.dtypes}
        self.anchor = {**interactions.iloc[0].to_dict(), **users.iloc[0].to_dict()}
        for name in (*interactions, *users):
            if _is_null(self.anchor[name]):
                column = users[name] if name in users else interactions[name]
                self.anchor[name] = column.dropna().iloc[0]

    def _passes(self, row: int) -> bool:
        for rule in self.settings.rules:
            value = self.items[rule.column].iloc[row]
            null = value is None or (isinstance(value, float) and np.isnan(value))
            if null or not COMPARE[rule.operator](value, rule.value):
                return False
        return True

    def answer(
        self, questions: Sequence[Question], retrieved: Sequence[Mapping[int, int]] | None = None
    ) -> list[Expected]:
        """Answer questions; with an approximate index, start from the served candidates (row → source)."""
        users = self._user_tensors(questions)
        queries = {name: call(user_tower, users) for name, (user_tower, _) in self.towers.items()}
        drafts = []
        for at, question in enumerate(questions):
            given = None if retrieved is None else retrieved[at]
            scores = {name: self.vectors[name] @ query[at] for name, query in queries.items()}
            drafts.append(self._candidates(question, self._status(question), scores, given))
        k, pad = self.settings.kept, len(self.raw_ids)
        rows = np.full((len(questions), k), pad, np.int64)
        scores = np.zeros((len(questions), k), np.float32)
        sources = np.zeros((len(questions), k), np.int32)
        for at, (kept, _, _) in enumerate(drafts):
            rows[at, : len(kept)] = [row for row, _, _ in kept]
            scores[at, : len(kept)] = [score for _, score, _ in kept]
            sources[at, : len(kept)] = [source for _, _, source in kept]
        final = scores
        if self.ranker is not None:
            items = {name: table[rows] for name, table in self.table.items()}
            final = self._reordered(
                call(self.ranker, {**users, **items, "kept_score": scores, "kept_source": sources})
            )
        return [
            self._expected(question, draft, final[at])
            for at, (question, draft) in enumerate(zip(questions, drafts, strict=True))
        ]

    def _reordered(self, ranked: np.ndarray) -> np.ndarray:
        final = ranked[:, :, 0]
        for step in self.settings.reorder:
            assert type(step).__name__ == "WeightedSum", "this reference knows no other step"
            final = sum(weight * ranked[:, :, task] for task, weight in enumerate(step.weights))
        return final

    def _expected(self, question: Question, draft: Any, ranked: np.ndarray) -> Expected:
        kept, retrieved, ambiguous = draft
        status = self._status(question)
        popular = status == UNKNOWN and self.settings.unknown_users == "fallback"
        scored = [(row, float(score if popular else ranked[at])) for at, (row, score, _) in enumerate(kept)]
        scored.sort(key=lambda pair: (-pair[1], pair[0]))
        return Expected(
            status=status,
            item_ids=[self.raw_ids[row] for row, _ in scored],
            scores=[score for _, score in scored],
            retrieved=retrieved,
            k=self.settings.k_default if question.k is None else question.k,
            ambiguous=ambiguous,
        )

    def _status(self, question: Question) -> int:
        if question.user_id in self.user_at:
            return KNOWN
        told = [v for n, v in question.features.items() if n not in self.context and not _is_null(v)]
        return UNKNOWN_WITH_FEATURES if told or question.history is not None else UNKNOWN

    def _history(self, question: Question) -> list[int]:
        if question.history is None:
            return self.history.get(question.user_id, [])[-self.settings.history_length :]
        rows = [self.row_of[item] for item in question.history if item in self.row_of]
        return rows[-self.settings.history_length :]

    def _user_tensors(self, questions: Sequence[Question]) -> dict[str, np.ndarray]:
        """Transform by NVTabular, with a known user appended, because it raises on an all-null column."""
        names = {name for column in packed_columns(self.workflow, "user") for name in column.inputs}
        rows = [self._raw(question, names) for question in questions]
        frame = pd.DataFrame([*rows, {name: self.anchor[name] for name in names}])
        packed = packed_frame(self.workflow, "user", self._as_trained(frame), self.lengths)
        packed = {name: array[:-1] for name, array in packed.items()}
        length, pad = self.settings.history_length, len(self.raw_ids)
        history = np.full((len(questions), length), pad, np.int64)
        for at, question in enumerate(questions):
            mine = self._history(question)
            history[at, : len(mine)] = mine
        packed["history_row"] = history
        packed["history_length"] = (history != pad).sum(1, keepdims=True).astype(np.int32)
        if self.history_columns:
            packed["history_cat"] = self.table["item_cat"][history][:, :, self.history_columns]
        return packed

    def _raw(self, question: Question, names: set[str]) -> dict[str, Any]:
        at = self.user_at.get(question.user_id)
        stored = {} if at is None else self.users.iloc[at].to_dict()
        row = {name: stored.get(name) for name in names}
        row |= {name: value for name, value in question.features.items() if not _is_null(value)}
        if self.user_id in names:
            row[self.user_id] = question.user_id
        return row

    def _as_trained(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Return the columns in the form of training: numbers as float, a missing list as an empty one."""
        for name in frame:
            if frame[name].dtype != object:
                continue
            if self.dtypes[name].kind != "O":
                frame[name] = frame[name].astype(np.float64)
            elif isinstance(self.anchor[name], (list, np.ndarray)):
                frame[name] = [[] if _is_null(value) else list(value) for value in frame[name]]
            else:
                frame[name] = frame[name].where(frame[name].notna(), None)
        return frame

    def _candidates(
        self,
        question: Question,
        status: int,
        scores: Mapping[str, np.ndarray],
        given: Mapping[int, int] | None,
    ) -> tuple[list[tuple[int, float, int]], list[int], bool]:
        """Return a user's kept (row, score, source), the retrieved rows, and whether a cut is ambiguous.

        ``scores`` has each vector source's scores of all items; the first source's sort the candidates.
        """
        settings = self.settings
        masked = {self.row_of[item] for item in question.exclude if item in self.row_of}
        if not (settings.allow_seen if question.allow_seen is None else question.allow_seen):
            masked |= set(self.history.get(question.user_id, ())) | set(self._history(question))
            masked |= {self.row_of[item] for item in question.history or () if item in self.row_of}
        popular = [row for row in self.popular if row not in masked]
        cuts: list[float] = []
        exact = status == UNKNOWN and settings.unknown_users == "fallback"
        if exact:
            scale = self.popularity
            taken = dict.fromkeys(popular[: settings.candidates], self._fallback)
        else:
            scale = next(scores[source.name] for source in settings.sources if source.name in scores)
            scale = scale.astype(np.float32)
            taken = self._from_sources(scores, popular, masked, cuts) if given is None else dict(given)
            assert not masked & set(taken), "a masked item among the candidates"
        retrieved = sorted(taken, key=lambda row: (-scale[row], row))
        passed = [row for row in retrieved if self.failed_rule[row]]
        kept = passed[: settings.kept]
        if len(passed) > len(kept) and scale[kept[-1]] - scale[passed[settings.kept]] <= TIE:
            cuts.append(float(scale[kept[-1]]))
        rows = [(row, float(scale[row]), taken[row]) for row in kept]
        return rows, retrieved, bool(cuts) and not exact

    @property
    def _fallback(self) -> int:
        """The code of the first source without a model: popular items."""
        return 1 + next(n for n, source in enumerate(self.settings.sources) if source.name not in self.towers)

    def _from_sources(
        self,
        scores: Mapping[str, np.ndarray],
        popular: list[int],
        masked: set[int],
        cuts: list[float],
    ) -> dict[int, int]:
        settings = self.settings
        taken: dict[int, int] = {}
        quotas = [source.quota for source in settings.sources]
        rest = settings.candidates - sum(quota or 0 for quota in quotas)
        shares = [(number, rest if quota is None else quota) for number, quota in enumerate(quotas)]
        # The other sources fill empty places in their order, and the fallback fills last.
        fallback = self._fallback - 1
        fill = [number for number, share in shares if share and number != fallback]
        for number, share in [*shares, *((number, settings.candidates) for number in (*fill, fallback))]:
            source, quota = settings.sources[number], min(share, settings.candidates - len(taken))
            own = scores.get(source.name)
            order = popular
            if own is not None:
                order = [row for row in np.lexsort((np.arange(len(own)), -own)) if row not in masked]
            fresh = [int(row) for row in order if row not in taken]
            taken |= dict.fromkeys(fresh[:quota], number + 1)
            cut = own is not None and 0 < quota < len(fresh)
            if cut and float(own[fresh[quota - 1]] - own[fresh[quota]]) <= TIE:
                cuts.append(float(own[fresh[quota]]))
        return taken


def _is_null(value: Any) -> bool:
    return value is None or (isinstance(value, float) and np.isnan(value))


def assert_same(expected: Expected, item_ids: Sequence[Any], scores: Sequence[float], status: int) -> bool:
    """Assert that an answer matches the reference; return whether the ids are identical.

    Scores within TIE (relative to their size) may swap, also at the cut-offs.
    """
    assert status == expected.status
    assert len(item_ids) == len(set(item_ids)) == min(expected.k, len(expected.item_ids))
    assert list(scores) == sorted(scores, reverse=True)
    score_of = dict(zip(expected.item_ids, expected.scores, strict=True))
    if expected.ambiguous and not set(item_ids) <= set(score_of):
        return False
    assert set(item_ids) <= set(score_of), "an item that is not among the reference's candidates"
    for place, (item, score) in enumerate(zip(item_ids, scores, strict=True)):
        tie = TIE * max(1.0, abs(score))
        assert abs(score - score_of[item]) <= tie, f"{item}: score {score}, expected {score_of[item]}"
        if not expected.ambiguous:
            there = expected.scores[place]
            assert abs(score - there) <= 2 * tie, f"place {place}: score {score}, expected {there}"
    return list(item_ids) == expected.item_ids[: len(item_ids)]
