"""Channels of gRPC's library, for encryption and keep-alive pings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import grpc
import grpc.aio

from ..options import TLS, KeepAlive


class GrpcChannel:
    """Unary calls with serialised messages through gRPC's library.

    Parameters
    ----------
    url, tls, keep_alive
        As in :class:`~.triton.TritonTransport`.
    """

    def __init__(self, url: str, tls: TLS | None, keep_alive: KeepAlive | None) -> None:
        self.may_cancel = True  # gRPC's library always tells the server
        self._channel = _connect(grpc, url, _credentials(tls), tls, keep_alive)
        self._methods: dict[str, Any] = {}

    def unary(
        self, method: str, message: bytes, timeout_s: float, metadata: Mapping[str, str | bytes]
    ) -> bytes:
        """Make a call; see :meth:`~.direct.DirectChannel.unary`. Raises the errors of gRPC's library."""
        call = self._methods.get(method)
        if call is None:
            call = self._methods[method] = self._channel.unary_unary(method)
        answer: bytes = call(message, timeout_s, _metadata(metadata))
        return answer

    def close(self) -> None:
        """Close it; calls in flight fail."""
        self._channel.close()


class AsyncGrpcChannel:
    """:class:`GrpcChannel` for asyncio. Connects in the event loop of its first call.

    Parameters
    ----------
    url, tls, keep_alive
        As in :class:`~.triton.TritonTransport`.
    """

    def __init__(self, url: str, tls: TLS | None, keep_alive: KeepAlive | None) -> None:
        self.may_cancel = True  # gRPC's library always tells the server
        self._options = url, _credentials(tls), tls, keep_alive
        self._channel: Any = None
        self._methods: dict[str, Any] = {}

    async def unary(
        self, method: str, message: bytes, timeout_s: float, metadata: Mapping[str, str | bytes]
    ) -> bytes:
        """Make a call; see :meth:`GrpcChannel.unary`."""
        if self._channel is None:
            self._channel = _connect(grpc.aio, *self._options)
        call = self._methods.get(method)
        if call is None:
            call = self._methods[method] = self._channel.unary_unary(method)
        answer: bytes = await call(message, timeout=timeout_s, metadata=_metadata(metadata))
        return answer

    async def close(self) -> None:
        """Close it; calls in flight fail."""
        if self._channel is not None:
            await self._channel.close()


def _metadata(headers: Mapping[str, str | bytes]) -> tuple[tuple[str, str | bytes], ...] | None:
    return tuple(headers.items()) if headers else None


def _connect(flavour: Any, url: str, trusted: Any, tls: TLS | None, keep_alive: KeepAlive | None) -> Any:
    """Return a channel of ``grpc`` or ``grpc.aio``; ``trusted`` are its credentials."""
    options = _channel_args(tls, keep_alive)
    if trusted is None:
        return flavour.insecure_channel(url, options=options)
    return flavour.secure_channel(url, trusted, options=options)


def _credentials(tls: TLS | None) -> Any:
    """Return gRPC's credentials, or None for plain text; InvalidInput if a file can't be read."""
    return None if tls is None else grpc.ssl_channel_credentials(**tls.read())


def _channel_args(tls: TLS | None, keep_alive: KeepAlive | None) -> list[tuple[str, Any]]:
    args: list[tuple[str, Any]] = [
        ("grpc.max_send_message_length", -1),
        ("grpc.max_receive_message_length", -1),
        # Each recommender has its own connection, so that closing the recommender closes it.
        ("grpc.use_local_subchannel_pool", 1),
        # By default, gRPC waits a second before it reconnects after a refusal, and until then a retry only
        # gets the old error.
        ("grpc.initial_reconnect_backoff_ms", 20),
        ("grpc.max_reconnect_backoff_ms", 1000),
    ]
    if keep_alive is not None:
        args += [
            ("grpc.keepalive_time_ms", int(keep_alive.time_s * 1000)),
            ("grpc.keepalive_timeout_ms", int(keep_alive.timeout_s * 1000)),
            ("grpc.keepalive_permit_without_calls", int(keep_alive.without_calls)),
            ("grpc.http2.max_pings_without_data", 0),
        ]
    if tls is not None and tls.server_name is not None:
        args.append(("grpc.ssl_target_name_override", tls.server_name))
    return args
