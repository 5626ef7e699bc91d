"""A whole training on a small synthetic data set, and the run that it writes."""

from __future__ import annotations

import json
import shutil

import msgspec
import numpy as np
import pytest
import torch

from tiercel_pipelines.data import load_dataset
from tiercel_pipelines.errors import TrainingError
from tiercel_pipelines.families.dlrm import DLRM
from tiercel_pipelines.families.two_tower import TwoTower
from tiercel_pipelines.recipe import (
    ListwiseSoftmax,
    SampledSoftmax,
    Synthetic,
    load_recipe,
    replace,
)
from tiercel_pipelines.training import TrainedRun, train_recipe
from tiercel_serving.errors import ArtefactCorrupt, ArtefactMissing, DestinationTaken

TWO_TOWER = TwoTower(dimension=16, embedding_dimension=16, max_epochs=8, task=SampledSoftmax(batch_size=256))


def small_recipe():
    """Return a recipe with string ids; ``test_train_variants.py`` has integer ids."""
    recipe = load_recipe("synthetic")
    return replace(
        recipe,
        dataset=Synthetic(users=150, items=150, interactions=5000, ids="str"),
        retrieval=TWO_TOWER,
        ranking=DLRM(embedding_dimension=8, max_epochs=2, task=ListwiseSoftmax(folds=2)),
        serving=replace(recipe.serving, candidates=40, kept=20, k_max=20, history_length=10),
    )


@pytest.fixture(scope="module")
def recipe():
    return small_recipe()


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
    assert set(metrics["seconds"]) == {"workflow", "retrieval", "ranking", "figures"}
    json.dumps(metrics)


def test_the_run_gives_everything_that_an_export_needs(run, recipe, dataset):
    opened = TrainedRun.open(run.path)
    assert opened.record.recipe.name == "synthetic"
    assert opened.record.recipe.serving == recipe.serving
    assert opened.record.recipe.dataset == recipe.dataset
    assert opened.record.recipe.split == recipe.split
    data = opened.record.data
    assert (data.user_id, data.item_id, data.timestamp) == ("user_id", "item_id", "timestamp")
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


def test_a_run_records_the_kind_of_each_model_and_loads_by_it(run, recipe):
    models = json.loads((run.path / "run.json").read_text())["models"]
    assert models["retrieval"]["two_tower"]["kind"] == "two_tower"
    assert models["retrieval"]["two_tower"]["task"]["kind"] == "sampled_softmax"
    assert models["ranking"]["kind"] == "dlrm"
    assert models["ranking"]["task"] == {**msgspec.to_builtins(recipe.ranking.task), "folds": 2}
    opened = TrainedRun.open(run.path).record.models
    assert opened.retrieval == {"two_tower": recipe.retrieval}
    assert opened.ranking == recipe.ranking


