"""Public workflows that group events into sessions for session models; see ``public_workflows.py``."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from merlin.schema import Tags
from nvtabular import ops
from public_workflows import KEPT, Example, dates, ids, renamed, texts

from tiercel_export.operators import Arithmetic, Cast, DatePart, Function, IsIn, TimeDifference

FIRST_DAY_S = 15 * 10**8
DAY_S = 24 * 60 * 60


def of_sessions(key: str, n: int, r: np.random.Generator) -> np.ndarray:
    """Return the key of each of ``n`` events, about four events per session."""
    return r.integers(0, max(n // 4, 1), n) + 100


# ------------------------------------------------------------------------------ the columns of each data set


def transformers4rec(n: int, r: np.random.Generator) -> dict[str, Any]:
    return {
        "session_id": of_sessions("session_id", n, r),
        "item_id": ids(n, 50, r),
        "category": ids(n, 9, r),
        "day": ids(n, 10, r),
        "age_days": r.random(n).astype(np.float32),
        "weekday_sin": r.random(n).astype(np.float32),
    }


def yoochoose(n: int, r: np.random.Generator) -> dict[str, Any]:
    return {
        "session_id": of_sessions("session_id", n, r),
        "item_id": ids(n, 50, r),
        "category": ids(n, 12, r),
        "timestamp": FIRST_DAY_S + r.integers(0, 100 * DAY_S, n),
        "itemid_ts_first": FIRST_DAY_S + r.integers(-50 * DAY_S, 100 * DAY_S, n),
    }


def rees46(n: int, r: np.random.Generator) -> dict[str, Any]:
    return {
        "user_session": of_sessions("user_session", n, r),
        "user_id": ids(n, 20, r),
        "product_id": ids(n, 50, r),
        "category_code": texts(n, ["a.b.c", "a.d", None], r),
        "brand": texts(n, ["sony", "lg", None], r),
        "category_id": ids(n, 8, r),
        "event_type": texts(n, ["view", "cart"], r),
        "price": r.lognormal(3, 2, n).round(2),
        "event_time_ts": FIRST_DAY_S + r.integers(0, 30 * DAY_S, n),
        "prod_first_event_time_ts": FIRST_DAY_S + r.integers(-9 * DAY_S, 30 * DAY_S, n),
    }


def booking(n: int, r: np.random.Generator) -> dict[str, Any]:
    checkin = dates(n, r).fillna(pd.Timestamp("2013-01-01"))
    return {
        "utrip_id": of_sessions("utrip_id", n, r),
        "user_id": ids(n, 20, r),
        "city_id": ids(n, 40, r),
        "checkin": checkin,
        "checkout": checkin + pd.to_timedelta(r.integers(1, 9, n), "D"),
        "timestamp": r.integers(0, 10**6, n),
        "booker_country": texts(n, ["Elbonia", "Gondal", None], r),
        "hotel_country": texts(n, ["Elbonia", "Gondal", "Tcherkistan"], r),
        "device_class": texts(n, ["mobile", "desktop", "tablet"], r),
        "affiliate_id": ids(n, 7, r),
    }


def dressipi(n: int, r: np.random.Generator) -> dict[str, Any]:
    return {
        "session_id": of_sessions("session_id", n, r),
        "timestamp": r.integers(0, 10**6, n),
        "item_id": ids(n, 40, r),
        "purchase_id": ids(n, 40, r),
        "f_47": ids(n, 6, r),
        "f_68": ids(n, 9, r),
    }


def sigir(n: int, r: np.random.Generator) -> dict[str, Any]:
    return {
        "session_id_hash": of_sessions("session_id_hash", n, r),
        "event_type": texts(n, ["pageview", "event_product"], r),
        "product_action": texts(n, ["detail", "add", None], r),
        "product_sku_hash": texts(n, ["0a", "1b", "2c", None], r),
        "hashed_url": texts(n, ["7f", "8e", "9d"], r),
        "server_timestamp_epoch_ms": FIRST_DAY_S * 1000 + r.integers(0, DAY_S * 1000, n),
    }


# ------------------------------------------------------------------------------------------- their graphs


def raw(*names: str) -> list[str]:
    """Return the names of raw columns, to be added to other nodes."""
    return list(names)


def waves(days: Any, of: str) -> Any:
    """Return ``sin(2π(day + 1 + 0.000001) / 7)``, or another function ``of`` it, of a day of the week."""
    turned = days >> Arithmetic("+", 1) >> Arithmetic("+", 0.000001) >> Arithmetic("*", 2 * np.pi / 7)
    return renamed(turned >> Function(of), f"dayofweek_{of}")


def recency(seen: str, first: str) -> Any:
    """Return the days since an item was first seen, 0 for future items, as the notebooks do."""
    days = [seen] >> Arithmetic("-", column=first) >> Arithmetic("/", DAY_S) >> ops.Clip(min_value=0)
    scaled = days >> ops.LogOp() >> ops.Normalize(out_dtype=np.float32)
    return renamed(scaled, "product_recency_days_log_norm")


def day_index(first: Any) -> Any:
    """Return the number of a session's day from a fixed first day; the notebooks use the batch's earliest."""
    day = first >> Arithmetic("-", FIRST_DAY_S) >> Arithmetic("//", DAY_S) >> Arithmetic("+", 1)
    return renamed(day, "day_index") >> ops.AddMetadata(tags=[Tags.CATEGORICAL])


def graph_transformers4rec(p: str) -> Any:
    coded = ["item_id", "category"] >> ops.Categorify(out_path=p)
    sessions = coded + raw("session_id", "day", "age_days", "weekday_sin") >> ops.Groupby(
        groupby_cols=["session_id"],
        aggs={
            "item_id": ["list", "count"],
            "category": ["list"],
            "day": ["first"],
            "age_days": ["list"],
            "weekday_sin": ["list"],
        },
        name_sep="-",
    )
    numbers_of = sessions["age_days-list", "weekday_sin-list"] >> ops.ListSlice(-20)
    chosen = (
        sessions["item_id-count", "day-first", "session_id"]
        + (sessions["item_id-list"] >> ops.ListSlice(-20) >> ops.TagAsItemID())
        + (sessions["category-list"] >> ops.ListSlice(-20))
        + (numbers_of >> ops.AddMetadata(tags=[Tags.CONTINUOUS]))
    )
    long_enough = chosen >> ops.Filter(f=lambda df: df["item_id-count"] >= 2)
    listed = long_enough["item_id-list", "category-list", "age_days-list", "weekday_sin-list"]
    return long_enough["session_id", "day-first"] + (listed >> ops.ValueCount())


def graph_yoochoose(p: str) -> Any:
    coded = ["category", "item_id"] >> ops.Categorify(out_path=p)
    days = ["timestamp"] >> DatePart("weekday", unit="s")
    events = (
        raw("session_id", "timestamp") + coded + waves(days, "sin") + recency("timestamp", "itemid_ts_first")
    )
    sessions = events >> ops.Groupby(
        groupby_cols=["session_id"],
        sort_cols=["timestamp"],
        aggs={
            "item_id": ["list", "count"],
            "category": ["list"],
            "timestamp": ["first"],
            "dayofweek_sin": ["list"],
            "product_recency_days_log_norm": ["list"],
        },
        name_sep="-",
    )
    numbers_of = sessions["dayofweek_sin-list", "product_recency_days_log_norm-list"]
    lists = (
        (sessions["item_id-list"] >> ops.TagAsItemID())
        + (numbers_of >> ops.AddMetadata(tags=[Tags.CONTINUOUS]))
        + sessions["category-list"]
    )
    key = sessions["session_id"] >> ops.AddMetadata(tags=[Tags.CATEGORICAL])
    chosen = (
        key
        + sessions["item_id-count"]
        + (lists >> ops.ListSlice(-20))
        + day_index(sessions["timestamp-first"])
    )
    return chosen >> ops.Filter(f=lambda df: df["item_id-count"] >= 2)


def graph_rees46(p: str) -> Any:
    item = ["product_id"] >> ops.TagAsItemID()
    coded = item + raw("category_code", "brand", "user_id", "category_id", "event_type") >> ops.Categorify(
        out_path=p
    )
    days = ["event_time_ts"] >> DatePart("weekday", unit="s")
    price = ["price"] >> ops.LogOp() >> ops.Normalize(out_dtype=np.float32)
    mean = renamed(
        ["category_id"] >> ops.JoinGroupby(cont_cols=["price"], stats=["mean"], out_path=f"{p}/mean"),
        "mean_price",
    )
    # ((price - mean) / (mean + 0.00001)) * (mean > 0)
    relative = (
        ["price"] >> Arithmetic("-", column=mean) >> Arithmetic("/", column=mean >> Arithmetic("+", 1e-5))
    )
    events = (
        raw("user_session", "event_time_ts")
        + coded
        + waves(days, "sin")
        + waves(days, "cos")
        + renamed(price, "price_log_norm")
        + renamed(relative, "relative_price")
        + recency("event_time_ts", "prod_first_event_time_ts")
    )
    of_events = (
        "category_code",
        "brand",
        "category_id",
        "dayofweek_sin",
        "dayofweek_cos",
        "price_log_norm",
        "relative_price",
        "product_recency_days_log_norm",
    )
    sessions = events >> ops.Groupby(
        groupby_cols=["user_session"],
        sort_cols=["event_time_ts"],
        aggs={
            "user_id": ["first"],
            "product_id": ["list", "count"],
            "event_time_ts": ["first"],
            **dict.fromkeys(of_events, "list"),
        },
        name_sep="-",
    )
    lists = sessions[["product_id-list", *(f"{name}-list" for name in of_events)]]
    key = sessions["user_session"] >> ops.AddMetadata(tags=[Tags.CATEGORICAL])
    chosen = (
        key
        + sessions["product_id-count", "user_id-first"]
        + (lists >> ops.ListSlice(-20, pad=True))
        + day_index(sessions["event_time_ts-first"])
    )
    return chosen >> ops.Filter(f=lambda df: df["product_id-count"] >= 2)


def graph_booking(p: str) -> Any:
    checkin = renamed(["checkin"] >> DatePart("weekday"), "weekday_checkin")
    checkout = renamed(["checkout"] >> DatePart("weekday"), "weekday_checkout")
    names = ["city_id", "booker_country", "hotel_country", "weekday_checkin", "weekday_checkout"]
    coded = names[:3] + checkin + checkout >> ops.Categorify(out_path=p)
    sessions = coded + raw("utrip_id", "checkin") >> ops.Groupby(
        groupby_cols=["utrip_id"],
        aggs={**dict.fromkeys(names, "list"), "city_id": ["list", "count"]},
        sort_cols="checkin",
    )
    lists = sessions[[f"{name}_list" for name in names]] >> ops.AddTags([Tags.SEQUENCE])
    chosen = lists + (sessions["city_id_count"] >> ops.AddTags([Tags.CONTINUOUS]))
    return chosen >> ops.Filter(f=lambda df: df["city_id_count"] >= 2)


def graph_booking_models(p: str) -> Any:
    seasons = pd.DataFrame({"month": range(1, 13), "season": np.repeat([0, 1, 2, 3], 3)})
    month = renamed(["checkin"] >> DatePart("month"), "month")
    checkin = renamed(["checkin"] >> DatePart("weekday"), "weekday_checkin")
    checkout = renamed(["checkout"] >> DatePart("weekday"), "weekday_checkout")
    weekend = renamed(checkin >> IsIn([5, 6]) >> Cast("int64"), "is_weekend")
    nights = renamed(["checkout"] >> TimeDifference("checkin"), "length")
    season = month >> ops.JoinExternal(seasons, on="month", how="left")
    in_order = (
        raw("booker_country", "hotel_country") + month + checkin + checkout + weekend + nights
        >> ops.Categorify(out_path=p)
        >> ops.AddTags(tags=[Tags.SEQUENCE])
    )
    known = raw("device_class", "affiliate_id") + season["season"] >> ops.Categorify(out_path=f"{p}/known")
    city = ["city_id"] >> ops.Categorify(out_path=p) >> ops.AddTags(tags=[Tags.ITEM_ID])
    user = ["user_id"] >> ops.Categorify(out_path=p) >> ops.AddTags(tags=[Tags.USER_ID])
    lists = ["booker_country", "hotel_country", "month", "is_weekend", "weekday_checkin", "weekday_checkout"]
    sessions = raw("timestamp", "utrip_id") + in_order + city + known + user >> ops.Groupby(
        groupby_cols=["utrip_id"],
        sort_cols=["timestamp"],
        aggs={
            **dict.fromkeys(["user_id", "device_class", "length", "season"], "first"),
            **dict.fromkeys([*lists, "city_id"], "list"),
        },
    )
    return (
        sessions
        >> ops.Rename(lambda name: name.removesuffix("_list").removesuffix("_first"))
        >> (ops.ValueCount())
    )


def graph_dressipi(p: str) -> Any:
    coded = [["item_id", "purchase_id"], "f_47", "f_68"] >> ops.Categorify(out_path=p)
    sessions = raw("session_id", "timestamp") + coded >> ops.Groupby(
        groupby_cols=["session_id"],
        sort_cols=["timestamp"],
        aggs={
            "item_id": ["list", "last"],
            "f_47": ["list"],
            "f_68": ["list"],
            "purchase_id": ["first"],
            "timestamp": ["first"],
        },
        name_sep="_",
    )
    lists = sessions["item_id_list", "f_47_list", "f_68_list"] >> ops.AddMetadata(tags=[Tags.SEQUENCE])
    last = sessions["item_id_last"] >> ops.AddMetadata(tags=[Tags.ITEM, Tags.ITEM_ID])
    latest = lists >> ops.ListSlice(-3) >> ops.Rename(postfix="_seq") >> ops.ValueCount()
    return last + sessions["session_id", "timestamp_first", "purchase_id_first"] + latest


def graph_sigir(p: str) -> Any:
    coded = ["product_sku_hash"] >> ops.Categorify(out_path=p) >> ops.TagAsItemID()
    coded += ["event_type", "product_action", "session_id_hash", "hashed_url"] >> ops.Categorify(out_path=p)
    coded += ["server_timestamp_epoch_ms"] >> ops.NormalizeMinMax()
    sessions = coded >> ops.Groupby(
        groupby_cols=["session_id_hash"],
        aggs={
            "product_sku_hash": ["list"],
            "event_type": ["list"],
            "product_action": ["list"],
            "hashed_url": ["list", "count"],
            "server_timestamp_epoch_ms": ["list"],
        },
        sort_cols="server_timestamp_epoch_ms",
    )
    long_enough = sessions >> ops.Filter(f=lambda df: df["hashed_url_count"] >= 3)
    return long_enough["product_sku_hash_list", "event_type_list", "product_action_list", "hashed_url_list"]


SHORT = KEPT.format("`Filter`")
COUNTED = "days are counted from a day that is written, not from the batch's first"

SESSIONS: dict[str, Example] = {
    "Transformers4Rec, getting started": Example(
        transformers4rec, graph_transformers4rec, SHORT, "session_id"
    ),
    "YOOCHOOSE": Example(yoochoose, graph_yoochoose, f"{COUNTED}; {SHORT}", "session_id"),
    "REES46": Example(rees46, graph_rees46, f"{COUNTED}; {SHORT}", "user_session"),
    "Booking, next destination": Example(booking, graph_booking, SHORT, "utrip_id"),
    "Booking, Merlin Models": Example(booking, graph_booking_models, key="utrip_id"),
    "Dressipi": Example(dressipi, graph_dressipi, key="session_id"),
    "SIGIR eCommerce": Example(sigir, graph_sigir, SHORT, "session_id_hash"),
}
