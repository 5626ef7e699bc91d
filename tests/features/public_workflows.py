"""Feature workflows of public examples, with their lambdas written as our operators, on synthetic rows.

The graphs follow the notebooks of Merlin, NVTabular and Transformers4Rec and of competition winners, on
frames with the columns that these read. ``public_sessions.py`` has those that group events into sessions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from merlin.dag.ops.subgraph import Subgraph
from merlin.schema import Tags
from nvtabular import ops
from scipy.sparse import coo_matrix

from tiercel_export.operators import (
    Arithmetic,
    Cast,
    Compare,
    DatePart,
    Function,
    IsNull,
    Logic,
    TextLength,
    TextSlice,
    TextSplitCount,
    TimeDifference,
)

#: Number of movies, and of documents.
MOVIES, DOCUMENTS = 50, 40


@dataclass(frozen=True)
class Example:
    """A public workflow.

    Parameters
    ----------
    columns
        Makes a given number of rows to fit on.
    graph
        Makes its graph, given a folder for vocabularies and statistics.
    instead
        What had to be written differently from the original.
    key
        The column by which it groups events into sessions.
    """

    columns: Callable[[int, np.random.Generator], dict[str, Any]]
    graph: Callable[[str], Any]
    instead: str = ""
    key: str | None = None


def ids(size: int, most: int, random: np.random.Generator) -> np.ndarray:
    return random.integers(0, most, size)


def texts(size: int, values: list[str | None], random: np.random.Generator) -> np.ndarray:
    return random.choice(np.array(values, object), size)


def numbers(size: int, random: np.random.Generator) -> np.ndarray:
    return np.where(random.random(size) < 0.2, np.nan, random.lognormal(3, 2, size).round(2))


def dates(size: int, random: np.random.Generator) -> pd.Series:
    at = pd.Series(pd.Timestamp("2013-01-01") + pd.to_timedelta(random.integers(0, 3 * 10**7, size), "s"))
    return at.mask(random.random(size) < 0.1)


def lists(size: int, most: int, random: np.random.Generator) -> list[list[int]]:
    return [random.integers(0, most, count).tolist() for count in random.integers(0, 5, size)]


def renamed(node: Any, name: str) -> Any:
    return node >> ops.Rename(name=name)


# ------------------------------------------------------------------------------ the columns of each data set


def movielens(n: int, r: np.random.Generator) -> dict[str, Any]:
    return {
        "userId": ids(n, 30, r),
        "movieId": ids(n, MOVIES, r),
        "genres": lists(n, 18, r),
        "rating": r.integers(1, 11, n) / 2,
        "timestamp": r.integers(8 * 10**8, 15 * 10**8, n),
        "title": texts(n, ["Heat (1995)", "Ran (1985)", None, "Été (2001)"], r),
        "age": ids(n, 80, r),
        "zipcode": texts(n, ["10115", "8001", None], r),
    }


def rossmann(n: int, r: np.random.Generator) -> dict[str, Any]:
    return {
        "Store": ids(n, 20, r),
        "Date": dates(n, r),
        "CompetitionOpenSince": dates(n, r),
        "Promo2Since": dates(n, r),
        "StateHoliday": texts(n, ["0", "a", "b", None], r),
        "Promo_fw": numbers(n, r).round(),
        "CompetitionDistance": numbers(n, r),
        "Max_TemperatureC": numbers(n, r),
        "Min_TemperatureC": numbers(n, r),
        "PromoInterval": texts(n, ["Jan,Apr,Jul,Oct", "Feb,May,Aug,Nov", None], r),
        "Sales": ids(n, 9000, r),
    }


def outbrain(n: int, r: np.random.Generator) -> dict[str, Any]:
    return {
        "ad_id": ids(n, 40, r),
        "document_id": ids(n, DOCUMENTS, r),
        "document_id_promo": ids(n, DOCUMENTS, r),
        "geo_location": texts(n, ["US>CA>803", "CH", "DE>BY", None], r),
        "timestamp": r.integers(0, 10**9, n),
        "publish_time": dates(n, r),
        "publish_time_promo": dates(n, r),
        "platform": ids(n, 4, r),
        "clicked": ids(n, 2, r),
    }


ALICCP_USER = ("user_shops", "user_profile", "user_group", "user_gender", "user_age", "user_categories")
ALICCP_ITEM = ("item_category", "item_shop", "item_brand")
ALICCP_BOTH = ("user_item_categories", "user_item_shops", "user_item_brands")


def aliccp(n: int, r: np.random.Generator) -> dict[str, Any]:
    names = ("user_id", "item_id", *ALICCP_USER, *ALICCP_ITEM, *ALICCP_BOTH, "position")
    drawn = {name: r.integers(0, 5 + 4 * at, n).astype(np.int32) for at, name in enumerate(names)}
    return {**drawn, "click": ids(n, 2, r), "conversion": ids(n, 2, r)}


def quick_start(n: int, r: np.random.Generator) -> dict[str, Any]:
    return {
        "user_id": ids(n, 30, r),
        "item_id": ids(n, 40, r),
        "video_category": ids(n, 3, r),
        "gender": texts(n, ["1", "2", None], r),
        "age": ids(n, 80, r),
        "watching_times": numbers(n, r),
        "click": ids(n, 2, r),
        "like": ids(n, 2, r),
    }


def criteo(n: int, r: np.random.Generator) -> dict[str, Any]:
    values = ["68fd1e64", "80e26c9b", "fb936136", "7b4723c4", None]
    return {
        **{f"I{i}": numbers(n, r) - 3 for i in range(1, 5)},
        **{f"C{i}": texts(n, values, r) for i in range(1, 5)},
        "label": ids(n, 2, r),
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


def label(node: Any, *tags: Any) -> Any:
    return node >> ops.AddMetadata(tags=[*(tags or (Tags.BINARY_CLASSIFICATION,)), Tags.TARGET])


def movies() -> pd.DataFrame:
    """Return the table that the notebooks join by ``movieId``."""
    r = np.random.default_rng(0)
    return pd.DataFrame({"movieId": np.arange(MOVIES), "genres": lists(MOVIES, 18, r)})


def graph_movielens(p: str) -> Any:
    user, movie = ["userId"] >> ops.TagAsUserID(), ["movieId"] >> ops.TagAsItemID()
    joined = user + movie >> ops.JoinExternal(movies(), on=["movieId"])
    return (joined >> ops.Categorify(out_path=p)) + label(["rating"] >> Compare(">", 3))


def graph_movielens_advanced(p: str) -> Any:
    genres = ["movieId"] >> ops.JoinExternal(movies(), on="movieId", columns_ext=["movieId", "genres"])
    coded = genres >> ops.Categorify(freq_threshold=10, out_path=f"{p}/genres")
    user = ["userId"] >> ops.Categorify(out_path=p) >> ops.AddTags([Tags.USER_ID, Tags.USER])
    movie = ["movieId"] >> ops.Categorify(out_path=p) >> ops.AddTags([Tags.ITEM_ID, Tags.ITEM])
    return user + movie + coded["genres"] + label(renamed(["rating"] >> Compare(">", 3), "binary_rating"))


def graph_movielens_targets(p: str) -> Any:
    joined = ["userId", "movieId"] >> ops.JoinExternal(movies(), on=["movieId"])
    coded = joined >> ops.Categorify(out_path=p, dtype="int32")
    target = ["movieId"] >> ops.TargetEncoding("rating", kfold=5, p_smooth=20, out_path=f"{p}/te")
    count = ["userId"] >> ops.JoinGroupby(cont_cols=["movieId"], stats=["count"], out_path=f"{p}/count")
    return (
        (coded["movieId"] >> ops.AddMetadata(tags=["item_id", "item"]))
        + (coded["userId"] >> ops.AddMetadata(tags=["user_id", "user"]))
        + (coded["genres"] >> ops.ValueCount() >> ops.TagAsItemFeatures())
        + (target >> ops.Normalize() >> ops.TagAsItemFeatures())
        + (count >> ops.LogOp() >> ops.TagAsUserFeatures())
        + label(["rating"] >> Cast("float32"), Tags.REGRESSION)
    )


def graph_movielens_trees(p: str) -> Any:
    coded = ["movieId", "userId", "genres"] >> ops.Categorify(freq_threshold=2, dtype=np.int32, out_path=p)
    return coded + label(["rating"], Tags.REGRESSION) + ["timestamp", "age"]


def graph_movielens_groups(p: str) -> Any:
    coded = ["userId", "movieId", "zipcode"] >> ops.Categorify(freq_threshold=10, out_path=p)
    return coded + (["age"] >> ops.Bucketize([0, 10, 21, 45]))


def graph_movielens_dates(p: str) -> Any:
    year = (
        ["title"] >> TextSlice(-5, -1) >> Cast("int64") >> ops.FillMissing(0) >> ops.Rename(postfix="_year")
    )
    return (
        (["userId", "movieId", "genres"] >> ops.Categorify(out_path=p))
        + (["title"] >> TextSplitCount(" ") >> ops.FillMissing(0) >> ops.Rename(postfix="_words"))
        + (["timestamp"] >> DatePart("year", "hour", "is_weekend", unit="s"))
        + label(renamed(["rating"] >> Compare(">", 3), "liked"))
        + year
    )


def graph_criteo_scaling(p: str) -> Any:
    coded = [f"C{i}" for i in range(1, 5)] >> ops.Categorify(out_path=p, max_size=10_000_000, dtype="int32")
    filled = [f"I{i}" for i in range(1, 5)] >> ops.FillMissing() >> ops.Clip(min_value=0)
    return coded + (filled >> ops.Normalize(out_dtype="float32")) + label(["label"])


def graph_rossmann(p: str) -> Any:
    coded = ["Store", "StateHoliday", "PromoInterval", "Promo_fw"] >> ops.Categorify(out_path=p)
    plain = ["CompetitionDistance", "Max_TemperatureC", "Min_TemperatureC"]
    return coded + (plain >> ops.FillMissing() >> ops.Normalize()) + label(["Sales"] >> ops.LogOp())


def graph_rossmann_dates(p: str) -> Any:
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
    place = ["geo_location"]
    geo = (
        (place >> ops.AddMetadata())
        + (place >> TextSlice(0, 2) >> ops.Rename(postfix="_country"))
        + (place >> TextSlice(0, 5) >> ops.Rename(postfix="_state"))
    )
    cats = ["ad_id", "document_id", "platform", "document_id_promo"]
    return (
        (geo + cats >> ops.Categorify(out_path=p))
        + (cats >> ops.TargetEncoding("clicked", kfold=5, p_smooth=20, out_path=f"{p}/te"))
        + (since("publish_time") + since("publish_time_promo") >> ops.FillMedian() >> ops.LogOp())
        + renamed([["document_id", "document_id_promo"]] >> topics_alike(), "topics_alike")
        + label(["clicked"])
    )


def since(column: str) -> Any:
    """Return the days since a publication; 0 for future ones and those more than ten years ago."""
    seen = ["timestamp"] >> Arithmetic("+", 1465876799998)
    days = seen >> TimeDifference(column, "D", of="ms")
    known = renamed(days >> Compare("<=", 3650) >> Cast("int64"), f"{column}_known")
    shown = days >> ops.Clip(min_value=0) >> Arithmetic("*", column=known)
    return shown >> ops.Rename(name=f"{column}_since_published")


def topics_alike() -> Any:
    """Return the similarity of two documents' topics; each document has two."""
    r = np.random.default_rng(0)
    at = np.repeat(np.arange(DOCUMENTS + 8), 2)
    topics = coo_matrix((r.random(len(at)), (at, r.integers(0, 9, len(at)))))
    return ops.ColumnSimilarity(topics, metric="tfidf", on_device=False)


