"""What can be wrong with a recipe, each mistake in the recipe's own words."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from tiercel_serving.settings import RULE_OPERATORS, Rule, ServingSettings, Source

from ..data import Dataset, MovieLens100K, Parquet, Synthetic
from ..errors import Mistake
from .recipe import IMPLICIT, IndexSettings, RankingSettings, Recipe, RetrievalSettings, SplitSettings

if TYPE_CHECKING:
    from ..features.workflow import FeatureColumn

RETRIEVAL_MODELS = ("two_tower",)
RANKING_MODELS = ("dlrm",)
SOURCE_KINDS = ("index", "popular")
UNKNOWN_USERS = ("popular", "rank")

_SECTIONS: Mapping[str, type] = {
    "retrieval": RetrievalSettings,
    "ranking": RankingSettings,
    "index": IndexSettings,
    "serving": ServingSettings,
    "split": SplitSettings,
}


@dataclass(frozen=True)
class _Range:
    """What a number may be. ``whole`` asks for an integer; the ends are open where so marked."""

    low: float
    high: float = float("inf")
    whole: bool = False
    open_low: bool = False
    open_high: bool = False

    def holds(self, value: Any) -> bool:
        """Whether a value lies in the range."""
        if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
            return False
        if self.whole and not isinstance(value, int | np.integer):
            return False
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return bool(above and below)

    def __str__(self) -> str:
        what = "a whole number" if self.whole else "a number"
        words = f"{what} {'above' if self.open_low else 'of at least'} {self.low:g}"
        if self.high != float("inf"):
            words += f" and {'below' if self.open_high else 'at most'} {self.high:g}"
        return words


_COUNT = _Range(1, whole=True)
_COUNT_OR_0 = _Range(0, whole=True)
_POSITIVE = _Range(0, open_low=True)
_AT_LEAST_0 = _Range(0)
_SHARE = _Range(0, 1)
_BELOW_1 = _Range(0, 1, open_high=True)
_TRAINING = {
    "embedding_dimension": _COUNT,
    "learning_rate": _POSITIVE,
    "weight_decay": _AT_LEAST_0,
    "batch_size": _Range(2, whole=True),
    "max_epochs": _COUNT,
    "patience": _COUNT,
    "dropout": _BELOW_1,
    "history_dropout": _BELOW_1,
    "context_dropout": _SHARE,
}
_RANGES: Mapping[str, Mapping[str, _Range]] = {
    "retrieval": {
        **_TRAINING,
        "dimension": _COUNT,
        "temperature": _POSITIVE,
        "positives": _COUNT,
        "id_dropout": _BELOW_1,
    },
    "ranking": {**_TRAINING, "folds": _Range(2, whole=True), "negatives": _COUNT, "hard_negatives": _SHARE},
    "index": {"min_recall": _Range(0, 1, open_low=True)},
    "split": {
        "train": _Range(0, 1, open_low=True, open_high=True),
        "validation": _BELOW_1,
        "seed": _COUNT_OR_0,
    },
    "serving": {
        **dict.fromkeys(("candidates", "kept", "k_default", "k_max", "history_length"), _COUNT),
        **dict.fromkeys(("max_batch_size", "max_excluded", "instances", "engine_threads"), _COUNT),
        **dict.fromkeys(("queue_delay_us", "max_queue_size"), _COUNT_OR_0),
    },
}
_LAYERS = (
    ("retrieval", "user_layers"),
    ("retrieval", "item_layers"),
    ("ranking", "bottom_layers"),
    ("ranking", "top_layers"),
)

_TUPLES: tuple[tuple[str, str, Any, str], ...] = (
    ("serving", "sources", Source, "Source(…)"),
    ("serving", "rules", Rule, "Rule(…)"),
    ("serving", "history_columns", str, '"item_id"'),
    ("serving", "task_weights", (int, float), "1.0"),
)

#: Operators that need numbers, and those of them that NVTabular cannot use on lists.
_NUMERIC = frozenset({"Clip", "LogOp", "Normalize", "NormalizeMinMax", "Bucketize", "FillMedian"})
_SCALAR_ONLY = frozenset({"Clip", "Bucketize", "FillMissing", "FillMedian", "NormalizeMinMax"})


def find_mistakes(recipe: Recipe, dataset: Dataset | None = None) -> list[Mistake]:
    """Return every mistake of a recipe; with its data set, those about columns too."""
    mistakes = list(_check_sections(recipe)) or list(_check_tuples(recipe))
    if mistakes:
        # Nothing else can be said of a section that is something else altogether.
        return mistakes
    mistakes += _check_name(recipe)
    mistakes += _check_numbers(recipe)
    mistakes += _check_models(recipe)
    mistakes += _check_index(recipe)
    serving = list(_check_serving(recipe.serving))
    serving += _check_sources(recipe.serving)
    serving += _check_rules(recipe.serving)
    mistakes += serving
    mistakes += _check_features(recipe, dataset)
    if dataset is not None:
        mistakes += _check_data_columns(recipe, dataset)
    return mistakes


def _check_sections(recipe: Recipe) -> Iterator[Mistake]:
    dataset: object = recipe.dataset
    features: object = recipe.features
    for name, kind in _SECTIONS.items():
        value = getattr(recipe, name)
        if not isinstance(value, kind):
            yield Mistake(
                name, f"expected {kind.__name__}(…), got {value!r}", f"write {name}={kind.__name__}(…)"
            )
    if not isinstance(dataset, MovieLens100K | Synthetic | Parquet):
        remedy = "write dataset=MovieLens100K(), Synthetic(…) or Parquet(…)"
        yield Mistake("dataset", f"expected a data set, got {dataset!r}", remedy)
    if not callable(features):
        remedy = "give the function itself, without calling it: features=features"
        yield Mistake("features", f"expected a function, got {type(features).__name__}", remedy)


def _check_tuples(recipe: Recipe) -> Iterator[Mistake]:
    """Find single values where several are expected: a missing comma, most of the time."""
    for section, name, kind, example in _TUPLES:
        value = getattr(getattr(recipe, section), name)
        where = f"{section}.{name}"
        if isinstance(value, str) or not isinstance(value, tuple | list):
            problem = f"expected a tuple, got {value!r}"
            yield Mistake(where, problem, f"write {name}=({example},): a tuple of one needs its comma")
            continue
        for position, item in enumerate(value):
            if not isinstance(item, kind):
                remedy = f"write {name}=({example},)"
                yield Mistake(f"{where}[{position}]", f"expected {example}, got {item!r}", remedy)


def _check_name(recipe: Recipe) -> Iterator[Mistake]:
    if not isinstance(recipe.name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", recipe.name):
        problem = f"{recipe.name!r} cannot name a folder or a served model"
        yield Mistake("name", problem, "use letters, digits, - and _, and begin with a letter or digit")
    if isinstance(recipe.seed, bool) or not isinstance(recipe.seed, int) or recipe.seed < 0:
        yield Mistake("seed", f"expected {_COUNT_OR_0}, got {recipe.seed!r}", "give such a number")


def _check_numbers(recipe: Recipe) -> Iterator[Mistake]:
    for section, ranges in _RANGES.items():
        for name, wanted in ranges.items():
            value = getattr(getattr(recipe, section), name)
            if not wanted.holds(value):
                problem = f"expected {wanted}, got {value!r}"
                yield Mistake(f"{section}.{name}", problem, "give such a number")
    for section, name in _LAYERS:
        layers = getattr(getattr(recipe, section), name)
        if not isinstance(layers, tuple | list) or not all(_COUNT.holds(width) for width in layers):
            problem = f"expected the widths of hidden layers, got {layers!r}"
            yield Mistake(f"{section}.{name}", problem, "write a tuple such as (128, 64)")


def _check_models(recipe: Recipe) -> Iterator[Mistake]:
    for section, known in (("retrieval", RETRIEVAL_MODELS), ("ranking", RANKING_MODELS)):
        model = getattr(recipe, section).model
        if model not in known:
            yield Mistake(f"{section}.model", f"there is no model {model!r}", _choose(model, known))
    if not recipe.ranking.target:
        problem = f"the model {recipe.ranking.model!r} has no target"
        remedy = f"set target={IMPLICIT!r} (which items a user picked), or a column of the interactions"
        yield Mistake("ranking.target", problem, remedy)
    weights = recipe.serving.task_weights
    if len(weights) > 1:
        problem = f"{len(weights)} weights, but the ranking model has one task"
        yield Mistake("serving.task_weights", problem, "leave it empty")
    needed = recipe.ranking.use_history or recipe.retrieval.use_history
    if needed and not recipe.serving.history_columns:
        problem = "empty, but a model has use_history=True"
        remedy = "name the item id feature, or set use_history=False in retrieval and ranking"
        yield Mistake("serving.history_columns", problem, remedy)


def _check_index(recipe: Recipe) -> Iterator[Mistake]:
    import faiss

    dimension = recipe.retrieval.dimension
    if not _COUNT.holds(dimension):
        return
    try:
        faiss.index_factory(int(dimension), recipe.index.factory, faiss.METRIC_INNER_PRODUCT)
    except Exception as error:
        # FAISS names its own C++ function and line first, and says last what it means.
        reason = re.sub(r"(?s)^.* at \S+:\d+: ", "", str(error)).strip()
        problem = f"FAISS makes no index of {recipe.index.factory!r} with {dimension} dimensions ({reason})"
        yield Mistake(
            "index.factory", problem, "use Flat, IVF<lists>,Flat, HNSW<links> or another FAISS factory"
        )


def _check_serving(serving: ServingSettings) -> Iterator[Mistake]:
    limits = ("candidates", "kept", "k_max", "k_default")
    if not all(_COUNT.holds(getattr(serving, name)) for name in limits):
        return
    meaning = {
        "kept": "more than are retrieved",
        "k_max": "more than the candidates that are ranked",
        "k_default": "more than a request may ask for",
    }
    for upper, lower in pairwise(limits):
        top, value = getattr(serving, upper), getattr(serving, lower)
        if value > top:
            problem = f"{value} is {meaning[lower]} (serving.{upper} is {top})"
            yield Mistake(f"serving.{lower}", problem, f"lower it to at most {top}, or raise serving.{upper}")
    counts = _COUNT.holds(serving.history_length) and _COUNT.holds(serving.max_excluded)
    if counts and serving.max_excluded < serving.history_length:
        problem = f"{serving.max_excluded} is below serving.history_length ({serving.history_length})"
        yield Mistake("serving.max_excluded", problem, "raise it: a request's history counts against it")
    if serving.unknown_users not in UNKNOWN_USERS:
        problem = f"there is no way {serving.unknown_users!r} to serve unknown users"
        yield Mistake("serving.unknown_users", problem, _choose(serving.unknown_users, UNKNOWN_USERS))


def _check_sources(serving: ServingSettings) -> Iterator[Mistake]:
    where = "serving.sources"
    kinds = Counter(source.kind for source in serving.sources)
    for position, source in enumerate(serving.sources):
        if source.kind not in SOURCE_KINDS:
            problem = f"there is no kind of source {source.kind!r}"
            yield Mistake(f"{where}[{position}].kind", problem, _choose(source.kind, SOURCE_KINDS))
        if source.quota is not None and not _COUNT_OR_0.holds(source.quota):
            problem = f"expected {_COUNT_OR_0} or None, got {source.quota!r}"
            yield Mistake(f"{where}[{position}].quota", problem, "give such a number")
    for kind in SOURCE_KINDS:
        if kinds[kind] != 1:
            problem = f"expected exactly one source of kind {kind!r}, found {kinds[kind]}"
            remedy = (
                "its quota may be 0"
                if kind == "popular"
                else "the two-tower model's vectors are searched there"
            )
            yield Mistake(where, problem, remedy)
    for name, count in Counter(source.name for source in serving.sources).items():
        if count > 1:
            yield Mistake(where, f"{count} sources are called {name!r}", "give each its own name")
    yield from _check_quotas(serving)


def _check_quotas(serving: ServingSettings) -> Iterator[Mistake]:
    quotas = [source.quota for source in serving.sources]
    if quotas.count(None) > 1:
        remedy = "give all but one a number; None is what the others leave"
        yield Mistake("serving.sources", "more than one source has no quota", remedy)
    total = sum(quota for quota in quotas if isinstance(quota, int))
    if _COUNT.holds(serving.candidates) and total > serving.candidates:
        problem = f"the quotas add up to {total}, more than serving.candidates ({serving.candidates})"
        yield Mistake("serving.sources", problem, "lower a quota or raise serving.candidates")


def _check_rules(serving: ServingSettings) -> Iterator[Mistake]:
    for position, rule in enumerate(serving.rules):
        where = f"serving.rules[{position}]"
        if rule.operator not in RULE_OPERATORS:
            problem = f"the rule {rule.name!r} has no known operator: {rule.operator!r}"
            yield Mistake(f"{where}.operator", problem, _choose(rule.operator, RULE_OPERATORS))
        elif rule.operator in ("in", "not in") and not isinstance(rule.value, list | tuple | set | frozenset):
            problem = f"the rule {rule.name!r} compares by {rule.operator!r} with {rule.value!r}"
            yield Mistake(f"{where}.value", problem, "give a tuple of values")
    for name, count in Counter(rule.name for rule in serving.rules).items():
        if count > 1:
            problem = f"{count} rules are called {name!r}"
            yield Mistake(
                "serving.rules", problem, "give each its own name: --explain tells them apart by it"
            )


def _check_features(recipe: Recipe, dataset: Dataset | None) -> Iterator[Mistake]:
    from ..features import workflow as features

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = recipe.features()
    except Exception as error:
        problem = f"the function failed with {type(error).__name__}: {error}"
        yield Mistake("features", problem, "correct the graph; docs/recipes.md shows how chains are written")
        return
    if not features.is_graph(graph):
        problem = f"the function returned {type(graph).__name__}, not an NVTabular graph"
        yield Mistake("features", problem, "return chains such as ['age'] >> ops.Normalize(), joined by +")
        return
    roots = features.root_columns(graph)
    if dataset is not None:
        unknown = list(_unknown_columns(roots, dataset))
        yield from unknown
        if unknown:
            return
    schema = _schema(roots, dataset)
    try:
        columns, doubled = features.describe_graph(graph, schema)
    except Exception as error:
        yield Mistake("features", f"NVTabular refuses the graph: {error}", "correct the graph")
        return
    for name in doubled:
        problem = f"two features are called {name!r}, and NVTabular would silently keep one"
        yield Mistake("features", problem, "rename one with ops.Rename(postfix=…)")
    yield from _check_tags(columns)
    yield from _check_history(recipe, columns)
    yield from _check_operators(columns)
    if dataset is not None:
        yield from _check_origins(recipe, columns, dataset)


def _schema(names: Iterable[str], dataset: Dataset | None) -> Any:
    from ..features.workflow import blank_schema, table_schema

    if dataset is None:
        return blank_schema(names)
    # A column has one type in all its rows, so that a few are enough.
    return table_schema(dataset.joined(dataset.interactions.head(100)))


def _unknown_columns(names: Iterable[str], dataset: Dataset) -> Iterator[Mistake]:
    known = [*dataset.users.columns, *dataset.items.columns, *dataset.context_columns]
    if dataset.timestamp is not None:
        known.append(dataset.timestamp)
    for name in names:
        if name not in known:
            problem = f"the data set {dataset.name} has no column {name!r}"
            yield Mistake("features", problem, _choose(name, known))


def _check_tags(columns: Iterable[FeatureColumn]) -> Iterator[Mistake]:
    item_ids = 0
    for column in columns:
        if len(column.parts) != 1:
            found = " and ".join(part.upper() for part in column.parts) or "none of them"
            problem = f"{column.name!r} needs exactly one of the tags USER, ITEM and CONTEXT, and has {found}"
            remedy = "end its chain with TagAsUserFeatures(), TagAsItemFeatures() or AddTags([Tags.CONTEXT])"
            yield Mistake("features", problem, remedy)
        if column.is_id and column.parts == ("item",):
            item_ids += 1
            steps = [step.operator for step in column.operators]
            if steps[-1:] != ["Categorify"] or column.is_list:
                problem = f"the item id {column.name!r} is not categorical"
                remedy = "write ['item_id'] >> ops.Categorify() >> ops.TagAsItemID()"
                yield Mistake("features", problem, remedy)
    if item_ids != 1:
        problem = f"expected exactly one feature tagged ITEM_ID, found {item_ids}"
        remedy = "write ['item_id'] >> ops.Categorify() >> ops.TagAsItemID(), once"
        yield Mistake("features", problem, remedy)


def _check_history(recipe: Recipe, columns: Iterable[FeatureColumn]) -> Iterator[Mistake]:
    by_name = {column.name: column for column in columns}
    usable = [
        column.name
        for column in by_name.values()
        if column.parts == ("item",) and column.kind == "cat" and not column.is_list
    ]
    for position, name in enumerate(recipe.serving.history_columns):
        where = f"serving.history_columns[{position}]"
        column = by_name.get(name)
        if column is None:
            yield Mistake(where, f"there is no feature {name!r}", _choose(name, usable))
        elif name not in usable:
            kind = "a list" if column.is_list else "a number" if column.kind == "num" else "no item feature"
            problem = f"{name!r} is {kind}; a history is made of categorical item features"
            yield Mistake(where, problem, _choose(name, usable))


def _check_operators(columns: Iterable[FeatureColumn]) -> Iterator[Mistake]:
    """Find operators that cannot be served, and boundaries that do not rise."""
    from ..features.workflow import why_unsupported

    for column in columns:
        for step in column.operators:
            refusal = why_unsupported(step.op)
            if refusal is not None:
                problem = f"{column.name!r} uses {step.operator}, which Tiercel cannot serve: {refusal[0]}"
                yield Mistake("features", problem, refusal[1])
            if step.operator == "Bucketize":
                boundaries = list(step.op.boundaries(step.column))
                if boundaries != sorted(set(boundaries)):
                    problem = f"the boundaries of {column.name!r} do not rise: {boundaries}"
                    yield Mistake("features", problem, "sort them and drop repeated ones")


def _check_origins(recipe: Recipe, columns: Iterable[FeatureColumn], dataset: Dataset) -> Iterator[Mistake]:
    tables = {"user": dataset.users, "item": dataset.items}
    for column in columns:
        for name in column.inputs:
            home = next((part for part, table in tables.items() if name in table.columns), "context")
            if len(column.parts) == 1 and home != column.part:
                wrong = column.part.upper()
                problem = f"{column.name!r} is tagged {wrong}, but its column {name!r} is in {_TABLES[home]}"
                yield Mistake("features", problem, f"tag it {home.upper()}")
            if home == "context" and name == recipe.ranking.target:
                problem = f"{column.name!r} shows the models their target {name!r}"
                yield Mistake("features", problem, "take it out: it is not known when a request comes")
            values = tables.get(home, dataset.interactions)[name]
            yield from _check_types(column, name, values)
        if column.is_id and column.parts == ("item",) and column.inputs != (dataset.item_id,):
            problem = f"the item id is made of {', '.join(column.inputs)}, not of {dataset.item_id!r}"
            yield Mistake(
                "features", problem, f"tag the feature of {dataset.item_id!r} as the item id, and only that"
            )


_TABLES = {"user": "users", "item": "items", "context": "interactions"}


def _check_types(column: FeatureColumn, name: str, values: Any) -> Iterator[Mistake]:
    kind = _kind(values)
    for step in column.operators:
        if step.operator == "Categorify":
            return  # from here on these are ids
        if step.operator in _NUMERIC and kind in ("strings", "lists of strings"):
            problem = f"{column.name!r}: {step.operator} needs numbers, but {name!r} holds {kind}"
            yield Mistake("features", problem, "use ops.Categorify() for strings")
        elif step.operator in _SCALAR_ONLY and kind.startswith("lists"):
            problem = f"{column.name!r}: {step.operator} does not work on lists, which {name!r} holds"
            yield Mistake("features", problem, "use Categorify, LogOp or Normalize for lists")
    if kind.endswith("strings"):
        problem = f"{column.name!r} reaches the models as {kind}"
        yield Mistake("features", problem, "put ops.Categorify() into its chain")


def _kind(values: Any) -> str:
    if values.dtype != object:
        return "numbers"
    first = next((value for value in values if value is not None), None)
    if isinstance(first, list):
        element = next((value for row in values for value in row if value is not None), None)
        return "lists of strings" if isinstance(element, str) else "lists of numbers"
    return "strings"


def _check_data_columns(recipe: Recipe, dataset: Dataset) -> Iterator[Mistake]:
    items = dataset.items
    for position, rule in enumerate(recipe.serving.rules):
        where = f"serving.rules[{position}]"
        if rule.column not in items.columns:
            problem = f"the rule {rule.name!r}: the items have no column {rule.column!r}"
            yield Mistake(f"{where}.column", problem, _choose(rule.column, items.columns))
            continue
        yield from _check_rule_value(where, rule, _kind(items[rule.column]))
    title = recipe.serving.title_column
    if title is not None and title not in items.columns:
        problem = f"the items have no column {title!r}"
        yield Mistake("serving.title_column", problem, _choose(title, items.columns))
    elif title is not None and _kind(items[title]) != "strings":
        problem = f"{title!r} holds {_kind(items[title])}, not strings"
        yield Mistake("serving.title_column", problem, "name a column that people can read, or None")
    target = recipe.ranking.target
    if target and target != IMPLICIT:
        yield from _check_target(target, dataset)


def _check_rule_value(where: str, rule: Any, kind: str) -> Iterator[Mistake]:
    if kind.startswith("lists"):
        problem = f"the rule {rule.name!r} compares {rule.column!r}, which holds {kind}"
        yield Mistake(f"{where}.column", problem, "use a column with one value an item")
        return
    several = isinstance(rule.value, list | tuple | set | frozenset)
    values = rule.value if several else (rule.value,)
    wanted = str if kind == "strings" else (int, float, np.integer, np.floating)
    wrong = [value for value in values if not isinstance(value, wanted)]
    if wrong:
        problem = f"the rule {rule.name!r} compares {rule.column!r}, which holds {kind}, with {wrong[0]!r}"
        yield Mistake(f"{where}.value", problem, "give a value of the column's type")


def _check_target(target: str, dataset: Dataset) -> Iterator[Mistake]:
    if target not in dataset.context_columns:
        problem = f"the interactions have no column {target!r}"
        yield Mistake("ranking.target", problem, _choose(target, [IMPLICIT, *dataset.context_columns]))
        return
    values = dataset.interactions[target]
    if values.dtype == object or not values.between(0, 1).all():
        problem = f"{target!r} is not everywhere a number between 0 and 1"
        yield Mistake("ranking.target", problem, f"prepare such a column, or use {IMPLICIT!r}")


def _choose(came: Any, known: Iterable[str]) -> str:
    names = list(dict.fromkeys(known))
    close = get_close_matches(str(came), names, n=1)
    if close:
        return f"did you mean {close[0]!r}?" if len(names) > 8 else f"use {', '.join(map(repr, names))}"
    return f"use {', '.join(map(repr, names))}" if names else "there is none to choose from"
