"""``docs/recipes.md`` and ``docs/models.md`` explain every field of a recipe, and their examples work."""

import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

import tiercel_pipelines.recipe as writes
from tiercel_export.lowering.table import TABLE
from tiercel_pipelines.data import Parquet
from tiercel_pipelines.families.autoencoders import AutoencoderFamily
from tiercel_pipelines.families.ranker import GradientRanker, NeuralRanker, SequenceRanker
from tiercel_pipelines.families.sequences import SequenceFamily
from tiercel_pipelines.families.table import RANKING_FAMILIES, RETRIEVAL_FAMILIES, FitsFeatures
from tiercel_pipelines.recipe.names import tables

DOCS = Path(__file__).parents[2] / "docs"
MODELS = (DOCS / "models.md").read_text(encoding="utf-8")
TEXT = (DOCS / "recipes.md").read_text(encoding="utf-8") + MODELS
#: Settings shared by many families, which are explained once.
SHARED = {
    GradientRanker: "Settings of every ranker",
    NeuralRanker: "Settings of every ranking network",
    SequenceFamily: "Settings of every sequential model",
    AutoencoderFamily: "Settings of every autoencoder",
}
#: All classes with fields that a recipe can contain.
KINDS = [name for table in tables() for name in table.class_names()]
SECTIONS = {
    f"`{name}`": kind
    for name in ("Recipe", "ServingSettings", "SplitSettings", *KINDS)
    if msgspec.structs.fields(kind := getattr(writes, name))
}
NAMESPACE = {name: getattr(writes, name) for name in dir(writes)}


def rows(section: str) -> dict[str, str]:
    """Return the fields of a section's table, each with its default's cell."""
    body = re.split(r"\n##+ ", TEXT.partition(f"## {section}\n")[2])[0]
    found: dict[str, str] = {}
    for line in body.splitlines():
        if line.startswith("| `"):
            names, default = (cell.strip() for cell in line.strip("|").split("|")[:2])
            columns = re.findall(r"`(\w+)`", names)
            defaults = re.split(r",\s+(?![^(]*\))", default)
            for position, name in enumerate(columns):
                found[name] = defaults[position] if len(defaults) == len(columns) else default
    return found


def all_rows(section: str) -> dict[str, str]:
    """Return these fields, plus those that the kind shares with others."""
    shared = [title for base, title in SHARED.items() if issubclass(SECTIONS[section], base)]
    return {name: cell for part in (*shared, section) for name, cell in rows(part).items()}


@pytest.mark.parametrize("section", SECTIONS)
def test_every_field_is_explained_and_no_other(section: str) -> None:
    assert set(all_rows(section)) == {item.name for item in msgspec.structs.fields(SECTIONS[section])}


@pytest.mark.parametrize("section", [name for name in SECTIONS if name != "`Recipe`"])
def test_the_defaults_are_the_real_ones(section: str) -> None:
    shown = all_rows(section)
    for item in msgspec.structs.fields(SECTIONS[section]):
        default: Any = item.default
        if item.default_factory is not msgspec.NODEFAULT:
            default = item.default_factory()
        cell = re.sub(r"^(\d+),(\d{3})$", r"\1\2", shown[item.name].strip("`"))
        if default is msgspec.NODEFAULT:
            assert cell == "", f"{section}.{item.name}: docs say {cell}, but it must be given"
        else:
            assert eval(cell, NAMESPACE) == default, f"{section}.{item.name}: not {cell}, {default!r}"


@pytest.mark.parametrize("table", [RETRIEVAL_FAMILIES, RANKING_FAMILIES], ids=lambda table: table.what)
def test_the_table_of_models_is_that_of_the_families(table: Any) -> None:
    title = "## Retrieval\n" if table is RETRIEVAL_FAMILIES else "## Ranking\n"
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in re.split(r"\n##+ ", MODELS.partition(title)[2])[0].splitlines()
        if re.match(r"\| \[?`", line)
    ]
    assert [re.findall(r"`(\w+)`", cells[0])[0] for cells in lines] == list(table.class_names())
    for name, (_, paper, needs, *rest) in zip(table, lines, strict=True):
        family, module = table.find(name), sys.modules[table.find(name).__module__]
        settings = family()
        assert ("history" in needs) == ("history_columns" in settings.needs()), name
        assert ("history!" in needs) == isinstance(settings, SequenceRanker), name
        author, year = re.fullmatch(r"(\w+).* (\d{4})", paper).groups()  # type: ignore[union-attr]
        assert re.search(f"{author}.* {year}", module.__doc__, re.DOTALL) or name in ("dlrm", "two_tower")
        if table is RETRIEVAL_FAMILIES:
            assert rest[0] == settings.form
        if isinstance(settings, FitsFeatures):
            assert ("user id" in needs) == bool(
                settings.misfits({}, {"item_id": "category"}, True)
            ) or "history" in needs
            timeless = settings.misfits(
                {"user_id": "category"}, {"item_id": "category", "embedding": "numbers"}, False
            )
            assert ("timestamp" in needs) == bool(timeless), name


def test_every_operator_that_is_listed_is_compiled() -> None:
    names = re.findall(
        r"^\| `(\w+)` \|", TEXT.partition("| operator |")[2].partition("\n## ")[0], re.MULTILINE
    )
    assert len(names) == 7
    for name in names:
        assert TABLE[f"nvtabular.{name}"].lower is not None


def test_the_example_of_own_tables_is_right() -> None:
    code = re.search(r"```python\ndataset = (Parquet\(.*?\n\))\n```", TEXT, re.DOTALL)
    assert code is not None
    assert eval(code[1], {"Parquet": Parquet}).item_id == "sku"


def test_the_example_of_several_models_is_right() -> None:
    code = re.search(r"```python\n(retrieval = .*?)```", TEXT, re.DOTALL)
    assert code is not None
    names = dict(NAMESPACE)
    exec(code[1], names)
    serving = names["ServingSettings"](sources=names["sources"], history_columns=("item_id",))
    base = writes.load_recipe("movielens")
    changed = writes.replace(base, retrieval=names["retrieval"], serving=serving)
    assert changed.problems() == []


def test_the_example_of_features_is_right() -> None:
    # First, because it silences NVTabular's warnings on import.
    from tiercel_pipelines.features.graph_columns import blank_schema, describe_graph, root_columns  # isort: skip
    from merlin.schema import Tags
    from nvtabular import ops

    code = re.search(r"```python\n(def features.*?)```", TEXT, re.DOTALL)
    assert code is not None
    names: dict[str, Any] = {"ops": ops, "Tags": Tags}
    exec(code[1], names)
    graph = SimpleNamespace(**names).features()
    columns, doubled = describe_graph(graph, blank_schema(root_columns(graph)))
    assert doubled == ()
    assert [column.part for column in columns] == ["user"] * 4 + ["item"] * 2 + ["context"]
