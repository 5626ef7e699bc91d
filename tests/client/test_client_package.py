"""What an application imports: each name exists in its documented place and loads no more than it needs."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

import tiercel_client


def test_every_name_is_given_by_one_module() -> None:
    given = [name for names in tiercel_client._GIVEN.values() for name in names]
    assert sorted(given) == sorted(tiercel_client.__all__)
    assert set(given) <= set(dir(tiercel_client))
    for module, names in tiercel_client._GIVEN.items():
        there = importlib.import_module(f"tiercel_client.{module}")
        assert all(getattr(tiercel_client, name) is getattr(there, name) for name in names)


def test_a_name_that_is_not_there_is_refused() -> None:
    with pytest.raises(AttributeError, match="'tiercel_client' has no attribute 'Recomender'"):
        tiercel_client.Recomender  # type: ignore[attr-defined]  # noqa: B018


def test_a_stage_loads_no_grpc() -> None:
    """Each instance of a server imports it, and importing gRPC would dominate its start-up time."""
    code = (
        "import sys, tiercel_serving.release.opened; print(*{'grpc', 'google', 'asyncio'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
