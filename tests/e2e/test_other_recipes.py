"""Other kinds of recipes, from training to a real Triton: several retrieval families, and no ranker."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from nvtabular import ops

from brief_server import brief_server
from e2e.served import Served
from reference import Question, assert_same
from tiercel_client import Recommender
from tiercel_pipelines.data import load_dataset
from tiercel_pipelines.export.run_export import export_run
from tiercel_pipelines.recipe import (
    DLRM,
    Index,
    ListwiseSoftmax,
    Parquet,
    Popular,
    Recipe,
    SASRec,
    Synthetic,
    TwoTower,
    load_recipe,
    replace,
)
from tiercel_pipelines.training import train_recipe
from tiercel_serving.settings import STATUS_NAMES

#: Column names as people write them. Some are equal without accents, in lower case or after Unicode
#: normalisation; some have special characters of shells, paths, JSON or Triton; some name graph tensors.
ODD: Mapping[str, str] = {
    **{"user_id": "Käufer/№", "item_id": "'sku' \"id\"", "timestamp": "when ⏱", "title": "\\title\t"},
    **{"age": "größe", "income": "GRÖSSE", "country": "Größe", "interests": "grosse", "joined": "x" * 300},
    **{"genres": "a/b", "topics": "a_b", "maker": "a b", "price": "ﬁ", "minutes": "fi", "year": "e\u0301"},
    **{"released": "é", "in_stock": "status", "device": "user_num", "hour": "kept_row"},
}

#: Names of tensors in the served graph and in requests and answers; ids get other names.
TENSORS: Mapping[str, str] = {
    **{"user_id": "person", "item_id": "article", "timestamp": "allow_seen", "title": "query_two_tower"},
    **{"age": "user_id", "income": "k", "country": "status", "interests": "history_row", "joined": "now"},
    **{"genres": "item_id", "topics": "source", "maker": "count", "price": "score", "minutes": "item_num"},
    **{"year": "retrieval_score", "released": "rank_score", "in_stock": "kept_row"},
    **{"device": "user_num", "hour": "exclude_item_ids"},
}


def features_of(names: Mapping[str, str]) -> Callable[[], Any]:
    """Return the features of the synthetic recipe, on columns with these names."""

    def plain(name: str) -> Any:  # NVTabular names a file after each column of Categorify
        named = [names[name]]
        return named if names is TENSORS else named >> ops.Rename(name=name)

    def features() -> Any:
        user = plain("user_id") >> ops.Categorify() >> ops.TagAsUserID()
        item = plain("item_id") >> ops.Categorify() >> ops.TagAsItemID()
        numbers = [
            names[name] for name in ("age", "income", "joined", "price", "minutes", "year", "released")
        ]
        categories = ["country", "interests", "genres", "topics", "maker", "device"]
        hour = [names["hour"]] >> ops.Bucketize([6, 12, 18])
        graph = user + item + hour + (numbers >> ops.FillMissing(0) >> ops.Normalize())
        for name in categories:
            graph = graph + (plain(name) >> ops.Categorify())
        return graph

    return features


def renamed_dataset(names: Mapping[str, str], folder: Path) -> Parquet:
    """Return the synthetic tables with other column names."""
    data = load_dataset(Synthetic(users=100, items=120, interactions=2_500))
    for table in ("users", "items", "interactions"):
        getattr(data, table).rename(columns=names).to_parquet(folder / f"{table}.parquet")
    files = {table: str(folder / f"{table}.parquet") for table in ("users", "items", "interactions")}
    roles = {role: names[role] for role in ("user_id", "item_id", "timestamp")}
    return Parquet(**files, **roles)


def renamed(recipe: Recipe, names: Mapping[str, str], folder: Path) -> Recipe:
    rules = tuple(replace(rule, column=names[rule.column]) for rule in recipe.serving.rules)
    item_id = names["item_id"] if names is TENSORS else "item_id"
    changed = {"title_column": names["title"], "history_columns": (item_id,), "rules": rules}
    serving = replace(recipe.serving, **changed)
    data = renamed_dataset(names, folder)
    return replace(recipe, dataset=data, features=features_of(names), serving=serving)


def named_as_tensors(recipe: Recipe) -> Recipe:
    """Name a model and a source like tensors."""
    sources = (Index("retrieval_score"), Popular("status", quota=4))
    serving = replace(recipe.serving, sources=sources)
    return replace(recipe, retrieval=replace(recipe.retrieval, name="retrieval_score"), serving=serving)


def recipe_of(form: str) -> Recipe:
    recipe = load_recipe("synthetic")
    towers = TwoTower(dimension=8, embedding_dimension=8, max_epochs=1)
    changes: dict[str, Any] = {"retrieval": towers, "ranking": None}
    sources: tuple[Any, ...] = (Index("two_tower"), Popular(quota=4))
    if form == "two families":
        changes["retrieval"] = (replace(towers, use_history=False), SASRec(dimension=12, max_epochs=1))
        changes["ranking"] = DLRM(embedding_dimension=4, max_epochs=1, task=ListwiseSoftmax(folds=2))
        sources = (Index("two_tower", quota=14), Popular(quota=4), Index("sasrec"))
    serving = replace(recipe.serving, candidates=30, kept=20, k_max=20, history_length=10, sources=sources)
    data = Synthetic(users=100, items=120, interactions=2_500)
    return replace(recipe, name="other", dataset=data, serving=serving, **changes)


@pytest.fixture(scope="module", params=["two families", pytest.param("no ranker", marks=pytest.mark.slow)])
def other(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    place: Path = tmp_path_factory.mktemp("other")
    recipe = recipe_of(request.param)
    recipe = renamed(recipe, ODD if recipe.ranking is None else TENSORS, place)
    if recipe.ranking is None:
        recipe = named_as_tensors(recipe)
    dataset = load_dataset(recipe.dataset)
    run = train_recipe(recipe, dataset, place / "run")
    layout = "staged" if recipe.ranking is None else "fused"
    release = export_run(run, place / "release", layout=layout)
    with brief_server(release) as server:
        yield Served(recipe, dataset, run, release, server)


def test_the_graph_has_one_query_stage_for_each_family(other: Served) -> None:
    stages = set(other.release.stages)
    assert {f"query_{family.name}" for family in other.recipe.models} <= stages
    assert ("ranking" in stages) == (other.recipe.ranking is not None)


def test_served_equals_the_offline_reference(other: Served) -> None:
    users = [*other.run.users[other.dataset.user_id].tolist()[:60], other.unknown_user]
    questions = [Question(user) for user in users]
    with Recommender(other.server.grpc_url, timeout_s=60.0) as recommender:
        answers = recommender.recommend_many(users, k=10)
        explained = recommender.explain(users[3], k=10)
    names = ODD if other.recipe.ranking is None else TENSORS
    told = {names["age"]: 33, names["country"]: "NL", names["device"]: "phone", names["hour"]: 7}
    questions.append(Question(other.unknown_user, features=told))
    with Recommender(other.server.grpc_url, timeout_s=60.0) as recommender:
        answers = [*answers, recommender.recommend(other.unknown_user, k=10, features=told)]
    identical = []
    for expected, answer in zip(other.reference.answer(questions), answers, strict=True):
        ids, scores = [i.item_id for i in answer.items], [i.score for i in answer.items]
        identical.append(assert_same(expected, ids, scores, STATUS_NAMES.index(answer.status.value)))
    assert sum(identical) > 0.9 * len(users)
    given = [candidate.source for candidate in explained.candidates]
    for source in other.recipe.serving.sources:
        quota = source.quota or 0
        assert given.count(source.name) >= quota
