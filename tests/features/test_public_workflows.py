"""Feature workflows of public examples, their lambdas written as operators of ours: served whole, to the bit.

The graphs follow the examples of Merlin and of the competitions' winners, on made-up frames with the same
columns. Those that group sessions are tested beside ``Groupby``.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import nvtabular as nvt
import pandas as pd
import pytest
from nvtabular import ops
from parity_helpers import check, pairs_of_compiled

from tiercel_export.operators import (
    Arithmetic,
    Cast,
    Compare,
    Cyclical,
    DatePart,
    Function,
    IsIn,
    IsNull,
    Logic,
    TextLength,
    TextSlice,
    TextSplitCount,
    TimeDifference,
)

#: How many of the workflows must serve all of their features.
AT_LEAST = 0.9
#: Those that run without ``--slow``.
CORE = ("outbrain",)


def ids(size: int, most: int, random: np.random.Generator) -> np.ndarray:
    return random.integers(0, most, size)


def texts(size: int, values: list[str | None], random: np.random.Generator) -> np.ndarray:
    return random.choice(np.array(values, object), size)


def numbers(size: int, random: np.random.Generator) -> np.ndarray:
    return np.where(random.random(size) < 0.2, np.nan, random.lognormal(3, 2, size).round(2))


def dates(size: int, random: np.random.Generator) -> pd.Series:
    at = pd.Series(pd.Timestamp("2013-01-01") + pd.to_timedelta(random.integers(0, 3 * 10**7, size), "s"))
    return at.mask(random.random(size) < 0.1)


def renamed(node: Any, name: str) -> Any:
    return node >> ops.Rename(name=name)


# ------------------------------------------------------------------------------ the columns of each data set


def movielens(n: int, r: np.random.Generator) -> dict[str, Any]:
    genres = texts(n, ["Comedy", "Drama|War", "Action|Crime|Noir", None], r)
    return {
        "userId": ids(n, 30, r),
        "movieId": ids(n, 50, r),
        "genres": genres,
        "rating": numbers(n, r) % 5,
        "timestamp": r.integers(8 * 10**8, 15 * 10**8, n),
        "title": texts(n, ["Heat (1995)", "Ran (1985)", None, "Été (2001)"], r),
    }


def criteo(n: int, r: np.random.Generator) -> dict[str, Any]:
    values = ["68fd1e64", "80e26c9b", "fb936136", "7b4723c4", None]
    return {
        **{f"I{i}": numbers(n, r) - 3 for i in range(1, 5)},
        **{f"C{i}": texts(n, values, r) for i in range(1, 5)},
    }


def rossmann(n: int, r: np.random.Generator) -> dict[str, Any]:
    return {
        "Store": ids(n, 20, r),
        "Date": dates(n, r),
        "CompetitionOpenSince": dates(n, r),
        "Promo2Since": dates(n, r),
        "StateHoliday": texts(n, ["0", "a", "b", None], r),
        "Max_TemperatureC": numbers(n, r),
        "Min_TemperatureC": numbers(n, r),
        "PromoInterval": texts(n, ["Jan,Apr,Jul,Oct", "Feb,May,Aug,Nov", None], r),
    }


def outbrain(n: int, r: np.random.Generator) -> dict[str, Any]:
    return {
        "ad_id": ids(n, 40, r),
        "geo_location": texts(n, ["US>CA>803", "CH", "DE>BY", None], r),
        "timestamp": r.integers(0, 10**9, n),
        "publish_time": dates(n, r).astype("datetime64[ns]"),
        "seen_at": dates(n, r),
        "platform": ids(n, 4, r),
    }


def aliccp(n: int, r: np.random.Generator) -> dict[str, Any]:
    return {
        "user_id": ids(n, 40, r),
        "item_id": ids(n, 60, r),
        "item_brand": ids(n, 9, r),
        "position": ids(n, 5, r),
    }


def quick_start(n: int, r: np.random.Generator) -> dict[str, Any]:
    return {
        "user_id": ids(n, 30, r),
        "item_id": ids(n, 40, r),
        "video_category": ids(n, 3, r),
        "gender": texts(n, ["1", "2", None], r),
        "age": ids(n, 80, r),
        "watching_times": ids(n, 30, r),
    }


def booking(n: int, r: np.random.Generator) -> dict[str, Any]:
    checkin = dates(n, r)
    return {
        "checkin": checkin,
        "checkout": checkin + pd.to_timedelta(r.integers(1, 9, n), "D"),
        "booker_country": texts(n, ["Elbonia", "Gondal", None], r),
        "hotel_country": texts(n, ["Elbonia", "Gondal", "Tcherkistan"], r),
        "device_class": texts(n, ["mobile", "desktop", "tablet"], r),
    }


def rees46(n: int, r: np.random.Generator) -> dict[str, Any]:
    return {
        "product_id": ids(n, 50, r),
        "category_code": texts(n, ["a.b.c", "a.d", None], r),
        "brand": texts(n, ["sony", "lg", None], r),
        "price": numbers(n, r),
        "event_time_ts": r.integers(15 * 10**8, 16 * 10**8, n),
        "prod_first_event_time_ts": r.integers(14 * 10**8, 15 * 10**8, n),
    }


def yoochoose(n: int, r: np.random.Generator) -> dict[str, Any]:
    return {
        "item_id": ids(n, 50, r),
        "category": texts(n, ["S", "0", "5", None], r),
        "timestamp": dates(n, r),
        "itemid_ts_first": dates(n, r),
    }


def twitter(n: int, r: np.random.Generator) -> dict[str, Any]:
    return {
        "tweet_type": texts(n, ["Retweet", "Quote", "TopLevel"], r),
        "media": texts(n, ["Photo", "Photo\tPhoto", "Video", None], r),
        "hashtags": texts(n, ["a\tb", "c", None], r),
        "a_follower_count": ids(n, 9000, r),
        "a_following_count": ids(n, 900, r),
        "timestamp": r.integers(15 * 10**8, 16 * 10**8, n),
        "a_account_creation": r.integers(12 * 10**8, 15 * 10**8, n),
    }


def petfinder(n: int, r: np.random.Generator) -> dict[str, Any]:
    return {
        "Type": ids(n, 2, r) + 1,
        "Age": ids(n, 100, r),
        "Breed1": ids(n, 30, r),
        "Fee": numbers(n, r),
        "Description": texts(n, ["A fine dog", "", None, "Très gentil"], r),
        "Name": texts(n, ["Rex", None, "No Name"], r),
    }


# ------------------------------------------------------------------------------------------- their graphs


def graph_movielens(p: str) -> Any:
    year = (
        ["title"] >> TextSlice(-5, -1) >> Cast("int64") >> ops.FillMissing(0) >> ops.Rename(postfix="_year")
    )
    return (
        (["userId", "movieId", "genres"] >> ops.Categorify(out_path=p))
        + (["genres"] >> TextSplitCount("|") >> ops.FillMissing(0) >> ops.Rename(postfix="_count"))
        + (["timestamp"] >> DatePart("year", "hour", "is_weekend", unit="s"))
        + renamed(["rating"] >> Compare(">", 3), "liked")
        + year
    )


def graph_criteo(p: str) -> Any:
    numeric = [f"I{i}" for i in range(1, 5)]
    filled = numeric >> ops.FillMissing() >> ops.Clip(min_value=0) >> ops.LogOp() >> ops.Normalize()
    coded = [f"C{i}" for i in range(1, 5)] >> ops.Categorify(out_path=p, freq_threshold=2)
    return filled + coded + (numeric >> IsNull() >> ops.Rename(postfix="_null"))


def graph_rossmann(p: str) -> Any:
    dated = ["Date"] >> DatePart(
        "year", "month", "week", "day", "dayofyear", "is_month_end", "is_quarter_start"
    )
    opened = ["Date"] >> TimeDifference("CompetitionOpenSince") >> ops.FillMissing(0) >> ops.Clip(0, 730)
    promoted = ["Date"] >> TimeDifference("Promo2Since", "W") >> ops.FillMissing(0) >> ops.Clip(0, 25)
    spread = ["Max_TemperatureC"] >> Arithmetic("-", column="Min_TemperatureC") >> ops.FillMissing(0.0)
    return (
        (["Store", "StateHoliday", "PromoInterval"] >> ops.Categorify(out_path=p))
        + (dated["Date_year", "Date_month", "Date_week", "Date_day"] >> ops.Categorify(out_path=p))
        + dated["Date_dayofyear", "Date_is_month_end", "Date_is_quarter_start"]
        + renamed(opened >> ops.Normalize(), "opened")
        + renamed(promoted >> ops.Normalize(), "promoted")
        + renamed(spread >> ops.Normalize(), "spread")
        + renamed(["StateHoliday"] >> Compare("!=", "0"), "holiday")
    )


def graph_outbrain(p: str) -> Any:
    places = renamed(["geo_location"] >> TextSlice(0, 2), "country") + renamed(
        ["geo_location"] >> TextSlice(0, 5), "state"
    )
    hour = ["timestamp"] >> Arithmetic("+", 1465876799998) >> DatePart("hour", "weekday", unit="ms")
    age = (
        ["seen_at"]
        >> TimeDifference("publish_time")
        >> ops.FillMissing(0)
        >> ops.Clip(0, 3000)
        >> ops.LogOp()
    )
    return (
        (places + (["ad_id", "platform"] >> ops.AddMetadata()) >> ops.Categorify(out_path=p))
        + (hour["timestamp_hour"] >> Cyclical(24))
        + hour["timestamp_weekday"]
        + renamed(age >> ops.Normalize(), "age")
        + renamed(["platform"] >> IsIn([1, 2]), "common")
    )


def graph_aliccp(p: str) -> Any:
    return (["user_id", "item_id", "item_brand"] >> ops.Categorify(out_path=p, dtype="int32")) + renamed(
        ["position"] >> Cast("float32"), "place"
    )


def graph_quick_start(p: str) -> Any:
    grouped = ["age"] >> Arithmetic("//", 10) >> ops.Categorify(out_path=p)
    return (
        (["user_id", "item_id", "video_category", "gender"] >> ops.Categorify(out_path=p))
        + renamed(grouped, "age_group")
        + renamed(["watching_times"] >> Compare(">=", 10), "watched")
        + renamed(["watching_times"] >> Function("log1p") >> ops.Normalize(), "watching")
    )


def graph_booking(p: str) -> Any:
    parts = ["checkin"] >> DatePart("month", "weekday", "year")
    return (
        (["booker_country", "hotel_country", "device_class"] >> ops.Categorify(out_path=p))
        + (parts["checkin_weekday"] >> Cyclical(7))
        + (parts["checkin_month", "checkin_year"] >> ops.Categorify(out_path=p))
        + renamed(
            ["checkout"] >> TimeDifference("checkin") >> ops.FillMissing(0) >> ops.Normalize(), "nights"
        )
        + renamed(["booker_country"] >> Compare("==", column="hotel_country"), "at_home")
        + renamed(["device_class"] >> IsIn(["mobile", "tablet"]), "on_the_way")
    )


def graph_rees46(p: str) -> Any:
    recency = ["event_time_ts"] >> TimeDifference("prod_first_event_time_ts", "D", of="s")
    depth = ["category_code"] >> TextSplitCount(".") >> ops.FillMissing(0)
    return (
        (["product_id", "category_code", "brand"] >> ops.Categorify(out_path=p))
        + (["event_time_ts"] >> DatePart("hour", "weekday", unit="s") >> Cyclical(24))
        + renamed(recency >> ops.LogOp() >> ops.Normalize(), "recency")
        + renamed(depth, "depth")
        + renamed(["price"] >> ops.FillMissing(0) >> ops.LogOp() >> ops.Normalize(), "price_log")
    )


def graph_yoochoose(p: str) -> Any:
    recency = ["timestamp"] >> TimeDifference("itemid_ts_first") >> ops.FillMissing(0) >> ops.Clip(0, 400)
    return (
        (["item_id", "category"] >> ops.Categorify(out_path=p))
        + (["timestamp"] >> DatePart("month", "hour", "weekday", zone="Europe/Berlin"))
        + renamed(recency >> ops.LogOp() >> ops.Normalize(), "recency")
        + renamed(["category"] >> Compare("==", "S"), "on_sale")
    )


def graph_twitter(p: str) -> Any:
    ratio = ["a_follower_count"] >> Arithmetic("/", column="a_following_count") >> ops.FillMissing(0)
    photo = renamed(["media"] >> TextSlice(0, 5) >> Compare("==", "Photo"), "photo")
    return (
        (["tweet_type", "media"] >> ops.Categorify(out_path=p))
        + renamed(["hashtags"] >> TextSplitCount("\t") >> ops.FillMissing(0), "hashtag_count")
        + renamed(ratio >> ops.Clip(0, 100) >> ops.LogOp(), "ratio")
        + renamed(["timestamp"] >> TimeDifference("a_account_creation", "D", of="s"), "account_age")
        + photo
        + (["timestamp"] >> DatePart("hour", unit="s"))
    )


def graph_petfinder(p: str) -> Any:
    free = ["Fee"] >> Compare("==", 0)
    return (
        (["Type", "Breed1"] >> ops.Categorify(out_path=p))
        + renamed(["Description"] >> TextLength() >> ops.FillMissing(0) >> ops.LogOp(), "words")
        + renamed(["Name"] >> IsNull(), "nameless")
        + renamed(free >> Logic("and", column=["Age"] >> Compare("<", 12)), "free_and_young")
        + renamed(["Age"] >> Function("sqrt") >> ops.Normalize(), "age_root")
    )


WORKFLOWS: dict[str, tuple[Callable[[int, np.random.Generator], dict[str, Any]], Callable[[str], Any]]] = {
    "movielens": (movielens, graph_movielens),
    "criteo": (criteo, graph_criteo),
    "rossmann": (rossmann, graph_rossmann),
    "outbrain": (outbrain, graph_outbrain),
    "aliccp": (aliccp, graph_aliccp),
    "quick start": (quick_start, graph_quick_start),
    "booking": (booking, graph_booking),
    "rees46": (rees46, graph_rees46),
    "yoochoose": (yoochoose, graph_yoochoose),
    "twitter": (twitter, graph_twitter),
    "petfinder": (petfinder, graph_petfinder),
}


def served(name: str, sizes: tuple[int, ...], folder: Path) -> bool:
    """Compare a workflow with NVTabular on frames of some sizes; tell whether all its features are served."""
    columns, graph = WORKFLOWS[name]
    folder.mkdir()
    frame = pd.DataFrame(columns(200, np.random.default_rng(1)))
    workflow = nvt.Workflow(graph(str(folder)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        workflow.fit(nvt.Dataset(frame))
        outputs = workflow.output_schema.column_names
        pairs, refused = pairs_of_compiled(workflow, frame, dict.fromkeys(outputs, "user"))
        for size in sizes:
            asked = pd.DataFrame(columns(size, np.random.default_rng(size)))
            for number in asked.columns:
                if asked[number].dtype.kind in "if":  # unseen values
                    asked.loc[asked.index % 11 == 10, number] += 7
            for both in pairs:
                check(both, asked)
    return not refused


@pytest.mark.parametrize(
    "name", [name if name in CORE else pytest.param(name, marks=pytest.mark.slow) for name in WORKFLOWS]
)
def test_a_public_workflow_is_served_to_the_bit(name, tmp_path):
    assert served(name, (1, 7, 1000), tmp_path / "categories")


@pytest.mark.slow
def test_how_many_serve_all_their_features(tmp_path):
    whole = [name for name in WORKFLOWS if served(name, (), tmp_path / name)]
    print(f"{len(whole)} of {len(WORKFLOWS)} workflows serve all of their features")
    assert len(whole) >= AT_LEAST * len(WORKFLOWS)
