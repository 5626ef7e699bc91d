"""Loading recipes: the built-in ones, files, and everything that can be wrong with the module itself."""

import json
import pickle
import sys
from pathlib import Path

import pytest

from tiercel_pipelines.errors import RecipeError
from tiercel_pipelines.recipe.recipe import BUILT_IN, load_recipe
from tiercel_pipelines.recipes import movielens

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
    assert json.loads(json.dumps(recipe.to_json()))["dataset"]["kind"] in ("MovieLens100K", "Synthetic")
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
    assert "there is no such recipe; use one of movielens, synthetic" in message


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "mine.py")


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


def test_a_field_that_is_missing(tmp_path: Path) -> None:
    message = refusal(write(tmp_path, MOVIELENS.replace("    features=features,\n", "")))
    assert "Recipe needs 'features'" in message


def test_a_name_that_is_not_defined(tmp_path: Path) -> None:
    message = refusal(write(tmp_path, MOVIELENS.replace("dataset=MovieLens100K()", "dataset=MovieLens1B()")))
    assert "NameError: name 'MovieLens1B' is not defined" in message


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
    assert "serving.k_max: 300 is more than the candidates that are ranked (serving.kept is 100)" in message


def test_a_recipe_error_can_cross_processes() -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe("nope")
    copy = pickle.loads(pickle.dumps(caught.value))
    assert str(copy) == str(caught.value)
    assert copy.mistakes == caught.value.mistakes
