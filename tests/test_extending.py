"""The examples of ``docs/extending.md``, each one new file and one row, from training to a served answer."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

pytest.importorskip("nvtabular")

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("client", "serving", "export", "pipelines", "model_repository")
GUIDE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
#: Sections of the guide: the new file and its text, and the table and its row.
SECTION = re.compile(
    r"\n`(?P<file>[^`]+\.py)`:\n\n```python\n(?P<text>.*?)```\n\n"
    r"The row, in `(?P<table>[A-Z_]+)` of `(?P<module>[^`]+)`[^\n]*:\n\n```python\n(?P<row>.*?)```",
    re.DOTALL,
)
EXAMPLES = [match.groupdict() for match in SECTION.finditer(GUIDE)]
#: Every table that a kind can be added to.
TABLES = {
    "DATASETS",
    "ENGINES",
    "RANKING_FAMILIES",
    "RANKING_TASKS",
    "REORDER",
    "RETRIEVAL_FAMILIES",
    "RETRIEVAL_TASKS",
    "RULES",
    "SOURCES",
    "STORES",
}

RECIPE = """
from msgspec.structs import replace

from tiercel_pipelines.data.json_lines import JsonLines
from tiercel_pipelines.families.biased import Biased
from tiercel_pipelines.families.pure_svd import PureSVD
from tiercel_pipelines.recipe import Index, Popular, TwoTower
from tiercel_pipelines.recipes.synthetic import RECIPE as BASE
from tiercel_pipelines.tasks.hinge import Hinge
from tiercel_pipelines.tasks.pointwise import Pointwise
from tiercel_serving.reorder.boost import Boost
from tiercel_serving.rules.between import Between
from tiercel_serving.sources.newest import Newest
from tiercel_serving.stores.sqlite import SQLite

RECIPE = replace(
    BASE,
    name="extended",
    dataset=JsonLines("made"),
    retrieval=(
        TwoTower(dimension=8, embedding_dimension=8, max_epochs=1, task=Hinge()),
        PureSVD(dimension=8),
    ),
    ranking=Biased(max_epochs=1, task=Pointwise()),
    serving=replace(
        BASE.serving,
        sources=(
            Index("two_tower"),
            Index("pure_svd", quota=20),
            Newest("year", quota=10),
            Popular(quota=0),
        ),
        rules=(Between("not too long", column="minutes", low=0, high=150),),
        reorder=(Boost(column="in_stock", value=1, by=0.5),),
        store=SQLite("live.db"),
    ),
)
"""

#: Everything runs in one process, which imports heavy modules once.
SCRIPT = """
import json
import pathlib
from typer.testing import CliRunner
from tiercel_client import Recommender
from tiercel_pipelines.data import Synthetic, load_dataset
from tiercel_serving.commands.cli import app
from tiercel_serving.commands.serve import example_user
from tiercel_serving.release.opened import open_release
from tiercel_serving.stores.feature_store import FeatureStore
from tiercel_serving.supervise import start_server

def tiercel(*typed):
    done = CliRunner().invoke(app, typed, prog_name="tiercel")
    assert done.exit_code == 0, done.stderr
    return done.stdout

made = load_dataset(Synthetic(users=150, items=120, interactions=3_000, ids="int"))
pathlib.Path("made").mkdir()
for name in ("users", "items", "interactions"):
    getattr(made, name).to_json(f"made/{name}.jsonl", orient="records", lines=True)

tiercel("train", "recipe.py", "--run", "runs/extended")
tiercel("export", "runs/extended", "--release", "release", "--engine", "plain_onnx")
assert json.loads(tiercel("verify", "release", "--json"))["ok"]
with start_server("release", grpc_port=0, http_port=0, metrics_port=0) as server:
    with Recommender(server.grpc_url) as recommender:
        user = example_user(open_release("release"))
        explained = recommender.explain(user_id=user, k=10)
        sources = sorted({candidate.source for candidate in explained.candidates})
        reasons = sorted({candidate.reorder_reason or "" for candidate in explained.candidates})
        had = explained.items[0].item_id
        FeatureStore.open("release").append(user, [had])
        again = {item.item_id for item in recommender.recommend(user, k=10).items}
        answer = {"items": len(explained.items), "sources": sources, "reasons": reasons}
        print(json.dumps({**answer, "again": had in again}))
"""


def digests(root: Path) -> dict[str, str]:
    files = (file for package in PACKAGES for file in (root / package).rglob("*") if file.is_file())
    kept = (file for file in files if "__pycache__" not in file.parts)
    return {str(file.relative_to(root)): hashlib.sha256(file.read_bytes()).hexdigest() for file in kept}


def add_examples(root: Path) -> None:
    for example in EXAMPLES:
        (root / example["file"]).write_text(example["text"], encoding="utf-8")
        module = root / example["module"]
        before, table, after = module.read_text(encoding="utf-8").partition(f"\n{example['table']}: Kinds[")
        head, row, rest = re.split(r"(\n +\"\w+\": Kind\(.*\),\n)", after, maxsplit=1)
        module.write_text(before + table + head + row + example["row"] + rest, encoding="utf-8")


def test_there_is_a_short_example_for_each_table() -> None:
    assert sorted(example["table"] for example in EXAMPLES) == sorted(TABLES)
    for example in EXAMPLES:
        assert example["text"].count("\n") <= 60, example["file"]
        assert example["row"].count("\n") == 1


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the project with every example, beside an environment whose Python finds that copy."""
    root = tmp_path_factory.mktemp("extended")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, root / package, ignore=shutil.ignore_patterns("__pycache__"))
    before = digests(root)
    add_examples(root)
    after = digests(root)
    changed = {name for name in after if before.get(name) != after[name]}
    assert changed == {example[part] for example in EXAMPLES for part in ("file", "module")}
    venv.create(root / "venv", with_pip=False, symlinks=True)
    site = next((root / "venv" / "lib").glob("python*/site-packages"))
    ours = [str(root / package) for package in PACKAGES[:-1]]
    theirs = [path for path in sys.path if path.endswith("site-packages")]
    (site / "extended.pth").write_text("\n".join(ours + theirs) + "\n", encoding="utf-8")
    (root / "recipe.py").write_text(RECIPE, encoding="utf-8")
    (root / "script.py").write_text(SCRIPT, encoding="utf-8")
    return root


def run(root: Path, *command: str) -> str:
    done = subprocess.run(
        [str(root / "venv" / "bin" / "python"), *command],
        cwd=root,
        # Test the copy: no path of the checkout may come before it.
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def test_from_training_to_a_served_answer(extended: Path) -> None:
    answer = json.loads(run(extended, "script.py").splitlines()[-1])
    manifest = json.loads((extended / "release" / "manifest.json").read_text(encoding="utf-8"))
    settings = manifest["settings"]
    assert [source["kind"] for source in settings["sources"]] == ["index", "index", "newest", "popular"]
    assert settings["store"]["kind"] == "sqlite"
    assert manifest["ranking"]["engine"] == "plain_onnx"
    run_info = json.loads((extended / "runs" / "extended" / "run.json").read_text(encoding="utf-8"))
    assert "pure_svd" in json.dumps(run_info["models"])
    assert run_info["recipe"]["dataset"] == {"kind": "JsonLines", "path": "made"}
    assert answer["items"] == 10
    assert {"two_tower", "pure_svd", "newest"} <= set(answer["sources"])
    assert "boosted" in answer["reasons"]
    assert not answer["again"]
