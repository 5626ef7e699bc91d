"""Every retrieval family keeps the contract; what is one family's own stands below its class."""

from __future__ import annotations

from typing import Any, ClassVar

from retrieval_contract import RetrievalContract

from tiercel_pipelines.recipe import (
    ALS,
    BPRMF,
    CDAE,
    EASE,
    SLIM,
    DeepAutoencoder,
    GRU4Rec,
    ItemKNN,
    MultVAE,
    SampledSoftmax,
    SASRec,
    TwoTower,
    UserKNN,
    replace,
)

QUICK: dict[str, Any] = {"learning_rate": 0.03, "batch_size": 20, "max_epochs": 12}
NEXT: dict[str, Any] = {**QUICK, "learning_rate": 0.02, "dropout": 0.0}


class TestTwoTower(RetrievalContract):
    settings = TwoTower(
        dimension=8,
        embedding_dimension=8,
        max_epochs=20,
        task=SampledSoftmax(batch_size=64, positives=3),
    )
    variants = (replace(settings, user_layers=(6,), item_layers=(5,)),)
    wild: ClassVar[Any] = {"task": SampledSoftmax(temperature=1e-42)}


class TestItemKNN(RetrievalContract):
    settings = ItemKNN(shrinkage=0.0)


class TestUserKNN(RetrievalContract):
    settings = UserKNN(neighbours=20)
    variants = (replace(settings, similarity="jaccard", weighting="none", users_per_item=5),)


class TestEASE(RetrievalContract):
    settings = EASE(l2=5.0)


class TestSLIM(RetrievalContract):
    settings = SLIM(l1=0.1, l2=2.0)


class TestALS(RetrievalContract):
    settings = ALS(dimension=8, max_epochs=5, regularisation=0.05)


class TestBPRMF(RetrievalContract):
    settings = BPRMF(dimension=8, max_epochs=60, batch_size=64, learning_rate=0.05, weight_decay=0.1)


class TestSASRec(RetrievalContract):
    settings = SASRec(dimension=16, blocks=1, negatives=None, **NEXT)
    variants = (replace(settings, blocks=2, heads=2, sequence_length=3),)
    ordered = True


class TestGRU4Rec(RetrievalContract):
    settings = GRU4Rec(
        dimension=16, hidden_dimension=24, negatives=None, **{**NEXT, "max_epochs": 22, "learning_rate": 0.04}
    )
    variants = (replace(settings, layers=2, sequence_length=3),)
    ordered = True


class TestMultVAE(RetrievalContract):
    settings = MultVAE(hidden_dimension=24, latent_dimension=8, **QUICK)


class TestCDAE(RetrievalContract):
    settings = CDAE(hidden_dimension=16, **{**QUICK, "learning_rate": 0.05})


class TestDeepAutoencoder(RetrievalContract):
    settings = DeepAutoencoder(layers=(24, 32), dropout=0.3, **QUICK)
    variants = (replace(settings, layers=(8,), refeed=False),)
