"""The recommender for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import count
from types import TracebackType
from typing import Any

from .core import Call, Core, Flow, Result
from .errors import ClientError
from .request import Question
from .results import Anonymous, Explanation, Health, Id, Item, Recommendation, ServerInfo, Why
from .wire.transport import AsyncTransport, Headers
from .wire.triton import AsyncTritonTransport


class AsyncRecommender(Core[AsyncTransport]):
    """Asks a served Tiercel release for recommendations, with asyncio.

    Requests, checks, results and errors are those of :class:`~tiercel_client.Recommender`. It connects in the
    event loop of its first call and can be used only in that loop. A cancelled call is cancelled on the wire
    too, but over plain text only from Triton 2.57 on, because older versions may crash.

    Parameters
    ----------
    url, model, explain_model, describe_model, related_model, timeout_s, retry, headers, tls, keep_alive
        As in :class:`~tiercel_client.Recommender`.
    max_concurrency, title_cache_size, refresh_s
        As in :class:`~tiercel_client.Recommender`.
    transport
        Used instead of a connection to ``url``; see :mod:`tiercel_client.testing`.

    Examples
    --------
    >>> import asyncio
    >>> from tiercel_client import AsyncRecommender
    >>> from tiercel_client.testing import AsyncFakeTransport
    >>> async def first() -> str | None:
    ...     transport = AsyncFakeTransport(items={1: "Heat", 2: "Fargo"})
    ...     async with AsyncRecommender(transport=transport) as recommender:
    ...         return (await recommender.recommend(user_id=42)).items[0].title
    >>> asyncio.run(first())
    'Heat'
    """

    _connect = AsyncTritonTransport

    async def recommend(
        self,
        user_id: Id | Anonymous,
        k: int | None = None,
        *,
        exclude: Iterable[Id] | None = None,
        include: Iterable[Id] | None = None,
        candidates: Sequence[Id] | None = None,
        history: Sequence[Id] | None = None,
        features: Mapping[str, Any] | None = None,
        allow_seen: bool | None = None,
        titles: bool = True,
        timeout_s: float | None = None,
        request_id: str | None = None,
        headers: Headers | None = None,
    ) -> Recommendation:
        """Recommend items to one user; as :meth:`tiercel_client.Recommender.recommend`."""
        question = Question.of_one(user_id, k, exclude, history, features, allow_seen, include, candidates)
        context = self._context(timeout_s, request_id, headers)
        return (await self._drive(self._recommend(context, question, titles)))[0]

    async def recommend_many(
        self,
        user_ids: Sequence[Id | Anonymous],
        k: int | Sequence[int | None] | None = None,
        *,
        exclude: Sequence[Iterable[Id] | None] | None = None,
        include: Sequence[Iterable[Id] | None] | None = None,
        candidates: Sequence[Sequence[Id] | None] | None = None,
        history: Sequence[Sequence[Id] | None] | None = None,
        features: Mapping[str, Sequence[Any]] | None = None,
        allow_seen: bool | Sequence[bool | None] | None = None,
        titles: bool = True,
        timeout_s: float | None = None,
        request_id: str | None = None,
        headers: Headers | None = None,
    ) -> list[Recommendation]:
        """Recommend items to several users; as :meth:`tiercel_client.Recommender.recommend_many`."""
        question = Question(user_ids, k, exclude, history, features, allow_seen, include, candidates)
        context = self._context(timeout_s, request_id, headers)
        return await self._drive(self._recommend(context, question, titles))

    async def explain(
        self,
        user_id: Id | Anonymous,
        k: int | None = None,
        *,
        exclude: Iterable[Id] | None = None,
        include: Iterable[Id] | None = None,
        candidates: Sequence[Id] | None = None,
        history: Sequence[Id] | None = None,
        features: Mapping[str, Any] | None = None,
        allow_seen: bool | None = None,
        timeout_s: float | None = None,
        request_id: str | None = None,
        headers: Headers | None = None,
    ) -> Explanation:
        """Return what each stage did for one user; as :meth:`tiercel_client.Recommender.explain`."""
        question = Question.of_one(user_id, k, exclude, history, features, allow_seen, include, candidates)
        context = self._context(timeout_s, request_id, headers)
        return await self._drive(self._explain(context, question))

    async def why(
        self,
        user_id: Id | Anonymous,
        item_id: Id,
        k: int | None = None,
        *,
        exclude: Iterable[Id] | None = None,
        include: Iterable[Id] | None = None,
        candidates: Sequence[Id] | None = None,
        history: Sequence[Id] | None = None,
        features: Mapping[str, Any] | None = None,
        allow_seen: bool | None = None,
        timeout_s: float | None = None,
        request_id: str | None = None,
        headers: Headers | None = None,
    ) -> Why:
        """Return why a user gets an item or not; as :meth:`tiercel_client.Recommender.why`."""
        question = Question.of_one(user_id, None, exclude, history, features, allow_seen, include, candidates)
        context = self._context(timeout_s, request_id, headers)
        return await self._drive(self._why(context, question, item_id, k))

    async def related(
        self,
        item_ids: Id | Sequence[Id],
        k: int | None = None,
        *,
        exclude: Iterable[Id] | None = None,
        titles: bool = True,
        timeout_s: float | None = None,
        request_id: str | None = None,
        headers: Headers | None = None,
    ) -> tuple[Item, ...]:
        """Return the most similar items; as :meth:`tiercel_client.Recommender.related`."""
        context = self._context(timeout_s, request_id, headers)
        return await self._drive(self._related(context, item_ids, k, exclude, titles))

    async def health(self, timeout_s: float | None = None, *, headers: Headers | None = None) -> Health:
        """Make one real inference; as :meth:`tiercel_client.Recommender.health`."""
        return await self._drive(self._health(self._context(timeout_s, headers=headers)))

    async def server_info(
        self, timeout_s: float | None = None, *, headers: Headers | None = None
    ) -> ServerInfo:
        """Return information about the server; as :meth:`tiercel_client.Recommender.server_info`."""
        return await self._drive(self._server_info(self._context(timeout_s, headers=headers)))

    async def close(self) -> None:
        """Close the connections; calls in flight fail, and so do later ones."""
        if not self._closed:
            self._closed = True
            await self._transport.close()

    async def __aenter__(self) -> AsyncRecommender:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _drive(self, flow: Flow[Result]) -> Result:
        """Run a flow to its end: send the requests that it yields, and pass it the answers or the error."""
        step: Callable[[Any], Sequence[Call]] = flow.send
        outcome: Any = None
        try:
            while True:
                calls = step(outcome)
                try:
                    step, outcome = flow.send, await self._perform_together(calls)
                except ClientError as error:
                    step, outcome = flow.throw, error
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]

    async def _perform_together(self, calls: Sequence[Call]) -> list[Any]:
        if len(calls) == 1:
            return [await self._perform(calls[0])]
        gate = asyncio.Semaphore(self._max_concurrency)

        async def one(call: Call) -> Any:
            async with gate:
                return await self._perform(call)

        tasks = [asyncio.ensure_future(one(call)) for call in calls]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            # After an error, or if the caller was cancelled, no task keeps running.
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _perform(self, call: Call) -> Any:
        for attempt in count(1):
            self._refuse_if_closed()
            try:
                return await call.send(self._transport)
            except ClientError as error:
                delay = call.context.delay(attempt, error)
                if delay is None:
                    raise
            await asyncio.sleep(delay)
        raise AssertionError  # count() never ends
