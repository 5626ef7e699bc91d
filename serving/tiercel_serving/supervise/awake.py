"""Keep the machine's processors awake between requests.

A processor without work sleeps, and takes some ten to a hundred microseconds to wake: a virtual one is given
back to its host. A request wakes about ten threads one after the other. Linux lets a process limit that
time: as long as one holds ``/dev/cpu_dma_latency`` open after writing a latency of 0 to it, idle processors
wait in a loop (PM QoS, see the kernel's ``Documentation/power/pm_qos_interface.rst``).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import ServerError

#: Takes the largest latency in microseconds, a 32-bit integer, that all processors may have.
DEVICE = Path("/dev/cpu_dma_latency")
#: The name of the kernel's driver for idle processors, which follows the latency; ``none`` if it has none.
DRIVER = Path("/sys/devices/system/cpu/cpuidle/current_driver")


@contextmanager
def keep_awake(device: Path = DEVICE, driver: Path = DRIVER) -> Iterator[None]:
    """Keep all processors of the machine awake while the block runs, or until this process ends.

    They then use as much power as at full load. Work that they have is not affected.

    Raises
    ------
    ServerError
        The process may not, or this system can't.
    """
    if not driver.is_file() or driver.read_text().strip() in ("", "none"):
        raise ServerError(
            f"processors can't be kept awake: {driver} names no driver for idle processors; load one (on a "
            "virtual machine: modprobe cpuidle_haltpoll force=Y), boot with idle=poll, or leave --awake out"
        )
    try:
        held = os.open(device, os.O_WRONLY)
    except OSError as error:
        raise ServerError(
            f"processors can't be kept awake: {device}: {error.strerror}; run as a user who may write to it, "
            f"give a container --device {device}, or leave --awake out"
        ) from error
    try:
        os.write(held, struct.pack("=i", 0))
        yield
    finally:
        os.close(held)


def is_awake(device: Path = DEVICE) -> bool:
    """Return whether any process keeps the processors awake; False if this one may not know."""
    try:
        return device.read_bytes()[:4] == struct.pack("=i", 0)
    except OSError:
        return False