def graph_aliccp(p: str) -> Any:
    def coded(names: Any) -> Any:
        return list(names) >> ops.Categorify(dtype="int32", out_path=p)

    encoded = ["user_id", "item_id"] >> ops.TargetEncoding("click", kfold=1, p_smooth=20, out_path=f"{p}/te")
    return (
        (coded(["user_id"]) >> ops.TagAsUserID())
        + (coded(["item_id"]) >> ops.TagAsItemID())
        + (coded(ALICCP_ITEM) >> ops.TagAsItemFeatures())
        + (coded(ALICCP_USER) >> ops.TagAsUserFeatures())
        + (coded(ALICCP_BOTH) >> ops.AddMetadata(tags=["user_item"]))
        + (coded(["position"]) >> ops.AddMetadata(tags=[Tags.CONTEXT]))
        + label(["click", "conversion"])
        + (encoded >> ops.Normalize())
    )


def graph_aliccp_models(p: str) -> Any:
    user = ["user_id"] >> ops.Categorify(freq_threshold=5, out_path=p) >> ops.TagAsUserID()
    item = ["item_id"] >> ops.Categorify(freq_threshold=5, out_path=p) >> ops.TagAsItemID()
    more = [*ALICCP_BOTH, *ALICCP_ITEM] >> ops.Categorify(out_path=p)
    encoded = ["user_id", "item_id", *ALICCP_BOTH] >> ops.TargetEncoding(
        ["click"], kfold=1, p_smooth=20, out_path=f"{p}/te"
    )
    whole = user + item + label(["click"]) + more + (encoded >> ops.Normalize())
    return whole >> ops.Filter(f=lambda df: (df["item_id"] != 0) & (df["user_id"] != 0))


