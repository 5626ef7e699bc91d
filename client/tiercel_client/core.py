"""The operations of a recommender, independent of how requests are sent.

Every operation is a *flow*: a generator that yields the requests it needs, receives their answers, and
returns the result. It never waits by itself, so :class:`~tiercel_client.Recommender` and
:class:`~tiercel_client.AsyncRecommender` run the same flows and differ only in how they wait.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import numpy as np

from .contract import EXPLAINED, PROPENSITY, Contract, ModelConfig, read_contract
from .errors import (
    ClientError,
    Closed,
    DeadlineExceeded,
    InvalidInput,
    NotFound,
    ProtocolMismatch,
    RequestRefused,
    ServerUnavailable,
)
from .options import (
    DEFAULT_TIMEOUT_S,
    NO_RETRY,
    TLS,
    KeepAlive,
    Retry,
    check_headers,
    check_request_id,
    seconds,
)
from .request import Part, Question, build_k, build_requests, canary, id_array, related_inputs
from .response import (
    DESCRIBE_OUTPUTS,
    OUTPUTS,
    RELATED_OUTPUTS,
    Answer,
    Array,
    described,
    read_answers,
    read_explained,
    read_titles,
    read_why,
)
from .results import Explanation, Health, Id, Item, Recommendation, ServerInfo, Why
from .titles import TitleCache
from .values import convert_ids, shown
from .wire.transport import Headers, InferRequest

#: The number of items in one request to ``describe_items``, at most.
DESCRIBE_AT_ONCE = 4096


class Inference(NamedTuple):
    """A request of a flow for an inference, with the context of its call."""

    model: str
    inputs: Mapping[str, Array]
    outputs: Sequence[str]
    request_id: str
    context: Context

    def send(self, transport: Any) -> Any:
        """Send it and return the answer, or an awaitable of it from an asyncio transport."""
        model, inputs, outputs, request_id, context = self
        left = context.left(model, request_id)
        return transport.infer(InferRequest(model, inputs, outputs, left, request_id, context.headers))


class Enquiry(NamedTuple):
    """A request of a flow about the server or a model: a transport's method, and the model's name."""

    method: str
    context: Context
    about: tuple[str, ...] = ()

    def send(self, transport: Any) -> Any:
        """Send it; see :meth:`Inference.send`."""
        left = self.context.left(self.about[0] if self.about else self.method)
        ask = getattr(transport, self.method)
        return ask(*self.about, headers=self.context.headers, timeout_s=left)


Call = Inference | Enquiry

Result = TypeVar("Result")
AnyTransport = TypeVar("AnyTransport")

#: Yields requests that may run concurrently. It receives their answers in order, or the error is thrown in.
Flow = Generator[Sequence[Call], list[Any], Result]


@dataclass(slots=True)
class Context:
    """The state that all requests of one call share.

    The call must end by ``ends`` (in ``time.monotonic()``), ``timeout_s`` after it began. If the caller gave
    no timeout (``grows``), both increase with the number of requests.
    """

    timeout_s: float
    ends: float
    grows: bool
    request_id: str
    headers: Headers
    retry: Retry

    def infer(
        self, model: str, inputs: Mapping[str, Array], outputs: Sequence[str], suffix: str = ""
    ) -> Inference:
        """Return a request to a model; ``suffix`` distinguishes its id from the call's other requests."""
        return Inference(model, inputs, outputs, self.request_id + suffix, self)

    def left(self, what: str, request_id: str = "") -> float:
        """Return the seconds that are left for a request; DeadlineExceeded if there are none."""
        left = self.ends - time.monotonic()
        if left <= 0:
            raise DeadlineExceeded(
                f"model {what!r}: the {self.timeout_s:g} s of this call were over before it was sent; "
                "give it a longer timeout_s",
                request_id=request_id,
            )
        return left

    def delay(self, attempt: int, error: ClientError) -> float | None:
        """Return the seconds to wait before another attempt, or None to give up."""
        return self.retry.delay(attempt, error, self.ends - time.monotonic())


