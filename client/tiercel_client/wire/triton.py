"""A Triton Inference Server over gRPC, blocking and for asyncio.

Messages and stubs are tritonclient's; its ``InferenceServerClient`` is not used: it copies each tensor's
description, and looks through all outputs for each by name, which is half of what a small answer costs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import grpc
import grpc.aio
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import (
    deserialize_bytes_tensor,
    np_to_triton_dtype,
    serialize_byte_tensor,
    triton_to_np_dtype,
)

from ..contract import ModelConfig, TensorInfo
from ..errors import ClientError, Closed, InvalidInput, ProtocolMismatch
from ..options import TLS, KeepAlive
from ..values import shown
from .status_codes import client_error
from .transport import Array, Arrays, Headers, InferRequest


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

    def infer(self, request: InferRequest) -> Arrays:
        """See :class:`Transport`."""
        with _errors(self._url, request.model, request.request_id):
            answer = self._stub.ModelInfer(
                _message(request), timeout=request.timeout_s, metadata=tuple(request.headers.items())
            )
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
        self._loop: asyncio.AbstractEventLoop | None = None

    async def infer(self, request: InferRequest) -> Arrays:
        """See :class:`Transport`."""
        with _errors(self._url, request.model, request.request_id):
            answer = await self._connected().ModelInfer(
                _message(request), timeout=request.timeout_s, metadata=tuple(request.headers.items())
            )
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


def _message(request: InferRequest) -> Any:
    message = service_pb2.ModelInferRequest(model_name=request.model, id=request.request_id)
    for name, array in request.inputs.items():
        message.inputs.add(name=name, datatype=np_to_triton_dtype(array.dtype), shape=array.shape)
        text = array.dtype == np.object_
        # What serialises text gives an empty array where there is none, and else one element.
        message.raw_input_contents.append(
            b"".join(serialize_byte_tensor(array).reshape(-1).tolist()) if text else array.tobytes()
        )
    message.outputs.extend(_requested(tuple(request.outputs)))
    # The deadline ends our waiting; this ends the request's waiting in a queue of the server, if the
    # model's queue policy has a default timeout and allows to override it.
    message.parameters["timeout"].int64_param = max(1, int(request.timeout_s * 1e6))
    return message


@lru_cache(maxsize=64)
def _requested(names: tuple[str, ...]) -> list[Any]:
    return [service_pb2.ModelInferRequest.InferRequestedOutputTensor(name=name) for name in names]


def _arrays(answer: Any, url: str, request: InferRequest) -> dict[str, Array]:
    try:
        tensors = zip(answer.outputs, answer.raw_output_contents, strict=True)
        return {tensor.name: _array(tensor, content) for tensor, content in tensors}
    except Exception as error:  # bytes and shape that do not fit, text cut off, an unknown dtype
        raise ProtocolMismatch(
            f"{url}: model {request.model!r}: an answer that can't be read: {error}; is it a Triton "
            "Inference Server that this tritonclient knows?",
            request_id=request.request_id,
        ) from error


def _array(tensor: Any, content: bytes) -> Array:
    if tensor.datatype == "BYTES":
        flat: Array = deserialize_bytes_tensor(content)
    else:
        dtype = triton_to_np_dtype(tensor.datatype)
        if dtype is None:
            raise ValueError(f"{tensor.name} is of type {tensor.datatype}")
        flat = np.frombuffer(content, dtype)
    return flat.reshape(tuple(tensor.shape))


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
