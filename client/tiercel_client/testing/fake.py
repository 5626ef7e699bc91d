"""The fake server, and the two transports to it."""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from threading import Lock
from typing import Any

import numpy as np

from ..contract import (
    ALLOW_SEEN,
    CANDIDATES,
    EXCLUDE,
    EXPLAINED,
    HISTORY,
    INCLUDE,
    LENGTHS,
    PACKED,
    RELATED_TO,
    TIME_PREFIX,
    ModelConfig,
    TensorInfo,
)
from ..errors import ClientError, DeadlineExceeded, InvalidInput, NotFound, RequestRefused
from ..request import id_array
from ..response import RELATED_OUTPUTS
from ..results import Id, RequestColumn
from ..wire.transport import Array, Arrays, Headers, InferRequest
from .explained import EXPLAIN_OUTPUTS, explained, said_of

#: The stages that the fake reports.
STAGES = (
    "user_features",
    "query_fake",
    "retrieval",
    "filtering",
    "candidate_features",
    "ranking",
    "ordering",
)


class FakeServer:
    """The base of both fake transports: a tiny recommender with the interface of a real one.

    A known user gets the items in ``users``; any other user gets all items in order. Items in ``exclude``,
    items outside ``include`` and, unless ``allow_seen``, items of a given history are left out. Given
    ``candidates`` keep their order. Scores decrease from 1. ``why`` explains single items accordingly.

    Parameters
    ----------
    items
        Raw id → title (None is an item without one), best first. All ids are numbers or all are text.
    users
        Raw id → raw ids of the items that the user gets, best first. With None, no user is known.
    columns
        The columns that ``features`` may contain; the fake names their tensors.
    max_batch_size, k_default, k_max, max_excluded
        Limits of the fake.
    allow_seen
        Whether items of a given history may be recommended by default.
    build_id
        Its release.
    titles
        Whether it has a model that returns titles.
    related
        Raw id → raw ids of the most similar items, best first. With None, it has no model of similar items.
    latency_s
        Seconds that each request takes; a request with less time left fails with DeadlineExceeded.
    """

    def __init__(
        self,
        items: Mapping[Id, str | None] | None = None,
        users: Mapping[Id, Sequence[Id]] | None = None,
        *,
        columns: Sequence[RequestColumn] = (),
        max_batch_size: int = 64,
        k_default: int = 10,
        k_max: int = 100,
        max_excluded: int = 10_000,
        allow_seen: bool = False,
        build_id: str = "fake",
        titles: bool = True,
        related: Mapping[Id, Sequence[Id]] | None = None,
        latency_s: float = 0.0,
    ) -> None:
        self.items: dict[Id, str | None] = dict({1: "One", 2: "Two", 3: "Three"} if items is None else items)
        self.users: dict[Id, Sequence[Id]] = dict(users or {})
        self.columns = tuple(map(_with_tensors, columns))
        self.stages, self.explain_outputs = STAGES, dict(EXPLAIN_OUTPUTS)
        self.reorder_reasons: tuple[str, ...] = ()
        self.max_batch_size, self.k_default, self.k_max = max_batch_size, k_default, k_max
        self.max_excluded, self.allow_seen = max_excluded, allow_seen
        self.build_id, self.titles, self.related = build_id, titles, related
        self.latency_s = latency_s
        self.requests: list[InferRequest] = []
        self.config_reads = 0
        self.closed = False
        self._ids: list[Id] = list(self.items)
        self._rows = {item_id: row for row, item_id in enumerate(self._ids)}
        self._dtypes = {"item": _id_dtype(self.items), "user": _id_dtype(self.users)}
        self._pad: Id = "" if self._dtypes["item"] == "bytes" else 0
        self._errors: deque[tuple[ClientError, str | None]] = deque()
        self._lock = Lock()

    def fail(self, error: ClientError, times: int = 1, *, model: str | None = None) -> None:
        """Make the next ``times`` requests (to one model, or to any) fail with an error."""
        with self._lock:
            self._errors.extend([(error, model)] * times)

    def _config(self, model: str) -> ModelConfig:
        self.config_reads += 1
        self._raise_ordered(model)
        times = {TIME_PREFIX + name: "float32" for name in self.stages}
        tables = {"recommend": _OUTPUTS, "recommend_explain": {**_OUTPUTS, **self.explain_outputs, **times}}
        if model == "describe_items" and self.titles:
            described = {"item_row": "int64", "title": "bytes", "found": "bool"}
            outputs = self._tensors({"item_id": self._dtypes["item"], **described}, -1)
            return ModelConfig(model, self.max_batch_size, outputs[:2], outputs, {})
        if model == "related" and self.related is not None:
            outputs = self._tensors({name: _OUTPUTS[name] for name in RELATED_OUTPUTS}, -1)
            return ModelConfig(model, self.max_batch_size, (), outputs, {})
        if model not in tables:
            raise NotFound(f"model {model!r}: the fake server has none")
        inputs = self._inputs()
        if model != "recommend":
            inputs += (TensorInfo(EXPLAINED, self._dtypes["item"], (-1,), True),)
        outputs = self._tensors(tables[model], 1)
        return ModelConfig(model, self.max_batch_size, inputs, outputs, self._parameters())

    def _parameters(self) -> dict[str, str]:
        return {
            "build_id": self.build_id,
            "name": "fake",
            "k_default": str(self.k_default),
            "k_max": str(self.k_max),
            "max_excluded": str(self.max_excluded),
            "allow_seen": json.dumps(self.allow_seen),
            "item_id_dtype": self._dtypes["item"],
            "user_id_dtype": self._dtypes["user"],
            "sources": json.dumps(["fake"]),
            "filter_reasons": json.dumps({"0": "kept", "1": "empty slot"}),
            "stages": json.dumps(self.stages),
            "reorder_reasons": json.dumps(self.reorder_reasons),
            "request_columns": json.dumps([asdict(column) for column in self.columns]),
        }

    def _inputs(self) -> tuple[TensorInfo, ...]:
        tensors = [TensorInfo("user_id", self._dtypes["user"], (1,))]
        lists = [RequestColumn(name, self._dtypes["item"], True, "", name, LENGTHS[name]) for name in LENGTHS]
        for column in (*lists, *self.columns):
            tensors.append(TensorInfo(column.tensor, column.dtype, (-1 if column.is_list else 1,), True))
            if column.companion is not None:
                dtype = "int32" if column.is_list else "bool"
                tensors.append(TensorInfo(column.companion, dtype, (1,), True))
        if self._dtypes["item"] == "bytes":
            tensors += [TensorInfo(name, "bytes", (1,), True) for name in PACKED.values()]
        scalars = (TensorInfo(ALLOW_SEEN, "bool", (1,), True), TensorInfo("k", "int32", (1,), True))
        return (*tensors, *scalars)

    def _tensors(self, dtypes: Mapping[str, str], width: int) -> tuple[TensorInfo, ...]:
        real = {name: self._dtypes["item"] if name == "item_id" else dtype for name, dtype in dtypes.items()}
        return tuple(TensorInfo(name, dtype, (width,)) for name, dtype in real.items())

    def _raise_ordered(self, model: str) -> None:
        with self._lock:
            if self._errors and self._errors[0][1] in (None, model):
                raise self._errors.popleft()[0]

    def _answer(self, request: InferRequest) -> Arrays:
        with self._lock:
            self.requests.append(request)
        if self.latency_s > request.timeout_s:
            raise DeadlineExceeded(f"model {request.model!r}: the fake server is slow")
        self._raise_ordered(request.model)
        if request.model == "describe_items" and self.titles:
            answer = self._describe(request.inputs)
        elif request.model == "related" and self.related is not None:
            answer = self._related(request.inputs, self.related)
        elif request.model in ("recommend", "recommend_explain"):
            answer = self._recommend(request.inputs, explain=request.model != "recommend")
        else:
            raise NotFound(f"model {request.model!r}: the fake server has none")
        return {name: answer[name] for name in request.outputs}

    def _describe(self, inputs: Arrays) -> dict[str, Array]:
        if "item_row" in inputs:
            rows = inputs["item_row"][0].tolist()
        else:
            rows = [self._rows.get(item_id, len(self._ids)) for item_id in _plain(inputs["item_id"][0])]
        ids = [*self._ids, self._pad]
        titles = [*(title or "" for title in self.items.values()), ""]
        return {
            "item_id": id_array([ids[row] for row in rows], self._dtypes["item"])[None],
            "item_row": np.array([rows], np.int64),
            "title": id_array([titles[row] for row in rows], "bytes")[None],
            "found": np.array([[row < len(self._ids) for row in rows]], np.bool_),
        }

    def _recommend(self, inputs: Arrays, *, explain: bool) -> dict[str, Array]:
        users = _plain(inputs["user_id"][:, 0])
        if len(users) > self.max_batch_size:
            raise RequestRefused(f"the fake server takes {self.max_batch_size} users, got {len(users)}")
        k = inputs["k"][:, 0].tolist() if "k" in inputs else [self.k_default] * len(users)
        excluded, history, included, listed = (
            self._lists(inputs, name, len(users)) for name in (EXCLUDE, HISTORY, INCLUDE, CANDIDATES)
        )
        allowed = [self.allow_seen] * len(users)
        if ALLOW_SEEN in inputs:
            allowed = inputs[ALLOW_SEEN][:, 0].tolist()
        answers, statuses, ruled_out = [], [], []
        for row, user in enumerate(users):
            out, had = set(excluded[row] or ()), set((not allowed[row] and history[row]) or ())
            mine, only = listed[row], included[row]
            mine = list(self.users.get(user, self._ids) if mine is None else dict.fromkeys(mine))
            known = [one for one in mine if one in self.items and one not in out | had]
            answers.append([one for one in known if only is None or one in only])
            statuses.append(self._status(user, inputs, row, history[row]))
            ruled_out.append((out, had))
        outputs = self._outputs(answers, k)
        outputs["status"] = np.array(statuses, np.int32).reshape(-1, 1)
        if not explain:
            return outputs
        asked = _plain(inputs[EXPLAINED][0]) if EXPLAINED in inputs else []
        limits = [set(only[0]) for only in (included, listed) if only[0] is not None]
        said = said_of(asked or [self._pad], answers[0], self.items, *ruled_out[0], limits)
        return {**outputs, **self._explained(answers[0]), **said}

    def _related(self, inputs: Arrays, related: Mapping[Id, Sequence[Id]]) -> dict[str, Array]:
        given, [gone] = _plain(inputs[RELATED_TO][0]), self._lists(inputs, EXCLUDE, 1)
        found = dict.fromkeys(like for one in given for like in related.get(one, ()))
        return self._outputs([[one for one in found if one not in {*given, *(gone or ())}]], inputs["k"][0])

    def _outputs(self, answers: Sequence[Sequence[Id]], k: Sequence[int]) -> dict[str, Array]:
        width = max(k)
        counts = [min(len(answer), most) for answer, most in zip(answers, k, strict=True)]
        ids = [
            one
            for answer, count in zip(answers, counts, strict=True)
            for one in (*answer[:count], *[self._pad] * (width - count))
        ]
        flat = id_array(ids, self._dtypes["item"])
        real = np.arange(width) < np.array(counts).reshape(-1, 1)
        return {
            "item_id": flat.reshape(len(answers), width),
            "score": np.where(real, 1 / (1 + np.arange(width)), 0).astype(np.float32),
            "count": np.array(counts, np.int32).reshape(-1, 1),
        }

    def _status(self, user: Id, inputs: Arrays, row: int, history: list[Id] | None) -> int:
        if user in self.users:
            return 0
        of_user = [column for column in self.columns if column.part == "user"]
        return 1 if history or any(_given(column, inputs, row) for column in of_user) else 2

    def _explained(self, answer: Sequence[Id]) -> dict[str, Array]:
        rows = [self._rows[item_id] for item_id in answer]
        return explained(rows, len(self._ids), self.stages, moved=bool(self.reorder_reasons))

    def _lists(self, inputs: Arrays, name: str, count: int) -> list[list[Id] | None]:
        if PACKED[name] in inputs:
            return [_unpacked(element) for element in inputs[PACKED[name]][:, 0].tolist()]
        if name not in inputs:
            return [None] * count
        values = inputs[name]
        said = inputs.get(LENGTHS[name])
        lengths = [values.shape[1]] * count if said is None else said[:, 0].tolist()
        return [
            _plain(row[:length]) if length >= 0 else None for row, length in zip(values, lengths, strict=True)
        ]


