"""Whatever an export or NVTabular would refuse is reported as a mistake of the recipe before any training."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from merlin.schema import Tags
from nvtabular import ops

from drawing import examples
from tiercel_export import operators as own
from tiercel_export.errors import UnsupportedOperator
from tiercel_export.workflow.cut import cut_workflow
from tiercel_export.workflow.frames import columns_from_frame
from tiercel_pipelines.arrays.packing import pack_dataset
from tiercel_pipelines.data import Dataset, Synthetic, load_dataset
from tiercel_pipelines.errors import RecipeError
from tiercel_pipelines.export.run_export import export_run
from tiercel_pipelines.features.origin import FeatureOrigin
from tiercel_pipelines.recipe import (
    BoostItems,
    Compare,
    Expression,
    Index,
    PerRequest,
    Popular,
    Recipe,
    TwoTower,
    load_recipe,
    replace,
)
from tiercel_pipelines.recipe.check import check_recipe
from tiercel_pipelines.recipe.check_fit import fit_checked
from tiercel_pipelines.training import train_recipe
from tiercel_pipelines.training.record import RUN_NAME, kept_problems, read_record
from tiercel_pipelines.training.trainer import Trainer

RECIPE = load_recipe("synthetic")


def load(ids: str) -> Dataset:
    """Return synthetic data, plus user columns with names and types that may trouble NVTabular or Triton."""
    data = load_dataset(Synthetic(users=40, items=30, interactions=400, ids=ids))  # type: ignore[arg-type]
    users = data.users
    more = {
        "labels": users["country"],
        "order": users["age"],
        **dict.fromkeys(("a/b", "a\0b", 300 * "l"), users["country"]),
        "status": users["country"],
        "weight": users["income"].astype("float32"),
        "empty": pd.Series([None] * len(users), dtype=object),
    }
    return dataclasses.replace(data, users=users.assign(**more))


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return load("int")


def bare(*chains: Callable[[], Any], **changes: Any) -> Recipe:
    """Return a recipe with the item id and some chains, without a ranker."""

    def features() -> Any:
        graph = ["item_id"] >> ops.Categorify() >> ops.TagAsItemID()
        for chain in chains:
            graph = graph + chain()
        return graph

    serving = replace(RECIPE.serving, history_columns=("item_id",), candidates=20, kept=20, k_max=20)
    plain = {"retrieval": TwoTower(max_epochs=1), "ranking": None, "serving": serving}
    return replace(RECIPE, features=features, **{**plain, **changes})


def user(chain: Any) -> Any:
    return chain >> ops.TagAsUserFeatures()


def combined() -> Any:
    return [["country", "joined"]] >> ops.Categorify(encode_type="combo")


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "a name that NVTabular needs": (
        lambda: user(["labels"] >> ops.Categorify()),
        r"can't fit Categorify on 'labels' \(.*; NVTabular needs the name 'labels'.*Rename",
    ),
    "another such name": (
        lambda: user(["order"] >> ops.Categorify()),
        r"'order' can't be served: Categorify on column 'order'.*; rename the column",
    ),
    "a name that is no file's": (
        lambda: user(["a/b"] >> ops.Categorify()),
        r"can't fit Categorify on 'a/b'.*can't name a file by 'a/b'.*Rename",
    ),
    "a name with a zero byte": (
        lambda: user(["country", "a\0b"] >> ops.Categorify()),
        r"can't fit Categorify on 'a\\x00b' \(.*can't name a file by 'a\\x00b'.*Rename",
    ),
    "a name longer than a file's": (
        lambda: user(["country", 300 * "l"] >> ops.Categorify()),
        r"can't fit Categorify on 'l{300}' \(.*can't name a file by 'l{300}'.*Rename",
    ),
    "buckets of unseen values": (
        lambda: user(["country"] >> ops.Categorify(num_buckets=4, max_size=9)),
        r"'country' can't be served: .*num_buckets=4.*; use num_buckets=None",
    ),
    "a bound that float32 does not hold": (
        lambda: user(["weight"] >> ops.Clip(0, 0.1)),
        r"'weight' can't be served: Clip .*float32 can't hold the high bound 0\.1.*; use 0\.1000",
    ),
    "- in a graph": (
        lambda: user((["age", "joined"] >> ops.LogOp()) - ["age"]),
        r"NVTabular can't fit .*'age', 'joined'",
    ),
    "text where numbers are wanted, behind a rename": (
        lambda: user(["country"] >> ops.Rename(name="where") >> ops.JoinGroupby(["country"], stats=["mean"])),
        r"NVTabular can't fit JoinGroupby",
    ),
    "categories of nothing": (
        lambda: user(["empty"] >> ops.Categorify()),
        r"can't fit Categorify on 'empty'.*; 'empty' holds no value at all in what is fitted: fill it in",
    ),
    "a median of nothing": (lambda: user(["empty"] >> ops.FillMedian()), r"'empty'"),
    "text that goes through a join": (
        lambda: user(["country"] >> ops.JoinExternal(pd.DataFrame({"country": ["x"]}), on="country")),
        r"'country' reaches the models as strings; put ops\.Categorify",
    ),
    "a combination over text": (
        lambda: user((["country"] >> ops.Categorify()) + combined()),
        r"'country' comes out as it went in: 'country_joined' after it.*; take the combination alone",
    ),
    "a combination over numbers": (
        lambda: user((["joined"] >> ops.Normalize()) + combined()),
        r"'joined' comes out as it went in: 'country_joined' after it.*; take the combination alone",
    ),
    "two groups that share a file": (
        lambda: user([["age_joined"], ["age", "joined"]] >> ops.Categorify()),
        r"age_joined",
    ),
}


def checked_and_fitted(recipe: Recipe, dataset: Dataset, folder: Path) -> Any:
    return fit_checked(check_recipe(recipe, dataset), dataset, dataset.interactions, folder / "workflow")


@pytest.mark.parametrize(
    "chain",
    [
        lambda: (["country"] >> ops.Categorify()) + combined()["country_joined"],
        lambda: combined() + (["country"] >> ops.Categorify()) + (["joined"] >> ops.Normalize()),
        lambda: ["country", "joined", ["country", "joined"]] >> ops.Categorify(encode_type="combo"),
    ],
)
def test_a_combination_beside_its_columns(chain: Any, dataset: Dataset, tmp_path: Path) -> None:
    """The remedies that error messages suggest for a combination beside its columns work."""
    workflow = checked_and_fitted(bare(lambda: user(chain())), dataset, tmp_path)
    made = workflow.transform(dataset.joined(dataset.interactions.head(50)))
    assert made.country.dtype.kind == "i"  # and not the text itself
    assert made.country_joined.nunique() > made.country.nunique()


def test_nothing_in_the_rows_that_are_fitted(dataset: Dataset, tmp_path: Path) -> None:
    """The table has values, but only for users without interactions."""
    users, asked = dataset.users, set(dataset.interactions.user_id)
    values = [None if user in asked else "x" for user in users.user_id]
    late = dataclasses.replace(dataset, users=users.assign(late=pd.Series(values, dtype=object)))
    with pytest.raises(RecipeError, match=r"'late' holds no value at all in what is fitted"):
        checked_and_fitted(bare(lambda: user(["late"] >> ops.Categorify())), late, tmp_path)


@pytest.mark.parametrize("case", REFUSED)
def test_a_mistake_that_only_the_fit_shows(case: str, dataset: Dataset, tmp_path: Path) -> None:
    chain, words = REFUSED[case]
    with pytest.raises(RecipeError) as caught:
        checked_and_fitted(bare(chain), dataset, tmp_path)
    assert any(re.search(words, str(problem)) for problem in caught.value.problems), str(caught.value)
    assert all(problem.remedy for problem in caught.value.problems)


def test_every_column_at_fault_is_named(dataset: Dataset, tmp_path: Path) -> None:
    chains = [REFUSED[case][0] for case in ("another such name", "buckets of unseen values")]
    with pytest.raises(RecipeError) as caught:
        fit_checked(bare(*chains), dataset, dataset.interactions, tmp_path / "workflow")
    assert len(caught.value.problems) == 2


SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "lists": (
        {"sources": (Index("two_tower", factory="IVF64,Flat"), Popular(quota=5)), "rules": ()},
        r"serving\.sources\[0\]\.factory: 'IVF64,Flat' has 64 lists for 30 items; use 'Flat'",
    ),
    "quantisers": (
        {"sources": (Index("two_tower", factory="PQ8"), Popular(quota=5)), "rules": ()},
        r"serving\.sources\[0\]\.factory: FAISS cannot build 'PQ8' over 30 items",
    ),
    "parameters": (
        {"sources": (Index("two_tower", parameters={"nprobe": 3}), Popular(quota=5))},
        r"serving\.sources\[0\]\.parameters: .*no parameter 'nprobe'",
    ),
    "a rule that JSON does not hold": (
        {"rules": (Compare("r", "price", "in", (float("nan"), 1.0)),)},
        r"serving\.rules\[0\].*'r'",
    ),
    "a rule that reads a user's column from the request": (
        {"rules": (Expression("r", "item.price > request.age"),), "reorder": ()},
        r"serving\.rules\[0\]\.expression: request\.age: 'age' is a column of the users; write user\.age",
    ),
    "a step's number that is called as what every request has": (
        {"reorder": (BoostItems(column="maker", values=("Iris",), by=PerRequest("k", 1.0, 0.0, 2.0)),)},
        r"serving\.reorder\[0\]\.by\.name: 'k' is the name of a tensor of every request.*another",
    ),
    "a step's number that is called as a feature's column": (
        {"reorder": (BoostItems(column="maker", values=("Iris",), by=PerRequest("age", 1.0, 0.0, 2.0)),)},
        r"serving\.reorder\[0\]\.by\.name: 'age' is the name of a request column already; give it another",
    ),
    "a batch that no memory holds": (
        {"max_batch_size": 2**40},
        r"serving\.max_batch_size: expected a whole number of at least 1 and at most 65536",
    ),
    "a rule whose text is none": (
        {"rules": (Compare("r", "maker", "==", "\ud800"),)},
        r"serving\.rules\[0\]\.value: .*give a number or text",
    ),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_settings_that_an_export_would_refuse(
    case: str, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes, words = SETTINGS[case]
    monkeypatch.setattr(Trainer, "fit", lambda self: pytest.fail("a model was trained"))
    plain = bare(lambda: user(["age"] >> ops.Normalize()), ranking=RECIPE.ranking)
    recipe = replace(plain, serving=replace(plain.serving, **changes))
    with pytest.raises(RecipeError) as caught:
        train_recipe(recipe, dataset, tmp_path / "run")
    assert any(re.search(words, str(problem)) for problem in caught.value.problems), str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_set_of_values_is_kept() -> None:
    plain = bare()
    rule = Compare("made", "maker", "in", {"Iris", "Juno"})
    assert not list(kept_problems(replace(plain, serving=replace(plain.serving, rules=(rule,)))))


@pytest.mark.parametrize("ids", ["int", "str"])
def test_keys_of_statistics_are_no_features(ids: str, tmp_path: Path) -> None:
    data = load(ids)
    table = pd.DataFrame({"item_id": data.items["item_id"], "shelf": range(len(data.items))})
    recipe = bare(
        lambda: ["item_id"] >> ops.JoinGroupby(["hour"], stats=["mean", "count"]) >> ops.TagAsItemFeatures(),
        lambda: ["maker"] >> ops.TargetEncoding("hour", kfold=1) >> ops.TagAsItemFeatures(),
        lambda: ["user_id"] >> ops.TargetEncoding("hour", kfold=1) >> ops.TagAsUserFeatures(),
        lambda: (["item_id"] >> ops.JoinExternal(table, on="item_id"))["shelf"] >> ops.TagAsItemFeatures(),
        lambda: ["device"] >> ops.JoinGroupby(["age"], stats=["mean"]) >> ops.AddTags([Tags.CONTEXT]),
    )
    workflow = fit_checked(check_recipe(recipe, data), data, data.interactions, tmp_path / "workflow")
    assert {"item_id_hour_mean", "TE_maker_hour", "TE_user_id_hour", "shelf", "device_age_mean"} < set(
        workflow.output_schema.column_names
    )


NUMBERS = ("age", "income", "joined", "weight")
CHAINS: dict[str, Callable[[], Any]] = {
    "log": ops.LogOp,
    "clip": lambda: ops.Clip(0, 0.1),
    "fill": lambda: ops.FillMissing(0.1),
    "normalize": ops.Normalize,
    "range": ops.NormalizeMinMax,
    "ids": ops.Categorify,
    "some ids": lambda: ops.Categorify(num_buckets=3, max_size=5),
    "rows": ops.ReduceDtypeSize,
    "count": lambda: ops.JoinGroupby([], stats=["count"]),
}


@examples(6, suppress_health_check=list(HealthCheck), database=None)
@given(name=st.sampled_from(NUMBERS), chain=st.lists(st.sampled_from(sorted(CHAINS)), min_size=1, max_size=3))
def test_any_chain_is_a_mistake_or_compiles(
    name: str, chain: list[str], dataset: Dataset, tmp_path_factory: pytest.TempPathFactory
) -> None:
    def features() -> Any:
        node: Any = [name]
        for step in chain:
            node = node >> CHAINS[step]()
        return node >> ops.Rename(postfix="_x") >> ops.TagAsUserFeatures()

    recipe = bare(features)
    try:
        recipe = check_recipe(recipe, dataset)
        folder = tmp_path_factory.mktemp("drawn") / "workflow"
        workflow = fit_checked(recipe, dataset, dataset.interactions, folder)
    except RecipeError as error:
        mistakes = [problem.problem and problem.remedy for problem in error.problems]
    else:
        mistakes = []
        packed = pack_dataset(cut_workflow(workflow), dataset, dataset.interactions, recipe.served)
        assert packed.user
    assert all(mistakes)


#: Each operator with its columns and valid parameters; the tests replace each parameter by invalid values.
OPERATORS: dict[str, tuple[Any, list[str], dict[str, Any]]] = {
    "Rename": (ops.Rename, ["age"], {"name": "x"}),
    "Rename postfix": (ops.Rename, ["age"], {"postfix": "x"}),
    "AddTags": (ops.AddTags, ["age"], {"tags": [Tags.USER]}),
    "Bucketize": (ops.Bucketize, ["age"], {"boundaries": [1, 2]}),
    "Clip": (ops.Clip, ["age"], {"min_value": 1, "max_value": 9}),
    "FillMissing": (ops.FillMissing, ["age"], {"fill_val": 1, "add_binary_cols": False}),
    "Normalize": (ops.Normalize, ["age"], {"out_dtype": "float32"}),
    "Categorify": (
        ops.Categorify,
        ["country"],
        {"freq_threshold": 1, "max_size": 9, "num_buckets": None, "vocabs": None, "name_sep": "_"},
    ),
    "JoinGroupby": (
        ops.JoinGroupby,
        ["country"],
        {"cont_cols": ["hour"], "stats": ["mean"], "name_sep": "_"},
    ),
    "TargetEncoding": (ops.TargetEncoding, ["country"], {"target": "hour", "kfold": 1, "p_smooth": 20}),
    "JoinExternal": (
        ops.JoinExternal,
        ["country"],
        {"df_ext": pd.DataFrame({"country": ["x"], "z": [1]}), "on": "country", "how": "left"},
    ),
    "Groupby": (ops.Groupby, ["hour"], {"groupby_cols": "hour", "aggs": {"hour": ["count"]}}),
    "LambdaOp": (ops.LambdaOp, ["age"], {"f": abs}),
    "Arithmetic": (own.Arithmetic, ["age"], {"operator": "+", "value": 1}),
    "Cast": (own.Cast, ["age"], {"dtype": "int64"}),
    "Compare": (own.Compare, ["age"], {"operator": "<", "value": 1}),
    "Cyclical": (own.Cyclical, ["age"], {"period": 24}),
    "DatePart": (own.DatePart, ["joined"], {"unit": "s", "zone": None}),
    "Function": (own.Function, ["age"], {"function": "sqrt"}),
    "IsIn": (own.IsIn, ["age"], {"values": [1]}),
    "TextSlice": (own.TextSlice, ["country"], {"start": 0, "stop": 1}),
    "TextSplitCount": (own.TextSplitCount, ["country"], {"separator": "a"}),
}
WRONG = (None, "x", -1, 1.5, float("nan"), True, [], [None], {}, object(), 2**70, b"x", ("a", 1))
CASES = [(title, name) for title, (_, _, right) in OPERATORS.items() for name in right]


def with_parameter(title: str, name: str, value: Any) -> Recipe:
    operator, columns, right = OPERATORS[title]
    parts = ("hour",) if operator is own.DatePart else ()
    return bare(lambda: user(columns >> operator(*parts, **{**right, name: value})))


@examples(9, suppress_health_check=list(HealthCheck), database=None)
@given(case=st.sampled_from(CASES), value=st.sampled_from(WRONG))
def test_a_parameter_of_another_type_passes_or_is_a_mistake(
    case: tuple[str, str], value: Any, dataset: Dataset
) -> None:
    problems: list[Any] = []
    try:
        check_recipe(with_parameter(*case, value), dataset)
    except RecipeError as error:
        problems = list(error.problems)
    assert all(problem.problem and problem.remedy for problem in problems)


@pytest.mark.parametrize("value", WRONG)
def test_boundaries_that_are_no_numbers(value: Any, dataset: Dataset) -> None:
    """A separate test, because comparing text with numbers raises."""
    with pytest.raises(RecipeError, match="features: "):
        check_recipe(with_parameter("Bucketize", "boundaries", [1, value, "a"]), dataset)


@examples(4, suppress_health_check=list(HealthCheck), database=None)
@given(case=st.sampled_from(CASES), value=st.sampled_from(WRONG))
def test_a_parameter_that_passes_is_fitted_or_a_mistake(
    case: tuple[str, str], value: Any, dataset: Dataset, tmp_path_factory: pytest.TempPathFactory
) -> None:
    recipe = with_parameter(*case, value)
    mistakes = [True]
    try:
        workflow = checked_and_fitted(recipe, dataset, tmp_path_factory.mktemp("drawn"))
    except RecipeError as error:
        mistakes = [bool(problem.problem and problem.remedy) for problem in error.problems]
    else:
        packed = pack_dataset(cut_workflow(workflow), dataset, dataset.interactions, recipe.served)
        assert packed.item
        assert packed.user or value == []  # a join without statistics gives the user no column
    assert all(mistakes)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (None, "Rename of 'age' gives a column the name None"),
        ("", "name ''"),
        (3, "NVTabular refuses Rename"),
    ],
)
def test_a_feature_without_a_name(name: Any, words: str, dataset: Dataset) -> None:
    recipe = bare(lambda: user(["age"] >> ops.Rename(f=lambda _: name)))
    for data in (None, dataset):
        with pytest.raises(RecipeError, match=words):
            check_recipe(recipe, data)


def test_rows_are_kept_where_the_recipe_says_so(dataset: Dataset, tmp_path: Path) -> None:
    """A graph that drops rows is refused; with ``rows="keep"`` training, export and files keep them."""

    def some() -> Any:
        rows = ["age", "income"] >> ops.Filter(lambda df: df["age"] > 30) >> ops.Dropna()
        return user(rows >> ops.FillMissing(0) >> ops.Normalize())

    def mistakes(recipe: Recipe) -> str:
        with pytest.raises(RecipeError) as caught:
            train_recipe(recipe, dataset, tmp_path / "refused")
        return str(caught.value)

    assert "choose rows='keep'" in mistakes(bare(some))
    assert "rows: expected 'keep' or None, got 'all'" in mistakes(bare(some, rows="all"))
    run = train_recipe(bare(some, rows="keep"), dataset, tmp_path / "run")
    assert read_record(tmp_path / "run" / RUN_NAME).recipe.rows == "keep"
    export_run(run, tmp_path / "release", verify=False)
    trained, served = (FeatureOrigin(of, tmp_path / of).program("user") for of in ("run", "release"))
    columns = columns_from_frame(dataset.users, served.inputs)
    for name, values in trained.run(columns, len(dataset.users)).items():
        same = served.run(columns, len(dataset.users))[name].values
        assert np.array_equal(values.values, same, equal_nan=True)
    with pytest.raises(UnsupportedOperator, match="rows='keep'"):
        FeatureOrigin("workflow", tmp_path / "run" / "workflow").program("user")
    FeatureOrigin("workflow", tmp_path / "run" / "workflow", rows="keep").program("user")


def test_untagged_features_are_tagged_in_the_saved_workflow(dataset: Dataset, tmp_path: Path) -> None:
    recipe = bare(
        lambda: ["age", "title", "hour"] >> ops.Categorify(),
        lambda: ["maker"] >> ops.JoinGroupby(["hour"], stats=["mean"]),
    )
    fit_checked(check_recipe(recipe, dataset), dataset, dataset.interactions, tmp_path / "workflow")
    assert cut_workflow(tmp_path / "workflow").outputs == {
        "item_id": "item",
        "age": "user",
        "title": "item",
        "hour": "context",
        "maker_hour_mean": "item",
    }
