"""Every mistake of a recipe is reported in the recipe's own terms, and all of them at once."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tiercel_export.operators import Cast, TextLength, TextSlice, TextSplitCount
from tiercel_pipelines.data import Dataset, Synthetic, load_dataset
from tiercel_pipelines.errors import RecipeError
from tiercel_pipelines.recipe import (
    BST,
    DIN,
    DLRM,
    EASE,
    Compare,
    Index,
    ListwiseSoftmax,
    Popular,
    Recipe,
    SampledSoftmax,
    ServingSettings,
    SplitSettings,
    TwoTower,
    WeightedSum,
    WideAndDeep,
    load_recipe,
    replace,
)
from tiercel_pipelines.recipe.check import check_recipe
from tiercel_pipelines.recipe.check_data import data_problems
from tiercel_pipelines.recipe.check_fit import fit_checked

RECIPE = load_recipe("synthetic")

from merlin.dag.ops.subgraph import Subgraph  # noqa: E402
from merlin.schema import Tags  # noqa: E402  (NVTabular's warnings are silenced by the first import)
from nvtabular import ops  # noqa: E402


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return load_dataset(Synthetic(users=60, items=50, interactions=900))


def found(recipe: Recipe, dataset: Dataset | None = None) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        check_recipe(recipe, dataset)
    message = str(caught.value)
    assert "Traceback" not in message
    for problem in caught.value.problems:
        assert problem.problem
        assert problem.remedy
        assert str(problem) in message
    return [str(problem) for problem in caught.value.problems]


def serving(**changes: Any) -> Recipe:
    return replace(RECIPE, serving=replace(RECIPE.serving, **changes))


def with_features(*chains: Callable[[], Any]) -> Recipe:
    """Return the synthetic recipe with more chains in its graph."""

    def features() -> Any:
        graph = RECIPE.features()
        for chain in chains:
            graph = graph + chain()
        return graph

    return replace(RECIPE, features=features)


def only(node: Callable[[], Any]) -> Recipe:
    recipe = replace(RECIPE, features=node)
    return replace(recipe, serving=replace(recipe.serving, history_columns=("item_id",)))


def item_id() -> Any:
    return ["item_id"] >> ops.Categorify() >> ops.TagAsItemID()


def user_tag() -> Any:
    return ops.TagAsUserFeatures()


@pytest.mark.parametrize("ids", ["int", "str"])
def test_a_right_recipe_has_no_mistakes(ids: str) -> None:
    data = load_dataset(Synthetic(users=60, items=50, interactions=900, ids=ids))  # type: ignore[arg-type]
    assert check_recipe(RECIPE, data) is RECIPE


def test_the_defaults_are_right_but_for_the_history() -> None:
    recipe = replace(RECIPE, serving=ServingSettings())
    assert found(recipe) == [
        "serving.history_columns: empty, but ranking needs it (DLRM); "
        "name the item id feature, or set use_history=False"
    ]
    assert recipe.served.sources == (Index("two_tower"), Popular(quota=0))
    bare = replace(recipe, retrieval=TwoTower(use_history=False), ranking=None)
    assert check_recipe(bare) is bare


SETTINGS = [
    (
        lambda: serving(rules=Compare("r", "price", ">", 1)),
        r"serving\.rules: expected a tuple.* needs its comma",
    ),
    (
        lambda: serving(history_columns="item_id"),
        r"serving\.history_columns: expected a tuple of texts, got 'item_id'",
    ),
    (lambda: serving(sources=("index",)), r"serving\.sources\[0\]: expected Popular\(.*, got 'index'"),
    (lambda: replace(RECIPE, name="my recipe"), r"name: 'my recipe' cannot name a folder"),
    (lambda: replace(RECIPE, name=""), r"name: '' cannot name"),
    (
        lambda: replace(RECIPE, seed=-1),
        r"seed: expected a whole number of at least 0 and at most 4294967295, got -1",
    ),
    (
        lambda: replace(RECIPE, retrieval={"dimension": 8}),
        r"retrieval: expected a retrieval family, got \{'dimension': 8\}; write TwoTower\(…\)",
    ),
    (
        lambda: replace(RECIPE, retrieval=(TwoTower(), DLRM())),
        r"retrieval\[1\]: expected a retrieval family, got DLRM\(",
    ),
    (lambda: replace(RECIPE, retrieval=()), r"retrieval: there is no model"),
    (lambda: replace(RECIPE, ranking="dlrm"), r"ranking: expected a ranking family, got 'dlrm'; write DLRM"),
    (
        lambda: replace(RECIPE, retrieval=TwoTower(task=ListwiseSoftmax())),
        r"retrieval\.task: expected a retrieval task, got ListwiseSoftmax\(.*; write SampledSoftmax\(…\)",
    ),
    (
        lambda: replace(RECIPE, retrieval=TwoTower(task="bpr")),
        r"retrieval\.task: expected a retrieval task, got 'bpr'",
    ),
    (lambda: replace(RECIPE, retrieval=TwoTower(name=[])), r"retrieval\.name: expected text, got \[\]"),
    (lambda: replace(RECIPE, ranking=DLRM(task=0)), r"ranking\.task: expected a ranking task, got 0"),
    (lambda: serving(store="redis"), r"serving\.store: expected a store, got 'redis'"),
    (lambda: replace(RECIPE, split=0.8), r"split: expected SplitSettings\(…\), got 0\.8"),
    (
        lambda: replace(RECIPE, dataset="ml-100k"),
        r"dataset: expected a data set, got 'ml-100k'; write MovieLens100K\(…\)$",
    ),
    (lambda: replace(RECIPE, features=3), r"features: expected a function, got int"),
    (
        lambda: serving(kept=101),
        r"serving\.kept: 101 is more than are retrieved \(candidates is 100\)",
    ),
    (lambda: serving(k_max=51), r"serving\.k_max: 51 is more than the candidates that are ranked"),
    (lambda: serving(k_default=51), r"serving\.k_default: 51 is more than a request may ask for"),
    (lambda: serving(candidates="many"), r"serving\.candidates: expected a whole number.*'many'"),
    (lambda: serving(k_default=0), r"serving\.k_default: expected a whole number of at least 1 .*, got 0"),
    # Otherwise found only after training, when no memory can hold that many for a batch.
    (lambda: serving(candidates=10**9), r"serving\.candidates: .* and at most 1000000, got 1000000000"),
    (lambda: serving(max_batch_size=2.5), r"serving\.max_batch_size: expected a whole number"),
    (lambda: serving(max_excluded=5), r"serving\.max_excluded: 5 is below history_length \(20\)"),
    (lambda: serving(unknown_users="guess"), r"serving\.unknown_users: .*'guess'.*'fallback', 'rank'"),
    (
        lambda: serving(reorder=(WeightedSum((1.0, 2.0)),)),
        r"serving\.reorder\[0\]\.weights: 2 weights, but the ranking model has 1 task",
    ),
    (
        lambda: replace(serving(reorder=(WeightedSum((1.0,)),)), ranking=None),
        r"serving\.reorder\[0\]\.weights: 1 weights, but the ranking model has no tasks",
    ),
    (
        lambda: serving(history_columns=("item",)),
        r"serving\.history_columns\[0\]: there is no feature 'item'",
    ),
    (lambda: serving(history_columns=("price",)), r"history_columns\[0\]: 'price' is a number"),
    (lambda: serving(history_columns=("country",)), r"columns\[0\]: 'country' is not an item feature"),
    (
        lambda: serving(sources=(Index("two_tower"),)),
        r"serving\.sources: no source serves users of whom nothing is known",
    ),
    (
        lambda: serving(sources=(Popular(),)),
        r"retrieval: no source is called 'two_tower', so the model would give nothing",
    ),
    (
        lambda: serving(sources=(Index("tow_tower"), Popular(quota=0))),
        r"serving\.sources\[0\]\.name: no retrieval model is called 'tow_tower'.*; use 'two_tower'",
    ),
    (
        lambda: serving(sources=(Index("two_tower"), Popular("two_tower", quota=0))),
        r"sources: 2 sources are called 'two_tower'",
    ),
    (
        lambda: serving(sources=(Index("two_tower"), Popular())),
        r"sources: more than one source has no quota",
    ),
    (
        lambda: serving(sources=(Index("two_tower", quota=90), Popular(quota=11))),
        r"sources: the quotas add up to 101, more than candidates \(100\)",
    ),
    (
        lambda: serving(sources=(Index("two_tower", quota=-1), Popular(quota=0))),
        r"sources\[0\]\.quota: expected a whole number.*-1",
    ),
    (
        lambda: serving(sources=(Index("two_tower", quota=0), Popular())),
        r"sources\[0\]\.quota: the source 'two_tower' has a quota of 0, so it would give nothing",
    ),
    (
        lambda: replace(RECIPE, retrieval=(TwoTower(), TwoTower(dimension=8))),
        r"retrieval: 2 models are called 'two_tower'; give each its own name",
    ),
    (
        lambda: replace(RECIPE, retrieval=(TwoTower(), TwoTower("second"))),
        r"retrieval\[1\]: no source is called 'second'",
    ),
    (
        lambda: replace(serving(sources=()), retrieval=(TwoTower(), TwoTower("second"))),
        r"serving\.sources: more than one source has no quota; give all but one a number",
    ),
    (
        lambda: serving(rules=(Compare("r", "price", "=", 1),)),
        r"rules\[0\]\.operator: .* no known operator: '='",
    ),
    (lambda: serving(rules=(Compare("r", "maker", "in", "Iris"),)), r"rules\[0\]\.value: .*; give a tuple"),
    (lambda: serving(rules=(Compare("r", "price", ">", 1),) * 2), r"rules: 2 rules are called 'r'"),
    (
        lambda: replace(RECIPE, ranking=DLRM(task=ListwiseSoftmax(target=""))),
        r"ranking\.task\.target: expected a target, got ''; set target='interaction'",
    ),
    (
        lambda: replace(RECIPE, ranking=DLRM(task=ListwiseSoftmax(folds=1))),
        r"ranking\.task\.folds: expected a whole number of at least 2, got 1",
    ),
    (
        lambda: replace(RECIPE, retrieval=TwoTower(task=SampledSoftmax(temperature=0))),
        r"retrieval\.task\.temperature: expected a number above 0, got 0",
    ),
    (
        lambda: replace(RECIPE, retrieval=TwoTower(user_layers=128)),
        r"retrieval\.user_layers: expected a tuple of whole numbers, got 128; .* needs its comma",
    ),
    (
        lambda: replace(RECIPE, ranking=DLRM(dropout=1.0)),
        r"ranking\.dropout: expected a number of at least 0 and below 1, got 1\.0",
    ),
    (
        lambda: replace(RECIPE, split=SplitSettings(train=1.0)),
        r"split\.train: expected a number above 0 and below 1",
    ),
    (
        lambda: serving(sources=(Index("two_tower", factory="IVFx"), Popular(quota=0))),
        r"serving\.sources\[0\]\.factory: FAISS makes no index of 'IVFx' with 32 dimensions \(could not",
    ),
    (
        lambda: serving(sources=(Index("two_tower", min_recall=0), Popular(quota=0))),
        r"serving\.sources\[0\]\.min_recall: expected a number above 0 and at most 1",
    ),
]


@pytest.mark.parametrize(("make", "pattern"), SETTINGS, ids=[pattern for _, pattern in SETTINGS])
def test_a_mistake_in_the_settings(make: Callable[[], Recipe], pattern: str) -> None:
    mistakes = found(make())
    assert any(re.search(pattern, mistake) for mistake in mistakes), mistakes


FEATURES = [
    (
        only(lambda: ["item_id"] >> ops.Categorify() >> ops.TagAsItemFeatures()),
        r"one feature tagged ITEM_ID, found 0",
    ),
    (
        with_features(lambda: ["title"] >> ops.Categorify() >> ops.TagAsItemID()),
        r"exactly one feature tagged ITEM_ID, found 2",
    ),
    (
        only(lambda: ["item_id"] >> ops.Normalize() >> ops.TagAsItemID()),
        r"the item id 'item_id' is not categorical",
    ),
    (
        with_features(lambda: ["title"] >> ops.Categorify()),
        r"'title' needs exactly one of the tags USER, ITEM and CONTEXT, and has none of them",
    ),
    (
        with_features(lambda: ["title"] >> ops.Categorify() >> ops.AddTags([Tags.USER, Tags.ITEM])),
        r"'title' needs exactly one .* and has USER and ITEM",
    ),
    (
        with_features(
            lambda: ["age"] >> ops.Normalize() >> ops.TagAsUserFeatures(), lambda: ["age"] >> ops.LogOp()
        ),
        r"two features are called 'age'.*ops\.Rename",
    ),
    (replace(RECIPE, features=lambda: ["age"]), r"the function returned list, not an NVTabular graph"),
    (replace(RECIPE, features=lambda: 1 / 0), r"the function failed with ZeroDivisionError"),
    (
        with_features(
            lambda: ["age"] >> ops.Bucketize([5, 3]) >> ops.Rename(postfix="_b") >> ops.TagAsUserFeatures()
        ),
        r"the boundaries of 'age_b' do not rise: \[5, 3\]",
    ),
    (
        with_features(
            lambda: ["age"] >> ops.HashBucket(10) >> ops.Rename(postfix="_b") >> ops.TagAsUserFeatures()
        ),
        r"'age_b' uses HashBucket, which Tiercel cannot serve: .*; use Categorify",
    ),
    (
        with_features(
            lambda: ["age"] >> ops.LambdaOp(lambda age: age.isna()) >> ops.Rename(postfix="_b") >> user_tag()
        ),
        r"'age_b' uses LambdaOp, .*; write it with tiercel_export\.operators, .* IsNull\(\)",
    ),
    (
        with_features(lambda: ["country"] >> ops.JoinGroupby(["age"], stats=["min", "max"]) >> user_tag()),
        r"'country_age_max': NVTabular can't fit JoinGroupby for minima and maxima alone; add 'count'",
    ),
    (
        with_features(lambda: ["age"] >> ops.Bucketize({"aeg": [3]})),
        r"features: Bucketize has no boundaries for 'age'; add them to its dict",
    ),
    (
        with_features(lambda: ["age"] >> ops.DropLowCardinality()),
        r"NVTabular refuses DropLowCardinality \(.*; put ops\.Categorify\(\) or ops\.Bucketize\(\) before it",
    ),
]


@pytest.mark.parametrize(("recipe", "pattern"), FEATURES, ids=[pattern for _, pattern in FEATURES])
def test_a_mistake_in_the_graph(recipe: Recipe, pattern: str) -> None:
    mistakes = found(recipe)
    assert any(re.search(pattern, mistake) for mistake in mistakes), mistakes


def test_what_a_selection_gives_may_be_nothing(dataset: Dataset, tmp_path: Path) -> None:
    def all_of_one_table() -> Any:
        rest = (["age"] >> ops.Normalize()) - ["age"]
        return RECIPE.features() + [] + rest + (rest >> ops.LogOp())

    recipe = check_recipe(replace(RECIPE, features=all_of_one_table), dataset)
    assert fit_checked(recipe, dataset, dataset.interactions, tmp_path).output_node is not None


NOTHING = {
    **{
        name: lambda op=op: [] >> op()
        for name, op in {
            "Categorify": ops.Categorify,
            "FillMissing": ops.FillMissing,
            "LambdaOp": lambda: ops.LambdaOp(lambda column: column),
            "Rename": lambda: ops.Rename(postfix="_x"),
            "TagAsUserFeatures": ops.TagAsUserFeatures,
            "TargetEncoding": lambda: ops.TargetEncoding("hour"),
            "TextLength": TextLength,
        }.items()
    },
    "a group": lambda: [["age"], []] >> ops.Categorify(),
    "only a group": lambda: [[]] >> ops.Categorify(encode_type="combo"),
    "before others": lambda: () >> ops.FillMissing() >> ops.Normalize(),
    "None": lambda: [None] >> ops.Normalize(),
    "statistics": lambda: ["country"] >> ops.JoinGroupby(cont_cols=[]),
    "inside a subgraph": lambda: ["age"] >> ops.Normalize() >> Subgraph("s", [] >> ops.LogOp()),
}


@pytest.mark.parametrize("case", NOTHING)
def test_an_operator_of_no_column(case: str, dataset: Dataset) -> None:
    named = case if hasattr(ops, case) or case == "TextLength" else r"\w+"
    pattern = rf"features: {named} is given an empty list of columns, .*; name a column there"
    assert re.search(pattern, "\n".join(found(with_features(NOTHING[case]), dataset)))


COLUMNS = [
    (serving(history_columns=("genres",)), r"history_columns\[0\]: 'genres' is a list"),
    (
        with_features(lambda: ["agee"] >> ops.Normalize() >> ops.TagAsUserFeatures()),
        r"features: the data set synthetic has no column 'agee'; did you mean 'age'\?",
    ),
    (
        with_features(lambda: ["title"] >> ops.Categorify() >> ops.TagAsUserFeatures()),
        r"'title' is tagged USER, but its column 'title' is in items; tag it ITEM",
    ),
    (
        with_features(lambda: ["timestamp"] >> ops.Normalize() >> ops.TagAsItemFeatures()),
        r"'timestamp' is tagged ITEM, but its column 'timestamp' is in interactions; tag it CONTEXT",
    ),
    (
        with_features(lambda: ["title"] >> ops.Normalize() >> ops.TagAsItemFeatures()),
        r"'title': Normalize needs numbers, but 'title' holds strings; use ops\.Categorify",
    ),
    (
        with_features(lambda: ["title"] >> ops.FillMissing("") >> ops.TagAsItemFeatures()),
        r"'title' reaches the models as strings; put ops\.Categorify",
    ),
    (
        with_features(
            lambda: ["topics"] >> ops.Clip(0, 1) >> ops.Rename(postfix="_c") >> ops.TagAsItemFeatures()
        ),
        r"'topics_c': Clip does not work on lists, which 'topics' holds",
    ),
    (
        with_features(lambda: ["maker"] >> ops.Categorify() >> ops.ValueCount() >> ops.Rename(postfix="_n")),
        r"'maker_n': ValueCount is for lists, but 'maker' holds strings",
    ),
    (
        with_features(lambda: ["price"] >> ops.ListSlice(2) >> ops.Rename(postfix="_n")),
        r"'price_n': ListSlice is for lists, but 'price' holds numbers",
    ),
    (
        only(lambda: item_id() + (["maker"] >> ops.Categorify() >> ops.TagAsItemID())),
        r"the item id is made of maker, not of 'item_id'",
    ),
    (
        serving(title_column="titel"),
        r"serving\.title_column: the items have no column 'titel'; did you mean 'title'",
    ),
    (
        replace(serving(sources=()), retrieval=EASE(most_items=10)),
        r"retrieval\.most_items: EASE takes a dense matrix of .* and 10 are the most; raise it",
    ),
    (serving(title_column="price"), r"serving\.title_column: 'price' holds numbers, not strings"),
    (
        serving(rules=(Compare("cheap", "prize", "<", 5),)),
        r"serving\.rules\[0\]\.column: the items have no column 'prize'",
    ),
    (
        serving(rules=(Compare("cheap", "genres", "==", "drama"),)),
        r"rules\[0\]\.operator: the rule 'cheap' compares 'genres', which holds lists of strings",
    ),
    (
        serving(rules=(Compare("cheap", "price", "<", "5"),)),
        r"rules\[0\]\.value: the rule 'cheap' compares 'price', which holds numbers, with '5'",
    ),
    (
        serving(rules=(Compare("made", "maker", "in", ("Iris", 3)),)),
        r"rules\[0\]\.value: the rule 'made' compares 'maker', which holds strings, with 3",
    ),
    (
        replace(RECIPE, ranking=DLRM(task=ListwiseSoftmax(target="bought"))),
        r"ranking\.task\.target: the interactions have no column 'bought'; use 'interaction', 'device'",
    ),
    (
        replace(RECIPE, ranking=DLRM(task=ListwiseSoftmax(target="hour"))),
        r"ranking\.task\.target: 'hour' is not everywhere a number between 0 and 1",
    ),
    (
        replace(RECIPE, ranking=DLRM(task=ListwiseSoftmax(target="hour"))),
        r"features: 'part_of_day' shows the models their target 'hour'",
    ),
    (
        only(lambda: item_id() + ([["country", "maker"]] >> ops.Categorify(encode_type="combo"))),
        r"'country_maker' is made of 'country', 'maker', of several tables",
    ),
    (
        only(
            lambda: (
                item_id()
                + (["device", "hour"] >> ops.Groupby(["device"], aggs={"hour": ["mean"]}))["hour_mean"]
            )
        ),
        r"'hour_mean': Groupby makes a session of several interactions, .*; give the models the history",
    ),
    (
        with_features(lambda: ["genres"] >> ops.TargetEncoding("hour", kfold=1)),
        r"TargetEncoding takes one value a row here, but 'genres' holds lists of strings; name a column",
    ),
    (
        with_features(lambda: ["genres"] >> ops.JoinGroupby(["hour"], stats=["count"])),
        r"JoinGroupby takes one value a row here, but 'genres' holds lists of strings",
    ),
    (
        with_features(lambda: [["genres", "maker"]] >> ops.Categorify(encode_type="combo")),
        r"Categorify takes one value a row here, but 'genres' holds lists of strings",
    ),
]


@pytest.mark.parametrize(("recipe", "pattern"), COLUMNS, ids=[pattern for _, pattern in COLUMNS])
def test_a_mistake_that_only_the_data_shows(recipe: Recipe, pattern: str, dataset: Dataset) -> None:
    mistakes = found(recipe, dataset)
    assert any(re.search(pattern, mistake) for mistake in mistakes), mistakes


@pytest.mark.parametrize("changes", [{"seen_again_days": 3.0}, {"sources": (Popular(half_life_days=7.0),)}])
def test_days_are_counted_in_seconds(changes: dict[str, Any], dataset: Dataset) -> None:
    recipe = serving(**changes)
    assert not any("timestamp" in str(problem) for problem in data_problems(recipe, dataset))
    times = dataset.interactions.timestamp * 1000
    late = dataclasses.replace(dataset, interactions=dataset.interactions.assign(timestamp=times))
    words = r"dataset\.timestamp: 'timestamp' goes up to \d+, which as seconds .* 9999; write it in seconds"
    assert any(re.search(words, str(problem)) for problem in data_problems(recipe, late))
    # Where only the order of times matters, any unit is accepted.
    assert not any("timestamp" in str(problem) for problem in data_problems(RECIPE, late))


def test_all_mistakes_at_once(dataset: Dataset) -> None:
    recipe = serving(
        kept=200, title_column="titel", rules=(Compare("r", "prize", "=", 1),), unknown_users="x"
    )
    mistakes = found(replace(recipe, seed=-1), dataset)
    fields = [mistake.partition(":")[0] for mistake in mistakes]
    assert fields == [
        "seed",
        "serving.kept",
        "serving.unknown_users",
        "serving.rules[0].operator",
        "serving.rules[0].column",
        "serving.title_column",
    ]


def test_untagged_features_belong_to_the_table_that_has_them(dataset: Dataset) -> None:
    recipe = with_features(
        lambda: ["title", "age", "hour"] >> ops.Categorify() >> ops.Rename(postfix="_id"),
        lambda: ["item_id"] >> ops.JoinGroupby(["age"], stats=["mean"]),
    )
    assert check_recipe(recipe, dataset) is recipe


def test_text_of_which_operators_of_ours_make_numbers(dataset: Dataset) -> None:
    recipe = with_features(
        lambda: ["title"] >> TextLength() >> ops.FillMissing(0) >> ops.Normalize(),
        lambda: ["country"] >> TextSplitCount(" ") >> ops.Rename(postfix="_words"),
        lambda: ["maker"] >> TextSlice(-2) >> Cast("int64") >> ops.FillMedian() >> ops.Rename(name="made"),
    )
    assert check_recipe(recipe, dataset) is recipe


LABELS = {
    "lambda": lambda: ops.LambdaOp(lambda price: (price > 1).astype("int")),
    "hash": lambda: ops.HashBucket(10),
    "lag": lambda: ops.DifferenceLag(["maker"], shift=1),
    "bounded": lambda: ops.HashedCross(10),
}


@pytest.mark.parametrize("operator", LABELS)
def test_what_is_learnt_and_not_served_may_be_anything(dataset: Dataset, operator: str) -> None:
    """A column tagged TARGET is no feature, however it is made, even next to a valid feature of its input."""
    recipe = only(
        lambda: (
            item_id()
            + (["year"] >> ops.LogOp() >> ops.TagAsItemFeatures())
            + (
                ["year", "maker"]
                >> LABELS[operator]()
                >> ops.Rename(postfix="_learnt")
                >> ops.AddTags([Tags.TARGET])
            )
        )
    )
    assert check_recipe(recipe, dataset) is recipe


@pytest.mark.parametrize("last", [lambda: ops.Filter(lambda df: df["price"] > 1), ops.Dropna])
@pytest.mark.parametrize("rows", ["keep", None])
def test_rows_dropped_at_the_end_are_no_mistake_of_the_columns(
    dataset: Dataset, last: Callable[[], Any], rows: str | None
) -> None:
    """Dropped rows are reported once, after the fit."""
    recipe = replace(
        only(
            lambda: (
                (
                    item_id()
                    + (["age"] >> ops.Normalize() >> user_tag())
                    + (["price"] >> ops.FillMissing(0) >> ops.TagAsItemFeatures())
                )
                >> last()
            )
        ),
        rows=rows,
    )
    assert check_recipe(recipe, dataset) is recipe


def test_untagged_features_are_named_in_one_mistake() -> None:
    mistakes = found(with_features(lambda: ["title", "age"] >> ops.Categorify()))
    assert sum("none of them" in mistake for mistake in mistakes) == 1
    assert any(
        "'title', 'age' need exactly one of the tags USER, ITEM and CONTEXT, and have none" in mistake
        for mistake in mistakes
    )


def test_data_without_negatives_is_refused(dataset: Dataset) -> None:
    """Every user had every item; with one interaction fewer, or one item more, there are negatives."""
    users, items = dataset.users["user_id"].iloc[:7], dataset.items.iloc[:12]
    every = pd.MultiIndex.from_product([users, items["item_id"]], names=["user_id", "item_id"])
    first = dataset.interactions.iloc[[0] * len(every)].drop(columns=["user_id", "item_id"])
    full = every.to_frame(index=False).join(first.reset_index(drop=True))
    small = dataclasses.replace(dataset, items=items, interactions=full)
    assert found(RECIPE, small) == [
        "dataset: each of its 7 users had each of the 12 items, so there are no negatives; "
        "give interactions of more items, or a family that learns from ratings (BiasedMF)"
    ]
    more = dataclasses.replace(small, items=dataset.items.iloc[:13])
    fewer = dataclasses.replace(small, interactions=pd.concat([full.iloc[1:], full.iloc[1:2]]))
    for other in (more, fewer):
        check_recipe(RECIPE, other)


def test_models_say_what_they_lack_of_the_data_before_anything_is_trained(dataset: Dataset) -> None:
    timeless = dataclasses.replace(
        dataset, timestamp=None, interactions=dataset.interactions.drop(columns="timestamp")
    )
    assert found(replace(RECIPE, ranking=BST()), timeless) == [
        "ranking: a BST reads histories in their order, but the interactions have no timestamp; "
        "name the data set's timestamp, or take DIN(…), which needs no order"
    ]
    late = serving(sources=(Index("two_tower"), Popular(quota=0, half_life_days=30)))
    assert found(late, timeless) == [
        "serving.sources[1] (popular): it asks when interactions were, but they have no timestamp; "
        "name the column of their time, or leave that setting out"
    ]
    crossed = WideAndDeep(crosses=(("country", "makr"),))
    [problem] = found(replace(RECIPE, ranking=crossed), dataset)
    assert "ranking.crosses[0]: no single category 'makr' of the item reaches the models" in problem
    [problem] = found(replace(RECIPE, ranking=DIN(), serving=replace(RECIPE.serving, history_columns=())))
    assert "serving.history_columns: empty, but ranking needs it (DIN); name the item id feature" in problem
    [problem] = found(replace(RECIPE, ranking="DeepFN"))
    assert problem == "ranking: expected a ranking family, got 'DeepFN'; write DeepFM(…)"