def test_the_modules_take_the_packed_tensors(run):
    towers, ranker = run.load_retrieval()["two_tower"], run.load_ranking().module
    user, item = towers.user_tower, towers.item_tower
    assert {"user_cat", "user_num", "user_list_interests", "history_cat"} <= set(user.input_names)
    assert {"item_cat", "item_num", "item_list_genres"} <= set(item.input_names)
    assert {*user.input_names, *item.input_names, "kept_score", "kept_source"} == set(ranker.input_names)
    assert not any(module.training for module in (user, item, ranker))
    served = towers.served()
    assert (served.form, served.query, served.items) == ("vectors", user, item)
    fresh = TrainedRun.open(run.path)
    again = (fresh.load_retrieval()["two_tower"].user_tower, fresh.load_ranking().served())
    for first, second in zip((user, ranker), again, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_the_same_seed_gives_the_same_run(run, recipe, dataset, tmp_path):
    again = train_recipe(recipe, dataset, tmp_path / "again")
    weights = sorted(file.relative_to(run.path) for file in run.path.rglob("*.safetensors"))
    assert [str(file) for file in weights] == [
        "ranking/weights.safetensors",
        "retrieval/two_tower/item_tower.safetensors",
        "retrieval/two_tower/user_tower.safetensors",
    ]
    for file in weights:
        assert (again.path / file).read_bytes() == (run.path / file).read_bytes()


def test_no_pickle_of_ours(run):
    ours = [file for file in run.path.rglob("*") if file.is_file() and "workflow" not in file.parts]
    assert {file.suffix for file in ours} == {".json", ".safetensors", ".parquet"}


def test_a_missing_run_is_refused(tmp_path):
    with pytest.raises(TrainingError, match=r"run\.json: no run here; make one with `tiercel train`"):
        TrainedRun.open(tmp_path)


def test_a_missing_file_is_refused(copied):
    (copied / "ranking/weights.safetensors").unlink()
    with pytest.raises(ArtefactMissing, match=r"weights\.safetensors: listed in run\.json, but missing"):
        TrainedRun.open(copied)


def test_one_changed_byte_is_refused(copied):
    file = copied / "retrieval/two_tower/item_tower.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(ArtefactCorrupt, match=r"expected SHA-256.*train again"):
        TrainedRun.open(copied)
    file.write_bytes(data[:-1])
    with pytest.raises(ArtefactCorrupt, match=r"expected \d+ bytes"):
        TrainedRun.open(copied)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not the description of a run"),
        ("[]", "not the description of a run.*Expected `object`"),
        ("{}", "not the description of a run.*`format`"),
        ('{"format": 99, "files": {}}', "run format 99.*upgrade Tiercel"),
        ('{"format": 2}', "missing required field `created`.*train again"),
        (
            '{"format": 1, "recipe": {"name": "movielens", "origin": "tiercel_pipelines.recipes.movielens"}}',
            "run format 1.*`tiercel train movielens --run .* --replace`",
        ),
        (
            '{"format": 1, "recipe": {"name": "mine", "origin": "/home/ann/mine.py"}}',
            "`tiercel train /home/ann/mine.py --run .* --replace`",
        ),
    ],
)
def test_a_wrong_description_is_refused(tmp_path, text, message):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(TrainingError, match=message):
        TrainedRun.open(tmp_path)


def test_a_run_of_an_unknown_kind_is_refused(copied):
    file = copied / "run.json"
    text = file.read_text()
    file.write_text(text.replace('"kind": "dlrm"', '"kind": "drlm"'))
    with pytest.raises(TrainingError, match=r"no ranking family 'drlm'; did you mean 'dlrm'.*train again"):
        TrainedRun.open(copied)
    file.write_text(text.replace('"kind": "sampled_softmax"', '"kind": "hinge"'))
    with pytest.raises(TrainingError, match=r"no retrieval task 'hinge'; use 'sampled_softmax'"):
        TrainedRun.open(copied)
    file.write_text(text.replace('"dimension": 16', '"dimension": "16"'))
    with pytest.raises(TrainingError, match=r"Expected `int`, got `str`.*two_tower\.dimension"):
        TrainedRun.open(copied)


def test_an_interrupt_keeps_the_run_that_was_there(recipe, dataset, copied, monkeypatch):
    def interrupt(*_args, **_kwargs):
        raise KeyboardInterrupt

    before = (copied / "run.json").read_bytes()
    monkeypatch.setattr(TwoTower, "fit", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train_recipe(recipe, dataset, copied, replace=True)
    assert (copied / "run.json").read_bytes() == before
    assert list(copied.parent.iterdir()) == [copied]
    TrainedRun.open(copied)


def test_what_is_there_is_not_written_over(recipe, dataset, copied, tmp_path):
    with pytest.raises(DestinationTaken, match="a run is already here"):
        train_recipe(recipe, dataset, copied)
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("precious")
    with pytest.raises(DestinationTaken, match=r"exists and is not a run \(it has no run\.json\)"):
        train_recipe(recipe, dataset, other, replace=True)
    assert (other / "thesis.txt").read_text() == "precious"
