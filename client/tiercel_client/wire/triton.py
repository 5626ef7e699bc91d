"""A Triton Inference Server over gRPC, blocking and for asyncio.

The protobuf messages are tritonclient's, but its ``InferenceServerClient`` is not used. It copies each
tensor's description and searches all outputs for each name, which takes half of the time of a small answer.
:mod:`.messages` serialises and parses inferences instead.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from tritonclient.grpc import service_pb2

from ..contract import ModelConfig, TensorInfo
from ..errors import ClientError, Closed, InvalidInput, ProtocolMismatch
from ..options import TLS, KeepAlive
from ..values import shown
from .direct import DirectChannel, host_and_port
from .direct_async import AsyncDirectChannel
from .grpc_library import AsyncGrpcChannel, GrpcChannel
from .messages import read_answer, write_request
from .status_codes import client_error
from .transport import Array, Arrays, Headers, InferRequest

_SERVICE = "/inference.GRPCInferenceService/"
_MODEL_INFER = _SERVICE + "ModelInfer"
_MODEL_CONFIG = _SERVICE + "ModelConfig"
_SERVER_METADATA = _SERVICE + "ServerMetadata"


#: The first Triton version whose gRPC frontend handles cancelled calls safely. Version 2.51 frees the state
#: of a cancelled call while another thread uses it (triton-inference-server/server, pull requests 7840, 8078)
_SURVIVES_CANCEL = (2, 57)


class Channel(Protocol):
    """Makes unary gRPC calls with serialised messages."""

    #: Whether the server may be told of cancelled calls.
    may_cancel: bool

    def unary(
        self, method: str, message: bytes, timeout_s: float, metadata: Mapping[str, str | bytes]
    ) -> bytes:
        """Make a call."""
        ...

    def close(self) -> None:
        """Close it; calls in flight fail."""
        ...


class AsyncChannel(Protocol):
    """:class:`Channel` for asyncio."""

    may_cancel: bool

    async def unary(
        self, method: str, message: bytes, timeout_s: float, metadata: Mapping[str, str | bytes]
    ) -> bytes:
        """Make a call."""
        ...

    async def close(self) -> None:
        """Close it; calls in flight fail."""
        ...


class TritonTransport:
    """A Triton Inference Server over gRPC.

    Plain-text calls use the client's own connections (:mod:`.direct`), which have lower latency. With ``tls``
    or ``keep_alive``, and for an address that is not ``host:port``, gRPC's library is used.

    Parameters
    ----------
    url
        ``host:port``.
    tls
        Options of an encrypted channel; None is plain text.
    keep_alive
        Pings on an idle connection; None sends no pings.
    grpc_library
        Whether to use gRPC's library in any case. It supports proxies from environment variables, and all
        other settings of gRPC.
    """

    def __init__(
        self,
        url: str,
        *,
        tls: TLS | None = None,
        keep_alive: KeepAlive | None = None,
        grpc_library: bool = False,
    ) -> None:
        self._url = check_url(url)
        address = _direct_address(self._url, tls, keep_alive, grpc_library)
        self._channel: Channel
        if address is None:
            self._channel = GrpcChannel(self._url, tls, keep_alive)
        else:
            self._channel = DirectChannel(*address)

    def infer(self, request: InferRequest) -> Arrays:
        """See :class:`Transport`."""
        try:
            answer = self._channel.unary(
                _MODEL_INFER, write_request(request), request.timeout_s, request.headers
            )
        except Exception as error:
            raise client_error(error, self._url, request.model, request.request_id) from error
        return _arrays(answer, self._url, request)

    def model_config(self, model: str, *, timeout_s: float, headers: Headers) -> ModelConfig:
        """See :class:`Transport`."""
        _, version = self.server_metadata(timeout_s=timeout_s, headers=headers)
        self._channel.may_cancel = _survives_cancel(version)
        with _errors(self._url, model):
            asked = _config_request(model)
            return _model_config(self._channel.unary(_MODEL_CONFIG, asked, timeout_s, headers))

    def server_metadata(self, *, timeout_s: float, headers: Headers) -> tuple[str, str]:
        """See :class:`Transport`."""
        with _errors(self._url):
            return _server_metadata(self._channel.unary(_SERVER_METADATA, b"", timeout_s, headers))

    def close(self) -> None:
        """See :class:`Transport`."""
        self._channel.close()


class AsyncTritonTransport:
    """A Triton Inference Server over gRPC, for asyncio. Belongs to the event loop of its first call.

    Parameters
    ----------
    url, tls, keep_alive, grpc_library
        As in :class:`TritonTransport`.
    """

    def __init__(
        self,
        url: str,
        *,
        tls: TLS | None = None,
        keep_alive: KeepAlive | None = None,
        grpc_library: bool = False,
    ) -> None:
        self._url = check_url(url)
        address = _direct_address(self._url, tls, keep_alive, grpc_library)
        self._channel: AsyncChannel
        if address is None:
            self._channel = AsyncGrpcChannel(self._url, tls, keep_alive)
        else:
            self._channel = AsyncDirectChannel(*address)
        self._loop: asyncio.AbstractEventLoop | None = None

    async def infer(self, request: InferRequest) -> Arrays:
        """See :class:`Transport`."""
        self._check_loop()
        try:
            answer = await self._channel.unary(
                _MODEL_INFER, write_request(request), request.timeout_s, request.headers
            )
        except Exception as error:
            raise client_error(error, self._url, request.model, request.request_id) from error
        return _arrays(answer, self._url, request)

    async def model_config(self, model: str, *, timeout_s: float, headers: Headers) -> ModelConfig:
        """See :class:`Transport`."""
        _, version = await self.server_metadata(timeout_s=timeout_s, headers=headers)
        self._channel.may_cancel = _survives_cancel(version)
        with _errors(self._url, model):
            asked = _config_request(model)
            return _model_config(await self._channel.unary(_MODEL_CONFIG, asked, timeout_s, headers))

    async def server_metadata(self, *, timeout_s: float, headers: Headers) -> tuple[str, str]:
        """See :class:`Transport`."""
        self._check_loop()
        with _errors(self._url):
            return _server_metadata(await self._channel.unary(_SERVER_METADATA, b"", timeout_s, headers))

    async def close(self) -> None:
        """See :class:`Transport`."""
        await self._channel.close()

    def _check_loop(self) -> None:
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
        elif self._loop is not loop:
            raise Closed(
                f"{self._url}: this recommender belongs to another event loop; make one in each loop"
            )


def _direct_address(
    url: str, tls: TLS | None, keep_alive: KeepAlive | None, grpc_library: bool
) -> tuple[str, int] | None:
    """Return host and port for the client's own connections, or None to use gRPC's library."""
    return host_and_port(url) if tls is None and keep_alive is None and not grpc_library else None


def check_url(url: Any) -> str:
    """Return an address for gRPC; InvalidInput if it is empty, not text, or a URL with a scheme."""
    if not isinstance(url, str) or not url.strip() or "://" in url:
        raise InvalidInput(
            "url: expected host:port of the server's gRPC service, such as 'localhost:8001', "
            f"got {shown(url)}"
        )
    return url.strip()


@contextmanager
def _errors(url: str, model: str | None = None) -> Iterator[None]:
    try:
        yield
    except ClientError:
        raise
    except Exception as error:
        raise client_error(error, url, model) from error


#: Number of a data type in a model's configuration → the client's name for it.
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
    except Exception as error:  # bytes that do not match the shape, truncated text, an unknown dtype
        raise ProtocolMismatch(
            f"{url}: model {request.model!r}: an answer that can't be read: {error}; is it a Triton "
            "Inference Server that this tritonclient knows?",
            request_id=request.request_id,
        ) from error


def _config_request(model: str) -> bytes:
    return bytes(service_pb2.ModelConfigRequest(name=model).SerializeToString())


def _survives_cancel(version: str) -> bool:
    """Return whether a Triton version handles cancelled calls safely; unknown versions do not."""
    numbers = re.match(r"(\d+)\.(\d+)", version)
    return numbers is not None and (int(numbers[1]), int(numbers[2])) >= _SURVIVES_CANCEL


def _server_metadata(answer: bytes) -> tuple[str, str]:
    message = service_pb2.ServerMetadataResponse.FromString(answer)
    return str(message.name), str(message.version)


def _model_config(answer: bytes) -> ModelConfig:
    config = service_pb2.ModelConfigResponse.FromString(answer).config
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
