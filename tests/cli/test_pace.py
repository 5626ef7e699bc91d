"""When a log reports the progress and the remaining time of long work."""

from __future__ import annotations

import pytest

from tiercel_serving.commands.pace import Pace, duration


class Clock:
    """A clock that advances only when set."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_long_work_says_what_is_left_at_each_tenth() -> None:
    clock, told = Clock(), []
    pace = Pace(clock)
    for done in range(1001):
        clock.now = 3.6 * done
        told.append(pace.says(done, 1000))
    lines = [line for line in told if line]
    assert lines[:1] + lines[-1:] == [" 0%", " 100%"]
    assert " 10%, 54 min left" in lines
    assert " 90%, 6 min left" in lines
    # A tenth takes six minutes, so a line comes every minute, provided that one more percent is done.
    assert len(lines) == 61


def test_short_work_says_tenths_alone() -> None:
    clock, told = Clock(), []
    pace = Pace(clock)
    for done in range(101):
        clock.now = 0.01 * done
        told.append(pace.says(done, 100))
    assert [line for line in told if line] == [f" {percent}%" for percent in range(0, 101, 10)]


def test_what_begins_again_is_told_again_by_its_own_time() -> None:
    clock = Clock()
    pace = Pace(clock)
    assert pace.says(90, 100) == " 90%"
    clock.now = 1000.0
    assert pace.says(10, 100) == " 10%"
    clock.now = 1020.0
    assert pace.says(20, 100) == " 20%, 3 min left"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (89.0, "89 s"), (90.0, "2 min"), (5399.0, "90 min"), (5400.0, "1.5 h")],
)
def test_times_are_in_the_unit_that_suits(seconds: float, text: str) -> None:
    assert duration(seconds) == text
