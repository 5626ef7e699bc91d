"""The next item, from a user's history and its order. Copy this file, and name a file of your own.

The data has one line for each user, with item ids in order of time; ``Parquet(…)`` in its place reads tables
with features and real times. Each user's last item is the test; everything before it is known.
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
    """Describe what the models see: of a user only the history, of items only their id."""
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
