"""Dates: parts and differences against pandas and Python's calendar, and raw date columns."""

from __future__ import annotations

import warnings
from datetime import datetime, timedelta, timezone
from zoneinfo import ZoneInfo, available_timezones

import numpy as np
import nvtabular as nvt
import pandas as pd
import pyarrow as pa
import pytest
from nvtabular import ops
from parity_helpers import check, pair

from tiercel_export.errors import UnsupportedOperator, WorkflowError
from tiercel_export.operators import Cast, Compare, DatePart, IsNull, TimeDifference
from tiercel_export.operators.zones import zone_table
from tiercel_export.workflow.cut import compile_workflow
from tiercel_export.workflow.frames import columns_from_frame
from tiercel_pipelines.errors import DataCorrupt
from tiercel_pipelines.features.arrow_columns import check_schema, column_from_arrow
from tiercel_serving.features.calendar import PARTS, date_part

EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
#: Parts that pandas names differently.
PANDAS = {"week": lambda at: at.isocalendar().week, "is_weekend": lambda at: at.weekday >= 5}


def seconds_of_all_years(count: int, seed: int = 0) -> np.ndarray:
    """Return seconds since 1970 in years 2 to 9998, including the first and last seconds of days."""
    random = np.random.default_rng(seed)
    low, high = (int((datetime(y, 1, 1, tzinfo=timezone.utc) - EPOCH).total_seconds()) for y in (2, 9999))
    drawn = random.integers(low, high, count)
    return np.concatenate(
        [drawn, drawn // 86_400 * 86_400, drawn // 86_400 * 86_400 - 1, [0, -1, 253402300799]]
    )


def calendar_says(part: str, at: datetime):
    """Return a part of a date, computed with Python's own calendar."""
    days = {
        "days_in_month": lambda: ((at.replace(day=28) + timedelta(4)).replace(day=1) - timedelta(1)).day,
        "year": lambda: at.year,
        "month": lambda: at.month,
        "day": lambda: at.day,
        "hour": lambda: at.hour,
        "minute": lambda: at.minute,
        "second": lambda: at.second,
        "quarter": lambda: (at.month - 1) // 3 + 1,
        "week": lambda: at.isocalendar()[1],
        "weekday": lambda: at.weekday(),
        "dayofyear": lambda: at.timetuple().tm_yday,
        "is_weekend": lambda: at.weekday() >= 5,
    }
    return days[part]()


@pytest.mark.parametrize("unit", ["s", "ms"])
def test_parts_are_those_of_pythons_calendar(unit):
    seconds = seconds_of_all_years(300)[:-1]
    ticks = seconds * {"s": 1, "ms": 1000}[unit]
    moments = [EPOCH + timedelta(seconds=int(second)) for second in seconds]
    for part in ("year", "month", "day", "week", "weekday", "dayofyear", "quarter", "hour", "days_in_month"):
        assert date_part(part, ticks, unit, None).tolist() == [calendar_says(part, at) for at in moments], (
            part
        )


def zones_agree(name: str, count: int) -> None:
    zone, table = ZoneInfo(name), zone_table(name)
    seconds = seconds_of_all_years(count, seed=len(name))[:-1]
    seconds = np.concatenate([seconds, table.instants[:-1], table.instants[:-1] - 1])
    local = [(EPOCH + timedelta(seconds=int(second))).astimezone(zone) for second in seconds]
    for part in ("hour", "minute", "day"):
        assert date_part(part, seconds, "s", table).tolist() == [calendar_says(part, at) for at in local], (
            name
        )


@pytest.mark.parametrize("name", ["Europe/Zurich", "Asia/Kolkata", "Australia/Lord_Howe"])
def test_a_zones_clock_is_pythons(name):
    zones_agree(name, 100)


@pytest.mark.slow
def test_every_zones_clock_is_pythons():
    for name in sorted(available_timezones() - {"Factory", "localtime"}):
        zones_agree(name, 20)


TIMES = pd.to_datetime(
    [
        "2020-02-29 23:59:59.999",
        None,
        "1999-12-31",
        "2024-12-30 12:00",
        "2021-01-03 01:02:03",
        "1969-12-31 23:59",
    ]
)
FRAME = pd.DataFrame(
    {
        "when": TIMES,
        "before": TIMES[::-1],
        "stamp": np.arange(6) * 10**8 - 10**8,
        "age": [1.0, 2, 3, 4, np.nan, 5],
    }
)


def fitted(node, frame=FRAME):
    workflow = nvt.Workflow(node >> ops.TagAsUserFeatures())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        workflow.fit(nvt.Dataset(frame))
    return workflow


def test_parts_of_a_column_of_dates_are_pandas_own():
    workflow = fitted(["when"] >> DatePart(*PARTS))
    got = workflow.transform(FRAME[["when"]])
    for part in PARTS:
        of = PANDAS.get(part, lambda at, part=part: getattr(at, part))
        want = of(FRAME["when"].dt).astype(got[f"when_{part}"].dtype)
        assert got[f"when_{part}"].equals(want.rename(f"when_{part}")), part
    assert check(pair(workflow), FRAME, strict=True) == "equal"
    assert check(pair(workflow), FRAME.iloc[[0, 2]], strict=True) == "equal"


def test_dates_through_a_graph():
    node = (
        (["when"] >> DatePart("year", "hour", zone="Asia/Tokyo") >> ops.FillMissing(0) >> ops.Normalize())
        + (["when"] >> TimeDifference("before", "h") >> ops.Rename(postfix="_since"))
        + (["before"] >> IsNull() >> ops.Rename(postfix="_is_null"))
        + (["stamp"] >> DatePart("month", unit="s"))
        + (["age"] >> Compare(">", 1))
    )
    both = pair(fitted(node))
    asked = {column.name: (column.dtype, column.unit, column.is_date) for column in both.program.inputs}
    assert asked == {
        "when": ("int64", "ns", True),
        "before": ("int64", "ns", True),
        "stamp": ("int64", "s", False),
        "age": ("float64", None, False),
    }
    for rows in ([0], [1], [0, 2, 3], list(range(6))):
        assert check(both, FRAME.iloc[rows].reset_index(drop=True), strict=True) == "equal"


def test_a_column_of_dates_passes_through_as_whole_numbers():
    workflow = fitted((["when"] >> ops.Rename(postfix="_raw")) + (["when"] >> Cast("int64")))
    program = compile_workflow(workflow, "user").program
    got = program.run(columns_from_frame(FRAME, program.inputs), len(FRAME))
    for name in ("when_raw", "when"):
        assert got[name].valid.tolist() == FRAME["when"].notna().tolist()
        assert got[name].values[got[name].valid].tolist() == FRAME["when"].dropna().astype("int64").tolist()
    assert list(program.packed(columns_from_frame(FRAME, program.inputs), len(FRAME))) == ["user_num"]


def test_what_takes_numbers_says_what_to_do_with_dates():
    workflow = nvt.Workflow(["when"] >> ops.FillMissing() >> ops.TagAsUserFeatures())
    workflow.fit_schema(nvt.Dataset(FRAME).schema)
    with pytest.raises(
        UnsupportedOperator, match=r"holds datetime64\[ns\].*DatePart of tiercel_export.operators"
    ):
        compile_workflow(workflow, "user")


def test_dates_of_any_year_as_seconds():
    column = compile_workflow(fitted(["stamp"] >> DatePart("year", unit="s")), "user").program.inputs[0]
    frame = pd.DataFrame({"stamp": [datetime(9999, 12, 31), datetime(1, 1, 1), None]}, dtype=object)
    got = columns_from_frame(frame, [column])["stamp"]
    assert got.values[:2].tolist() == [253402214400, -62135596800]
    assert got.valid.tolist() == [True, True, False]
    zoned = pd.DataFrame({"stamp": pd.to_datetime(["2020-01-01"]).tz_localize("Europe/Zurich")})
    assert columns_from_frame(zoned, [column])["stamp"].values.tolist() == [1577833200]


def test_dates_of_a_file():
    both = compile_workflow(
        fitted((["when"] >> DatePart("year")) + (["stamp"] >> DatePart("day", unit="s"))), "user"
    )
    inputs = both.program.inputs
    day = pa.array([18262, None, -1], pa.date32())
    at = pa.array([1_577_836_800_999, None, -1], pa.timestamp("ms"))
    check_schema(pa.schema([("when", day.type), ("stamp", at.type)]), inputs, "file")
    got = [column_from_arrow(array, column, "file") for array, column in zip((day, at), inputs, strict=True)]
    assert got[0].values[[0, 2]].tolist() == [18262 * 86_400 * 10**9, -86_400 * 10**9]
    assert got[1].values[[0, 2]].tolist() == [1_577_836_800, -1]
    assert [column.valid.tolist() for column in got] == [[True, False, True]] * 2
    far = pa.array([datetime(9999, 12, 31)], pa.timestamp("s"))
    with pytest.raises(DataCorrupt, match=r"file: column 'when'.*64 bits hold as ns"):
        column_from_arrow(far, inputs[0], "file")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DatePart("moon", unit="s"), r"expected one of 'year'.*got 'moon'"),
        (lambda: DatePart(), "at least one part"),
        (lambda: DatePart("year", zone="Mars/Olympus"), r"zone 'Mars/Olympus'.*Europe/Zurich"),
        (lambda: TimeDifference("before", "y"), r"unit: expected one of .*got 'y'"),
        (
            lambda: fitted(["stamp"] >> DatePart("year")),
            r"on column 'stamp': expected .* unit.*got int64 and no",
        ),
    ],
)
def test_what_is_wrong_is_said(make, message):
    with pytest.raises(WorkflowError, match=message):
        make()
