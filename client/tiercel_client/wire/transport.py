"""The one seam between the client and the network.

A transport sends named arrays to a model and returns named arrays; whatever goes wrong leaves it as a
:class:`~tiercel_client.errors.ClientError`. Everything above it is the same for sync and asyncio, and for a
real server and a fake one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy.typing as npt

from ..contract import ModelConfig

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]
Headers = Mapping[str, str | bytes]


class InferRequest(NamedTuple):
    """What a model is asked.

    Parameters
    ----------
    model
        Its name.
    inputs
        Named arrays; text is object arrays of ``bytes``.
    outputs
        Names of what it shall answer.
    timeout_s
        Seconds until the answer must be there.
    request_id
        For the server's log.
    headers
        Metadata of the call.
    """

    model: str
    inputs: Arrays
    outputs: Sequence[str]
    timeout_s: float
    request_id: str
    headers: Headers


class Transport(Protocol):
    """Sends named arrays to a model and returns named arrays. Called from several threads."""

    def infer(self, request: InferRequest) -> Arrays:
        """Ask a model. Text tensors are object arrays of ``bytes``."""
        ...

    def model_config(self, model: str, *, timeout_s: float, headers: Headers) -> ModelConfig:
        """Return what the server says about a model."""
        ...

    def server_metadata(self, *, timeout_s: float, headers: Headers) -> tuple[str, str]:
        """Return the server's name and version."""
        ...

    def close(self) -> None:
        """Give everything back; the transport is not used again."""
        ...


class AsyncTransport(Protocol):
    """:class:`Transport` for asyncio."""

    async def infer(self, request: InferRequest) -> Arrays:
        """Ask a model."""
        ...

    async def model_config(self, model: str, *, timeout_s: float, headers: Headers) -> ModelConfig:
        """Return what the server says about a model."""
        ...

    async def server_metadata(self, *, timeout_s: float, headers: Headers) -> tuple[str, str]:
        """Return the server's name and version."""
        ...

    async def close(self) -> None:
        """Give everything back; the transport is not used again."""
        ...
