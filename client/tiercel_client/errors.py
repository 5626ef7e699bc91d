"""Every error of the client, in one tree.

::

    ClientError
    ├── InvalidInput        refused by the client before anything was sent; also a ValueError
    ├── Closed              the recommender was closed, or belongs to another event loop
    ├── RequestRefused      the server will never accept this     (INVALID_ARGUMENT)
    ├── NotAuthorised       the server wants other credentials    (UNAUTHENTICATED, PERMISSION_DENIED)
    ├── NotFound            the server has no such model          (NOT_FOUND)
    ├── DeadlineExceeded    the deadline passed, here or queued   (DEADLINE_EXCEEDED, UNAVAILABLE)
    ├── ServerUnavailable   no server answered                    (UNAVAILABLE)
    ├── ServerFull          its queue is full                     (UNAVAILABLE, RESOURCE_EXHAUSTED)
    ├── ServerFault         it failed during the request          (INTERNAL and others)
    └── ProtocolMismatch    the peer is not a Tiercel, or a version that this client does not know

A message says what was expected, what was received, and what to do. ``retryable`` says whether the request
may succeed if it is repeated a moment later, which is the case if the connection was refused, the server was
shutting down, or a queue was full.
"""

from __future__ import annotations


class ClientError(Exception):
    """Base class of all errors of the client.

    Parameters
    ----------
    message
        What was expected, what was received, what to do.
    status
        Name of the gRPC status, if the server or the channel returned one.
    server_message
        The status message, unchanged.
    request_id
        Id of the request, as in the server's log.
    retryable
        Whether a repeat can help; None is the class's default.
    """

    #: Whether a repeat can help.
    retryable: bool = False

    def __init__(
        self,
        message: str,
        *,
        status: str | None = None,
        server_message: str | None = None,
        request_id: str | None = None,
        retryable: bool | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.server_message = server_message
        self.request_id = request_id
        if retryable is not None:
            self.retryable = retryable


class InvalidInput(ClientError, ValueError):
    """An argument is invalid; nothing was sent."""


class Closed(ClientError):
    """The recommender was closed, or it belongs to another event loop."""


class RequestRefused(ClientError):
    """The server refused the request, and would refuse it again."""


class NotAuthorised(ClientError):
    """The server, or a proxy in front of it, wants other credentials."""


class NotFound(ClientError):
    """The server has no model of that name."""


class DeadlineExceeded(ClientError):
    """The deadline passed in this process, on the wire, or in the server's queue."""


class ServerUnavailable(ClientError):
    """No server answered. ``retryable`` if the request did not reach one."""


class ServerFull(ClientError):
    """The server's queue is full; a later request may succeed."""

    retryable = True


class ServerFault(ClientError):
    """The server failed while it processed the request."""


class ProtocolMismatch(ClientError):
    """The peer is not a Tiercel server, or uses another protocol version than this client."""
