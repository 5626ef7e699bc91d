"""The recommender for ordinary, blocking code."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from itertools import count
from types import TracebackType
from typing import Any

from .core import Call, Core, Flow, Result
from .errors import ClientError
from .request import Question
from .results import Anonymous, Explanation, Health, Id, Item, Recommendation, ServerInfo, Why
from .wire.transport import Headers, Transport
from .wire.triton import TritonTransport


class Recommender(Core[Transport]):
    """Asks a served Tiercel release for recommendations. Safe to use from several threads.

    Nothing is sent before the first call, which also reads the ensemble's configuration: its limits,
    the types of its ids and its request columns. Create one and reuse it, because it reuses its connections.

    Parameters
    ----------
    url
        ``host:port`` of the server's gRPC service.
    model
        Name of the ensemble.
    explain_model
        Name of the ensemble that explains. With None, it is ``recommend_explain`` for the model
        ``recommend``, ``recommend_explain_staged`` for ``recommend_staged``, and so on.
    describe_model
        Name of the model that returns titles.
    related_model
        Name of the model that returns similar items.
    timeout_s
        Deadline of each call in seconds, including all requests, retries and titles.
    retry
        When and how often to repeat failed requests; None uses the defaults of :class:`Retry`.
    headers
        Metadata for every request, such as ``{"authorization": "Bearer …"}``. They are sent in plain
        text unless ``tls`` is given.
    tls
        Options of an encrypted channel; None is plain text.
    keep_alive
        Pings on an idle connection; None sends no pings.
    max_concurrency
        Maximum number of concurrent requests of :meth:`recommend_many`.
    title_cache_size
        Maximum number of cached titles; 0 requests titles every time.
    refresh_s
        Seconds after which the configuration is read again, to notice a new release at the same address.
    transport
        Used instead of a connection to ``url``; see :mod:`tiercel_client.testing`.

    Raises
    ------
    InvalidInput
        An option is invalid.

    Examples
    --------
    >>> from tiercel_client import Recommender
    >>> from tiercel_client.testing import FakeTransport
    >>> with Recommender(transport=FakeTransport(items={1: "Heat", 2: "Fargo"})) as recommender:
    ...     for item in recommender.recommend(user_id=42, k=1):
    ...         print(item.rank, item.item_id, item.title)
    1 1 Heat
    """

    _connect = TritonTransport

    def recommend(
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
        """Recommend items to one user.

        Parameters
        ----------
        user_id
            Raw id of the user, who may be unknown to the server. Use :data:`ANONYMOUS` for a user without
            an id.
        k
            Maximum number of items; None is the server's default.
        exclude
            Raw ids of items that must not be recommended.
        include
            Raw ids of the only items that may be recommended. The search finds the best of these, however
            low their scores. None allows every item, an empty list none.
        candidates
            Raw ids of items to rank instead of searching. Items that are unknown, excluded, seen or removed
            by a rule are dropped, and so are repetitions. If there are more than the recipe's number of
            candidates, only the best are kept. For a user without any known data, they are ordered by
            popularity.
        history
            Raw ids of the items that the user interacted with, oldest first, instead of the history in the
            store. An empty list is an empty history; None uses the store's.
        features
            Request column → value (or list of values), which overrides the store. None and NaN are null.
        allow_seen
            Whether items in the user's history, in the store or in ``history``, may be recommended. None
            uses the recipe's setting. Items in ``exclude`` are never recommended.
        titles
            Whether to look up the titles.
        timeout_s
            Deadline in seconds; None is the recommender's.
        request_id
            Id for the server's log; None generates one.
        headers
            Metadata of this call, which overrides that of the recommender.

        Returns
        -------
        Recommendation
            Status and at most ``k`` items, best first.

        Raises
        ------
        InvalidInput
            An argument is invalid; nothing was sent.
        ClientError
            Any other failure; see :mod:`tiercel_client.errors` for the subclasses.
        """
        question = Question.of_one(user_id, k, exclude, history, features, allow_seen, include, candidates)
        context = self._context(timeout_s, request_id, headers)
        return self._drive(self._recommend(context, question, titles))[0]

    def recommend_many(
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
        """Recommend items to several users.

        All arguments are checked before anything is sent. If there are more users than the server accepts
        in one request, they are split into several requests, with at most ``max_concurrency`` of them in
        flight. If one fails, the call fails with its error.

        Parameters
        ----------
        user_ids
            Raw ids ``[n]``; an id may occur more than once.
        k
            One number for all users, or one for each (None is the server's default).
        exclude, include, candidates, history
            One list (or None) for each user, as in :meth:`recommend`.
        features
            Request column → one value (or list of values) for each user.
        allow_seen
            One value for all users, or one for each (None uses the recipe's setting).
        titles, request_id, headers
            As in :meth:`recommend`. If there are several requests, number i (from 0) has the id
            ``request_id/i``.
        timeout_s
            Deadline in seconds of the whole call. None allows the recommender's timeout for every
            ``max_concurrency`` requests.

        Returns
        -------
        list of Recommendation
            One for each user, in their order.

        Raises
        ------
        InvalidInput, ClientError
            As in :meth:`recommend`.
        """
        question = Question(user_ids, k, exclude, history, features, allow_seen, include, candidates)
        context = self._context(timeout_s, request_id, headers)
        return self._drive(self._recommend(context, question, titles))

    def explain(
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
        """Recommend items to one user and return what each stage did.

        Parameters
        ----------
        user_id, k, exclude, include, candidates, history, features, allow_seen
            As in :meth:`recommend`.
        timeout_s, request_id, headers
            As in :meth:`recommend`.

        Returns
        -------
        Explanation
            The answer, the outcome of every candidate, and the times of the stages.

        Raises
        ------
        NotFound
            The server has no ensemble that explains.
        InvalidInput, ClientError
            As in :meth:`recommend`.
        """
        question = Question.of_one(user_id, k, exclude, history, features, allow_seen, include, candidates)
        context = self._context(timeout_s, request_id, headers)
        return self._drive(self._explain(context, question))

    def why(
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
        """Return why a user gets an item or not: the stage that dropped it, and what it would have needed.

        Parameters
        ----------
        user_id, k, exclude, include, candidates, history, features, allow_seen
            As in :meth:`recommend`.
        item_id
            The raw id of the item.
        timeout_s, request_id, headers
            As in :meth:`recommend`.

        Returns
        -------
        Why
            Stage, reason, rank and score.

        Raises
        ------
        NotFound
            The server has no ensemble that explains single items.
        InvalidInput, ClientError
            As in :meth:`recommend`.
        """
        question = Question.of_one(user_id, None, exclude, history, features, allow_seen, include, candidates)
        context = self._context(timeout_s, request_id, headers)
        return self._drive(self._why(context, question, item_id, k))

    def related(
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
        """Return the items that are most similar to the given ones, taken together.

        Parameters
        ----------
        item_ids
            One raw id, or several; ids that the server does not know are ignored.
        k
            Maximum number of items; None is the server's default.
        exclude
            Raw ids of items that must not be returned; the items in ``item_ids`` never are.
        titles, timeout_s, request_id, headers
            As in :meth:`recommend`.

        Returns
        -------
        tuple of Item
            Most similar first; the score is the similarity that the source computes.

        Raises
        ------
        NotFound
            The server has no model of similar items.
        InvalidInput, ClientError
            As in :meth:`recommend`.
        """
        context = self._context(timeout_s, request_id, headers)
        return self._drive(self._related(context, item_ids, k, exclude, titles))

    def health(self, timeout_s: float | None = None, *, headers: Headers | None = None) -> Health:
        """Make one real inference for an unknown user, without retries.

        This finds servers that report to be ready but do not answer.

        Returns
        -------
        Health
            Which release answered and how fast.

        Raises
        ------
        ClientError
            The server did not answer in time, or not correctly.
        """
        return self._drive(self._health(self._context(timeout_s, headers=headers)))

    def server_info(self, timeout_s: float | None = None, *, headers: Headers | None = None) -> ServerInfo:
        """Return information about the server: its version, release, limits, id types and request columns.

        Raises
        ------
        ClientError
            The server did not answer in time, or does not serve a Tiercel release.
        """
        return self._drive(self._server_info(self._context(timeout_s, headers=headers)))

    def close(self) -> None:
        """Close the connections; calls in flight fail, and so do later ones."""
        if not self._closed:
            self._closed = True
            self._transport.close()

    def __enter__(self) -> Recommender:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _drive(self, flow: Flow[Result]) -> Result:
        """Run a flow to its end: send the requests that it yields, and pass it the answers or the error."""
        step: Callable[[Any], Sequence[Call]] = flow.send
        outcome: Any = None
        try:
            while True:
                calls = step(outcome)
                try:
                    alone = len(calls) == 1
                    outcome = [self._perform(calls[0])] if alone else self._perform_together(calls)
                    step = flow.send
                except ClientError as error:
                    step, outcome = flow.throw, error
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]

    def _perform_together(self, calls: Sequence[Call]) -> list[Any]:
        pool = ThreadPoolExecutor(self._max_concurrency, "tiercel-client")
        try:
            futures = [pool.submit(self._perform, call) for call in calls]
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()  # raises its error
            return [future.result() for future in futures]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _perform(self, call: Call) -> Any:
        for attempt in count(1):
            self._refuse_if_closed()
            try:
                return call.send(self._transport)
            except ClientError as error:
                delay = call.context.delay(attempt, error)
                if delay is None:
                    raise
            time.sleep(delay)
        raise AssertionError  # count() never ends
