"""A recipe over synthetic data with every type of column: numbers, strings, lists, nulls, times, context.

It needs no download. Change ``ids`` to ``"str"`` for ids that are strings.
"""

from typing import Any

from merlin.schema import Tags
from nvtabular import ops

from tiercel_pipelines.recipe import (
    DLRM,
    Compare,
    Index,
    Popular,
    Recipe,
    ServingSettings,
    Synthetic,
    TwoTower,
)


def features() -> Any:
    """Return the feature graph."""
    # Users: integers, floats with nulls, strings with nulls, a list of strings, a time.
    user_id = ["user_id"] >> ops.Categorify() >> ops.TagAsUserID()
    age_group = ["age"] >> ops.Bucketize([18, 25, 35, 50, 65]) >> ops.Rename(postfix="_group")
    income = ["income"] >> ops.FillMissing(0) >> ops.LogOp() >> ops.Normalize()
    joined = ["joined"] >> ops.Normalize()
    who = ["country", "interests"] >> ops.Categorify()
    user = user_id + ((age_group + income + joined + who) >> ops.TagAsUserFeatures())

    # Items: lists of strings and of integers, strings with nulls, numbers with outliers and nulls.
    item_id = ["item_id"] >> ops.Categorify() >> ops.TagAsItemID()
    about = ["genres", "topics", "maker"] >> ops.Categorify()
    price = ["price"] >> ops.FillMissing(0) >> ops.LogOp() >> ops.Normalize()
    minutes = ["minutes"] >> ops.Clip(min_value=10, max_value=180) >> ops.Normalize()
    year = ["year"] >> ops.FillMissing(2000) >> ops.Normalize()
    item = item_id + ((about + price + minutes + year) >> ops.TagAsItemFeatures())

    # Context: what is known at the time of a request and not before.
    device = ["device"] >> ops.Categorify()
    part_of_day = ["hour"] >> ops.Bucketize([6, 12, 18, 22]) >> ops.Rename(name="part_of_day")
    context = (device + part_of_day) >> ops.AddTags([Tags.CONTEXT])

    return user + item + context


RECIPE = Recipe(
    name="synthetic",
    dataset=Synthetic(users=600, items=400, interactions=24_000, ids="int"),
    features=features,
    retrieval=TwoTower(dimension=32, embedding_dimension=32),
    ranking=DLRM(embedding_dimension=16),
    serving=ServingSettings(
        candidates=100,
        kept=50,
        k_default=10,
        k_max=50,
        history_length=20,
        history_columns=("item_id", "maker"),
        sources=(Index("two_tower"), Popular(quota=10)),
        rules=(
            Compare("in stock", column="in_stock", operator="==", value=1),
            Compare("not too long", column="minutes", operator="<=", value=200),
        ),
        title_column="title",
    ),
)