class FakeTransport(FakeServer):
    """A :class:`~tiercel_client.Transport` with a fake server. See :class:`FakeServer` for its arguments.

    ``requests`` lists all inference requests, and ``closed`` says whether it was closed.
    """

    def infer(self, request: InferRequest) -> Arrays:
        """Return the answer, after ``latency_s``."""
        time.sleep(min(self.latency_s, request.timeout_s))
        return self._answer(request)

    def model_config(self, model: str, *, timeout_s: float, headers: Headers) -> ModelConfig:
        """Return the configuration of a model, as from a real server."""
        return self._config(model)

    def server_metadata(self, *, timeout_s: float, headers: Headers) -> tuple[str, str]:
        """Return the name ``fake`` and a version."""
        return "fake", "0"

    def close(self) -> None:
        """Record that it was closed."""
        self.closed = True


class AsyncFakeTransport(FakeServer):
    """:class:`FakeTransport` for asyncio. See :class:`FakeServer` for its arguments."""

    async def infer(self, request: InferRequest) -> Arrays:
        """Return the answer, after ``latency_s``."""
        await asyncio.sleep(min(self.latency_s, request.timeout_s))
        return self._answer(request)

    async def model_config(self, model: str, *, timeout_s: float, headers: Headers) -> ModelConfig:
        """Return the configuration of a model, as from a real server."""
        return self._config(model)

    async def server_metadata(self, *, timeout_s: float, headers: Headers) -> tuple[str, str]:
        """Return the name ``fake`` and a version."""
        return "fake", "0"

    async def close(self) -> None:
        """Record that it was closed."""
        self.closed = True


