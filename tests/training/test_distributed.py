"""Training in two processes: loss and weights equal those of one, one run is written, errors reach both."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_sampling import ITEMS, random_pairs

from tiercel_pipelines.arrays.lists import RankingLists
from tiercel_pipelines.errors import TrainingError
from tiercel_pipelines.families.ranks import ALONE, Ranks, process_group
from tiercel_pipelines.recipe import BPR, BinaryCrossEntropy, Debiasing, MultiTask, SampledSoftmax, Target
from tiercel_pipelines.training import TrainedRun

SCRIPT = """
import sys
from msgspec.structs import replace
from tiercel_pipelines.data import load_dataset
from tiercel_pipelines.recipe import DLRM, ListwiseSoftmax, SampledSoftmax, Synthetic, TwoTower, load_recipe
from tiercel_pipelines.training.distributed import train_distributed
from tiercel_pipelines.families.ranks import process_group
from tiercel_pipelines.training import train_recipe
import os

how, run = sys.argv[1:]
recipe = load_recipe("synthetic")
interactions = 3001 if how == "other" and os.environ.get("RANK") == "1" else 3000
recipe = replace(
    recipe,
    dataset=Synthetic(users=120, items=100, interactions=interactions),
    retrieval=TwoTower(dimension=8, embedding_dimension=8, max_epochs=2, task=SampledSoftmax(batch_size=256)),
    ranking=DLRM(embedding_dimension=8, max_epochs=1, dropout=0.0, task=ListwiseSoftmax(folds=2)),
    serving=replace(recipe.serving, candidates=30, kept=20, k_max=20, history_length=10),
)
dataset = load_dataset(recipe.dataset)
if how == "one":
    train_recipe(recipe, dataset, run)
else:
    done = train_distributed(recipe, dataset, run)
    assert (done is None) == (os.environ["RANK"] != "0")
"""


def start(tmp_path: Path, how: str, processes: int) -> subprocess.CompletedProcess[str]:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT, encoding="utf-8")
    python = [sys.executable]
    if processes > 1:
        python += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return subprocess.run(
        [*python, str(script), how, str(tmp_path / how)],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


@pytest.mark.slow
def test_two_processes_train_what_one_does(tmp_path: Path) -> None:
    runs = {}
    for how, processes in (("one", 1), ("two", 2)):
        done = start(tmp_path, how, processes)
        assert done.returncode == 0, done.stderr[-3000:]
        runs[how] = TrainedRun.open(tmp_path / how)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "script.py", "two"]
    for model in ("two_tower", "ranking"):
        one, two = (run.metrics["epochs"][model] for run in runs.values())
        np.testing.assert_allclose(one["losses"], two["losses"], rtol=1e-4)
        assert one["best"] == two["best"]
    one, two = (run.load_retrieval()["two_tower"].user_tower.state_dict() for run in runs.values())
    for name, weight in one.items():
        torch.testing.assert_close(weight, two[name], rtol=1e-2, atol=1e-3)


@pytest.mark.slow
def test_processes_that_see_other_data_all_stop(tmp_path: Path) -> None:
    done = start(tmp_path, "other", 2)
    assert done.returncode != 0
    assert "process 1 of 2 sees other data or features than process 0" in done.stderr
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    "task",
    [
        SampledSoftmax(positives=2),
        BPR(positives=2, negatives_per_positive=3),
        BinaryCrossEntropy(positives=2, debiasing=Debiasing(weight_exponent=0.5)),
    ],
)
def test_shares_add_up_to_the_batch(task: SampledSoftmax | BPR | BinaryCrossEntropy) -> None:
    objective: Any = task.start(random_pairs(3), ITEMS)
    [batch] = objective.epoch(np.random.default_rng(0))
    torch.manual_seed(0)
    query, vectors = torch.randn(len(batch.users), 5), torch.randn(len(batch.items), 5)

    def loss(query: torch.Tensor, batch: Any) -> float:
        torch.manual_seed(1)  # all processes begin with the same random state
        return float(objective.loss(query, vectors, batch))

    for count in (2, 3, len(batch.users) + 1):
        parts = []
        for rank in range(count):
            rows, mine, weight = Ranks(rank, count).share(batch, len(batch.users))
            parts.append(loss(query[rows], mine) * weight)
        assert np.mean(parts) == pytest.approx(loss(query, batch), rel=1e-6)
    assert ALONE.share(batch, len(batch.users)) == (slice(None), batch, 1.0)
    indivisible = object()
    assert Ranks(1, 3).share(indivisible, 4) == (slice(None), indivisible, 1.0)


def test_shares_of_several_targets_add_up_to_the_batch() -> None:
    """Each target averages over something else: its positives, its lists with any, all candidates."""
    rng, lists, width = np.random.default_rng(0), 13, 9
    rows = np.where(np.arange(width) < rng.integers(5, width + 1, lists)[:, None], np.arange(width), ITEMS)
    weights = ((rng.random((lists, width)) < 0.4) & (rows != ITEMS)).astype(np.float32)
    weights[:, 0] = 1
    stars = np.where(rng.random((lists, width)) < 0.3, np.nan, rng.integers(1, 6, (lists, width)))
    targets = np.repeat(np.where(weights > 0, stars, 0)[:, :, None], 4, axis=2).astype(np.float32)
    targets[:, :, 0] = weights
    users, none = np.arange(lists), np.zeros((lists, width), np.int32)
    batch = RankingLists(users, users, rows[:, :3], rows, weights, none, weights, targets)
    task = MultiTask(
        (
            Target("picked"),
            Target("liked", column="stars", at_least=5),
            Target("good", column="stars", at_least=4, loss="logistic"),
            Target("stars", column="stars", loss="squared", weight=0.5),
        ),
        negatives=5,
    )
    objective = task.start(batch, width, ITEMS)
    [drawn] = objective.epoch(np.random.default_rng(1))
    scores = torch.from_numpy(rng.normal(size=(*drawn.rows.shape, 4)))
    whole = float(objective.loss(scores, drawn))
    for count in (2, 3, 20):
        parts = []
        for rank in range(count):
            some, mine, weight = Ranks(rank, count).share(drawn, lists)
            parts.append(float(objective.loss(scores[some], mine)) * weight)
        assert np.mean(parts) == pytest.approx(whole, rel=1e-6)


def test_a_process_that_torchrun_did_not_start_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(TrainingError, match=r"RANK.*not set; type `torchrun"), process_group(True):
        pass
    with process_group(False) as ranks:
        assert ranks == ALONE
        ranks.wait()
        ranks.check_same("x")
