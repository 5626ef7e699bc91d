"""Every ranking family under the contract of ranking families, and the checks of each one's settings."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from ranking_contract import (
    INPUTS,
    KEPT,
    LENGTH,
    OF_CANDIDATES,
    RankingContract,
    RepeatedWork,
    call,
    drawn,
    world,
)

from tiercel_export.models.readiness import graph_problems
from tiercel_pipelines.data import load_dataset
from tiercel_pipelines.errors import TrainingError
from tiercel_pipelines.export.run_export import export_run
from tiercel_pipelines.families.ranking_layers import hashed
from tiercel_pipelines.families.table import RANKING_FAMILIES, Columns, Plan, RankingData
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
    MultiTask,
    NeuMF,
    Synthetic,
    Target,
    WideAndDeep,
    XGBoost,
    load_recipe,
    replace,
)
from tiercel_pipelines.training import train_recipe
from tiercel_serving.mistyped import mistyped

TASK = ListwiseSoftmax(negatives=KEPT, hard_negatives=1.0, batch_size=32)
SMALL: dict[str, Any] = {"learning_rate": 0.03, "task": TASK}
#: Patterns that are harder to learn need more and smaller steps.
SLOWLY: dict[str, Any] = {"learning_rate": 0.02, "task": replace(TASK, batch_size=16)}
NETWORK: dict[str, Any] = {**SMALL, "embedding_dimension": 4, "dropout": 0.0, "history_dropout": 0.0}
DEEP: dict[str, Any] = {**NETWORK, "layers": (8, 6)}
CROSSES = (("taste", "maker"), ("user_id", "item_id"))


class TestDLRM(RankingContract):
    settings = DLRM(**NETWORK, top_layers=(8,))
    # The user's vector joins the pairs; a separate product took a tenth longer for one user (K = 100).
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
    epochs = 60  # after 30 it depends on the seed and the processor's rounding whether it has learnt


class TestMMoE(RankingContract):
    settings = MMoE(**NETWORK, experts=3, expert_layers=(8,), tower_layers=(6,))


class FittedCall:
    """A fitted model without a network, called like one."""

    def __init__(self, fitted: Any) -> None:
        self.fitted, self.input_names = fitted, fitted.inputs

    def __call__(self, **tensors: torch.Tensor) -> torch.Tensor:
        arrays = {name: np.ascontiguousarray(tensor.numpy()) for name, tensor in tensors.items()}
        return torch.from_numpy(self.fitted.scores(arrays))


class TestXGBoost(RankingContract):
    """Trees have no torch module, so the contract's checks of a module apply to the fitted trees."""

    settings = XGBoost(
        learning_rate=0.3, max_depth=4, min_child_weight=0.0, subsample=1.0, trees_per_epoch=5, task=TASK
    )
    variants = (XGBoost(objective="logistic", task=TASK), XGBoost(use_retrieval_score=False, task=TASK))
    epochs = 6
    kept_in = r"trees\.json"

    @pytest.fixture(autouse=True)
    def _installed(self) -> None:
        pytest.importorskip("xgboost")

    def built(self, settings: Any, tasks: int = 1, seed: int = 3) -> Any:
        packed, lists = world(from_history=False)
        small = replace(settings, min_child_weight=0.0, learning_rate=0.3, trees_per_epoch=8)
        data = RankingData(packed, INPUTS, lists, KEPT, 1.0)
        return FittedCall(small.fit(data, Plan(seed, "ranking", epochs=1))[0])

    def test_untrained_it_keeps_retrievals_order(self) -> None:
        packed, lists = world(from_history=False)
        data = RankingData(packed, INPUTS, lists.take(np.arange(0)), KEPT, 5.0)
        tensors = drawn(4)
        for settings in (self.settings, self.variants[0]):
            fitted, course = settings.fit(data, Plan(0, "ranking"))
            assert course.epochs == 0
            scores = call(FittedCall(fitted), tensors)[..., 0]
            torch.testing.assert_close(scores, 5.0 * tensors["kept_score"])
            check_trees(fitted)

    def test_the_seed_decides(self) -> None:
        small = replace(self.settings, subsample=0.5)
        packed, lists = world(from_history=False)
        data = RankingData(packed, INPUTS, lists, KEPT, 1.0)
        first, second, third = (
            small.fit(data, Plan(seed, "ranking", epochs=1))[0].booster.save_raw("json") for seed in (5, 5, 6)
        )
        assert first == second
        assert first != third

    def test_what_nobody_knows_gives_numbers(self) -> None:
        """Nulls are missing values with their own branch in trees, and the served graph follows it too."""
        for settings in self.each():
            module, tensors = self.built(settings), drawn(40)
            for name in ("user_num", "item_num"):
                tensors[name][::3] = torch.nan
            assert torch.isfinite(call(module, tensors)).all()
            behind = torch.arange(LENGTH).view(1, -1, 1) >= tensors["history_length"].view(-1, 1, 1)
            other = {**tensors, "history_cat": torch.where(behind, 4, tensors["history_cat"])}
            assert torch.equal(call(module, other), call(module, tensors))
            check_trees(module.fitted, tensors)

    def test_users_and_candidates_do_not_touch_each_other(self) -> None:
        module, tensors = self.built(self.settings), drawn(3)
        expected = call(module, tensors)
        assert (expected.shape, expected.dtype) == ((3, KEPT, 1), torch.float32)
        alone = call(module, {name: tensor[1:2] for name, tensor in tensors.items()})
        torch.testing.assert_close(alone[0], expected[1], rtol=1e-5, atol=1e-5)

    def test_each_task_has_its_column(self) -> None:
        several = MultiTask((Target("watched"), Target("liked", column="rating", at_least=4)))
        (problem,) = replace(self.settings, task=several).problems()
        assert "2 targets, but trees give one score" in str(problem)

    def test_parts_can_be_left_out(self) -> None:
        packed, lists = world(from_history=False)
        plain = replace(self.settings, use_retrieval_score=False, use_history=False)
        fitted, _ = plain.fit(RankingData(packed, INPUTS, lists, KEPT, 1.0), Plan(0, "ranking", epochs=1))
        assert not {"kept_score", "kept_source", "history_cat", "history_length"} & set(fitted.inputs)
        check_trees(fitted)

    def test_training_computes_what_is_served(self) -> None:
        """The graph equals the trees; see :func:`check_trees`."""
        check_trees(self.fit()[0])

    def test_the_user_is_computed_once(self) -> None:
        """In the graph, four nodes join user and candidates; all other user nodes have no axis K."""
        graph = self.built(self.settings).fitted.served().graph
        of_candidates = {name for name in OF_CANDIDATES if name in {put.name for put in graph.input}}
        constants, joined = {tensor.name for tensor in graph.initializer}, []
        for node in graph.node:
            reads = [name for name in node.input if name not in constants]
            if any(name in of_candidates for name in reads):
                of_candidates |= set(node.output)
                joined += [node.op_type] if any(name not in of_candidates for name in reads) else []
        # The history is compared with each candidate, masked and divided; all else is repeated.
        assert sorted(joined) == ["Div", "Equal", "Expand", "Mul"]

    #: Without torch, the test of nulls and :func:`check_trees` check the graph.
    test_onnx_with_a_dynamic_batch_equals_torch = None

    def test_lists_without_a_negative_are_told(self) -> None:
        packed, lists = world(from_history=False)
        lists = dataclasses.replace(lists, weights=np.ones_like(lists.weights))
        with pytest.raises(TrainingError, match="none of the 64 lists has a candidate that its user did not"):
            self.settings.fit(RankingData(packed, INPUTS, lists, KEPT, 1.0), Plan(0, "ranking", epochs=1))


