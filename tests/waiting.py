"""Waiting for what another thread or process does, for as long as only a hang takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_until(condition: Callable[[], object], timeout_s: float = 60.0, every_s: float = 0.01) -> None:
    """Wait until a condition holds, and fail if it never does."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"not within {timeout_s:g} s"
        time.sleep(every_s)


def rested(read: Callable[[], T], times: int = 4, every_s: float = 0.1) -> T:
    """Return a value once it has been the same so many times: Triton counts a batch after it has answered."""
    seen = [read()]
    while len(seen) < times or any(one != seen[-1] for one in seen[-times:]):
        time.sleep(every_s)
        seen.append(read())
    return seen[-1]
