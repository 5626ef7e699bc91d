"""Both recommenders behind one blocking interface, so that one test covers both."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from tiercel_client import AsyncRecommender, AsyncTritonTransport, Recommender, TritonTransport
from tiercel_client.testing import AsyncFakeTransport, FakeTransport


class Blocking:
    """An :class:`AsyncRecommender` with blocking methods."""

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


#: Flavour → recommender and fake transport.
FLAVOURS: dict[str, tuple[Any, Any]] = {
    "sync": (Recommender, FakeTransport),
    "asyncio": (Blocking, AsyncFakeTransport),
}

#: Kind of connection → makes a recommender of an address: with our own connections, or gRPC's library.
WIRES: dict[str, Callable[..., Any]] = {
    "sync": Recommender,
    "asyncio": Blocking,
    "sync, library": lambda url, **options: Recommender(
        transport=TritonTransport(url, grpc_library=True), **options
    ),
    "asyncio, library": lambda url, **options: Blocking(
        transport=AsyncTritonTransport(url, grpc_library=True), **options
    ),
}
