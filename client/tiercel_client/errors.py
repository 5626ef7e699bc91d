"""Every error of the client, in one tree.

::

    ClientError
    ├── InvalidInput        refused here, before anything was sent; also a ValueError
    ├── Closed              the recommender was closed, or belongs to another event loop
    ├── RequestRefused      the server will never answer this     (INVALID_ARGUMENT)
    ├── NotAuthorised       the server wants other credentials    (UNAUTHENTICATED, PERMISSION_DENIED)
    ├── NotFound            the server has no such model          (NOT_FOUND)
    ├── DeadlineExceeded    the time was up, here or in a queue   (DEADLINE_EXCEEDED, UNAVAILABLE)
    ├── ServerUnavailable   no server answered                    (UNAVAILABLE)
    ├── ServerFull          its queue is full                     (UNAVAILABLE, RESOURCE_EXHAUSTED)
    ├── ServerFault         it failed at work on the request      (INTERNAL and the like)
    └── ProtocolMismatch    what answers is no Tiercel that this client knows

A message says what was expected, what was received, and what to do. ``retryable`` says whether the same
request may succeed a moment later: only after a refused connection, or in front of a full queue.
"""

from __future__ import annotations


class ClientError(Exception):
    """Base of every error that the client raises on purpose.

    Parameters
    ----------
    message
        What was expected, what was received, what to do.
    status
        Name of the gRPC status, if a server or the channel gave one.
    server_message
        Its text, untouched.
    request_id
        Id of the request, as the server's log has it.
    retryable
        Whether a repeat can help; None is what the class says.
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
    """An argument can never be answered; nothing was sent."""


class Closed(ClientError):
    """The recommender was closed, or it belongs to another event loop."""


class RequestRefused(ClientError):
    """The server says that the request can never be answered, however often it is sent."""


class NotAuthorised(ClientError):
    """The server, or what stands before it, wants other credentials."""


class NotFound(ClientError):
    """The server has no model of that name."""


class DeadlineExceeded(ClientError):
    """The time was up: in this process, on the wire, or in the server's queue."""


class ServerUnavailable(ClientError):
    """No server answered. ``retryable`` if the request did not reach one."""


class ServerFull(ClientError):
    """The server's queue is full; a moment later it may not be."""

    retryable = True


class ServerFault(ClientError):
    """The server failed while it worked on the request."""


class ProtocolMismatch(ClientError):
    """What answers is not a Tiercel, or one that speaks otherwise than this client."""
