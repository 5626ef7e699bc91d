"""Both recommenders behind one blocking face, so that one test asks both."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from tiercel_client import AsyncRecommender, Recommender, TritonTransport
from tiercel_client.testing import AsyncFakeTransport, FakeTransport


class Blocking:
    """An :class:`AsyncRecommender` whose methods wait."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.recommender = AsyncRecommender(*args, **options)
        self.loop = asyncio.new_event_loop()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self.recommender, name)
        return lambda *args, **options: self.loop.run_until_complete(method(*args, **options))

    def __enter__(self) -> Blocking:
        return self

    def __exit__(self, *error: object) -> None:
        self.loop.run_until_complete(self.recommender.close())
        self.loop.close()


def by_grpc_library(url: str, **options: Any) -> Recommender:
    """Return a recommender that calls by gRPC's library, where it would take connections of its own."""
    of_it = {name: options.pop(name) for name in ("tls", "keep_alive") if name in options}
    return Recommender(transport=TritonTransport(url, grpc_library=True, **of_it), **options)


#: Flavour → recommender and fake transport.
FLAVOURS: dict[str, tuple[Any, Any]] = {
    "sync": (Recommender, FakeTransport),
    "asyncio": (Blocking, AsyncFakeTransport),
}
