"""A Triton Inference Server over gRPC, blocking and for asyncio.

Messages and stubs are tritonclient's; its ``InferenceServerClient`` is not used: it copies each tensor's
description, and looks through all outputs for each by name, which is half of what a small answer costs.
Inferences travel as the bytes that :mod:`.messages` writes and reads.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import grpc
import grpc.aio
from tritonclient.grpc import service_pb2, service_pb2_grpc

from ..contract import ModelConfig, TensorInfo
from ..errors import ClientError, Closed, InvalidInput, ProtocolMismatch
from ..options import TLS, KeepAlive
from ..values import shown
from .messages import read_answer, write_request
from .status_codes import client_error
from .transport import Array, Arrays, Headers, InferRequest

#: Called without a serialiser of gRPC's, since the messages are bytes.
_MODEL_INFER = "/inference.GRPCInferenceService/ModelInfer"


class TritonTransport:
    """A Triton Inference Server over gRPC.

    Parameters
    ----------
    url
        ``host:port``.
    tls
        Options of an encrypted channel; None is plain text.
    keep_alive
        Pings on an idle connection; None is no pings.
    """

    def __init__(self, url: str, *, tls: TLS | None = None, keep_alive: KeepAlive | None = None) -> None:
        self._url = check_url(url)
        self._channel = _connect(grpc, self._url, _credentials(tls), _channel_args(tls, keep_alive))
        self._stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._infer = self._channel.unary_unary(_MODEL_INFER)

    def infer(self, request: InferRequest) -> Arrays:
        """See :class:`Transport`."""
        try:
            answer = self._infer(write_request(request), request.timeout_s, _metadata(request))
        except Exception as error:
            raise client_error(error, self._url, request.model, request.request_id) from error
        return _arrays(answer, self._url, request)

    def model_config(self, model: str, *, timeout_s: float, headers: Headers) -> ModelConfig:
        """See :class:`Transport`."""
        with _errors(self._url, model):
            asked = service_pb2.ModelConfigRequest(name=model)
            answer = self._stub.ModelConfig(asked, timeout=timeout_s, metadata=tuple(headers.items()))
            return _model_config(answer.config)

    def server_metadata(self, *, timeout_s: float, headers: Headers) -> tuple[str, str]:
        """See :class:`Transport`."""
        with _errors(self._url):
            asked = service_pb2.ServerMetadataRequest()
            answer = self._stub.ServerMetadata(asked, timeout=timeout_s, metadata=tuple(headers.items()))
            return str(answer.name), str(answer.version)

    def close(self) -> None:
        """See :class:`Transport`."""
        self._channel.close()


class AsyncTritonTransport:
    """A Triton Inference Server over gRPC, for asyncio. Connects in the event loop of its first call.

    Parameters
    ----------
    url, tls, keep_alive
        As in :class:`TritonTransport`.
    """

    def __init__(self, url: str, *, tls: TLS | None = None, keep_alive: KeepAlive | None = None) -> None:
        self._url = check_url(url)
        self._options = _credentials(tls), _channel_args(tls, keep_alive)
        self._channel: Any = None
        self._stub: Any = None
        self._infer: Any = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def infer(self, request: InferRequest) -> Arrays:
        """See :class:`Transport`."""
        self._connected()
        try:
            answer = await self._infer(
                write_request(request), timeout=request.timeout_s, metadata=_metadata(request)
            )
        except Exception as error:
            raise client_error(error, self._url, request.model, request.request_id) from error
        return _arrays(answer, self._url, request)

    async def model_config(self, model: str, *, timeout_s: float, headers: Headers) -> ModelConfig:
        """See :class:`Transport`."""
        with _errors(self._url, model):
            stub, asked = self._connected(), service_pb2.ModelConfigRequest(name=model)
            answer = await stub.ModelConfig(asked, timeout=timeout_s, metadata=tuple(headers.items()))
            return _model_config(answer.config)

    async def server_metadata(self, *, timeout_s: float, headers: Headers) -> tuple[str, str]:
        """See :class:`Transport`."""
        with _errors(self._url):
            stub, asked = self._connected(), service_pb2.ServerMetadataRequest()
            answer = await stub.ServerMetadata(asked, timeout=timeout_s, metadata=tuple(headers.items()))
            return str(answer.name), str(answer.version)

    async def close(self) -> None:
        """See :class:`Transport`."""
        if self._channel is not None:
            await self._channel.close()

    def _connected(self) -> Any:
        loop = asyncio.get_running_loop()
        if self._channel is None:
            self._channel, self._loop = _connect(grpc.aio, self._url, *self._options), loop
            self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
            self._infer = self._channel.unary_unary(_MODEL_INFER)
        elif self._loop is not loop:
            raise Closed(
                f"{self._url}: this recommender belongs to another event loop; make one in each loop"
            )
        return self._stub


def check_url(url: Any) -> str:
    """Return an address for gRPC; InvalidInput if it is empty, no text, or a web address."""
    if not isinstance(url, str) or not url.strip() or "://" in url:
        raise InvalidInput(
            "url: expected host:port of the server's gRPC service, such as 'localhost:8001', "
            f"came {shown(url)}"
        )
    return url.strip()


def _metadata(request: InferRequest) -> tuple[tuple[str, str | bytes], ...] | None:
    return tuple(request.headers.items()) if request.headers else None


@contextmanager
def _errors(url: str, model: str | None = None, request_id: str | None = None) -> Iterator[None]:
    try:
        yield
    except ClientError:
        raise
    except Exception as error:
        raise client_error(error, url, model, request_id) from error


def _connect(flavour: Any, url: str, credentials: Any, options: list[tuple[str, Any]]) -> Any:
    """Return a channel of ``grpc`` or ``grpc.aio``."""
    if credentials is None:
        return flavour.insecure_channel(url, options=options)
    return flavour.secure_channel(url, credentials, options=options)


def _credentials(tls: TLS | None) -> Any:
    return None if tls is None else grpc.ssl_channel_credentials(**tls.read())


def _channel_args(tls: TLS | None, keep_alive: KeepAlive | None) -> list[tuple[str, Any]]:
    args: list[tuple[str, Any]] = [
        ("grpc.max_send_message_length", -1),
        ("grpc.max_receive_message_length", -1),
        # Each recommender has a connection of its own, so that closing one closes it.
        ("grpc.use_local_subchannel_pool", 1),
        # gRPC waits a second before it tries a refused connection again; a retry would only be told
        # of the old refusal.
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


#: Number of a data type in a model's configuration → our name of it.
_CONFIG_DTYPES: Mapping[int, str] = {
    1: "bool",
    8: "int32",
    9: "int64",
    11: "float32",
    12: "float64",
    13: "bytes",
}


def _arrays(answer: bytes, url: str, request: InferRequest) -> dict[str, Array]:
    try:
        return read_answer(answer)
    except Exception as error:  # bytes and shape that do not fit, text cut off, an unknown dtype
        raise ProtocolMismatch(
            f"{url}: model {request.model!r}: an answer that can't be read: {error}; is it a Triton "
            "Inference Server that this tritonclient knows?",
            request_id=request.request_id,
        ) from error


def _model_config(config: Any) -> ModelConfig:
    return ModelConfig(
        name=str(config.name),
        max_batch_size=int(config.max_batch_size),
        inputs=tuple(_tensor(tensor, bool(tensor.optional)) for tensor in config.input),
        outputs=tuple(_tensor(tensor, False) for tensor in config.output),
        parameters={key: str(value.string_value) for key, value in config.parameters.items()},
    )


def _tensor(tensor: Any, optional: bool) -> TensorInfo:
    dtype = _CONFIG_DTYPES.get(tensor.data_type, f"type {tensor.data_type}")
    return TensorInfo(str(tensor.name), dtype, tuple(tensor.dims), optional)
