"""Film recommendations for MovieLens-100K from two models with summed scores: Tiercel's most accurate recipe.

EASE reads the current history; ALS has a vector for each user and item. Neither uses features, and there
is no ranker. Their errors differ, so the sum ranks better than either model (``docs/accuracy.md``).
"""

from tiercel_pipelines.recipe import (
    ALS,
    EASE,
    Index,
    ItemWeights,
    Popular,
    ServingSettings,
    TrainingSettings,
    replace,
)
from tiercel_pipelines.recipes.movielens import RECIPE as MOVIELENS

RECIPE = replace(
    MOVIELENS,
    name="movielens_blend",
    # Settings other than the defaults were chosen on the validation part.
    retrieval=(EASE(weights=400, l2=200.0, dropout=0.5), ALS()),
    ranking=None,
    serving=ServingSettings(
        candidates=200,
        kept=100,
        k_default=10,
        k_max=100,
        # EASE needs the whole history: the longest one has 553 films.
        history_length=800,
        history_columns=("item_id",),
        sources=(ItemWeights("ease"), Index("als", factory="Flat", quota=100), Popular(quota=0)),
        # Each candidate, from either source, gets the sum of both scores.
        blend=(("ease", 1.0), ("als", 1.0)),
        rules=MOVIELENS.serving.rules,
        title_column="title",
    ),
    # The weights are tuned on the validation part, starting with those of the blend.
    training=TrainingSettings(choose_blend=True),
)