class Core(Generic[AnyTransport]):
    """The base of both recommenders: their options, their flows, and the state kept between calls.

    Flows may run in several threads at once. For the options, see :class:`~tiercel_client.Recommender`.
    """

    _connect: ClassVar[Callable[..., Any]]

    def __init__(
        self,
        url: str = "localhost:8001",
        *,
        model: str = "recommend",
        explain_model: str | None = None,
        describe_model: str = "describe_items",
        related_model: str = "related",
        timeout_s: float = DEFAULT_TIMEOUT_S,
        retry: Retry | None = None,
        headers: Headers | None = None,
        tls: TLS | None = None,
        keep_alive: KeepAlive | None = None,
        max_concurrency: int = 4,
        title_cache_size: int = 10_000,
        refresh_s: float = 60.0,
        transport: AnyTransport | None = None,
    ) -> None:
        self._model = _name(model, "model")
        self._explain_model = (
            model.replace("recommend", "recommend_explain", 1)
            if explain_model is None
            else _name(explain_model, "explain_model")
        )
        self._describe_model = _name(describe_model, "describe_model")
        self._related_model = _name(related_model, "related_model")
        self._timeout_s = seconds(timeout_s, "timeout_s")
        self._retry = Retry() if retry is None else retry
        self._headers = check_headers(headers)
        self._max_concurrency = _whole(max_concurrency, "max_concurrency", 1)
        self._refresh_s = seconds(refresh_s, "refresh_s")
        self._known: tuple[Contract, float] | None = None  # with the time.monotonic() when it was read
        self._configs: dict[tuple[str, str], ModelConfig | None] = {}
        self._titles = TitleCache(_whole(title_cache_size, "title_cache_size", 0))
        self._transport: AnyTransport = (
            self._connect(url, tls=tls, keep_alive=keep_alive) if transport is None else transport
        )
        self._closed = False

    def _recommend(self, context: Context, question: Question, titles: bool) -> Flow[list[Recommendation]]:
        """Return the recommendations for a question, in the order of its users."""
        titles = _flag(titles, "titles")
        contract = yield from self._contract(context)
        parts = build_requests(contract, question)
        if context.grows:
            rounds = -(-len(parts) // self._max_concurrency)
            context.timeout_s += self._timeout_s * (rounds - 1)
            context.ends += self._timeout_s * (rounds - 1)
        try:
            answers = yield from self._answers(context, contract, parts)
        except (RequestRefused, NotFound, ServerUnavailable, ProtocolMismatch):
            self._known = None  # the release may have changed; the next call reads its configuration again
            raise
        named = (yield from self._named(context, contract, answers)) if titles else None
        return [answer.recommendation(named) for answer in answers]

    def _explain(self, context: Context, question: Question) -> Flow[Explanation]:
        """Return what each stage did for a question of one user."""
        contract = yield from self._contract(context)
        [part] = build_requests(contract, question)
        config = yield from self._config(context, contract, self._explain_model)
        if config is None:
            raise NotFound(
                f"model {self._explain_model!r}: the server has none; expected the ensemble that explains "
                f"beside {self._model!r}; name it with explain_model"
            )
        outputs = [tensor.name for tensor in config.outputs]
        [arrays] = yield [context.infer(self._explain_model, part.inputs, outputs)]
        explained = read_explained(contract, arrays, part.users[0], context.request_id)
        seen = [one.item_row for one in explained.history]
        rows = list(dict.fromkeys([one.item_row for one in explained.candidates] + seen))
        said = yield from self._describe(context, contract, "item_row", np.array(rows, np.int64))
        names = {row: one for row, one in zip(rows, said, strict=True) if one is not None}
        return described(explained, names)

    def _why(self, context: Context, question: Question, item_id: Any, k: Any) -> Flow[Why]:
        """Return what happened to one item for a question of one user."""
        contract = yield from self._contract(context)
        place = convert_ids([item_id], contract.item_id_dtype, lambda position: "item_id")
        asked = build_k(contract, k)
        [part] = build_requests(contract, question._replace(k=[contract.k_max]))
        config = yield from self._config(context, contract, self._explain_model)
        if config is None or EXPLAINED not in {tensor.name for tensor in config.inputs}:
            raise NotFound(
                f"model {self._explain_model!r}: the server has none that says what became of an item; "
                "serve a release of this version, or name the ensemble with explain_model"
            )
        inputs = {**part.inputs, EXPLAINED: place.reshape(1, 1)}
        outputs = [tensor.name for tensor in config.outputs]
        [arrays] = yield [context.infer(self._explain_model, inputs, outputs)]
        explained = read_explained(contract, arrays, part.users[0], context.request_id)
        rows = [one.item_row for one in explained.candidates]
        said = yield from self._describe(context, contract, "item_row", np.array(rows, np.int64))
        names = {row: one for row, one in zip(rows, said, strict=True) if one is not None}
        why = read_why(contract, described(explained, names), arrays, item_id, asked)
        if why.title is None:
            [one] = yield from self._describe(context, contract, "item_id", place)
            why = replace(why, title=(one[1] or None) if one else None)
        return why

    def _related(
        self, context: Context, item_ids: Any, k: Any, exclude: Any, titles: bool
    ) -> Flow[tuple[Item, ...]]:
        """Return the items that are most similar to some items."""
        titles = _flag(titles, "titles")
        contract = yield from self._contract(context)
        config = yield from self._config(context, contract, self._related_model)
        if config is None:
            raise NotFound(
                f"model {self._related_model!r}: the server has none; serve a release whose recipe says "
                "ServingSettings(related=…), or name the model with related_model"
            )
        inputs = related_inputs(contract, item_ids, k, exclude)
        [arrays] = yield [context.infer(self._related_model, inputs, RELATED_OUTPUTS)]
        status = np.zeros((1, 1), np.int32)
        [answer] = read_answers(contract, {**arrays, "status": status}, [None], context.request_id)
        named = (yield from self._named(context, contract, [answer])) if titles else None
        return answer.recommendation(named).items

    def _health(self, context: Context) -> Flow[Health]:
        """Make one inference for an unknown user, without retries."""
        context.retry = NO_RETRY
        contract = yield from self._contract(context)
        begun = time.perf_counter()
        [arrays] = yield [context.infer(self._model, canary(contract), OUTPUTS)]
        read_answers(contract, arrays, [None], context.request_id)
        return Health(contract.build_id, time.perf_counter() - begun)

    def _server_info(self, context: Context) -> Flow[ServerInfo]:
        """Return the server's information, read again and not from the cache."""
        self._known = None
        contract = yield from self._contract(context)
        [(server, version)] = yield [Enquiry("server_metadata", context)]
        return contract.info(server, version)

    def _context(
        self, timeout_s: float | None = None, request_id: str | None = None, headers: Headers | None = None
    ) -> Context:
        whole_s = self._timeout_s if timeout_s is None else seconds(timeout_s, "timeout_s")
        return Context(
            whole_s,
            time.monotonic() + whole_s,
            timeout_s is None,
            os.urandom(16).hex() if request_id is None else check_request_id(request_id),
            self._headers if headers is None else {**self._headers, **check_headers(headers)},
            self._retry,
        )

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise Closed("the recommender was closed; make another one")

    def _contract(self, context: Context) -> Flow[Contract]:
        known = self._known
        if known is None or time.monotonic() - known[1] > self._refresh_s:
            [config] = yield [Enquiry("model_config", context, (self._model,))]
            known = self._known = read_contract(config), time.monotonic()
        return known[0]

    def _config(self, context: Context, contract: Contract, model: str) -> Flow[ModelConfig | None]:
        """Return the configuration of another model than the ensemble, or None if there is no such model."""
        configs = self._configs
        key = (contract.build_id, model)
        if key in configs:
            return configs[key]
        found: ModelConfig | None = None
        with suppress(NotFound):
            [found] = yield [Enquiry("model_config", context, (model,))]
        # Other threads may read the old dictionary, so it is replaced instead of changed.
        self._configs = {**{old: kept for old, kept in configs.items() if old[0] == key[0]}, key: found}
        return found

    def _answers(self, context: Context, contract: Contract, parts: Sequence[Part]) -> Flow[list[Answer]]:
        outputs = (*OUTPUTS, PROPENSITY) if PROPENSITY in contract.outputs else OUTPUTS
        if len(parts) == 1:
            [part] = parts
            [arrays] = yield [context.infer(self._model, part.inputs, outputs)]
            return read_answers(contract, arrays, part.users, context.request_id)
        calls = [
            context.infer(self._model, part.inputs, outputs, f"/{number}")
            for number, part in enumerate(parts)
        ]
        answered = yield calls
        answers: list[Answer] = []
        for part, call, arrays in zip(parts, calls, answered, strict=True):
            answers += read_answers(contract, arrays, part.users, call.request_id)
        return answers

    def _named(
        self, context: Context, contract: Contract, answers: Sequence[Answer]
    ) -> Flow[Mapping[Id, str | None]]:
        """Return the titles of all answered items, requesting only those that are not cached."""
        wanted = dict.fromkeys(answers[0].ids if len(answers) == 1 else chain(*(one.ids for one in answers)))
        titles, missing = self._titles.find(contract.build_id, wanted)
        if not missing:
            return titles
        ids = id_array(missing, contract.item_id_dtype)
        answered = yield from self._describe(context, contract, "item_id", ids)
        found = {
            one: (said[1] or None) if said else None for one, said in zip(missing, answered, strict=True)
        }
        # An item that was just added may be new to the model that was asked; it is asked again.
        known = {one: found[one] for one, said in zip(missing, answered, strict=True) if said}
        self._titles.remember(contract.build_id, known)
        return {**titles, **found}

    def _describe(
        self, context: Context, contract: Contract, name: str, values: Array
    ) -> Flow[list[tuple[Id, str] | None]]:
        """Return id and title of each item, or None if it is not found or the server has no such model."""
        config = yield from self._config(context, contract, self._describe_model)
        if config is None or not len(values):
            return [None] * len(values)
        parts = [values[n : n + DESCRIBE_AT_ONCE] for n in range(0, len(values), DESCRIBE_AT_ONCE)]
        answered = yield [
            context.infer(
                self._describe_model,
                {name: part.reshape(1, -1) if config.max_batch_size else part},
                DESCRIBE_OUTPUTS,
                "/titles",
            )
            for part in parts
        ]
        items: list[tuple[Id, str] | None] = []
        for part, arrays in zip(parts, answered, strict=True):
            items += read_titles(self._describe_model, arrays, len(part), contract.item_id_dtype)
        return items


def _name(value: Any, what: str) -> str:
    if not isinstance(value, str) or not value:
        raise InvalidInput(f"{what}: expected the name of a model, got {shown(value)}")
    return value


def _flag(value: Any, what: str) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        raise InvalidInput(f"{what}: expected True or False, got {shown(value)}")
    return bool(value)


def _whole(value: Any, what: str, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InvalidInput(f"{what}: expected a whole number from {least}, got {shown(value)}")
    return value
