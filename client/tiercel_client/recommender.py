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
    the types of its ids and its request columns. Make one and keep it: it keeps its connections.

    Parameters
    ----------
    url
        ``host:port`` of the server's gRPC service.
    model
        Name of the ensemble.
    explain_model
        Name of the ensemble that explains; None is ``recommend_explain`` where ``model`` is
        ``recommend``, ``recommend_explain_staged`` where it is ``recommend_staged``, and so on.
    describe_model
        Name of the model that knows the titles.
    related_model
        Name of the model that knows which items are like others.
    timeout_s
        Deadline of each call in seconds: requests, retries and titles together.
    retry
        When a request that a repeat can help is sent again.
    headers
        Metadata for every request, such as ``{"authorization": "Bearer …"}``. They travel in plain
        text unless ``tls`` is given.
    tls
        Options of an encrypted channel; None is plain text.
    keep_alive
        Pings on an idle connection; None is no pings.
    max_concurrency
        Requests of :meth:`recommend_many` under way at once.
    title_cache_size
        Titles to remember, at most; 0 asks for them every time.
    refresh_s
        Seconds after which the configuration is read again, so that a new release behind the same
        address is noticed.
    transport
        Used instead of a connection to ``url``: see :mod:`tiercel_client.testing`.

    Raises
    ------
    InvalidInput
        An option can't be right.

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
            Raw id; one that the server does not know is answered too. :data:`ANONYMOUS` for somebody
            without one.
        k
            How many items, at most; None is the server's default.
        exclude
            Raw ids of items that must not be recommended.
        include
            Raw ids: nothing else may be recommended, and of these the best are found, however deep they lie.
            None is everything, an empty list is nothing.
        candidates
            Raw ids of the items to rank: nothing is searched for. Those that are unknown, excluded, had
            before or ruled out do not come, and of a repeated one only the first counts. Of more than the
            recipe's number of candidates the best go on. Those of a user of whom nothing is known come by
            popularity.
        history
            Raw ids of the items the user had to do with, oldest first, instead of what the store
            knows; an empty list is an empty history, None is the store's.
        features
            Request column → value (or list of values); overrides the store. None and NaN are null.
        allow_seen
            Whether the user may get what the user already had: what the store knows, and ``history``. None
            is as the recipe says. What is in ``exclude`` never comes.
        titles
            Whether to look the titles up.
        timeout_s
            Deadline in seconds; None is the recommender's.
        request_id
            For the server's log; None makes one.
        headers
            Metadata of this call, over those of the recommender.

        Returns
        -------
        Recommendation
            Status and at most ``k`` items, best first.

        Raises
        ------
        InvalidInput
            An argument can't be answered; nothing was sent.
        ClientError
            Its other subclasses: see :mod:`tiercel_client.errors`.
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

        Everything is checked before anything is sent. More users than the server takes at once are
        split into several requests, at most ``max_concurrency`` of them under way at a time. If one
        fails, the call fails with its error.

        Parameters
        ----------
        user_ids
            Raw ids ``[n]``; an id may come twice.
        k
            For all users, or for each (None is the server's default).
        exclude, include, candidates, history
            One list (or None) for each user, as in :meth:`recommend`.
        features
            Request column → one value (or list of values) for each user.
        allow_seen
            For all users, or for each (None is as the recipe says).
        titles, request_id, headers
            As in :meth:`recommend`; request number i has the id ``request_id/i``.
        timeout_s
            Deadline in seconds of the whole call; None is the recommender's, once for every
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
        """Recommend items to one user and say what each stage did.

        Parameters
        ----------
        user_id, k, exclude, include, candidates, history, features, allow_seen
            As in :meth:`recommend`.
        timeout_s, request_id, headers
            As in :meth:`recommend`.

        Returns
        -------
        Explanation
            The answer, every candidate with what became of it, and the stages' times.

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
        """Say why a user gets an item, or does not: where it fell, and what would have had to be otherwise.

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
            The server has no ensemble that says so.
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
        """Return the items that are most like some others, taken together.

        Parameters
        ----------
        item_ids
            A raw id, or several; those that the server does not know say nothing.
        k
            How many items, at most; None is the server's default.
        exclude
            Raw ids of items that must not come; the given ones never do.
        titles, timeout_s, request_id, headers
            As in :meth:`recommend`.

        Returns
        -------
        tuple of Item
            Most alike first; a score is how like, by the source that says so.

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
        """Make one real inference, for somebody unknown, without retries.

        A server can call itself ready and not answer.

        Returns
        -------
        Health
            Which release answered and how fast.

        Raises
        ------
        ClientError
            It did not answer in time, or not rightly.
        """
        return self._drive(self._health(self._context(timeout_s, headers=headers)))

    def server_info(self, timeout_s: float | None = None, *, headers: Headers | None = None) -> ServerInfo:
        """Return what answers at the address: server, release, limits, id types, request columns.

        Raises
        ------
        ClientError
            It did not answer in time, or is no Tiercel.
        """
        return self._drive(self._server_info(self._context(timeout_s, headers=headers)))

    def close(self) -> None:
        """Close the connection; calls under way fail, and so do later ones."""
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
        """Run a flow to its end: send what it yields, hand it the answers or the error."""
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
