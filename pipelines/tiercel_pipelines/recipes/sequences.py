"""What comes next, from what a user had and in which order. Copy this file, and name a file of your own.

The data is one line a user, item ids in the order of time; ``Parquet(…)`` in its place takes tables with
features and real times. Judged by what each user had last: everything before is known.
"""

from typing import Any

from nvtabular import ops

from tiercel_pipelines.recipe import (
    Index,
    Popular,
    Recipe,
    SASRec,
    Sequences,
    ServingSettings,
    SplitSettings,
)


def features() -> Any:
    """Describe what the models see: a user is known by his history alone, and items by their id."""
    user_id = ["user_id"] >> ops.Categorify() >> ops.TagAsUserID()
    item_id = ["item_id"] >> ops.Categorify() >> ops.TagAsItemID()
    return user_id + item_id


RECIPE = Recipe(
    name="sequences",
    dataset=Sequences("sequences.txt"),
    features=features,
    retrieval=SASRec(),
    serving=ServingSettings(
        candidates=100,
        kept=100,
        k_default=10,
        k_max=100,
        history_length=50,
        history_columns=("item_id",),
        sources=(Index("sasrec", factory="Flat"), Popular(quota=0)),
    ),
    split=SplitSettings(by="leave_one_out"),
)
