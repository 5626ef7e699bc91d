"""From data to a verified release by the command alone, each step with JSON output."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from cli.command import Tiercel

RECIPE = """
from tiercel_pipelines.recipe import Synthetic, replace
from tiercel_pipelines.recipes.synthetic import RECIPE

RECIPE = replace(
    RECIPE,
    name="tiny",
    dataset=Synthetic(users=60, items=120, interactions=1500),
    serving=replace(RECIPE.serving, candidates=40, kept=20, k_max=20),
)
"""


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipeline")
    (folder / "tiny.py").write_text(RECIPE)
    return folder


@pytest.fixture(scope="module")
def trained(work: Path, tiercel_here: Tiercel) -> Path:
    done = tiercel_here("train", "tiny.py", "--epochs", 1, "--seed", 3, "--json", cwd=work)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["run"] == "runs/tiny"
    assert 0 <= document["metrics"]["ranking"]["ndcg"] <= 1
    return work / "runs" / "tiny"


def test_data(tiercel: Tiercel, tiercel_here: Tiercel) -> None:
    done = tiercel("data", "synthetic", "--json")
    document = json.loads(done.stdout)
    assert (document["users"], document["items"]) == (600, 400)
    types = {column["name"]: column["type"] for column in document["columns"]["items"]}
    assert types["genres"] == "list"
    assert types["title"] == "string"
    shown = tiercel_here("data", "synthetic")
    assert "interactions  23,995" in shown.stdout


def test_data_that_is_not_there(tiercel_here: Tiercel, tmp_path: Path) -> None:
    done = tiercel_here("data", "ml-1000k", "--json")
    assert done.returncode == 2
    assert "no such recipe" in done.stderr
    (tmp_path / "ml-100k").mkdir()
    done = tiercel_here("data", "ml-100k", "--data-dir", tmp_path)
    assert done.returncode == 1
    assert "u.data" in done.stderr or "u.user" in done.stderr


def test_the_graph_is_explained_before_it_is_made(trained: Path, work: Path, tiercel_here: Tiercel) -> None:
    options = ("--explain", "--target", "tensorrt", "--layout", "staged", "--svg", "graph.svg")
    before = {path: path.stat().st_mtime_ns for path in work.rglob("releases/**")}
    done = tiercel_here("export", "runs/tiny", *options, "--json", cwd=work)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert [model["backend"] for model in document["models"]].count("tensorrt") == 2
    assert len(document["copies"]) == 4
    assert {(one["target"], one["layout"]) for one in document["others"]} >= {("cpu", "fused")}
    assert (work / "graph.svg").read_text().startswith("<svg ")
    assert {path: path.stat().st_mtime_ns for path in work.rglob("releases/**")} == before
    refused = tiercel_here("export", "runs/tiny", "--svg", "graph.svg", cwd=work)
    assert refused.returncode == 2
    assert "add --explain" in refused.stderr


@pytest.mark.slow
def test_what_comes_next_is_to_build_plans_that_are_not_there(
    trained: Path, work: Path, tiercel_here: Tiercel, tmp_path: Path
) -> None:
    release = tmp_path / "planned"
    done = tiercel_here("export", "runs/tiny", "--target", "tensorrt", "--release", release, cwd=work)
    assert done.returncode == 0, done.stderr
    assert f"next: tiercel build-engines {release}" in done.stdout.replace("\n", "")


def test_train_export_verify(trained: Path, work: Path, tiercel_here: Tiercel) -> None:
    done = tiercel_here("export", "runs/tiny", "--layout", "staged", "--json", cwd=work)
    assert done.returncode == 0, done.stderr
    exported = json.loads(done.stdout)
    assert (exported["layout"], exported["target"], exported["name"]) == ("staged", "cpu", "tiny")
    assert exported["sources"]["two_tower"]["recall"] >= 0.99
    assert exported["engines"] == {"query_two_tower": "onnx", "ranking": "onnx"}
    assert exported["forms"] == {"query_two_tower": "loops", "ranking": "loops"}
    done = tiercel_here("verify", "releases/tiny", "--json", cwd=work)
    report = json.loads(done.stdout)
    assert done.returncode == 0
    assert report["ok"]
    assert report["build_id"] == exported["build_id"]
    explained = tiercel_here("export", "releases/tiny", "--explain", cwd=work)
    assert "tiny, fused, target cpu: 1 model, 2 hops, 0 copies" in explained.stdout
    shown = tiercel_here("verify", "releases/tiny", cwd=work)
    assert "NVTabular" in shown.stdout
    assert "✗" not in shown.stdout
    again = tiercel_here("export", "runs/tiny", cwd=work)
    assert again.returncode == 2
    assert "--replace" in again.stderr


@pytest.mark.slow
def test_export_with_another_catalogue(trained: Path, work: Path, tiercel_here: Tiercel) -> None:
    items = pd.read_parquet(trained / "items.parquet").drop(columns="__row__")
    new = items.tail(1).assign(item_id=1, title="Brand new ✓")
    pd.concat([new, items.iloc[2:]]).to_parquet(work / "items.parquet")
    wanted = ["export", "runs/tiny", "--release", "releases/new", "--items", "items.parquet"]
    done = tiercel_here(*wanted, "--json", cwd=work)
    assert done.returncode == 0, done.stderr
    exported = json.loads(done.stdout)
    assert exported["tables"]["items"] == {"from": "given", "new": 1, "gone": 2}
    assert exported["catalogue"]["items"] == len(items) - 1
    assert tiercel_here("verify", "releases/new", cwd=work).returncode == 0
    shown = tiercel_here(*wanted, "--replace", cwd=work)
    assert "119 (given, 1 new, 2 gone)" in shown.stdout
    measured = tiercel_here("evaluate", "runs/tiny", "--release", "releases/new", cwd=work)
    assert measured.returncode == 1
    assert "its items are not the run's" in measured.stderr


def test_tables_that_do_not_fit_are_refused(trained: Path, work: Path, tiercel_here: Tiercel) -> None:
    wanted = ["export", "runs/tiny", "--release", "releases/none"]
    done = tiercel_here(*wanted, "--items", "none.parquet", cwd=work)
    assert done.returncode == 2
    assert "--items none.parquet: there is no such file" in done.stderr
    (work / "broken.parquet").write_text("user_id,item_id\n")
    done = tiercel_here(*wanted, "--interactions", "broken.parquet", cwd=work)
    assert done.returncode == 1
    assert "broken.parquet: interactions is not a readable Parquet file" in done.stderr
    pd.DataFrame({"user_id": [1, 2], "shoe": [41, 42]}).to_parquet(work / "users.parquet")
    done = tiercel_here(*wanted, "--users", "users.parquet", "--json", cwd=work)
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["type"] == "ExportInputError"
    assert "users: no column 'age'" in done.stderr
    assert "the run has no column 'shoe'" in done.stderr
    assert not (work / "releases" / "none").exists()


def test_training_does_not_write_over_a_run(trained: Path, work: Path, tiercel_here: Tiercel) -> None:
    done = tiercel_here("train", "tiny.py", "--json", cwd=work)
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["type"] == "Refused"
    assert "--replace" in done.stderr


def test_mistakes_are_named_in_the_recipes_words(work: Path, tiercel_here: Tiercel) -> None:
    (work / "wrong.py").write_text(RECIPE.replace("candidates=40", "candidates=10"))
    done = tiercel_here("train", "wrong.py", cwd=work)
    assert done.returncode == 2
    assert "serving." in done.stderr
    assert "Traceback" not in done.stderr
    done = tiercel_here("export", "runs/none", cwd=work)
    assert done.returncode == 2
    assert "tiercel train" in done.stderr
    assert tiercel_here("export", "runs/tiny", "--target", "tpu", cwd=work).returncode == 2
    assert tiercel_here("export", "runs/tiny", "--layout", "round", cwd=work).returncode == 2
    done = tiercel_here("export", "runs/tiny", "--engine", "steam", cwd=work)
    assert done.returncode == 2
    assert "--engine steam: expected one of onnx" in done.stderr
    assert tiercel_here("verify", "nothing", cwd=work).returncode == 2