def graph_multi_stage(p: str) -> Any:
    raw = (["user_id"] >> ops.Rename(postfix="_raw") >> Cast("int32") >> ops.TagAsUserFeatures()) + (
        ["item_id"] >> ops.Rename(postfix="_raw") >> Cast("int32") >> ops.TagAsItemFeatures()
    )
    items = ["item_id", *ALICCP_ITEM] >> ops.Categorify(dtype="int32", out_path=p)
    of_item = Subgraph(
        "item",
        Subgraph("items_cat", items)
        + (items["item_id"] >> ops.TagAsItemID())
        + (items[list(ALICCP_ITEM)] >> ops.TagAsItemFeatures()),
    )
    of_user = Subgraph(
        "user",
        (["user_id"] >> ops.Categorify(dtype="int32", out_path=p) >> ops.TagAsUserID())
        + (list(ALICCP_USER) >> ops.Categorify(dtype="int32", out_path=p) >> ops.TagAsUserFeatures()),
    )
    return of_user + of_item + raw + label(["click"]) >> ops.Dropna()


def graph_quick_start(p: str) -> Any:
    cats = ["user_id", "item_id", "video_category", "gender", "age"]
    coded = {name: [name] >> ops.Categorify(freq_threshold=2, out_path=p) for name in cats}
    encoded = ["user_id", "item_id"] >> ops.TargetEncoding(
        ["click"], kfold=1, p_smooth=10, out_path=f"{p}/te", out_dtype="float32"
    )
    return (
        (coded["user_id"] >> ops.TagAsUserID())
        + (coded["item_id"] >> ops.TagAsItemID())
        + (coded["gender"] + coded["age"] >> ops.TagAsUserFeatures())
        + (coded["video_category"] >> ops.TagAsItemFeatures())
        + (["watching_times"] >> ops.FillMedian() >> ops.Normalize())
        + encoded
        + label(["click", "like"])
    )