def check_trees(fitted: Any, tensors: dict[str, torch.Tensor] | None = None) -> None:
    """Check that the served graph equals XGBoost to 1e-5 for any batch; TensorRT does not support it."""
    model = fitted.served()
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for given in (drawn(1), drawn(7, seed=7)) if tensors is None else (tensors,):
        arrays = {name: given[name].numpy() for name in fitted.inputs}
        (got,) = session.run(["rank_score"], arrays)
        np.testing.assert_allclose(got, fitted.scores(arrays), rtol=1e-5, atol=1e-5)
    problems = [one for one in graph_problems(model) if "TreeEnsembleRegressor" in one]
    assert len(problems) == (fitted.booster is not None)
    assert all("take --engine onnx" in one for one in problems)


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
    (DCNv2(rank=0), "rank: expected a whole number of at least 1, or None for full rank, got 0"),
    (DCNv2(structure="both"), "structure: expected one of 'stacked', 'parallel', got 'both'"),
    (BST(heads=3), "heads: 3 heads do not divide embedding_dimension, which is 16"),
    (DIN(use_history=False), "use_history: False, but a DIN attends to the history; take MLP"),
    (WideAndDeep(crosses=("taste", "maker")), "crosses[0]: expected (text, text), got 'taste'"),
    (MMoE(experts=0), "experts: expected a whole number"),
]


@pytest.mark.parametrize(("settings", "words"), WRONG)
def test_mistakes_are_told(settings: Any, words: str) -> None:
    assert any(words in str(problem) for problem in [*mistyped(settings), *settings.problems()])


def test_what_the_features_lack_is_told_before_anything_is_trained() -> None:
    user: Columns = {"taste": "category", "age": "number"}
    item: Columns = {"maker": "category", "genres": "categories"}
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
        XGBoost(trees_per_epoch=5),
    ],
    ids=lambda ranking: type(ranking).__name__,
)
def test_trained_exported_and_verified(ranking: Any, tmp_path: Path) -> None:
    """On a data set with every type of column; the export compares the served model with the trained one."""
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
