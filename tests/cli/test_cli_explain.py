"""`tiercel explain-features` on each kind of input, and the examples of the docs that show it."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cli.command import Tiercel

ROOT = Path(__file__).parents[2]

RECIPE = """
from tiercel_pipelines.recipe import Synthetic, replace
from tiercel_pipelines.recipes.synthetic import RECIPE

RECIPE = replace(
    RECIPE,
    name="movielens",
    dataset=Synthetic(users=60, items=120, interactions=1500),
    serving=replace(RECIPE.serving, candidates=40, kept=20, k_max=20),
)
"""


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, release: Path) -> Path:
    """Return a folder with a recipe, a release, a saved workflow and one program."""
    small = sys.modules["small_release"]
    folder: Path = tmp_path_factory.mktemp("explain")
    (folder / "tiny.py").write_text(RECIPE)
    users, items, interactions = small.small_frames(text_ids=True)
    small.small_workflow(users, items, interactions, folder).save(str(folder / "workflow"))
    interactions.merge(users, on="user_id").merge(items, on="item_id").to_parquet(folder / "joined.parquet")
    (folder / "releases").mkdir()
    (folder / "releases" / "movielens").symlink_to(release)
    shutil.copytree(release / "artefacts" / "item_features", folder / "program")
    return folder


def explained(tiercel_here: Tiercel, work: Path, *arguments: Any) -> dict[str, Any]:
    done = tiercel_here("explain-features", *arguments, "--json", cwd=work)
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def test_a_workflow(work: Path, tiercel_here: Tiercel) -> None:
    document = explained(tiercel_here, work, "workflow")
    assert (document["kind"], document["applications"]) == ("workflow", 13)
    user, item = document["parts"]
    assert (user["part"], item["part"]) == ("user", "item")
    assert [column["name"] for column in user["inputs"]] == ["user_id", "country", "age", "income", "device"]
    normalize = next(step for step in user["steps"] if step["step"] == "normalize")
    assert (normalize["columns"], normalize["lowered_from"]) == (["income"], ["Normalize"])
    assert user["computing"] + item["computing"] == document["steps"]
    assert user["outputs"][-1]["packed"] in ("user_cat", "user_num")
    assert explained(tiercel_here, work, "workflow", "--part", "item")["parts"] == [item]


def test_a_release_and_a_program_tell_the_same_steps(work: Path, tiercel_here: Tiercel) -> None:
    of_workflow = explained(tiercel_here, work, "workflow")
    of_release = explained(tiercel_here, work, "releases/movielens")
    assert of_release["applications"] is None
    for one, other in zip(of_workflow["parts"], of_release["parts"], strict=True):
        assert [step["step"] for step in one["steps"]] == [step["step"] for step in other["steps"]]
        assert [step["table"] for step in one["steps"]] == [step["table"] for step in other["steps"]]
    assert explained(tiercel_here, work, "program")["parts"] == of_release["parts"][1:]


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("releases/movielens", "golden rows of the release"),
        ("workflow", "made-up rows: consecutive numbers, unseen text"),
        ("program", "made-up rows: consecutive numbers, unseen text"),
    ],
)
def test_times(source: str, what: str, work: Path, tiercel_here: Tiercel) -> None:
    document = explained(tiercel_here, work, source, "--time", "--rows", 7)
    assert document["timed_on"] == what
    for part in document["parts"]:
        assert set(part["total_us"]) == {"1", "7"}
        assert all(set(step["microseconds"]) == {"1", "7"} for step in part["steps"])
    shown = tiercel_here("explain-features", source, "--time", "--data", "joined.parquet", cwd=work)
    assert shown.returncode == 0, shown.stderr
    assert "µs, 1 row" in shown.stdout
    assert "µs, 1,000 rows" in shown.stdout
    assert "rows of joined.parquet" in shown.stdout


def test_a_recipe_is_fitted_unless_its_run_is_there(work: Path, tiercel_here: Tiercel) -> None:
    document = explained(tiercel_here, work, "tiny.py", "--time")
    assert (document["source"], document["kind"]) == ("movielens", "recipe")
    assert document["timed_on"] == "training interactions"
    assert {part["part"] for part in document["parts"]} == {"user", "item"}
    assert not (work / "runs").exists()
    assert tiercel_here("train", "tiny.py", "--epochs", 1, cwd=work).returncode == 0
    done = tiercel_here("explain-features", "tiny.py", "--time", cwd=work)
    assert "By the run runs/movielens; --fit fits the recipe's workflow anew." in done.stderr
    assert "runs/movielens (run)" in done.stdout
    assert "training interactions of the run" in done.stdout
    by_run = explained(tiercel_here, work, "tiny.py")
    anew = explained(tiercel_here, work, "tiny.py", "--fit")
    assert (by_run["kind"], anew["kind"]) == ("run", "recipe")
    assert by_run["parts"] == anew["parts"] == [without_times(part) for part in document["parts"]]


def without_times(part: dict[str, Any]) -> dict[str, Any]:
    return {**part, "total_us": {}, "steps": [{**step, "microseconds": {}} for step in part["steps"]]}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing"], "there is no such recipe"),
        (["releases"], "releases: expected a recipe, or the directory of a run, a release"),
        (["runs/nothing"], "saved NVTabular workflow; there is nothing of that name"),
        (["workflow", "--fit"], "--fit: workflow is a workflow, whose workflow is fitted"),
        (["workflow", "--part", "context"], "the parts are user and item"),
        (["program", "--part", "user"], "--part user: program has only item"),
        (["program", "--target-encoding", "no_fold"], "--target-encoding: program is compiled already"),
        (["workflow", "--target-encoding", "folds"], "--target-encoding folds: expected no_fold"),
    ],
)
def test_what_cannot_be_is_exit_code_two(
    arguments: list[str], words: str, work: Path, tiercel_here: Tiercel
) -> None:
    done = tiercel_here("explain-features", *arguments, cwd=work)
    assert (done.returncode, words in done.stderr) == (2, True), done.stderr


# ---------------------------------------------------------------------------------------------- the docs


def documented() -> list[str]:
    """Return every command of docs/transform.md and of the section on the plan in docs/features.md."""
    texts = [(ROOT / "docs" / "transform.md").read_text(encoding="utf-8")]
    features = (ROOT / "docs" / "features.md").read_text(encoding="utf-8")
    texts.append(features.partition("\n## What the compiler did\n")[2].partition("\n## ")[0])
    blocks = [block for text in texts for block in re.findall(r"^```bash\n(.*?)^```", text, re.M | re.S)]
    return [line.split("  #")[0].strip() for block in blocks for line in block.splitlines() if line.strip()]


@pytest.fixture(scope="module")
def as_documented(work: Path) -> Path:
    """The same folder with the tables that the docs name."""
    users, items, _ = sys.modules["small_release"].small_frames(text_ids=True)
    users.assign(device="web").to_parquet(work / "users.parquet")
    items.to_parquet(work / "items.parquet")
    (work / "days").mkdir()
    shutil.copy(work / "joined.parquet", work / "days" / "1.parquet")
    shutil.copy(work / "joined.parquet", work / "days" / "2.parquet")
    return work


def test_every_documented_example_runs(as_documented: Path, tiercel_here: Tiercel) -> None:
    lines = documented()
    assert {line.split()[1] for line in lines} == {"transform", "explain-features"}
    for line in lines:
        done = tiercel_here(*shlex.split(line)[1:], cwd=as_documented)
        assert done.returncode == 0, f"$ {line}\n{done.stderr}"
        assert done.stdout.strip()


def test_the_python_example_of_the_docs_runs(as_documented: Path) -> None:
    text = (ROOT / "docs" / "transform.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=as_documented, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
