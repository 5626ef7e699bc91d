"""A whole training on a small synthetic data set, and the run it leaves."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from tiercel_pipelines.data import load_dataset
from tiercel_pipelines.errors import TrainingError
from tiercel_pipelines.recipe.recipe import Synthetic, load_recipe
from tiercel_pipelines.training import TrainedRun, train_recipe
from tiercel_pipelines.training import train as train_module


def small_recipe(ids="int"):
    recipe = load_recipe("synthetic")
    return replace(
        recipe,
        dataset=Synthetic(users=150, items=150, interactions=5000, ids=ids),
        retrieval=replace(
            recipe.retrieval, dimension=16, embedding_dimension=16, max_epochs=8, batch_size=256
        ),
        ranking=replace(recipe.ranking, embedding_dimension=8, max_epochs=2, folds=2),
        serving=replace(recipe.serving, candidates=40, kept=20, k_max=20, history_length=10),
    )


@pytest.fixture(scope="module", params=["int", "str"])
def recipe(request):
    return small_recipe(request.param)


@pytest.fixture(scope="module")
def dataset(recipe):
    return load_dataset(recipe.dataset)


@pytest.fixture(scope="module")
def run(recipe, dataset, tmp_path_factory):
    return train_recipe(recipe, dataset, tmp_path_factory.mktemp("runs") / "small")


@pytest.fixture
def copied(run, tmp_path):
    return shutil.copytree(run.path, tmp_path / "copy")


def test_learning_beats_popularity(run):
    metrics = run.metrics
    assert metrics["retrieval"]["ndcg"] > metrics["popularity"]["ndcg"] + 0.02
    assert metrics["ranking"]["ndcg"] > metrics["popularity"]["ndcg"] + 0.02
    assert metrics["epochs"]["two_tower"]["best"] >= 1
    json.dumps(metrics)


def test_the_run_gives_everything_that_an_export_needs(run, recipe, dataset):
    opened = TrainedRun.open(run.path)
    assert opened.recipe_name == "synthetic"
    assert opened.serving == recipe.serving
    assert opened.index == recipe.index
    assert (opened.user_id, opened.item_id, opened.timestamp) == ("user_id", "item_id", "timestamp")
    assert opened.users.equals(dataset.users)
    assert opened.items.equals(dataset.items)
    parts = (opened.train, opened.valid, opened.test)
    assert sorted(np.concatenate([part.index for part in parts])) == list(range(len(dataset.interactions)))
    for part in parts:
        assert part.equals(dataset.interactions.loc[part.index])
    everything = dataset.interactions.drop(index=opened.test.index).reset_index(drop=True)
    assert opened.interactions.equals(everything)
    assert opened.load_workflow().output_schema.column_names
    assert list(run.path.parent.iterdir()) == [run.path]


def test_the_modules_take_the_packed_tensors(run):
    user, item, ranker = run.load_user_tower(), run.load_item_tower(), run.load_ranker()
    assert {"user_cat", "user_num", "user_list_interests", "history_cat"} <= set(user.input_names)
    assert {"item_cat", "item_num", "item_list_genres"} <= set(item.input_names)
    assert {*user.input_names, *item.input_names, "kept_score", "kept_source"} == set(ranker.input_names)
    assert not any(module.training for module in (user, item, ranker))
    fresh = TrainedRun.open(run.path)
    for first, second in ((user, fresh.load_user_tower()), (ranker, fresh.load_ranker())):
        assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_the_same_seed_gives_the_same_run(run, recipe, dataset, tmp_path):
    again = train_recipe(recipe, dataset, tmp_path / "again")
    for name in ("user_tower", "item_tower", "ranker"):
        file = f"{name}.safetensors"
        assert (again.path / file).read_bytes() == (run.path / file).read_bytes()


def test_no_pickle_of_ours(run):
    ours = [file for file in run.path.rglob("*") if file.is_file() and "workflow" not in file.parts]
    assert {file.suffix for file in ours} == {".json", ".safetensors", ".parquet"}


def test_a_missing_run_is_refused(tmp_path):
    with pytest.raises(TrainingError, match=r"run\.json: no run here; make one with `tiercel train`"):
        TrainedRun.open(tmp_path)


def test_a_missing_file_is_refused(copied):
    (copied / "ranker.safetensors").unlink()
    with pytest.raises(TrainingError, match=r"ranker\.safetensors: listed in run\.json, but missing"):
        TrainedRun.open(copied)


def test_one_changed_byte_is_refused(copied):
    file = copied / "item_tower.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(TrainingError, match="expected SHA-256"):
        TrainedRun.open(copied)
    file.write_bytes(data[:-1])
    with pytest.raises(TrainingError, match=r"expected \d+ bytes"):
        TrainedRun.open(copied)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "expected a JSON file"),
        ("[]", "expected a JSON object"),
        ("{}", "not the description of a run"),
        ('{"format": 99, "files": {}}', "upgrade Tiercel"),
    ],
)
def test_a_wrong_description_is_refused(tmp_path, text, message):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(TrainingError, match=message):
        TrainedRun.open(tmp_path)


@pytest.mark.parametrize("stop_at", ["fit_workflow", "fit_two_tower", "fit_dlrm", "write_run"])
def test_an_interrupt_leaves_nothing(recipe, dataset, tmp_path, monkeypatch, stop_at):
    def interrupt(*_args, **_kwargs):
        raise KeyboardInterrupt

    quick = replace(recipe, retrieval=replace(recipe.retrieval, max_epochs=1))
    monkeypatch.setattr(train_module, stop_at, interrupt)
    with pytest.raises(KeyboardInterrupt):
        train_recipe(quick, dataset, tmp_path / "runs" / "r")
    assert list((tmp_path / "runs").iterdir()) == []


def test_an_interrupt_keeps_the_run_that_was_there(recipe, dataset, copied, monkeypatch):
    def interrupt(*_args, **_kwargs):
        raise KeyboardInterrupt

    before = (copied / "run.json").read_bytes()
    monkeypatch.setattr(train_module, "fit_two_tower", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train_recipe(recipe, dataset, copied, replace=True)
    assert (copied / "run.json").read_bytes() == before
    assert list(copied.parent.iterdir()) == [copied]
    TrainedRun.open(copied)


def test_what_is_there_is_not_written_over(recipe, dataset, copied, tmp_path):
    with pytest.raises(TrainingError, match="something is there already"):
        train_recipe(recipe, dataset, copied)
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("precious")
    with pytest.raises(TrainingError, match="expected a run to replace"):
        train_recipe(recipe, dataset, other, replace=True)
    assert (other / "thesis.txt").read_text() == "precious"


def test_without_a_validation_part(recipe, dataset, tmp_path):
    plain = replace(
        recipe,
        split=replace(recipe.split, validation=0.0),
        retrieval=replace(recipe.retrieval, max_epochs=1),
    )
    trained = train_recipe(plain, dataset, tmp_path / "r", replace=True)
    assert not len(trained.valid)
    assert trained.metrics["epochs"]["ranker"]["best"] == 0
    assert trained.metrics["ranking"]["ndcg"] == pytest.approx(trained.metrics["retrieval"]["ndcg"])
