"""What a recommender does, without saying how a request travels.

Every operation is a *flow*: a generator that yields the requests it needs, is sent their answers, and
returns the result. It never waits by itself, so :class:`~tiercel_client.Recommender` and
:class:`~tiercel_client.AsyncRecommender` run the same flows and differ only in how they wait.
"""

from __future__ import annotations

import time
import uuid
from collections import OrderedDict
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, TypeVar

import numpy as np

from .contract import Contract, ModelConfig, read_contract
from .errors import ClientError, InvalidInput, NotFound, ProtocolMismatch, RequestRefused, ServerUnavailable
from .options import NO_RETRY, Deadline, Retry, check_headers, check_request_id, seconds
from .request import Part, Question, build_requests, canary, id_array
from .response import (
    DESCRIBE_OUTPUTS,
    OUTPUTS,
    Answer,
    Array,
    Explained,
    explanation,
    read_answers,
    read_explained,
    read_titles,
    recommendation,
)
from .results import Explanation, Health, Id, Recommendation, ServerInfo
from .values import shown

#: How many items ``describe_items`` is asked for at once.
DESCRIBE_AT_ONCE = 4096


@dataclass(frozen=True, slots=True)
class Call:
    """One request of a flow: a method of the transport, its arguments, and until when to try.

    Parameters
    ----------
    method
        ``infer``, ``model_config`` or ``server_metadata``.
    arguments
        Its keyword arguments, without ``timeout_s``.
    deadline
        When the whole flow must be over.
    retry
        When to send it again.
    """

    method: str
    arguments: Mapping[str, Any]
    deadline: Deadline
    retry: Retry

    def send(self, transport: Any) -> Any:
        """Call the transport: returns the answer, or from an asyncio transport an awaitable of it."""
        what = self.arguments.get("model", self.method)
        left = self.deadline.require_s(f"model {what!r}", self.arguments.get("request_id", ""))
        return getattr(transport, self.method)(**self.arguments, timeout_s=left)

    def delay(self, attempt: int, error: ClientError) -> float | None:
        """Return how long to wait before another attempt, or None to give up."""
        return self.retry.delay(attempt, error, self.deadline.remaining_s())


Result = TypeVar("Result")

#: Yields requests that may run side by side; is sent their answers in the same order, or the error.
Flow = Generator[Sequence[Call], list[Any] | ClientError, Result]


def ask(*calls: Call) -> Flow[list[Any]]:
    """Yield requests and return their answers, or raise the error, within the flow that asked."""
    outcome = yield calls
    if isinstance(outcome, ClientError):
        raise outcome
    return outcome


@dataclass(frozen=True, slots=True)
class Options:
    """What a caller may say about one call; None is the recommender's own, or for the id a new one."""

    timeout_s: float | None = None
    request_id: str | None = None
    headers: Mapping[str, str | bytes] | None = None


@dataclass(slots=True)
class _Context:
    """What all requests of one call share."""

    deadline: Deadline
    request_id: str
    headers: Mapping[str, str | bytes]
    retry: Retry

    def infer(
        self, model: str, inputs: Mapping[str, Array], outputs: Sequence[str], suffix: str = ""
    ) -> Call:
        arguments = {
            "model": model,
            "inputs": inputs,
            "outputs": outputs,
            "request_id": self.request_id + suffix,
            "headers": self.headers,
        }
        return Call("infer", arguments, self.deadline, self.retry)

    def config(self, model: str) -> Call:
        return Call("model_config", {"model": model, "headers": self.headers}, self.deadline, self.retry)

    def metadata(self) -> Call:
        return Call("server_metadata", {"headers": self.headers}, self.deadline, self.retry)


@dataclass(frozen=True, slots=True)
class _Known:
    """What was learnt of the server, and when."""

    contract: Contract
    at: float = field(default_factory=time.monotonic)


