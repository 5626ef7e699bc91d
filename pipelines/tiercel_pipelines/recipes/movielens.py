"""Film recommendations for MovieLens-100K. Copy this file, change it, and run ``tiercel train my_recipe.py``.

``docs/recipes.md`` explains every field that can be set here.
"""

from typing import Any

from nvtabular import ops

from tiercel_pipelines.recipe import (
    DLRM,
    Compare,
    Index,
    MovieLens100K,
    Popular,
    Recipe,
    ServingSettings,
    TwoTower,
)


def features() -> Any:
    """Return the feature graph. Chains start with raw columns and end with a tag."""
    # Users. The id is a feature: each user in the training data gets an embedding, all others share one.
    user_id = ["user_id"] >> ops.Categorify() >> ops.TagAsUserID()
    age_group = ["age"] >> ops.Bucketize([18, 25, 35, 45, 50, 56]) >> ops.Rename(postfix="_group")
    age = ["age"] >> ops.Normalize()
    who = ["gender", "occupation", "zip_prefix"] >> ops.Categorify()
    user = user_id + ((age_group + age + who) >> ops.TagAsUserFeatures())

    # Items. Exactly one column is the item id; a user's history is looked up in its vocabulary.
    item_id = ["item_id"] >> ops.Categorify() >> ops.TagAsItemID()
    genres = ["genres"] >> ops.Categorify()  # a list: several genres for each film
    year = ["year"] >> ops.FillMissing(1995) >> ops.Clip(min_value=1920) >> ops.Normalize()
    item = item_id + ((genres + year) >> ops.TagAsItemFeatures())

    # Context (the device, the hour) would be tagged AddTags([Tags.CONTEXT]), as in synthetic.py.
    return user + item


RECIPE = Recipe(
    name="movielens",
    dataset=MovieLens100K(),
    features=features,
    # 1. Find candidates.
    retrieval=TwoTower(),
    # 2. Order them.
    ranking=DLRM(),
    # 3. Serve them.
    serving=ServingSettings(
        candidates=200,  # retrieved for each user, without seen or excluded items
        kept=100,  # of those, the number that passes the rules and is ranked
        k_default=10,  # items in an answer, unless the request says otherwise
        k_max=100,
        history_length=100,
        history_columns=("item_id",),
        sources=(
            # The item vectors of the retrieval model of this name.
            Index("two_tower", factory="Flat"),
            # Serves completely unknown users, and fills slots that the index leaves empty.
            Popular(quota=0),
        ),
        # The data has one film called "unknown", without a year; a null fails this rule.
        rules=(Compare("has a year", column="year", operator=">", value=0),),
        title_column="title",
    ),
)
