"""Next-item recommendation from a user's ordered history. Copy this file, and name a file of your own.

The data has one line for each user, with item ids in order of time. ``Parquet(…)`` instead reads tables with
features and timestamps. Each user's last item is the test part; everything before it is known.
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
    """Return the feature graph, which holds only ids; the model learns from the users' histories."""
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
