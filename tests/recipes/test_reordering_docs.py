"""``docs/reordering.md``: its table has every step, and its example trains, exports, verifies and answers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("nvtabular")

from tiercel_pipelines.data import load_dataset
from tiercel_pipelines.errors import RecipeError
from tiercel_pipelines.export.run_export import export_run
from tiercel_pipelines.recipe import MMR, Cap, PinItems, replace
from tiercel_pipelines.recipe.check import check_recipe
from tiercel_pipelines.training import train_recipe
from tiercel_serving.reorder.table import REORDER
from tiercel_serving.runtime.chain import Chain

TEXT = (Path(__file__).parents[2] / "docs" / "reordering.md").read_text(encoding="utf-8")


def test_the_table_has_every_step_and_no_other() -> None:
    assert set(re.findall(r"^\| `(\w+)` \|", TEXT, re.MULTILINE)) == set(REORDER.class_names())


def example() -> Any:
    code = re.search(r"```python\n(from tiercel_pipelines.*?)```", TEXT, re.DOTALL)
    assert code is not None
    names: dict[str, Any] = {}
    exec(code[1], names)
    return names["RECIPE"]


def test_the_example_fits_its_data_and_mistakes_are_told_before_training() -> None:
    recipe = example()
    dataset = load_dataset(recipe.dataset)
    check_recipe(recipe, dataset)
    wrong = replace(recipe.serving, reorder=(Cap("makers"), MMR(column="price"), PinItems("item_id", (-1,))))
    with pytest.raises(RecipeError) as caught:
        check_recipe(replace(recipe, serving=wrong), dataset)
    for said in (
        "serving.reorder[0].column: the items have no column 'makers'",
        "serving.reorder[1].column: 'price' holds numbers",
        "serving.reorder[2].values: no item has -1 in 'item_id'",
    ):
        assert said in str(caught.value)


@pytest.mark.slow
def test_the_example_is_served_as_it_says(tmp_path: Path) -> None:
    recipe = example()
    run = train_recipe(recipe, load_dataset(recipe.dataset), tmp_path / "run")
    assert run.metrics["ranking"] != run.metrics["retrieval"], "the figures are those of the steps"
    release = export_run(run, tmp_path / "release")
    chain = Chain.open(release)
    user = run.users["user_id"].to_numpy()[:1, None]
    asked = {"user_id": user, "k": np.array([[10]], np.int32)}
    answers = [
        chain.run({**asked, "diversity": np.array([[strength]])})[0]["item_id"][0].tolist()
        for strength in (0.0, 0.6)
    ]
    assert answers[0] != answers[1]
    items = release.items
    makers = items.columns(["maker"])["maker"]
    rows = items.rows(np.array(answers[1]))
    known = [makers.values[row] for row in rows if makers.valid is None or makers.valid[row]]
    assert max(known.count(maker) for maker in known) <= 3
    drawn = chain.run({**asked, "seed": np.array([[3.0]])})[0]["propensity"][0]
    assert ((drawn < 1) == (np.arange(10) == 4)).all()
