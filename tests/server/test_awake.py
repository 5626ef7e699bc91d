"""Processors that are kept awake while a server runs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tiercel_serving.bench.machine import describe_machine
from tiercel_serving.errors import ServerError
from tiercel_serving.supervise.awake import DEVICE, DRIVER, is_awake, keep_awake
from waiting import wait_until


@pytest.fixture
def driver(tmp_path: Path) -> Path:
    (tmp_path / "driver").write_text("haltpoll\n")
    return tmp_path / "driver"


@pytest.mark.skipif(
    not os.access(DEVICE, os.R_OK | os.W_OK) or not DRIVER.is_file() or DRIVER.read_text() == "none\n",
    reason=f"this user may not write to {DEVICE}, or the kernel has no driver for idle processors",
)
def test_processors_are_awake_in_the_block_alone_and_results_say_so() -> None:
    wait_until(lambda: not is_awake())
    with keep_awake():
        assert is_awake()
        assert describe_machine()["awake"] is True
    # Another test may serve with --awake at the same time.
    wait_until(lambda: not is_awake())
    assert "awake" not in describe_machine()


def test_the_latency_is_written_as_the_kernel_reads_it(tmp_path: Path, driver: Path) -> None:
    device = tmp_path / "latency"
    device.touch()
    with keep_awake(device, driver):
        assert device.read_bytes() == bytes(4)
        assert is_awake(device)


def test_a_system_without_the_device_says_what_to_do(tmp_path: Path, driver: Path) -> None:
    with pytest.raises(ServerError, match=r"gone: No such file.*--device.*leave --awake out"):
        with keep_awake(tmp_path / "gone", driver):
            pass
    assert not is_awake(tmp_path / "gone")


@pytest.mark.parametrize("text", ["none\n", ""])
def test_a_kernel_without_a_driver_says_what_to_do(tmp_path: Path, driver: Path, text: str) -> None:
    driver.write_text(text)
    with pytest.raises(ServerError, match=r"no driver for idle processors.*idle=poll"):
        with keep_awake(tmp_path / "latency", driver):
            pass
