"""The thin gRPC client that an application installs.

>>> from tiercel_client import Recommender
>>> recommender = Recommender("localhost:8001")
>>> recommender.recommend(user_id=42, k=10)  # doctest: +SKIP

Import everything from here, and the fakes for unit tests from :mod:`tiercel_client.testing`.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .async_recommender import AsyncRecommender
    from .contract import ModelConfig, TensorInfo
    from .errors import (
        ClientError,
        Closed,
        DeadlineExceeded,
        InvalidInput,
        NotAuthorised,
        NotFound,
        ProtocolMismatch,
        RequestRefused,
        ServerFault,
        ServerFull,
        ServerUnavailable,
    )
    from .options import TLS, KeepAlive, Retry
    from .recommender import Recommender
    from .results import (
        ANONYMOUS,
        Anonymous,
        Candidate,
        Explanation,
        Health,
        HistoryItem,
        Item,
        Recommendation,
        RequestColumn,
        ServerInfo,
        Status,
        Why,
    )
    from .wire.transport import AsyncTransport, InferRequest, Transport
    from .wire.triton import AsyncTritonTransport, TritonTransport

__all__ = [
    "ANONYMOUS",
    "TLS",
    "Anonymous",
    "AsyncRecommender",
    "AsyncTransport",
    "AsyncTritonTransport",
    "Candidate",
    "ClientError",
    "Closed",
    "DeadlineExceeded",
    "Explanation",
    "Health",
    "HistoryItem",
    "InferRequest",
    "InvalidInput",
    "Item",
    "KeepAlive",
    "ModelConfig",
    "NotAuthorised",
    "NotFound",
    "ProtocolMismatch",
    "Recommendation",
    "Recommender",
    "RequestColumn",
    "RequestRefused",
    "Retry",
    "ServerFault",
    "ServerFull",
    "ServerInfo",
    "ServerUnavailable",
    "Status",
    "TensorInfo",
    "Transport",
    "TritonTransport",
    "Why",
]

#: Module → the names that it exports. They are imported on use, because a stage in a server needs only the
#: errors and the conversion of values, and should not load gRPC, protobuf and asyncio for them.
_GIVEN = {
    "async_recommender": ("AsyncRecommender",),
    "contract": ("ModelConfig", "TensorInfo"),
    "errors": (
        "ClientError",
        "Closed",
        "DeadlineExceeded",
        "InvalidInput",
        "NotAuthorised",
        "NotFound",
        "ProtocolMismatch",
        "RequestRefused",
        "ServerFault",
        "ServerFull",
        "ServerUnavailable",
    ),
    "options": ("TLS", "KeepAlive", "Retry"),
    "recommender": ("Recommender",),
    "results": (
        "ANONYMOUS",
        "Anonymous",
        "Candidate",
        "Explanation",
        "Health",
        "HistoryItem",
        "Item",
        "Recommendation",
        "RequestColumn",
        "ServerInfo",
        "Status",
        "Why",
    ),
    "wire.transport": ("AsyncTransport", "InferRequest", "Transport"),
    "wire.triton": ("AsyncTritonTransport", "TritonTransport"),
}
_PLACES = {name: module for module, names in _GIVEN.items() for name in names}


if not TYPE_CHECKING:  # otherwise a type checker would accept every name

    def __getattr__(name):
        if name in _PLACES:
            value = getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
        elif name in _GIVEN:
            value = import_module(f"{__name__}.{name}")
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
