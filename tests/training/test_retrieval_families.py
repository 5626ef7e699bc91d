"""Every retrieval family under its contract; tests of a single family follow its class."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import numpy as np
import pytest
from retrieval_contract import (
    GIVEN,
    GROUPS,
    INPUTS,
    MINE,
    USERS,
    RetrievalContract,
    drawn,
    item_tensors,
    packed_items,
    world,
)

from tiercel_pipelines.arrays.pairs import Pairs
from tiercel_pipelines.errors import TrainingError
from tiercel_pipelines.families.table import RETRIEVAL_FAMILIES, Columns, Plan, RetrievalData
from tiercel_pipelines.recipe import (
    ALS,
    BPRMF,
    CDAE,
    EASE,
    SLIM,
    VBPR,
    BiasedMF,
    DeepAutoencoder,
    GRU4Rec,
    Item2Vec,
    ItemKNN,
    KMeans,
    MultVAE,
    SampledSoftmax,
    SASRec,
    SoftmaxDNN,
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
    variants = (replace(settings, user_layers=(6,), item_layers=(5,), item_id_dropout=0.3),)
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
    settings = ALS(dimension=8, max_epochs=5, regularisation=1.0)


class TestBPRMF(RetrievalContract):
    settings = BPRMF(dimension=8, max_epochs=60, batch_size=64, learning_rate=0.05, weight_decay=0.1)


def rated(pairs: Pairs) -> Pairs:
    """Return pairs rated 5, plus pairs rated 1: for users with items, two of each other maker."""
    people = np.flatnonzero(pairs.lengths)[:, None]
    step = np.array([1, 2, 3, 5, 6, 7])
    others = (people + step) % GROUPS + GROUPS * ((people // GROUPS + step) % MINE)
    owner = np.append(pairs.users, np.repeat(people, len(step)))
    rating = np.repeat([5.0, 1.0], [len(pairs), others.size])
    order = np.argsort(owner, kind="stable")
    owner, items, rating = owner[order], np.append(pairs.items, others)[order], rating[order]
    return Pairs.build(owner, items, owner, rating, USERS, None, {"rating": rating})


class TestBiasedMF(RetrievalContract):
    settings = BiasedMF(factors=8, learning_rate=0.03, batch_size=64, max_epochs=40)

    def fit(self, settings: Any = None, pairs: Pairs | None = None, seed: int = 0, **plan: Any) -> Any:
        return super().fit(settings, rated(world()[1] if pairs is None else pairs), seed, **plan)


class TestSoftmaxDNN(RetrievalContract):
    settings = SoftmaxDNN(
        embedding_dimension=8,
        layers=(16, 8),
        dropout=0.0,
        positives=3,
        batch_size=64,
        learning_rate=0.02,
        max_epochs=15,
    )
    variants = (replace(settings, layers=(6,), negatives=5),)


@pytest.mark.parametrize("family", [TestTwoTower, TestSoftmaxDNN])
def test_new_users_and_new_items_are_known_by_their_features(family: Any) -> None:
    """Without history and with ids unknown to training, the user's taste and the item's maker remain."""
    packed, pairs = world()
    tastes, users, unknown = np.arange(GROUPS), np.arange(USERS), np.full(GROUPS, 2)
    told = {"user_cat": np.stack([users % GROUPS, users], 1) + 3}
    data = RetrievalData(dataclasses.replace(packed, user=told), pairs, INPUTS)
    fitted, _ = replace(family.settings, id_dropout=0.3, item_id_dropout=0.3).fit(data, Plan(0, "model"))
    queries = {}
    for kind, ids in {"known": told["user_cat"], "new": np.stack([tastes + 3, unknown], 1)}.items():
        history = {"history_cat": np.zeros((len(ids), 1, 1), np.int64)}
        history["history_length"] = np.zeros((len(ids), 1), np.int32)
        queries[kind] = fitted.query({"user_cat": ids, **history})
    fresh = {"item_cat": np.stack([tastes + 3, unknown], 1)}
    vectors = {"known": fitted.form(packed.catalogue), "new": fitted.form(fresh)}
    for who, query in queries.items():
        for what, form in vectors.items():
            best = (query @ form["vectors"].T).argmax(1) % GROUPS
            assert (best == np.arange(len(query)) % GROUPS).mean() > 0.9, (who, what)


class TestItem2Vec(RetrievalContract):
    settings = Item2Vec(dimension=8, learning_rate=0.02, batch_size=256, max_epochs=20)
    variants = (replace(settings, window=1),)


class TestKMeans(RetrievalContract):
    settings = KMeans(clusters=4, dimension=8)
    variants = (replace(settings, of="items"),)
    drawn: ClassVar[str] = "keys"

    def test_what_nobody_knows_gives_numbers(self, fitted: Any) -> None:
        form = fitted.form({"item_cat": packed_items(np.array([7, -1, 3]))})
        assert set(form["rows"].tolist()) <= {0, 2}
        tensors = drawn(2)
        tensors["history_cat"] = np.full_like(tensors["history_cat"], 2)
        np.testing.assert_array_equal(fitted.query(tensors), np.zeros((2, 8)))

    def test_items_that_the_same_users_had_are_one_list(self) -> None:
        form = self.fit(replace(self.settings, of="items"))[0].form(world()[0].catalogue)
        lists = np.split(form["rows"], form["offsets"][1:-1])
        assert sorted(tuple(set(rows % GROUPS)) for rows in lists) == [(0,), (1,), (2,), (3,)]
        assert [len(rows) for rows in lists] == [MINE] * GROUPS


class TestVBPR(RetrievalContract):
    inputs = replace(INPUTS, item=replace(INPUTS.item, lists=(GIVEN,)))
    settings = VBPR(
        dimension=8,
        vector_dimension=4,
        length=GROUPS,
        max_epochs=40,
        batch_size=64,
        learning_rate=0.05,
        weight_decay=0.1,
    )

    def test_a_new_item_is_known_by_its_vector(self, fitted: Any) -> None:
        queries = fitted.query(world()[0].user)
        new = item_tensors(np.full(GROUPS, -1))
        new["item_list_embedding"] = np.eye(GROUPS, dtype=np.float32)
        scores = queries @ fitted.form(new)["vectors"].T
        assert (scores.argmax(1) == np.arange(USERS) % GROUPS).mean() > 0.9

    def test_what_does_not_fit_is_told(self) -> None:
        user: Columns = {"user_id": "category"}
        item: Columns = {"item_id": "category", "price": "number", "genres": "categories"}
        told = "no feature of the items that holds lists of numbers is called 'embedding'; "
        [problem] = self.settings.misfits(user, {**item, "embeding": "numbers"}, True)
        assert told + "use 'embeding'" in str(problem)
        for wrong in (item, {**item, "embedding": "categories"}, {**item, "embedding": "number"}):
            [problem] = self.settings.misfits(user, wrong, True)
            assert told + "tag their column of vectors as such a feature" in str(problem)
        with pytest.raises(TrainingError, match="have 4 numbers, not 5; write length=4"):
            self.fit(replace(self.settings, length=5))
        [problem] = replace(self.settings, vector_dimension=7).problems()
        assert "take 6 at most" in str(problem)


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


def test_every_retrieval_family_is_held_to_the_contract() -> None:
    held = {RETRIEVAL_FAMILIES.name_of(suite.settings) for suite in RetrievalContract.__subclasses__()}
    assert held == set(RETRIEVAL_FAMILIES)