def graph_criteo(p: str) -> Any:
    numeric = [f"I{i}" for i in range(1, 5)]
    filled = numeric >> ops.FillMissing() >> ops.Clip(min_value=0) >> ops.LogOp() >> ops.Normalize()
    coded = [f"C{i}" for i in range(1, 5)] >> ops.Categorify(out_path=p, freq_threshold=2)
    return filled + coded + (numeric >> IsNull() >> ops.Rename(postfix="_null"))


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


FOLDS = "`TargetEncoding` over all folds, by choice (`no_fold`)"
KEPT = 'the row stays where {} drops it, by choice (`rows="keep"`)'

FLAT: dict[str, Example] = {
    "MovieLens, getting started": Example(movielens, graph_movielens),
    "MovieLens, advanced workflow": Example(movielens, graph_movielens_advanced),
    "MovieLens, several GPUs": Example(movielens, graph_movielens_groups),
    "MovieLens, XGBoost": Example(movielens, graph_movielens_trees),
    "MovieLens, target encoding": Example(movielens, graph_movielens_targets, FOLDS),
    "MovieLens, dates and titles": Example(movielens, graph_movielens_dates),
    "Criteo, scaling": Example(criteo, graph_criteo_scaling),
    "Criteo, logarithms": Example(criteo, graph_criteo),
    "Rossmann": Example(rossmann, graph_rossmann),
    "Rossmann, dates": Example(rossmann, graph_rossmann_dates),
    "Outbrain": Example(outbrain, graph_outbrain, f"dates are dates, no text; {FOLDS}"),
    "Ali-CCP": Example(aliccp, graph_aliccp),
    "Ali-CCP, exploring models": Example(aliccp, graph_aliccp_models, KEPT.format("`Filter`")),
    "Multi-stage": Example(aliccp, graph_multi_stage, KEPT.format("`Dropna`")),
    "Quick start": Example(quick_start, graph_quick_start),
    "Twitter": Example(twitter, graph_twitter),
    "PetFinder": Example(petfinder, graph_petfinder),
}
