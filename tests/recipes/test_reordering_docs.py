"""``docs/reordering.md``: its table lists every step; its example trains, exports, verifies and answers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from brief_server import brief_server

pytest.importorskip("nvtabular")

from tiercel_client import Recommender, RequestRefused
from tiercel_pipelines.data import load_dataset
from tiercel_pipelines.errors import RecipeError
from tiercel_pipelines.export.run_export import export_run
from tiercel_pipelines.recipe import MMR, Cap, PinItems, replace
from tiercel_pipelines.recipe.check import check_recipe
from tiercel_pipelines.training import train_recipe
from tiercel_serving.release.opened import Release
from tiercel_serving.reorder.table import REORDER
from tiercel_serving.runtime.chain import Chain

TEXT = (Path(__file__).parents[2] / "docs" / "reordering.md").read_text(encoding="utf-8")


def test_the_table_has_every_step_and_no_other() -> None:
    # Other tests in this process may have added kinds to the table.
    paths = [row.path for row in REORDER.rows.values() if row.path.startswith("tiercel_serving.")]
    names = {path.rpartition(":")[2] for path in paths}
    assert set(re.findall(r"^\| `(\w+)` \|", TEXT, re.MULTILINE)) == names


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


def serves_what_runs_in_process(release: Release, run: Any, answers: list[list[int]], folder: Path) -> None:
    """Ask a real Triton in both layouts, by a client that learns the numbers from the contract."""
    staged = export_run(run, folder / "staged", layout="staged")
    user = int(run.users["user_id"].iloc[0])
    for served in (release, staged):
        with (
            brief_server(served.path, grpc_port=0, http_port=0, metrics_port=0) as server,
            Recommender(server.grpc_url) as recommender,
        ):
            told = {column.name: column.part for column in recommender.server_info().request_columns}
            assert told["diversity"] == told["seed"] == told["now"] == "ordering"
            for strength, expected in zip((0.0, 0.6), answers, strict=True):
                answer = recommender.recommend(user, 10, features={"diversity": strength})
                assert list(answer.item_ids) == expected
                assert {item.propensity for item in answer} == {1.0}
            drawn = recommender.recommend(user, 10, features={"seed": 3})
            assert drawn.items[4].propensity < 1
            several = recommender.recommend_many([user] * 3, 10, features={"diversity": [0.0, None, 0.6]})
            assert [list(one.item_ids) for one in (several[0], several[2])] == answers
            with pytest.raises(RequestRefused, match=r"diversity: expected a number from 0 to 0\.6"):
                recommender.recommend(user, features={"diversity": 0.7})


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
    serves_what_runs_in_process(release, run, answers, tmp_path)
    drawn = chain.run({**asked, "seed": np.array([[3.0]])})[0]["propensity"][0]
    assert ((drawn < 1) == (np.arange(10) == 4)).all()
