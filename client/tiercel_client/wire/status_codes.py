"""The mapping from gRPC's status codes, and Triton's messages with them, to the client's errors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import grpc

from ..errors import (
    ClientError,
    Closed,
    DeadlineExceeded,
    NotAuthorised,
    NotFound,
    ProtocolMismatch,
    RequestRefused,
    ServerFault,
    ServerFull,
    ServerUnavailable,
)

#: gRPC status → error and what to do, for statuses that are unambiguous.
_STATUS_ERRORS: Mapping[str, tuple[type[ClientError], str]] = {
    "INVALID_ARGUMENT": (RequestRefused, "correct the request; a repeat would be refused too"),
    "FAILED_PRECONDITION": (RequestRefused, "correct the request; a repeat would be refused too"),
    "OUT_OF_RANGE": (RequestRefused, "correct the request; a repeat would be refused too"),
    "UNAUTHENTICATED": (NotAuthorised, "send other credentials in headers"),
    "PERMISSION_DENIED": (NotAuthorised, "send other credentials in headers"),
    "NOT_FOUND": (NotFound, "check the model's name and which release the server runs"),
    "UNIMPLEMENTED": (ProtocolMismatch, "is this the gRPC port of a Triton Inference Server?"),
    "DEADLINE_EXCEEDED": (DeadlineExceeded, "give it a longer timeout_s, or find out what is slow"),
}

#: Parts of gRPC's messages when the TLS handshake fails.
_TLS_FAILED = ("handshake failed", "certificate", "verification check failed")

#: Parts of gRPC's messages when a request reached no server, and of Triton's when it is shutting down.
_NOT_REACHED = (
    "failed to connect",
    "connection refused",
    "dns resolution failed",
    "name resolution",
    "empty address list",
    "server is stopping",
)


#: gRPC status number, as text on the wire → its name.
_STATUS_NAMES: Mapping[str, str] = {str(code.value[0]): code.name for code in grpc.StatusCode}


class CallFailed(Exception):
    """A call over one of the client's own connections failed, with a gRPC status and its message."""

    def __init__(self, status: str, text: str) -> None:
        super().__init__(f"{status}: {text}")
        self.status = status
        self.text = text


def status_name(number: str) -> str:
    """Return the name of a status number; UNKNOWN if there is no such status."""
    return _STATUS_NAMES.get(number, "UNKNOWN")


def client_error(
    error: Exception, url: str, model: str | None = None, request_id: str | None = None
) -> ClientError:
    """Return the client's error for an error of a call to ``url``."""
    where = url if model is None else f"{url}: model {model!r}"
    # Raised by gRPC's library, blocking or asyncio, for a closed channel.
    if isinstance(error, ValueError | grpc.aio.UsageError) and "closed" in str(error).lower():
        return Closed(f"{where}: the recommender was closed; make another one", request_id=request_id)
    said = _said(error)
    if said is None:
        return ServerFault(f"{where}: {type(error).__name__}: {error}", request_id=request_id)
    status, text = said
    kind, hint, retryable = _meaning(status, text)
    return kind(
        f"{where}: {status}: {text or 'no message'}; {hint}",
        status=status,
        server_message=text,
        request_id=request_id,
        retryable=retryable,
    )


def _said(error: Exception) -> tuple[str, str] | None:
    """Return the status and message that a call ended with; None if the error has none."""
    if isinstance(error, CallFailed):
        return error.status, error.text
    # An RpcError of gRPC's library is also the call, which knows its status.
    call: Any = error
    if isinstance(error, grpc.RpcError) and isinstance(error, grpc.Call | grpc.aio.AioRpcError):
        return str(call.code()).removeprefix("StatusCode."), str(call.details() or "")
    return None


def _meaning(status: str, text: str) -> tuple[type[ClientError], str, bool | None]:
    """Return the error's class, what to do, and whether a repeat can help (None is the class's default)."""
    lower = text.lower()
    if status in _STATUS_ERRORS:
        return *_STATUS_ERRORS[status], None
    if status == "RESOURCE_EXHAUSTED":
        if "larger than max" in lower:
            return RequestRefused, "ask for fewer users, exclusions or items at once", None
        return ServerFull, "send less at once, or give the server more instances", None
    if status == "CANCELLED" and "channel closed" in lower:
        return Closed, "the recommender was closed while it waited", None
    if status != "UNAVAILABLE":
        return ServerFault, "look into the server's log; if it goes on, restart the server", None
    if "request timeout expired" in lower:  # Triton's message, as is the next
        return DeadlineExceeded, "it waited too long in the server's queue; give it a longer timeout_s", None
    if "exceeds maximum queue size" in lower:
        return ServerFull, "send less at once, or give the server more instances", None
    if any(words in lower for words in _TLS_FAILED):
        return ServerUnavailable, "the TLS handshake failed: check the certificates and names in tls", False
    if any(words in lower for words in _NOT_REACHED):
        return ServerUnavailable, "is the server running, and is this its gRPC port?", True
    return ServerUnavailable, "the connection or the server broke off while it had the request", False
