"""A Triton Inference Server over gRPC, blocking and for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import grpc
import tritonclient.grpc
import tritonclient.grpc.aio
from tritonclient.grpc import InferInput, InferRequestedOutput
from tritonclient.utils import np_to_triton_dtype

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
        self._client: Any = tritonclient.grpc.InferenceServerClient(
            self._url, creds=_credentials(tls), channel_args=_channel_args(tls, keep_alive)
        )

    def infer(self, request: InferRequest) -> Arrays:
        """See :class:`Transport`."""
        with _errors(self._url, request.model, request.request_id):
            return _arrays(self._client.infer(**_infer_arguments(request)), self._url, request)

    def model_config(self, model: str, *, timeout_s: float, headers: Headers) -> ModelConfig:
        """See :class:`Transport`."""
        with _errors(self._url, model):
            answer = self._client.get_model_config(model, headers=dict(headers), client_timeout=timeout_s)
            return _model_config(answer.config)

    def server_metadata(self, *, timeout_s: float, headers: Headers) -> tuple[str, str]:
        """See :class:`Transport`."""
        with _errors(self._url):
            answer = self._client.get_server_metadata(headers=dict(headers), client_timeout=timeout_s)
            return str(answer.name), str(answer.version)

    def close(self) -> None:
        """See :class:`Transport`."""
        self._client.close()


class AsyncTritonTransport:
    """A Triton Inference Server over gRPC, for asyncio. Connects in the event loop of its first call.

    Parameters
    ----------
    url, tls, keep_alive
        As in :class:`TritonTransport`.
    """

    def __init__(self, url: str, *, tls: TLS | None = None, keep_alive: KeepAlive | None = None) -> None:
        self._url = check_url(url)
        credentials = _credentials(tls)
        self._make: Callable[[], Any] = lambda: tritonclient.grpc.aio.InferenceServerClient(
            self._url, creds=credentials, channel_args=_channel_args(tls, keep_alive)
        )
        self._client: Any = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def infer(self, request: InferRequest) -> Arrays:
        """See :class:`Transport`."""
        with _errors(self._url, request.model, request.request_id):
            result = await self._connected().infer(**_infer_arguments(request))
            return _arrays(result, self._url, request)

    async def model_config(self, model: str, *, timeout_s: float, headers: Headers) -> ModelConfig:
        """See :class:`Transport`."""
        with _errors(self._url, model):
            client = self._connected()
            answer = await client.get_model_config(model, headers=dict(headers), client_timeout=timeout_s)
            return _model_config(answer.config)

    async def server_metadata(self, *, timeout_s: float, headers: Headers) -> tuple[str, str]:
        """See :class:`Transport`."""
        with _errors(self._url):
            client = self._connected()
            answer = await client.get_server_metadata(headers=dict(headers), client_timeout=timeout_s)
            return str(answer.name), str(answer.version)

    async def close(self) -> None:
        """See :class:`Transport`."""
        if self._client is not None:
            await self._client.close()

    def _connected(self) -> Any:
        loop = asyncio.get_running_loop()
        if self._client is None:
            self._client, self._loop = self._make(), loop
        elif self._loop is not loop:
            raise Closed(
                f"{self._url}: this recommender belongs to another event loop; make one in each loop"
            )
        return self._client


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


def _infer_arguments(request: InferRequest) -> dict[str, Any]:
    """Return the arguments of tritonclient's ``infer``, which are the same for sync and asyncio."""
    tensors = []
    for name, array in request.inputs.items():
        tensor = InferInput(name, array.shape, np_to_triton_dtype(array.dtype))
        tensor.set_data_from_numpy(array)
        tensors.append(tensor)
    return {
        "model_name": request.model,
        "inputs": tensors,
        "outputs": _requested(tuple(request.outputs)),
        "request_id": request.request_id,
        # The deadline ends our waiting; this ends the request's waiting in a queue of the server, if the
        # model's queue policy has a default timeout and allows to override it.
        "timeout": max(1, int(request.timeout_s * 1e6)),
        "client_timeout": request.timeout_s,
        "headers": dict(request.headers),
    }


@lru_cache(maxsize=64)
def _requested(names: tuple[str, ...]) -> list[Any]:
    return [InferRequestedOutput(name) for name in names]


def _arrays(result: Any, url: str, request: InferRequest) -> dict[str, Array]:
    try:
        arrays = {name: result.as_numpy(name) for name in request.outputs}
    except Exception as error:  # bytes and shape that do not fit, text cut off, an unknown dtype
        raise ProtocolMismatch(
            f"{url}: model {request.model!r}: an answer that can't be read: {error}; is it a Triton "
            "Inference Server that this tritonclient knows?",
            request_id=request.request_id,
        ) from error
    return {name: array for name, array in arrays.items() if array is not None}


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
