"""The interface between the client and the network.

A transport sends named arrays to a model and returns named arrays. It raises every failure as a
:class:`~tiercel_client.errors.ClientError`. The code above it does not depend on whether calls are blocking
or asyncio, or whether the server is real or fake.
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
    """A request for an inference.

    Parameters
    ----------
    model
        Name of the model.
    inputs
        Named arrays; text is object arrays of ``bytes``.
    outputs
        Names of the requested outputs.
    timeout_s
        Seconds until the answer must have arrived.
    request_id
        Id for the server's log.
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
        """Run a model and return its outputs; text tensors are object arrays of ``bytes``."""
        ...

    def model_config(self, model: str, *, timeout_s: float, headers: Headers) -> ModelConfig:
        """Return the configuration of a model."""
        ...

    def server_metadata(self, *, timeout_s: float, headers: Headers) -> tuple[str, str]:
        """Return the server's name and version."""
        ...

    def close(self) -> None:
        """Release all resources; the transport is not used again."""
        ...


class AsyncTransport(Protocol):
    """:class:`Transport` for asyncio."""

    async def infer(self, request: InferRequest) -> Arrays:
        """Run a model and return its outputs."""
        ...

    async def model_config(self, model: str, *, timeout_s: float, headers: Headers) -> ModelConfig:
        """Return the configuration of a model."""
        ...

    async def server_metadata(self, *, timeout_s: float, headers: Headers) -> tuple[str, str]:
        """Return the server's name and version."""
        ...

    async def close(self) -> None:
        """Release all resources; the transport is not used again."""
        ...
