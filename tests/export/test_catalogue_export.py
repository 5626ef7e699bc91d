"""A new catalogue for the models of a run: the resulting release, and every table that is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pytest

from tiercel_export.errors import ExportInputError
from tiercel_export.workflow.frames import frame_oracle
from tiercel_pipelines.commands.export import describe, release_table
from tiercel_pipelines.data import load_dataset
from tiercel_pipelines.errors import DataCorrupt, DataMissing, EvaluationError
from tiercel_pipelines.export.catalogue import catalogue_of, kind_of, load_table
from tiercel_pipelines.export.run_export import export_run
from tiercel_pipelines.features.graph_columns import packed_columns
from tiercel_pipelines.offline.evaluate import check_tables
from tiercel_pipelines.recipe import DLRM, ListwiseSoftmax, Recipe, Synthetic, TwoTower, load_recipe
from tiercel_pipelines.training import TrainedRun, train_recipe
from tiercel_serving.release.opened import Release
from tiercel_serving.runtime.chain import Chain
from tiercel_serving.verify.checks import verify_release

#: The category of values that the workflow has not seen, as NVTabular numbers it.
UNKNOWN = 2
NEW = [900_001, 900_002, 900_003]
GONE = 5


def tiny() -> Recipe:
    recipe = load_recipe("synthetic")
    return msgspec.structs.replace(
        recipe,
        dataset=Synthetic(users=60, items=80, interactions=1200),
        retrieval=TwoTower(dimension=8, embedding_dimension=8, max_epochs=1),
        ranking=DLRM(embedding_dimension=8, max_epochs=1, task=ListwiseSoftmax(folds=2)),
        serving=msgspec.structs.replace(recipe.serving, candidates=40, kept=20, k_max=20),
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    recipe = tiny()
    return train_recipe(recipe, load_dataset(recipe.dataset), tmp_path_factory.mktemp("runs") / "tiny")


@pytest.fixture(scope="module")
def workflow(run: TrainedRun) -> Any:
    return run.load_workflow()


def new_items(run: TrainedRun) -> pd.DataFrame:
    """Return the run's items without the first few and in another order, plus three new ones.

    The columns are in another order too, without one that nothing reads.
    """
    new = run.items.iloc[:3].copy()
    new["item_id"] = NEW
    new["title"] = [f"Brand new {number} ✓" for number in range(3)]
    new["maker"] = ["a maker never seen", None, run.items["maker"].dropna().iloc[0]]
    new["genres"] = [["a genre never seen"], [], sorted({g for row in run.items["genres"] for g in row})]
    new["in_stock"] = 1
    new["minutes"] = 60
    kept = run.items.iloc[GONE:].sample(frac=1.0, random_state=1)
    columns = [name for name in reversed(run.items.columns) if name != "released"]
    return pd.concat([new.iloc[:1], kept, new.iloc[1:]])[columns]


@pytest.fixture(scope="module")
def items(run: TrainedRun) -> pd.DataFrame:
    return new_items(run)


@pytest.fixture(scope="module")
def release(run: TrainedRun, items: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Release:
    """Export the new catalogue; each of the first two users has had one of its new items."""
    known = run.interactions
    late = known.tail(2).assign(
        user_id=run.users["user_id"].iloc[:2].tolist(),
        item_id=NEW[:2],
        timestamp=known["timestamp"].max() + 1,
    )
    return export_run(
        run.path,
        tmp_path_factory.mktemp("releases") / "new",
        items=items,
        interactions=pd.concat([known, late]),
    )


def ask(release: Release, ids: list[int], **more: Any) -> dict[str, Any]:
    chain = Chain.open(release)
    arrays = {"user_id": np.array(ids, np.int64)[:, None], **more}
    chain.check(arrays)
    return chain.run(arrays)[0]


def test_it_verifies_and_says_whose_tables_it_holds(release: Release, run: TrainedRun) -> None:
    report = verify_release(release)
    assert report.ok, report.to_json()
    tables = release.manifest.tables
    assert tables["items"] == {"from": "given", "new": len(NEW), "gone": GONE}
    assert tables["users"] == {"from": "run"}
    assert tables["interactions"] == {"from": "given"}
    assert release.manifest.catalogue.items == len(run.items) - GONE + len(NEW)
    assert describe(release, 1.0)["tables"] == tables
    shown = [str(cell) for column in release_table(describe(release, 1.0)).columns for cell in column.cells]
    assert "78 (given, 3 new, 5 gone)" in shown


def test_interactions_with_items_that_are_gone_are_dropped(release: Release, run: TrainedRun) -> None:
    gone = run.interactions["item_id"].isin(run.items["item_id"].iloc[:GONE])
    assert gone.any()
    notes = "\n".join(release.manifest.notes)
    assert f"interactions: {gone.sum()} of {len(run.interactions) + 2} name" in notes
    assert "they were dropped" in notes
    assert release.manifest.catalogue.interactions == len(run.interactions) + 2 - gone.sum()


def test_rows_are_those_of_the_table(release: Release, items: pd.DataFrame) -> None:
    ids = items["item_id"].tolist()
    chain = Chain.open(release, ["describe_items"])
    out = chain.run({"item_id": np.array([ids], np.int64)})[0]
    assert out["found"].all()
    assert out["item_row"][0].tolist() == list(range(len(ids)))
    assert [title.decode() for title in out["title"][0]] == items["title"].tolist()


def test_categories_are_what_nvtabular_gives(release: Release, items: pd.DataFrame, workflow: Any) -> None:
    arrays = release.artefact("items", "items").arrays
    columns = list(release.manifest.packed.item_cat)
    expected = frame_oracle(workflow, "item", items)
    assert np.array_equal(arrays["item_cat"][:-1], expected[columns].to_numpy(np.int64))
    rows = [0, len(items) - 2, len(items) - 1]
    assert items["item_id"].iloc[rows].tolist() == NEW
    assert arrays["item_cat"][rows, columns.index("item_id")].tolist() == [UNKNOWN] * 3
    assert arrays["item_cat"][0, columns.index("maker")] == UNKNOWN
    # A list longer than any in training fits.
    longest = items["genres"].map(len).max()
    assert arrays["item_list_genres"].shape == (len(items) + 1, longest)
    assert (arrays["item_list_genres"][rows[2]] > UNKNOWN).all()
    assert arrays["item_list_genres"][0].tolist() == [UNKNOWN] + [0] * (longest - 1)


def test_everybody_is_answered_and_new_items_are_found(
    release: Release, run: TrainedRun, items: pd.DataFrame
) -> None:
    out = ask(release, run.users["user_id"].tolist(), k=np.full((len(run.users), 1), 20, np.int32))
    catalogue = items["item_id"].to_numpy()
    assert (out["status"] == 0).all()
    assert (out["count"] > 0).all()
    for found, count in zip(out["item_id"], out["count"][:, 0], strict=True):
        assert set(found[:count]) <= set(catalogue)
    # A user who has excluded everything else gets the new items, so they are indexed and ranked.
    rest = [item for item in catalogue.tolist() if item not in NEW]
    assert len(rest) <= release.settings.max_excluded
    out = ask(release, [run.users["user_id"].iloc[5]], exclude_item_ids=np.array([rest], np.int64))
    assert set(out["item_id"][0, : out["count"][0, 0]].tolist()) == set(NEW)


def test_a_new_item_in_a_history_is_known_and_not_shown_again(release: Release, run: TrainedRun) -> None:
    out = ask(release, run.users["user_id"].iloc[:2].tolist())
    lengths = out["history_length"][:, 0]
    latest = [out["history_row"][user, lengths[user] - 1] for user in range(2)]
    assert latest == [0, len(run.items) - GONE + 1]
    for user in range(2):
        assert latest[user] not in out["retrieved_row"][user]


def test_a_catalogue_of_new_items_only(run: TrainedRun, items: pd.DataFrame, tmp_path: Path) -> None:
    # Lists are as long as in the other release, so the models are the same.
    items = items.assign(item_id=items["item_id"] + 1_000_000)
    users = run.users.iloc[::-1].head(20)
    made = export_run(run, tmp_path / "r", items=items, users=users)
    assert made.manifest.tables["items"] == {"from": "given", "new": len(items), "gone": len(run.items)}
    assert made.manifest.tables["users"] == {"from": "given", "new": 0, "gone": len(run.users) - 20}
    assert made.manifest.catalogue.interactions == 0
    assert verify_release(made).ok
    out = ask(made, [int(users["user_id"].iloc[0]), int(run.users["user_id"].iloc[0])])
    assert out["status"].tolist() == [[0], [2]]
    assert (out["count"] > 0).all()


def test_without_tables_it_is_the_run(run: TrainedRun, workflow: Any) -> None:
    tables = catalogue_of(run, workflow)
    assert tables.items is run.items
    assert all(entry == {"from": "run"} for entry in tables.origin.values())


def test_what_stands_in_may_differ_in_form(run: TrainedRun, workflow: Any) -> None:
    given = run.items.assign(
        item_id=run.items["item_id"].astype("Int32"),
        year=run.items["year"].where(run.items.index != 3).astype("Float64"),
        maker=run.items["maker"].astype("category"),
        genres=None,
        in_stock=run.items["in_stock"].astype(np.int16),
    )
    made = catalogue_of(run, workflow, items=given).items
    assert made["item_id"].dtype == np.int64
    assert made["maker"].tolist() == run.items["maker"].tolist()
    assert made["genres"].tolist() == [[]] * len(given)
    assert made["in_stock"].dtype == run.items["in_stock"].dtype
    assert made["year"].isna().sum() >= 1
    assert set(made.columns) == set(run.items.columns)


def test_a_column_that_nothing_reads_may_be_missing(run: TrainedRun, workflow: Any) -> None:
    made = catalogue_of(run, workflow, items=run.items.drop(columns="released")).items
    assert list(made.columns) == [name for name in run.items.columns if name != "released"]


def test_a_category_without_a_vocabulary_must_have_an_embedding(
    run: TrainedRun, workflow: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    column = next(column for column in packed_columns(workflow, "item") if column.name == "maker")
    raw = dataclasses.replace(column, inputs=("minutes",), operators=())
    monkeypatch.setattr("tiercel_pipelines.export.catalogue.packed_columns", lambda workflow, part: (raw,))
    assert column.cardinality is not None
    inside = run.items.assign(minutes=column.cardinality - 1)
    assert len(catalogue_of(run, workflow, items=inside).items) == len(inside)
    with pytest.raises(ExportInputError, match=f"'minutes' holds the category {column.cardinality}, but"):
        catalogue_of(run, workflow, items=run.items.assign(minutes=column.cardinality))


Edit = Callable[[pd.DataFrame], pd.DataFrame]


def put(name: str, value: Callable[[pd.DataFrame], Any]) -> Edit:
    return lambda frame: frame.assign(**{name: value(frame)})


def lists(*values: Any) -> Callable[[pd.DataFrame], Any]:
    return lambda frame: pd.Series([list(values)] * len(frame), index=frame.index)


REFUSED: dict[str, tuple[str, Edit, str]] = {
    "no id": ("items", lambda f: f.drop(columns="item_id"), "items: no column 'item_id'"),
    "no feature": (
        "items",
        lambda f: f.drop(columns=["price", "year"]),
        "items: no column 'price'; no column 'year'. The run's table has",
    ),
    "no column of a rule": ("items", lambda f: f.drop(columns="in_stock"), "items: no column 'in_stock'"),
    "no title": ("items", lambda f: f.drop(columns="title"), "items: no column 'title'"),
    "one too many": ("items", lambda f: f.assign(colour="red"), "items: the run has no column 'colour'"),
    "renamed": (
        "users",
        lambda f: f.rename(columns={"age": "years"}),
        "users: no column 'age'; the run has no column 'years'",
    ),
    "twice": ("items", lambda f: pd.concat([f, f[["price"]]], axis=1), "'price' is there twice"),
    "text for a number": (
        "items",
        put("price", lambda f: f["price"].astype(str)),
        "items: column 'price' holds strings, the run's holds floats",
    ),
    "number for text": (
        "items",
        put("maker", lambda f: range(len(f))),
        "items: column 'maker' holds integers, the run's holds strings",
    ),
    "two at once": (
        "items",
        lambda f: f.assign(maker=1.5, genres="drama"),
        "column 'maker' holds floats.*; column 'genres' holds strings|column 'genres' holds.*'maker'",
    ),
    "list of others": (
        "items",
        put("genres", lists(1, 2)),
        "column 'genres' holds lists of integers, the run's holds lists of strings",
    ),
    "list for a scalar": ("items", put("maker", lists("a")), "column 'maker' holds lists of strings"),
    "empty lists for a scalar": ("items", put("maker", lists()), "column 'maker' holds lists, the run's"),
    "no whole numbers": ("items", put("minutes", lambda f: f["minutes"] + 0.5), "the run's holds integers"),
    "booleans for numbers": ("users", put("age", lambda f: f["age"] > 30), "column 'age' holds booleans"),
    "no known type": ("items", lambda f: f.assign(maker=b"x"), "items, column 'maker': expected one of"),
    "other ids": (
        "items",
        put("item_id", lambda f: f["item_id"].astype(str)),
        "items: column 'item_id' holds strings, the run's holds integers",
    ),
    "other ids of interactions": (
        "interactions",
        put("user_id", lambda f: f["user_id"].astype(str)),
        "interactions: column 'user_id' holds strings",
    ),
    "null id": (
        "items",
        put("item_id", lambda f: f["item_id"].where(f["item_id"] != f["item_id"].iloc[2])),
        "items: 1 of 80 ids in 'item_id' are null",
    ),
    "id twice": (
        "items",
        lambda f: pd.concat([f, f.iloc[3:5]]),
        "items: 2 of 82 rows repeat an id in 'item_id'",
    ),
    "user twice": ("users", lambda f: pd.concat([f, f.iloc[:1]]), "users: 1 of 61 rows repeat an id"),
    "no items": ("items", lambda f: f.iloc[:0], "items: no rows"),
    "no time": (
        "interactions",
        lambda f: f.drop(columns="timestamp"),
        "interactions: no column 'timestamp'",
    ),
    "no context": ("interactions", lambda f: f.drop(columns="device"), "interactions: no column 'device'"),
    "null user of an interaction": (
        "interactions",
        put("user_id", lambda f: f["user_id"].where(f.index != 0)),
        "in 'user_id' are null",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_tables_of_another_schema_are_refused(case: str, run: TrainedRun, tmp_path: Path) -> None:
    name, edit, words = REFUSED[case]
    with pytest.raises(ExportInputError, match=words):
        export_run(run, tmp_path / "r", **{name: edit(getattr(run, name))})
    assert list(tmp_path.iterdir()) == []


def test_kinds_of_columns() -> None:
    made = {
        "nulls": [None, None],
        "integers": [1, 2],
        "floats": [1.5, None],
        "booleans": [True, False],
        "strings": [None, "a"],
        "lists": [[], [None]],
        "lists of floats": [[], [None, 1.5]],
    }
    for kind, values in made.items():
        assert kind_of(pd.Series(values)) == kind


def test_a_run_is_not_measured_by_other_tables(release: Release) -> None:
    with pytest.raises(EvaluationError, match="items and interactions are not the run's"):
        check_tables(release)


def test_tables_are_read_from_parquet(items: pd.DataFrame, run: TrainedRun, tmp_path: Path) -> None:
    file = tmp_path / "items.parquet"
    items.to_parquet(file)
    read = load_table(file, "items", run)
    assert read["genres"].tolist() == items["genres"].tolist()
    assert read["item_id"].tolist() == items["item_id"].tolist()
    assert list(read.columns) == list(items.columns)
    assert load_table(run.path / "items.parquet", "items", run).equals(run.items)
    with pytest.raises(DataMissing, match=r"items: .*none\.parquet does not exist"):
        load_table(tmp_path / "none.parquet", "items", run)
    (tmp_path / "broken.parquet").write_text("item_id,title\n")
    with pytest.raises(DataCorrupt, match=r"broken\.parquet: items is not a readable Parquet file"):
        load_table(tmp_path / "broken.parquet", "items", run)
    items.assign(item_id=pd.Timestamp("2024-05-01")).to_parquet(file)
    with pytest.raises(DataCorrupt, match=r"items\.item_id holds dates or times"):
        load_table(file, "items", run)
