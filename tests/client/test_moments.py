"""Dates and times as the integers that a request carries: exact, or refused."""

from __future__ import annotations

from datetime import date, datetime, timedelta, timezone

import numpy as np
import pytest

from tiercel_client.contract import read_contract
from tiercel_client.errors import InvalidInput
from tiercel_client.request import Question, build_requests
from tiercel_client.results import RequestColumn
from tiercel_client.testing import FakeTransport
from tiercel_client.wire.moments import NANOSECONDS, ticks

NOON = 1_769_860_800  # 2026-01-31T12:00:00Z


def place(position: int) -> str:
    return f"features['when'][{position}]"


@pytest.mark.parametrize("unit", NANOSECONDS)
def test_each_form_of_one_moment_is_one_number(unit):
    forms = [
        datetime(2026, 1, 31, 12),
        datetime(2026, 1, 31, 13, tzinfo=timezone(timedelta(hours=1))),
        np.datetime64("2026-01-31T12"),
        np.datetime64("2026-01-31T12:00:00.000", "ms"),
        "2026-01-31T12:00Z",
        "2026-01-31 12:00:00",
        "2026-01-31T13:30:00.000000000+01:30",
    ]
    assert ticks(forms, unit, place) == [NOON * 10**9 // NANOSECONDS[unit]] * len(forms)


def test_dates_finer_times_and_what_is_no_date():
    assert ticks([date(2026, 1, 31), "2026-01-31", 7, None], "s", place) == [NOON - 43_200] * 2 + [7, None]
    assert ticks(["1969-12-31T23:59:59.5"], "s", place) == [-1]
    assert ticks(["2026-01-31T12:00:00.123456789Z"], "ns", place) == [NOON * 10**9 + 123_456_789]
    assert ticks(np.array(["2026-01-31", "NaT"], "datetime64[D]"), "s", place) == [NOON - 43_200, None]
    array = np.arange(3)
    assert ticks(array, "s", place) is array
    assert ticks([datetime(9999, 12, 31), date(1, 1, 1)], "us", place) == [
        253402214400 * 10**6,
        -62135596800 * 10**6,
    ]


@pytest.mark.parametrize(
    ("value", "unit", "message"),
    [
        ("tomorrow", "s", r"features\['when'\]\[0\]: expected a date.*got str 'tomorrow'.*2026-01-31"),
        ("2026-02-30", "s", "day is out of range"),
        (datetime(9999, 12, 31), "ns", "64 bits hold as ns since 1970"),
    ],
)
def test_what_is_no_moment_is_refused(value, unit, message):
    with pytest.raises(InvalidInput, match=message):
        ticks([value], unit, place)


def test_a_request_carries_what_the_server_announces():
    columns = (
        RequestColumn("when", "int64", False, "context", unit="ms"),
        RequestColumn("age", "int64", False, "user"),
    )
    config = FakeTransport(columns=columns).model_config("recommend", timeout_s=1, headers={})
    contract = read_contract(config)
    assert contract.columns["when"].unit == "ms"
    users = {"when": [datetime(2026, 1, 31, 12), None, "2026-01-31"], "age": [1, 2, 3]}
    [part] = build_requests(contract, Question([1, 2, 3], features=users))
    assert part.inputs["when"][[0, 2], 0].tolist() == [NOON * 1000, (NOON - 43_200) * 1000]
    assert part.inputs[contract.columns["when"].companion][:, 0].tolist() == [True, False, True]
    with pytest.raises(InvalidInput, match=r"features\['age'\].*a whole number, got datetime"):
        build_requests(contract, Question.of_one(1, None, features={"age": datetime(2026, 1, 31)}))