_OUTPUTS = {"item_id": "", "score": "float32", "count": "int32", "status": "int32"}


def _id_dtype(ids: Mapping[Id, Any]) -> str:
    kinds = {"bytes" if isinstance(one, str) else "int64" for one in ids}
    if len(kinds) > 1:
        raise InvalidInput("FakeServer: expected ids that are all numbers or all text, got both")
    return kinds.pop() if kinds else "int64"


def _plain(ids: Array) -> list[Id]:
    return [one.decode() if isinstance(one, bytes) else one for one in ids.tolist()]


def _unpacked(element: bytes) -> list[Id] | None:
    """Return the ids of one packed list, or None for a null list."""
    return [one.decode() for one in element[4:].split(b"\0")[:-1]] if element else None


def _given(column: RequestColumn, inputs: Arrays, row: int) -> bool:
    """Whether a request has a value of a column for the user in ``row``."""
    values, said = inputs.get(column.tensor), inputs.get(column.companion or "")
    if values is None or said is not None:
        return values is not None and said is not None and bool(said[row, 0] >= int(not column.is_list))
    return column.is_list or bool(values[row, 0] == values[row, 0])


def _with_tensors(column: RequestColumn) -> RequestColumn:
    """Return the column with names for its tensors, if it has none; clients never derive one from another."""
    bare = column.dtype.startswith("float") and not column.is_list
    said = None if bare else f"{column.name}: {'length' if column.is_list else 'valid'}"
    return replace(column, tensor=column.tensor or column.name, companion=column.companion or said)
