"""Killed trainings are resumed, and invalid checkpoints are refused."""

from __future__ import annotations

import errno
import json
import shutil
import signal
import subprocess
import sys
from dataclasses import replace as replace_column
from pathlib import Path

import numpy as np
import pytest
import torch
from merlin.schema import Tags
from nvtabular import ops
from torch import nn

from tiercel_pipelines.arrays.packed import Packed
from tiercel_pipelines.arrays.pairs import Pairs
from tiercel_pipelines.data import load_dataset
from tiercel_pipelines.errors import TrainingError
from tiercel_pipelines.families.descent import Learner
from tiercel_pipelines.families.row_wise import BETA1, BETA2, EPSILON, RowWiseAdam
from tiercel_pipelines.recipe import (
    DLRM,
    ListwiseSoftmax,
    SampledSoftmax,
    ServingSettings,
    Synthetic,
    TrainingSettings,
    TwoTower,
    load_recipe,
    replace,
)
from tiercel_pipelines.training import checkpoint as checkpoints
from tiercel_pipelines.training import train_recipe
from tiercel_pipelines.training.checkpoint import data_digest
from tiercel_serving.columns import Column
from tiercel_serving.errors import DestinationTaken, MachineFault, ReleaseError

#: Trains the tiny recipe into a folder, and is killed as by the out-of-memory killer.
KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
import test_resume as tests

def progress(what, done, total):
    if what == "ranking" and done == 1:
        os.kill(os.getpid(), signal.SIGKILL)

recipe = tests.tiny_recipe()
tests.train_recipe(recipe, tests.load_dataset(recipe.dataset), sys.argv[2], progress=progress)
"""


def features():
    """Return features of ids alone, which are fitted in a second."""
    user = ["user_id"] >> ops.Categorify() >> ops.TagAsUserID()
    item = ["item_id"] >> ops.Categorify() >> ops.TagAsItemID()
    device = ["device"] >> ops.Categorify() >> ops.AddTags([Tags.CONTEXT])
    return user + item + device


def tiny_recipe():
    recipe = load_recipe("synthetic")
    return replace(
        recipe,
        dataset=Synthetic(users=60, items=50, interactions=1200),
        features=features,
        retrieval=TwoTower(
            dimension=8, embedding_dimension=8, max_epochs=3, task=SampledSoftmax(batch_size=128)
        ),
        ranking=DLRM(embedding_dimension=4, top_layers=(8,), max_epochs=3, task=ListwiseSoftmax(folds=2)),
        serving=ServingSettings(
            candidates=30, kept=20, k_max=20, history_length=10, history_columns=("item_id",)
        ),
        training=TrainingSettings(checkpoint_s=0),
    )


@pytest.fixture(scope="module")
def recipe():
    return tiny_recipe()


@pytest.fixture(scope="module")
def dataset(recipe):
    return load_dataset(recipe.dataset)


def told(run):
    """Return what a run records of its models, except for times."""
    parts = ("retrieval", "ranking")
    models = {name: file for name, file in run.record.files.items() if name.startswith(parts)}
    return models, {name: value for name, value in run.metrics.items() if name != "seconds"}


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """Return the folder of a training killed by SIGKILL in the ranker's first epoch."""
    folder = tmp_path_factory.mktemp("killed")
    command = [sys.executable, "-c", KILLED, str(Path(__file__).parent), str(folder / "run")]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    return folder


@pytest.fixture(scope="module")
def whole(recipe, dataset, tmp_path_factory):
    """Return what an uninterrupted training records of its models."""
    return told(train_recipe(recipe, dataset, tmp_path_factory.mktemp("whole") / "run"))


@pytest.fixture
def copied(killed, tmp_path):
    shutil.copytree(killed / "run.checkpoint", tmp_path / "run.checkpoint")
    return tmp_path / "run"


def test_a_killed_training_goes_on_and_ends_as_if_not(recipe, dataset, killed, copied, whole, tmp_path):
    assert not (killed / "run").exists()
    trained = []

    def progress(what, done, total):
        trained.append((what, done))

    resumed = train_recipe(recipe, dataset, copied, resume=True, progress=progress)
    assert not any(what.startswith("two_tower") for what, _ in trained)  # they were finished
    assert ("ranking", 0) in trained
    assert told(resumed) == whole
    assert resumed.record.notes == ()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_model_goes_on_from_its_last_epoch(recipe, dataset, whole, tmp_path):
    """After an error inside a model, the last epoch's state is there, and no finished epoch is run again."""

    class Ended(Exception):
        pass

    def end(what, done, total):
        if what == "two_tower, fold 1 of 3" and done == 3:
            raise Ended

    seen = []
    with pytest.raises(Ended):
        train_recipe(recipe, dataset, tmp_path / "run", progress=end)
    resumed = train_recipe(
        recipe, dataset, tmp_path / "run", resume=True, progress=lambda *said: seen.append(said)
    )
    first = [done for what, done, _ in seen if what == "two_tower, fold 1 of 3"]
    assert first[0] == 2
    assert told(resumed) == whole