class Core:
    """The flows of one recommender, and what they remember between calls. Safe to use from several threads.

    Parameters
    ----------
    model, explain_model, describe_model
        Names of the server's models.
    timeout_s
        Deadline of a call that names none.
    retry, headers
        For every request.
    max_concurrency
        Requests under way at once for one call.
    title_cache_size
        Titles to remember.
    refresh_s
        Seconds after which the ensemble's configuration is read again.
    """

    def __init__(
        self,
        *,
        model: str,
        explain_model: str | None,
        describe_model: str,
        timeout_s: float,
        retry: Retry,
        headers: Mapping[str, str | bytes] | None,
        max_concurrency: int,
        title_cache_size: int,
        refresh_s: float,
    ) -> None:
        self.model = _name(model, "model")
        self.explain_model = (
            model.replace("recommend", "recommend_explain", 1)
            if explain_model is None
            else _name(explain_model, "explain_model")
        )
        self.describe_model = _name(describe_model, "describe_model")
        self.timeout_s = seconds(timeout_s, "timeout_s")
        self.retry = retry
        self.headers = check_headers(headers)
        self.max_concurrency = _whole(max_concurrency, "max_concurrency", 1)
        self.refresh_s = seconds(refresh_s, "refresh_s")
        self._known: _Known | None = None
        self._configs: dict[tuple[str, str], ModelConfig | None] = {}
        self._titles = TitleCache(_whole(title_cache_size, "title_cache_size", 0))

    def recommend(self, question: Question, options: Options, *, titles: bool) -> Flow[list[Recommendation]]:
        """Answer a question, in the order of its users."""
        context = self._context(options)
        contract = yield from self._contract(context)
        parts = build_requests(contract, question)
        if options.timeout_s is None:
            rounds = -(-len(parts) // self.max_concurrency)
            context.deadline.extend(self.timeout_s * (rounds - 1))
        try:
            answers = yield from self._answers(context, contract, parts)
        except (RequestRefused, NotFound, ServerUnavailable, ProtocolMismatch):
            self._known = None  # perhaps another release answers from now on; the next call asks
            raise
        named: Mapping[Id, str | None] = {}
        if titles:
            named = yield from self._named(context, contract, answers)
        return [recommendation(answer, named) for answer in answers]

    def explain(self, question: Question, options: Options) -> Flow[Explanation]:
        """Answer a question for one user with what each stage did."""
        context = self._context(options)
        contract = yield from self._contract(context)
        [part] = build_requests(contract, question)
        config = yield from self._config(context, contract, self.explain_model)
        if config is None:
            raise NotFound(
                f"model {self.explain_model!r}: the server has none; expected the ensemble that explains "
                f"beside {self.model!r}; name it with explain_model"
            )
        outputs = [tensor.name for tensor in config.outputs]
        [arrays] = yield from ask(context.infer(self.explain_model, part.inputs, outputs))
        explained = read_explained(contract, arrays, part.users[0], context.request_id)
        described = yield from self._described_rows(context, contract, explained)
        return explanation(contract, explained, described)

    def health(self, options: Options) -> Flow[Health]:
        """Make one inference for somebody unknown; no retries."""
        context = self._context(options)
        context.retry = NO_RETRY
        contract = yield from self._contract(context)
        begun = time.perf_counter()
        [arrays] = yield from ask(context.infer(self.model, canary(contract), OUTPUTS))
        read_answers(contract, arrays, [None], context.request_id)
        return Health(contract.build_id, time.perf_counter() - begun)

    def server_info(self, options: Options) -> Flow[ServerInfo]:
        """Ask what the server is; nothing remembered is used."""
        context = self._context(options)
        self._known = None
        contract = yield from self._contract(context)
        [(server, version)] = yield from ask(context.metadata())
        return contract.info(server, version)

    def _context(self, options: Options) -> _Context:
        timeout_s, request_id = options.timeout_s, options.request_id
        return _Context(
            deadline=Deadline(self.timeout_s if timeout_s is None else seconds(timeout_s, "timeout_s")),
            request_id=uuid.uuid4().hex if request_id is None else check_request_id(request_id),
            headers={**self.headers, **check_headers(options.headers)},
            retry=self.retry,
        )

    def _contract(self, context: _Context) -> Flow[Contract]:
        known = self._known
        if known is None or time.monotonic() - known.at > self.refresh_s:
            [config] = yield from ask(context.config(self.model))
            known = self._known = _Known(read_contract(config))
        return known.contract

    def _config(self, context: _Context, contract: Contract, model: str) -> Flow[ModelConfig | None]:
        """Return the configuration of a model beside the ensemble, or None if there is none."""
        configs = self._configs
        key = (contract.build_id, model)
        if key in configs:
            return configs[key]
        found: ModelConfig | None = None
        with suppress(NotFound):
            [found] = yield from ask(context.config(model))
        # Another thread may read the old dictionary, so it is never changed, only replaced.
        self._configs = {**{old: kept for old, kept in configs.items() if old[0] == key[0]}, key: found}
        return found

    def _answers(self, context: _Context, contract: Contract, parts: Sequence[Part]) -> Flow[list[Answer]]:
        several = len(parts) > 1
        calls = [
            context.infer(self.model, part.inputs, OUTPUTS, f"/{number}" if several else "")
            for number, part in enumerate(parts)
        ]
        arrays = yield from ask(*calls)
        answers: list[Answer] = []
        for part, call, one in zip(parts, calls, arrays, strict=True):
            answers += read_answers(contract, one, part.users, call.arguments["request_id"])
        return answers

    def _named(
        self, context: _Context, contract: Contract, answers: Iterable[Answer]
    ) -> Flow[Mapping[Id, str | None]]:
        """Return the titles of all answered items; only those not remembered are asked for."""
        wanted = dict.fromkeys(item_id for answer in answers for item_id in answer.item_ids)
        titles, missing = self._titles.find(contract.build_id, wanted)
        if not missing:
            return titles
        config = yield from self._config(context, contract, self.describe_model)
        if config is None:
            return titles
        calls = [
            self._describe(context, config, "item_id", id_array(ids, contract.item_id_dtype))
            for ids in _slices(missing, DESCRIBE_AT_ONCE)
        ]
        found: dict[Id, str | None] = {}
        answered = yield from ask(*calls)
        for ids, arrays in zip(_slices(missing, DESCRIBE_AT_ONCE), answered, strict=True):
            described = read_titles(self.describe_model, arrays, len(ids), contract.item_id_dtype)
            for item_id, one in zip(ids, described, strict=True):
                found[item_id] = (one[1] or None) if one else None
        self._titles.remember(contract.build_id, found)
        return {**titles, **found}

    def _described_rows(
        self, context: _Context, contract: Contract, explained: Explained
    ) -> Flow[dict[int, tuple[Id, str]]]:
        """Return catalogue row → raw id and title, of the candidates and the history."""
        rows = list(dict.fromkeys([*explained.retrieved_rows, *explained.history_rows]))
        config = yield from self._config(context, contract, self.describe_model)
        if config is None or not rows:
            return {}
        call = self._describe(context, config, "item_row", np.array(rows, np.int64))
        [arrays] = yield from ask(call)
        described = read_titles(self.describe_model, arrays, len(rows), contract.item_id_dtype)
        return {row: one for row, one in zip(rows, described, strict=True) if one is not None}

    def _describe(self, context: _Context, config: ModelConfig, name: str, values: Array) -> Call:
        if config.max_batch_size:
            values = values.reshape(1, -1)
        return context.infer(self.describe_model, {name: values}, DESCRIBE_OUTPUTS, "/titles")


class TitleCache:
    """The titles that were asked for last, by release and item. Safe to use from several threads.

    Parameters
    ----------
    size
        How many to remember; 0 is none.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._titles: OrderedDict[tuple[str, Id], str | None] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._titles)

    def find(self, build_id: str, ids: Iterable[Id]) -> tuple[dict[Id, str | None], list[Id]]:
        """Return the titles that are remembered, and the ids of those that are not."""
        found: dict[Id, str | None] = {}
        missing: list[Id] = []
        with self._lock:
            for item_id in ids:
                key = (build_id, item_id)
                if key in self._titles:
                    self._titles.move_to_end(key)
                    found[item_id] = self._titles[key]
                else:
                    missing.append(item_id)
        return found, missing

    def remember(self, build_id: str, titles: Mapping[Id, str | None]) -> None:
        """Remember titles, and forget the oldest beyond the size."""
        with self._lock:
            for item_id, title in titles.items():
                self._titles[build_id, item_id] = title
                self._titles.move_to_end((build_id, item_id))
            while len(self._titles) > self._size:
                self._titles.popitem(last=False)


def _slices(values: Sequence[Id], size: int) -> list[Sequence[Id]]:
    return [values[start : start + size] for start in range(0, len(values), size)]


def _name(value: Any, what: str) -> str:
    if not isinstance(value, str) or not value:
        raise InvalidInput(f"{what}: expected the name of a model, came {shown(value)}")
    return value


def _whole(value: Any, what: str, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InvalidInput(f"{what}: expected a whole number from {least}, came {shown(value)}")
    return value
