"""Every ranking family under the contract of ranking families; and what each says of its own settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ranking_contract import KEPT, RankingContract, RepeatedWork, call, drawn

from tiercel_pipelines.data import load_dataset
from tiercel_pipelines.export.run_export import export_run
from tiercel_pipelines.families.ranking_layers import hashed
from tiercel_pipelines.families.table import RANKING_FAMILIES
from tiercel_pipelines.recipe import (
    BST,
    DCN,
    DIN,
    DLRM,
    EASE,
    FM,
    GMF,
    MLP,
    NCF,
    DCNv2,
    DeepFM,
    ListwiseSoftmax,
    LogisticRegression,
    MMoE,
    NeuMF,
    Synthetic,
    WideAndDeep,
    load_recipe,
    replace,
)
from tiercel_pipelines.training import train_recipe

TASK = ListwiseSoftmax(negatives=KEPT, hard_negatives=1.0, batch_size=32)
SMALL: dict[str, Any] = {"learning_rate": 0.03, "task": TASK}
#: What is harder to learn takes more and smaller steps.
SLOWLY: dict[str, Any] = {"learning_rate": 0.02, "task": replace(TASK, batch_size=16)}
NETWORK: dict[str, Any] = {**SMALL, "embedding_dimension": 4, "dropout": 0.0, "history_dropout": 0.0}
DEEP: dict[str, Any] = {**NETWORK, "layers": (8, 6)}
CROSSES = (("taste", "maker"), ("user_id", "item_id"))


class TestDLRM(RankingContract):
    settings = DLRM(**NETWORK, top_layers=(8,))
    # The user's one vector joins the pairs: a product apart took a tenth longer for one user (K = 100).
    joined = 1


class TestLogisticRegression(RankingContract):
    settings = LogisticRegression(**SMALL, crosses=CROSSES[:1])
    variants = (LogisticRegression(), LogisticRegression(crosses=CROSSES, cross_buckets=100))


class TestFM(RankingContract):
    settings = FM(**NETWORK)


class TestMLP(RankingContract):
    settings = MLP(**DEEP)
    variants = (MLP(layers=(8,)),)


class TestGMF(RankingContract):
    settings = GMF(**NETWORK)


class TestNCF(RankingContract):
    settings = NCF(**{**DEEP, **SLOWLY})


class TestNeuMF(RankingContract):
    settings = NeuMF(**DEEP)


class TestWideAndDeep(RankingContract):
    settings = WideAndDeep(**DEEP, crosses=CROSSES)


class TestDeepFM(RankingContract):
    settings = DeepFM(**DEEP)


class TestDCN(RankingContract):
    settings = DCN(**DEEP)


class TestDCNv2(RankingContract):
    settings = DCNv2(**DEEP)
    variants = (
        DCNv2(structure="parallel", embedding_dimension=3, layers=(8,)),
        DCNv2(structure="parallel", rank=2, cross_layers=3, embedding_dimension=3, layers=(8,)),
        DCNv2(rank=2, cross_layers=1, embedding_dimension=3, layers=(8,)),
    )


class TestDIN(RankingContract):
    settings = DIN(**{**DEEP, **SLOWLY}, attention_width=8)
    from_history = True


class TestBST(RankingContract):
    settings = BST(**{**DEEP, **SLOWLY, "embedding_dimension": 8})
    variants = (BST(blocks=2, heads=1, places=3, embedding_dimension=3, layers=(8,)),)
    from_history = True


class TestMMoE(RankingContract):
    settings = MMoE(**NETWORK, experts=3, expert_layers=(8,), tower_layers=(6,))


def test_every_ranking_family_is_held_to_the_contract() -> None:
    held = {RANKING_FAMILIES.name_of(suite.settings) for suite in RankingContract.__subclasses__()}
    assert held == set(RANKING_FAMILIES)


def test_repeated_work_is_found() -> None:
    class Naive(torch.nn.Module):
        input_names = ("user_num", "item_num")

        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(3, 2)

        def forward(self, user_num: torch.Tensor, item_num: torch.Tensor) -> torch.Tensor:
            copies = user_num.unsqueeze(1).expand(-1, item_num.shape[1], -1)
            return self.layer(torch.cat([copies, item_num], -1)) + copies.exp()

    with RepeatedWork(drawn(2), Naive()) as watched:
        call(Naive(), watched.tensors)
    assert any("exp" in found for found in watched.repeated)
    assert any("of copies" in found for found in watched.repeated)


WRONG: list[tuple[Any, str]] = [
    (MLP(layers=()), "layers: expected at least one hidden layer"),
    (MLP(layers=(8, 0)), "layers: expected the widths of hidden layers"),
    (DCNv2(rank=0), "rank: expected a whole number of at least 1, got 0"),
    (DCNv2(structure="both"), "structure: expected 'stacked' or 'parallel', got 'both'"),
    (BST(heads=3), "heads: 3 heads do not divide embedding_dimension, which is 16"),
    (DIN(use_history=False), "use_history: False, but a DIN attends to the history; take MLP"),
    (WideAndDeep(crosses=("taste", "maker")), "crosses: expected pairs of columns"),
    (MMoE(experts=0), "experts: expected a whole number"),
]


@pytest.mark.parametrize(("settings", "words"), WRONG)
def test_mistakes_are_told(settings: Any, words: str) -> None:
    assert any(words in str(problem) for problem in settings.problems())


def test_what_the_features_lack_is_told_before_anything_is_trained() -> None:
    user, item = {"taste": True, "age": False}, {"maker": True, "genres": False}
    crossed = LogisticRegression(crosses=(("tast", "maker"), ("age", "genres")))
    assert [str(problem) for problem in crossed.misfits(user, item, True)] == [
        "crosses[0]: no single category 'tast' of the user reaches the models; use 'taste'",
        "crosses[1]: no single category 'age' of the user reaches the models; use 'taste'",
        "crosses[1]: no single category 'genres' of the item reaches the models; use 'maker'",
    ]
    [problem] = BST().misfits(user, item, False)
    assert "the interactions have no timestamp" in str(problem)
    [problem] = FM(use_history=False).misfits({}, item, True)
    assert "no other feature of the user" in str(problem)
    assert BST().misfits(user, item, True) == FM().misfits({}, item, False) == []


def test_crosses_beyond_the_buckets_share_weights() -> None:
    pairs = torch.arange(100_000)
    buckets = hashed(pairs * 977, 1000)
    counts = torch.bincount(buckets, minlength=1000)
    assert (buckets.min(), buckets.max()) == (0, 999)
    assert counts.max() < 3 * counts.float().mean()
    assert hashed(torch.tensor([2**62]), 7).item() in range(7)


@pytest.mark.slow
@pytest.mark.parametrize(
    "ranking",
    [
        BST(places=5, blocks=2),
        DIN(),
        MMoE(),
        LogisticRegression(crosses=(("country", "maker"),)),
        NeuMF(),
    ],
    ids=lambda ranking: type(ranking).__name__,
)
def test_trained_exported_and_verified(ranking: Any, tmp_path: Path) -> None:
    """Over a data set with every type of column; the export compares what is served with what was trained."""
    base = load_recipe("synthetic")
    recipe = replace(
        base,
        retrieval=EASE(l2=20.0),
        ranking=replace(ranking, max_epochs=2, task=ListwiseSoftmax(folds=2)),
        serving=replace(base.serving, candidates=30, kept=20, k_max=20, sources=()),
    )
    dataset = load_dataset(Synthetic(users=120, items=80, interactions=2_500))
    release = export_run(train_recipe(recipe, dataset, tmp_path / "run"), tmp_path / "release")
    assert release.manifest.ranking is not None
    assert release.manifest.ranking.tasks == 1