def test_a_checkpoint_of_another_recipe_or_data_is_refused(recipe, dataset, copied):
    with pytest.raises(DestinationTaken, match=r"interrupted training left this.*--resume"):
        train_recipe(recipe, dataset, copied)
    other = replace(recipe, retrieval=replace(recipe.retrieval, dimension=16))
    with pytest.raises(
        TrainingError, match=r"another recipe: retrieval\.two_tower\.dimension was 8, now it is 16"
    ):
        train_recipe(other, dataset, copied, resume=True)
    fewer = type(dataset)(dataset.name, dataset.users, dataset.items, dataset.interactions.iloc[1:])
    with pytest.raises(TrainingError, match="of other data"):
        train_recipe(recipe, fewer, copied, resume=True)
    head = copied.with_name("run.checkpoint") / "checkpoint.json"
    told = json.loads(head.read_text())
    course = {"models": {**told["models"], "fold-0-two_tower": {"epochs": "three"}}}
    for odd in ("{", "null", "[]", *(json.dumps({**told, **other}) for other in ({"at": {}}, course))):
        head.write_text(odd)
        with pytest.raises(TrainingError, match=r"no checkpoint can be read \(.*remove .*and begin anew"):
            train_recipe(recipe, dataset, copied, resume=True)
    head.write_text(json.dumps({**told, "format": 1}))
    with pytest.raises(TrainingError, match="checkpoint format 1, but this Tiercel reads 2"):
        train_recipe(recipe, dataset, copied, resume=True)


def test_other_values_of_what_rules_read_are_other_data():
    column = np.zeros((3, 1), np.int64)
    pairs = Pairs.build(column[:2, 0], np.arange(2), column[:2, 0], np.ones(2), 1)

    def digest(**raw):
        packed = Packed({"user_cat": column[:1]}, {"item_cat": column}, (), 0, 1, raw)
        return data_digest(packed, pairs, np.zeros(2, np.int64))

    def texts(*values):
        return Column(np.array(values, object))

    price, valid, ends = np.array([1.0, 2.0]), np.array([True, False]), np.array([0, 1, 3])
    listed = texts(b"a", b"b", b"c")
    columns = [
        {},
        {"price": Column(price)},
        {"price": Column(price + 1)},
        {"price": Column(price, valid)},
        {"cost": Column(price)},
        {"genre": texts(b"ab", b"c")},
        {"genre": texts(b"a", b"bc")},
        {"genre": replace_column(listed, offsets=ends)},
        {"genre": replace_column(listed, offsets=np.array([0, 2, 3]))},
        {"genre": replace_column(listed, offsets=ends, row_valid=valid)},
    ]
    assert len({digest(**raw) for raw in columns}) == len(columns)
    assert digest(genre=texts(b"ab", b"c")) == digest(genre=texts(b"a" + b"b", b"c"))


def test_another_version_of_torch_goes_on_and_the_run_says_so(recipe, dataset, copied):
    head = copied.with_name("run.checkpoint") / "checkpoint.json"
    told = json.loads(head.read_text())
    assert told["torch"] == [torch.__version__]
    head.write_text(json.dumps({**told, "torch": ["2.1.0+cpu"]}))
    run = train_recipe(recipe, dataset, copied, resume=True)
    [note] = run.record.notes
    assert note.startswith(f"torch 2.1.0+cpu began this training and {torch.__version__} went on with it")


