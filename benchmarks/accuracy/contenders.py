"""Literal tables of the data sets and of the models that are compared on each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from tiercel_pipelines.data import DatasetSpec, Sequences, Synthetic
from tiercel_pipelines.families.table import RankingFamily, RetrievalFamily
from tiercel_pipelines.recipe import (
    ALS,
    BPRMF,
    BST,
    CDAE,
    DCN,
    DIN,
    DLRM,
    EASE,
    FM,
    GMF,
    MLP,
    NCF,
    SLIM,
    BiasedMF,
    DCNv2,
    DeepAutoencoder,
    DeepFM,
    GRU4Rec,
    Item2Vec,
    ItemKNN,
    KMeans,
    LogisticRegression,
    MMoE,
    MultiTask,
    MultVAE,
    NeuMF,
    Recipe,
    SASRec,
    SoftmaxDNN,
    Target,
    TwoTower,
    UserKNN,
    WideAndDeep,
    XGBoost,
    load_recipe,
    replace,
)


@dataclass(frozen=True)
class Alone:
    """One retrieval model in the data set's recipe, without a ranker."""

    model: RetrievalFamily
    history_length: int | None = None

    def recipe(self, base: Recipe) -> Recipe:
        """Return the recipe of the data set with this model."""
        length = self.history_length or base.serving.history_length
        serving = msgspec.structs.replace(base.serving, sources=(), blend=(), history_length=length)
        return replace(base, retrieval=self.model, ranking=None, serving=serving)


@dataclass(frozen=True)
class Shipped:
    """A recipe that comes with Tiercel, as it is."""

    name: str

    def recipe(self, base: Recipe) -> Recipe:
        """Return the shipped recipe on the data set."""
        return replace(load_recipe(self.name), dataset=base.dataset)


@dataclass(frozen=True)
class Comparison:
    """A data set, how it is served, the contenders, and their limits.

    Parameters
    ----------
    recipe
        Name of the shipped recipe that gives features, serving limits and split.
    dataset
        The data in place of the recipe's own; None keeps that.
    contenders
        Name → model or recipe to compare.
    protocol
        Human-readable description.
    wanted
        Contender → the least mean nDCG@10 that it must reach.
    """

    recipe: str
    dataset: DatasetSpec | None
    contenders: Mapping[str, Alone | Shipped]
    protocol: str
    wanted: Mapping[str, float]

    def base(self) -> Recipe:
        """Return the recipe that contenders modify."""
        found = load_recipe(self.recipe)
        return found if self.dataset is None else replace(found, dataset=self.dataset)


#: History length that covers every user's whole history, which is all that models such as EASE read.
WHOLE = 800

COMPARISONS: Mapping[str, Comparison] = {
    "ml-100k": Comparison(
        "movielens",
        None,
        {
            "movielens_blend": Shipped("movielens_blend"),
            "movielens": Shipped("movielens"),
            "ease": Alone(EASE(weights=None), WHOLE),
            "slim": Alone(SLIM(), WHOLE),
            "item_knn": Alone(ItemKNN(weighting="tf_idf"), WHOLE),
            "als": Alone(ALS()),
            "mult_vae": Alone(MultVAE(), WHOLE),
            "two_tower": Alone(TwoTower()),
            "bpr_mf": Alone(BPRMF()),
            "cdae": Alone(CDAE(), WHOLE),
            "deep_autoencoder": Alone(DeepAutoencoder(), WHOLE),
            "user_knn": Alone(UserKNN(), WHOLE),
            "softmax_dnn": Alone(SoftmaxDNN()),
            "item2vec": Alone(Item2Vec(), WHOLE),
            "kmeans": Alone(KMeans(), WHOLE),
            "biased_mf": Alone(BiasedMF()),
            "sasrec": Alone(SASRec()),
            "gru4rec": Alone(GRU4Rec()),
        },
        "random 75/25 split of each user's films (seed 42), top 10 of all unseen films",
        {
            "movielens_blend": 0.490,
            "ease": 0.480,
            "als": 0.465,
            "slim": 0.46,
            "mult_vae": 0.44,
            "bpr_mf": 0.43,
            "two_tower": 0.47,
            "item_knn": 0.38,
            "user_knn": 0.38,
            "softmax_dnn": 0.45,
        },
    ),
    "amazon-beauty": Comparison(
        "sequences",
        Sequences("amazon-beauty/beauty.txt", name="amazon-beauty"),
        {
            # GRU4Rec learns slowly; it is stopped after 30 epochs although its validation figure still rises.
            "sasrec": Alone(SASRec()),
            "gru4rec": Alone(GRU4Rec(negatives=256, max_epochs=30)),
            "item_knn": Alone(ItemKNN()),
            "ease": Alone(EASE()),
            "two_tower": Alone(TwoTower()),
        },
        "leave one out: each user's last item is the test, the one before it the validation part; top 10 of "
        "the whole catalogue but for what the user had",
        {"sasrec": 0.050},
    ),
    "tiny": Comparison(
        "synthetic",
        Synthetic(users=60, items=50, interactions=1200),
        {"ease": Alone(EASE(l2=5.0)), "als": Alone(ALS(dimension=8, max_epochs=2))},
        "made up and tiny: its figures mean nothing",
        {},
    ),
}

