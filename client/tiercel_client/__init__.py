"""The thin gRPC client an application installs.

>>> from tiercel_client import Recommender
>>> recommender = Recommender("localhost:8001")
>>> recommender.recommend(user_id=42, k=10)  # doctest: +SKIP

Import everything from here, and the fakes for unit tests from :mod:`tiercel_client.testing`.
"""

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
