"""Options of calls: retries, TLS, keep-alive, timeouts, headers."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from .errors import ClientError, InvalidInput
from .values import shown

#: Default timeout of a call in seconds, including retries and titles.
DEFAULT_TIMEOUT_S = 1.0


@dataclass(frozen=True, slots=True)
class Retry:
    """When and how often to repeat a failed request.

    A request is repeated only if it reached no server or if the server's queue was full. It is not repeated
    after a refusal, a server fault or a passed deadline, nor if the delay would exceed the call's deadline.

    Parameters
    ----------
    attempts
        Maximum number of times that a request is sent; 1 never repeats it.
    first_delay_s
        Seconds before the first repeat; each further one waits ``factor`` times longer, up to
        ``max_delay_s``.
    jitter
        Share of each delay that is random (0 to 1), so that clients do not all retry at once.
    """

    attempts: int = 3
    first_delay_s: float = 0.05
    factor: float = 2.0
    max_delay_s: float = 1.0
    jitter: float = 0.5

    def __post_init__(self) -> None:
        if isinstance(self.attempts, bool) or not isinstance(self.attempts, int):
            raise InvalidInput(f"Retry: attempts: expected a whole number, got {shown(self.attempts)}")
        limits = {
            "attempts": (1, 100),
            "first_delay_s": (0, 3600),
            "factor": (1, 100),
            "max_delay_s": (0, 3600),
            "jitter": (0, 1),
        }
        for name, (least, most) in limits.items():
            value = getattr(self, name)
            if not isinstance(value, int | float) or not least <= value <= most:
                raise InvalidInput(f"Retry: {name}: expected {least} to {most}, got {shown(value)}")

    def delay(self, attempt: int, error: ClientError, remaining_s: float) -> float | None:
        """Return the seconds to wait after attempt number ``attempt`` (from 1) failed; None to give up."""
        if not error.retryable or attempt >= self.attempts:
            return None
        whole = min(self.max_delay_s, self.first_delay_s * self.factor ** (attempt - 1))
        delay = whole * (1 - self.jitter * random.random())
        return delay if delay < remaining_s else None


#: The longest timeout in seconds (about three years); a longer one must be a mistake.
LONGEST_S = 1e8

#: Never repeat a request.
NO_RETRY = Retry(attempts=1)


@dataclass(frozen=True, slots=True)
class TLS:
    """An encrypted channel.

    Parameters
    ----------
    root_certificates
        PEM file of the certificate authorities to trust; None uses gRPC's own.
    private_key, certificate_chain
        PEM files of the client's key and certificate, for servers that require them.
    server_name
        The expected name in the server's certificate, if it differs from the one in the address.
    """

    root_certificates: str | PathLike[str] | None = None
    private_key: str | PathLike[str] | None = None
    certificate_chain: str | PathLike[str] | None = None
    server_name: str | None = None

    def __post_init__(self) -> None:
        if (self.private_key is None) != (self.certificate_chain is None):
            raise InvalidInput("TLS: expected private_key and certificate_chain together, got one of them")

    def read(self) -> dict[str, bytes | None]:
        """Return the files' contents as arguments of gRPC's credentials; InvalidInput if reading fails."""
        names = ("root_certificates", "private_key", "certificate_chain")
        return {name: self._read(name) for name in names}

    def _read(self, name: str) -> bytes | None:
        path = getattr(self, name)
        if path is None:
            return None
        try:
            return Path(path).read_bytes()
        except OSError as error:
            raise InvalidInput(f"TLS: {name}: expected a PEM file, got {error.strerror}: {path}") from None


@dataclass(frozen=True, slots=True)
class KeepAlive:
    """Pings on an idle connection, to notice a dead one before the next request.

    A server closes connections that ping more often than it allows. Triton allows one ping in five minutes
    without data, unless it was started with ``--grpc-http2-min-recv-ping-interval-without-data`` and
    ``--grpc-http2-max-ping-strikes``.

    Parameters
    ----------
    time_s
        Seconds of silence before a ping.
    timeout_s
        Seconds to wait for its answer.
    without_calls
        Whether to ping while no request is in flight.
    """

    time_s: float = 300.0
    timeout_s: float = 20.0
    without_calls: bool = True

    def __post_init__(self) -> None:
        for name in ("time_s", "timeout_s"):
            seconds(getattr(self, name), f"KeepAlive: {name}")


def seconds(value: Any, what: str) -> float:
    """Return the value as seconds; InvalidInput unless it is a number above 0, at most `LONGEST_S`."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= LONGEST_S:
        raise InvalidInput(
            f"{what}: expected a number of seconds above 0 and at most {LONGEST_S:.0e}, got {shown(value)}"
        )
    return float(value)


_HEADER_NAME = re.compile(r"[0-9a-z_.-]+")
_HEADER_VALUE = re.compile(r"[\x20-\x7e]*")


def check_headers(headers: Any) -> dict[str, str | bytes]:
    """Return request metadata as gRPC requires it: names in lower case, values in printable ASCII.

    Values of names that end with ``-bin`` are ``bytes``.

    Raises
    ------
    InvalidInput
        A name or a value can't be sent. The message never contains a value, which may be a secret.
    """
    if headers is None:
        return {}
    if not isinstance(headers, Mapping):
        raise InvalidInput(f"headers: expected a mapping of name to value, got {type(headers).__name__}")
    checked: dict[str, str | bytes] = {}
    for name, value in headers.items():
        lower = name.lower() if isinstance(name, str) else ""
        if not _HEADER_NAME.fullmatch(lower) or lower.startswith("grpc-"):
            raise InvalidInput(
                "headers: expected names of letters, digits, '-', '_' and '.' that do not begin with "
                f"'grpc-', got {shown(name)}"
            )
        binary = lower.endswith("-bin")
        if binary != isinstance(value, bytes) or not (
            binary or (isinstance(value, str) and _HEADER_VALUE.fullmatch(value))
        ):
            want = "bytes" if binary else "printable ASCII text"
            raise InvalidInput(f"headers: {lower}: expected {want}, got another {type(value).__name__}")
        checked[lower] = value
    return checked


def check_request_id(request_id: Any) -> str:
    """Return a request id; InvalidInput unless it is non-empty text that UTF-8 can encode."""
    try:
        if isinstance(request_id, str) and request_id and request_id.encode():
            return request_id
    except UnicodeEncodeError:
        pass
    raise InvalidInput(f"request_id: expected text that UTF-8 can write, got {shown(request_id)}")
