"""Loading recipes: built-in ones, files, and every mistake in the module itself."""

import pickle
import sys
from pathlib import Path

import pytest

import tiercel_pipelines.recipe as writes
from tiercel_pipelines.errors import RecipeError
from tiercel_pipelines.families.table import RANKING_FAMILIES
from tiercel_pipelines.recipe import load_recipe
from tiercel_pipelines.recipe.load import BUILT_IN
from tiercel_pipelines.recipes import movielens
from tiercel_serving.kinds import Kind

MOVIELENS = Path(movielens.__file__).read_text(encoding="utf-8")


def write(folder: Path, text: str) -> Path:
    file = folder / "mine.py"
    file.write_text(text, encoding="utf-8")
    return file


def refusal(path: Path | str) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    message = str(caught.value)
    assert "Traceback" not in message
    assert str(path) in message or caught.value.recipe in message
    return message


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_recipes(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.origin == BUILT_IN[name]
    assert recipe.problems() == []
    assert load_recipe(BUILT_IN[name]).name == name


def test_a_copied_recipe_is_a_recipe(tmp_path: Path) -> None:
    file = write(
        tmp_path, MOVIELENS.replace('name="movielens"', 'name="mine"').replace("k_max=100", "k_max=20")
    )
    recipe = load_recipe(str(file))
    assert recipe.name == "mine"
    assert recipe.serving.k_max == 20
    assert recipe.origin == str(file)
    assert "tiercel_recipe_mine" not in sys.modules


def test_a_file_may_hold_its_own_dataclasses_and_functions(tmp_path: Path) -> None:
    text = "from __future__ import annotations\nfrom dataclasses import dataclass\n"
    text += "@dataclass\nclass Own:\n    x: int = 1\n" + MOVIELENS.partition('"""\n')[2]
    assert load_recipe(write(tmp_path, text)).name == "movielens"


@pytest.mark.parametrize("name", ["movielen", "no.such.module", "tiercel_pipelines.recipes.nope"])
def test_an_unknown_name(name: str) -> None:
    message = refusal(name)
    assert "there is no such recipe; use one of movielens, movielens_blend, sequences, synthetic" in message


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "mine.py")
    (tmp_path / "folder.py").mkdir()
    assert "is a folder" in refusal(tmp_path / "folder.py")


def test_a_file_that_is_no_python(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("x = 1")
    assert "ends in .py" in refusal(file)


def test_a_syntax_error(tmp_path: Path) -> None:
    message = refusal(write(tmp_path, MOVIELENS.replace("candidates=200,", "candidates=200 200,")))
    line = next(n for n, text in enumerate(MOVIELENS.splitlines(), 1) if "candidates=200" in text)
    assert f"line {line}: not valid Python" in message
    assert "candidates=200 200" in message


def test_no_recipe(tmp_path: Path) -> None:
    assert "there is no RECIPE; end the module with" in refusal(write(tmp_path, "x = 1\n"))


def test_a_recipe_that_is_something_else(tmp_path: Path) -> None:
    assert "RECIPE is a dict" in refusal(write(tmp_path, "RECIPE = {}\n"))


def test_a_field_that_there_is_not(tmp_path: Path) -> None:
    message = refusal(write(tmp_path, MOVIELENS.replace("k_default=10", "k_defualt=10")))
    assert "ServingSettings has no field 'k_defualt' (did you mean 'k_default'?)" in message
    assert "line " in message


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("replace(RECIPE, sead=1)", "Recipe has no field 'sead' (did you mean 'seed'?)"),
        (
            "replace(RECIPE, ranking=replace(RECIPE.ranking, top_layer=(8,)))",
            "DLRM has no field 'top_layer' (did you mean 'top_layers'?)",
        ),
        (
            "replace(RECIPE, ranking=replace(RECIPE.ranking, folds=5))",
            "DLRM has no field 'folds': it belongs to the task: task=ListwiseSoftmax(…)",
        ),
        (
            "replace(RECIPE, retrieval=ItemKNN(folds=3))",
            "ItemKNN has no field 'folds' (it has name, weights, similarity, weighting, shrinkage, rating)",
        ),
    ],
)
def test_a_field_that_replace_does_not_find(tmp_path: Path, written: str, words: str) -> None:
    text = f"from tiercel_pipelines.recipe import ItemKNN, replace\n{MOVIELENS}\nRECIPE = {written}\n"
    message = refusal(write(tmp_path, text))
    assert f"line {text.count(chr(10))}: {words}; correct that line" in message


def test_a_field_that_is_missing(tmp_path: Path) -> None:
    message = refusal(write(tmp_path, MOVIELENS.replace("    features=features,\n", "")))
    assert "Recipe needs 'features'" in message


def test_dataclasses_replace_is_told_to_be_the_wrong_one(tmp_path: Path) -> None:
    text = "import dataclasses\n" + MOVIELENS + "\nRECIPE = dataclasses.replace(RECIPE, seed=1)\n"
    message = refusal(write(tmp_path, text))
    assert "from tiercel_pipelines.recipe import replace" in message


@pytest.mark.parametrize(
    ("written", "hint"),
    [
        ("Unheard()", ""),
        ("MovieLens10K()", "did you mean 'MovieLens100K'?; "),
        ("Parquet()", "from tiercel_pipelines.recipe import Parquet; "),
    ],
)
def test_a_name_that_is_not_defined(tmp_path: Path, written: str, hint: str) -> None:
    message = refusal(write(tmp_path, MOVIELENS.replace("dataset=MovieLens100K()", f"dataset={written}")))
    assert f"NameError: name '{written[:-2]}' is not defined; {hint}correct that line" in message


