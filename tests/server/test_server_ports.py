"""Ports that are held until a server takes them, and addresses that a host stands for."""

from __future__ import annotations

import socket

import pytest

from tiercel_serving.errors import PortTaken, ServerError
from tiercel_serving.supervise.ports import held_ports, resolve_host

NAMES = ("grpc", "http", "metrics")


def test_free_ports_differ_and_are_given_to_nobody_else() -> None:
    with held_ports("127.0.0.1", dict.fromkeys(NAMES)) as ports:
        assert len(set(ports.values())) == 3
        assert list(ports) == list(NAMES)
        with held_ports("127.0.0.1", {str(i): None for i in range(200)}) as others:
            assert not set(ports.values()) & set(others.values())


def test_a_server_can_listen_on_a_held_port() -> None:
    with held_ports("127.0.0.1", {"grpc": None}) as ports:
        with socket.create_server(("127.0.0.1", ports["grpc"])) as server:
            assert server.getsockname()[1] == ports["grpc"]


def test_a_port_that_was_asked_for_and_is_listened_on_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(PortTaken, match=rf"grpc port {port} .* --grpc-port"):
            with held_ports("127.0.0.1", {"grpc": port, "http": None}):
                pass


def test_a_listener_on_all_addresses_counts() -> None:
    with socket.create_server(("0.0.0.0", 0)) as server:
        with pytest.raises(PortTaken):
            with held_ports("127.0.0.1", {"http": server.getsockname()[1]}):
                pass


def test_one_port_for_two_endpoints_is_refused() -> None:
    with held_ports("127.0.0.1", {"grpc": None}) as ports:
        port = ports["grpc"]
    with pytest.raises(PortTaken, match="twice"):
        with held_ports("127.0.0.1", {"grpc": port, "http": port}):
            pass


@pytest.mark.parametrize("port", [70_000, -1])
def test_a_number_that_is_no_port_is_refused(port: int) -> None:
    with pytest.raises(PortTaken, match=str(port)):
        with held_ports("127.0.0.1", {"metrics": port}):
            pass


def test_hosts() -> None:
    assert resolve_host("localhost") == "127.0.0.1"
    assert resolve_host("0.0.0.0") == "0.0.0.0"
    with pytest.raises(ServerError, match="--host"):
        resolve_host("no such host")
    with pytest.raises(ServerError, match="local IPv4"):
        with held_ports("192.0.2.1", {"grpc": None}):
            pass