#: Families that draw nothing at random on data of these sizes, so that one seed is enough.
UNSEEDED = frozenset({"ease", "slim", "item_knn", "user_knn"})

#: The data set of ``--ranking``.
TESTS = COMPARISONS["ml-100k"]

#: Retrievals that rankers are compared over.
RANKED: Mapping[str, Alone | Shipped] = {
    "two_tower": Alone(TwoTower()),
    "ease": Alone(EASE(weights=None), WHOLE),
    "movielens_blend": Shipped("movielens_blend"),
}

#: Rankers to compare, each with its defaults. With a task of one target, MMoE is a plain mixture of experts.
RANKERS: Mapping[str, RankingFamily] = {
    "logistic_regression": LogisticRegression(),
    "fm": FM(),
    "mlp": MLP(),
    "gmf": GMF(),
    "ncf": NCF(),
    "neumf": NeuMF(),
    "wide_and_deep": WideAndDeep(),
    "deepfm": DeepFM(),
    "dlrm": DLRM(),
    "dcn": DCN(),
    "dcn_v2": DCNv2(),
    "dcn_v2_parallel": DCNv2(structure="parallel"),
    "dcn_v2_low_rank": DCNv2(rank=4),
    "din": DIN(),
    "bst": BST(),
    "mmoe": MMoE(),
    "xgboost": XGBoost(),
}

#: Settings of neural factorisations: only ids as input, and log loss with four negatives per positive.
_IDS_ALONE: Mapping[str, Any] = {
    "use_retrieval_score": False,
    "use_history": False,
    "task": MultiTask(
        (Target("watched", loss="logistic"),), negatives=80, hard_negatives=1.0, batch_size=256
    ),
    "max_epochs": 60,
    "patience": 5,
}
#: Models with hidden layers start on a plateau that is no better than popularity, and do not leave it with
#: dropout or a small learning rate.
_HIDDEN: Mapping[str, Any] = {
    **_IDS_ALONE,
    **{"embedding_dimension": 32, "layers": (64, 32, 16), "dropout": 0.0},
    **{"learning_rate": 1e-2, "weight_decay": 0.3, "max_epochs": 30, "patience": 8},
}

#: Models of ``--sampled``, each with the settings from which the best is chosen on the validation part.
SAMPLED: Mapping[str, tuple[RankingFamily | RetrievalFamily, ...]] = {
    "neumf": (NeuMF(**_HIDDEN),),
    "gmf": tuple(
        GMF(embedding_dimension=64, learning_rate=5e-3, weight_decay=w, **_IDS_ALONE) for w in (0.01, 0.3)
    ),
    "ncf": (NCF(**_HIDDEN),),
    "dot_product": tuple(
        ALS(dimension=dimension, unobserved_weight=unobserved, regularisation=l2)
        for dimension in (32, 64)
        for unobserved in (0.03, 0.1, 0.3)
        for l2 in (3.0, 6.0, 12.0)
    ),
    "dot_product_bpr": tuple(BPRMF(weight_decay=w) for w in (0.1, 0.3, 1.0)),
}
