"""Reserve ports for a server that is about to start, until the server has bound them.

A reserved port has a socket that is bound but never listens. Linux lets a second socket with ``SO_REUSEADDR``
bind to a port as long as no socket listens there, so Triton can take it. But the kernel does not give it to a
process that asks for a free port.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator, Mapping

from ..errors import PortTaken, ServerError


@contextlib.contextmanager
def held_ports(host: str, wanted: Mapping[str, int | None]) -> Iterator[dict[str, int]]:
    """Reserve one port of an IPv4 address for each name; None takes a free one.

    Raises
    ------
    PortTaken
        A requested port is in use, or was requested twice.
    ServerError
        The address is not one of this machine.
    """
    with contextlib.ExitStack() as stack:
        # Requested ports come first, so that a free one can't coincide with any of them.
        order = sorted(wanted, key=lambda name: wanted[name] is None)
        found = {name: _hold(stack, host, name, wanted[name]) for name in order}
        if len(set(found.values())) != len(found):
            said = ", ".join(f"{name} {port}" for name, port in found.items())
            raise PortTaken(f"one port was asked for twice ({said}); give each endpoint its own")
        yield {name: found[name] for name in wanted}


def _hold(stack: contextlib.ExitStack, host: str, name: str, port: int | None) -> int:
    holder = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        holder.bind((host, port or 0))
    except (OSError, OverflowError) as error:
        if port is None:
            raise ServerError(f"{host}: cannot bind there ({error}); give a local IPv4 address") from error
        raise port_taken(host, name, port, str(error)) from error
    return int(holder.getsockname()[1])


def port_taken(host: str, name: str, port: int, reason: str) -> PortTaken:
    """Return the error for a port that is not available."""
    return PortTaken(
        f"{name} port {port} on {host} is not free ({reason}); stop what uses it, or choose another with "
        f"--{name}-port (0 takes a free one)"
    )


def resolve_host(host: str) -> str:
    """Return the IPv4 address of ``host`` (Triton binds to addresses); ServerError if it has none."""
    try:
        return str(socket.getaddrinfo(host, None, socket.AF_INET, socket.SOCK_STREAM)[0][4][0])
    except OSError as error:
        raise ServerError(f"--host {host}: not an IPv4 address or a name that has one ({error})") from error