@pytest.mark.parametrize("how", ["changed", "cut", "gone"])
def test_a_damaged_checkpoint_is_refused_before_anything_is_done(recipe, dataset, copied, tmp_path, how):
    """One changed byte of a weight would otherwise go unnoticed and lead to another model."""

    def damage(file):
        whole = file.read_bytes()
        file.write_bytes(whole[:-9] if how == "cut" else whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
        if how == "gone":
            file.unlink()

    words = {"changed": "expected SHA-256", "cut": "expected [0-9]+ bytes", "gone": "but missing"}[how]
    words += ".*remove .*run\\.checkpoint and begin anew"
    seen = []
    damage(copied.with_name("run.checkpoint") / "models" / "fold-1-two_tower" / "item_tower.safetensors")
    with pytest.raises(ReleaseError, match=f"item_tower.*{words}"):
        train_recipe(recipe, dataset, copied, resume=True, progress=lambda *said: seen.append(said))
    assert not seen
    folder = tmp_path / "other" / "run.checkpoint"
    kept = checkpoints.Checkpoint(folder, 0, {"seed": 1}, resume=False)
    for epoch in (1, 2):
        kept.offer("ranking", lambda epoch=epoch: ({"weight": np.ones(3)}, {"losses": [1.0] * epoch}))
    damage(folder / "state-2.safetensors")
    with pytest.raises(ReleaseError, match=f"state-2.*{words}"):
        checkpoints.Checkpoint(folder, 0, {"seed": 1}, resume=True)


def test_two_trainings_of_one_run_are_refused(tmp_path):
    with checkpoints.sole_training(tmp_path / "run"):
        with pytest.raises(DestinationTaken, match=r"another training is writing this run \(process \d+\)"):
            with checkpoints.sole_training(tmp_path / "run"):
                pass
    with checkpoints.sole_training(tmp_path / "run"):
        pass
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_the_machines_fault_and_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    kept = checkpoints.Checkpoint(tmp_path / "run.checkpoint", 0, {"seed": 1}, resume=False)
    kept.offer("served-two_tower", lambda: ({"weight": np.ones(3)}, {"losses": [1.0]}))

    def full(arrays, path):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(MachineFault, match=r"No space left.*writing the checkpoint run\.checkpoint"):
        kept.offer("served-two_tower", lambda: ({"weight": np.zeros(3)}, {"losses": [1.0, 0.5]}))
    again = checkpoints.Checkpoint(tmp_path / "run.checkpoint", 0, {"seed": 1}, resume=True)
    arrays, facts = again.read("served-two_tower")
    assert (arrays["weight"].tolist(), facts) == ([1, 1, 1], {"losses": [1.0]})
    assert again.read("another") is None
    first = checkpoints.Checkpoint(tmp_path / "other.checkpoint", 0, {"seed": 1}, resume=False)
    with pytest.raises(MachineFault):
        first.offer("served-two_tower", lambda: ({"weight": np.zeros(3)}, {"losses": [1.0]}))
    assert (tmp_path / "other.checkpoint").is_dir()
    for resume in (True, False):
        anew = checkpoints.Checkpoint(tmp_path / "other.checkpoint", 0, {"seed": 1}, resume=resume)
        assert anew.read("served-two_tower") is None


def test_a_loss_that_is_no_number_says_where(recipe):
    model = nn.Linear(2, 1)
    learner = Learner(model, 1e-2, 0.0, "two_tower, fold 1 of 3")
    learner.step(model(torch.ones(1, 2)).sum(), 1)
    with torch.no_grad():
        model.weight[0, 0] = torch.nan
    with pytest.raises(
        TrainingError, match=r"two_tower, fold 1 of 3: the loss became nan in step 2, epoch 1 .*weight"
    ):
        learner.step(model(torch.ones(1, 2)).sum(), 1)


def test_large_tables_learn_as_the_formula_says_row_by_row():
    """Compare with the formula, which updates every row in every step, including the average of all steps."""
    rng = np.random.default_rng(0)
    rate, decay, keep, rows, width, steps = 0.05, 0.2, 0.6, 7, 3, 12
    table = nn.Embedding(rows, width, sparse=True)
    start = table.weight.detach().double().numpy().copy()
    mine = RowWiseAdam(table.weight, rate, decay, keep)
    weights, average = start.copy(), start.copy()
    mean, square, count = np.zeros((rows, width)), np.zeros(rows), np.zeros(rows)
    for number in range(1, steps + 1):
        ids = rng.choice(rows - 1, size=3)  # the last row is never seen
        target = torch.from_numpy(rng.normal(size=(3, width)).astype(np.float32))
        table.zero_grad()
        mine.settle(number - 1)
        ((table(torch.from_numpy(ids)) - target) ** 2).sum().backward()
        gradient = table.weight.grad.to_dense().double().numpy()
        mine.step(number)
        weights *= 1 - rate * decay
        for row in set(ids.tolist()):
            count[row] += 1
            mean[row] = BETA1 * mean[row] + (1 - BETA1) * gradient[row]
            square[row] = BETA2 * square[row] + (1 - BETA2) * (gradient[row] ** 2).mean()
            bias = np.sqrt(square[row] / (1 - BETA2 ** count[row])) + EPSILON
            weights[row] -= rate * mean[row] / (1 - BETA1 ** count[row]) / bias
        share = max(1 - keep, 1 / (number + 1))
        average += share * (weights - average)
    mine.settle(steps)
    np.testing.assert_allclose(table.weight.detach().numpy(), weights, rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(mine.average.numpy(), average, rtol=2e-5, atol=1e-6)


def test_rows_that_are_left_alone_for_many_steps_are_made_up_for():
    table = nn.Embedding(4, 2, sparse=True)
    eager, lazy = (RowWiseAdam(table.weight.detach().clone().requires_grad_(), 0.1, 0.3, 0.7) for _ in "ab")
    for number in range(1, 30):
        for learner in (eager, lazy):
            ids = torch.tensor([number % 2])
            learner.table.grad = torch.sparse_coo_tensor(ids[None], torch.ones(1, 2), (4, 2))
            learner.step(number)
        eager.settle(number)
    lazy.settle(29)
    torch.testing.assert_close(lazy.table, eager.table)
    torch.testing.assert_close(lazy.average, eager.average)