def test_an_import_that_fails_is_not_a_missing_recipe(tmp_path: Path) -> None:
    message = refusal(write(tmp_path, "import no_such_library\n"))
    assert "line 1: ModuleNotFoundError: No module named 'no_such_library'" in message


def test_a_module_whose_import_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_recipe_module.py").write_text("import no_such_library\n")
    monkeypatch.syspath_prepend(tmp_path)
    message = refusal("broken_recipe_module")
    assert "line 1: ModuleNotFoundError: No module named 'no_such_library'" in message


def test_loading_checks_the_recipe(tmp_path: Path) -> None:
    message = refusal(write(tmp_path, MOVIELENS.replace("k_max=100", "k_max=300")))
    assert "serving.k_max: 300 is more than the candidates that are ranked (kept is 100)" in message


def test_a_recipe_error_can_cross_processes() -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe("nope")
    copy = pickle.loads(pickle.dumps(caught.value))
    assert str(copy) == str(caught.value)
    assert copy.problems == caught.value.problems


def test_every_kind_can_be_imported_by_the_name_of_its_class() -> None:
    for name in dir(writes):
        assert getattr(writes, name) is not None
    assert {"TwoTower", "DLRM", "SampledSoftmax", "Index", "Compare", "WeightedSum"} <= set(dir(writes))
    with pytest.raises(ImportError, match=r"no ThreeTower .* did you mean 'TwoTower'"):
        from tiercel_pipelines.recipe import ThreeTower  # noqa: F401
    with pytest.raises(ImportError, match=r"no LightGCN .*; docs/models\.md and docs/recipes\.md list"):
        from tiercel_pipelines.recipe import LightGCN  # noqa: F401


OLD = """
from tiercel_pipelines.recipe.recipe import {names}

RECIPE = Recipe(name="mine", dataset=None, features=None, {body})
"""


@pytest.mark.parametrize(
    ("names", "body", "words"),
    [
        (
            "Recipe, RetrievalSettings",
            'retrieval=RetrievalSettings(model="two_tower")',
            "line 2: RetrievalSettings is of an older Tiercel; write TwoTower(…): the class is the model",
        ),
        (
            "Recipe, RankingSettings",
            'ranking=RankingSettings(model="dlrm")',
            "line 2: RankingSettings is of an older Tiercel; write DLRM(…)",
        ),
        ("Recipe, IndexSettings", "", 'write Index("two_tower", factory=…) among serving.sources'),
        ("Recipe, Source", "", 'write Index("two_tower") or Popular(quota=0)'),
        ("Recipe, Rule", "", "write Compare(…), with the same arguments"),
    ],
)
def test_a_recipe_of_an_older_tiercel_is_told_what_to_write(
    tmp_path: Path, names: str, body: str, words: str
) -> None:
    assert words in refusal(write(tmp_path, OLD.format(names=names, body=body)))
    assert words in refusal(
        write(tmp_path, OLD.format(names=names, body=body).replace("recipe.recipe", "recipe"))
    )


@pytest.mark.parametrize(
    ("new", "old", "words"),
    [
        ("TwoTower()", 'TwoTower(model="two_tower")', "TwoTower has no field 'model': leave it out"),
        ("DLRM()", 'DLRM(model="dlrm")', "DLRM has no field 'model': leave it out"),
        ("DLRM()", "DLRM(folds=3)", "'folds': it belongs to the task: task=ListwiseSoftmax(…)"),
        ("TwoTower()", "TwoTower(negatives=3)", "'negatives': it belongs to the task: task=SampledS"),
        (
            "    features=features,\n",
            "    features=features,\n    index=None,\n",
            "Recipe has no field 'index': write Index(",
        ),
        ("k_max=100,", "k_max=100, task_weights=(1.0,),", "'task_weights': write reorder=(WeightedSum("),
    ],
)
def test_a_field_of_an_older_tiercel(tmp_path: Path, new: str, old: str, words: str) -> None:
    assert new in MOVIELENS
    message = refusal(write(tmp_path, MOVIELENS.replace(new, old, 1)))
    assert words in message
    assert "line " in message


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (
            Kind("tiercel_pipelines.families.ghost:Ghost"),
            "ranking family 'ghost': its row says 'tiercel_pipelines.families.ghost:Ghost', which can't be "
            "imported (No module named 'tiercel_pipelines.families.ghost'); correct the row",
        ),
        (
            Kind("tiercel_pipelines.families.dlrm:Ghost"),
            "its row says 'tiercel_pipelines.families.dlrm:Ghost'",
        ),
        (
            Kind("family_of_trees:Ghost", extra="trees"),
            "ranking family 'ghost' needs no_such_library, which is not installed; run pip install "
            '"tiercel[trees]"',
        ),
    ],
)
def test_a_kind_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: Kind, words: str
) -> None:
    (tmp_path / "family_of_trees.py").write_text("import no_such_library\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(RANKING_FAMILIES.rows, "ghost", row)
    message = refusal(write(tmp_path, "from tiercel_pipelines.recipe import Ghost\n"))
    assert words in message
    assert "line 1" in message
