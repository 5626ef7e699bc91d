"""The cases: fitted workflows, and rows to transform.

::

    three        an integer, a string and a float
    three-small  the same with vocabularies of a hundredth of the size
    movielens    the MovieLens recipe on MovieLens-100K, or on synthetic data of its form
    criteo-int   26 categorical and 13 numeric columns as in Criteo's data, with 32-bit integer keys
    criteo-text  the same with keys of eight hexadecimal digits, as Criteo publishes them
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from benchmarks.features.plan import Plan
from tiercel_export.workflow.cut import CompiledProgram, compile_workflow, cut_workflow
from tiercel_pipelines.data import load_dataset, split_dataset
from tiercel_pipelines.data.dataset import Dataset
from tiercel_pipelines.data.movielens_100k import find_ml_100k
from tiercel_pipelines.features.graph_columns import root_columns
from tiercel_pipelines.features.workflow import fit_workflow
from tiercel_pipelines.recipes import movielens

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import nvtabular
    from merlin.io import Dataset as MerlinDataset
    from merlin.schema import Tags
    from nvtabular import ops

#: Distinct values of each of the 26 categorical columns in Criteo's display advertising data (Kaggle, 2014).
CRITEO_SIZES = (
    *(1460, 583, 10131227, 2202608, 305, 24, 12517, 633, 3, 93145, 5683, 8351593, 3194),
    *(27, 14992, 5461306, 10, 5652, 2173, 4, 7046547, 18, 15, 286181, 105, 142572),
)
CRITEO_NUMBERS = 13
#: Share of values to transform that are not in the vocabulary, and of numbers and strings that are null.
UNSEEN, NULL = 0.01, 0.05

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Case:
    """A fitted workflow, and rows that it has not seen.

    Parameters
    ----------
    name
        One of :data:`CASES`.
    says
        Human-readable description.
    workflow
        The fitted ``nvtabular.Workflow``.
    compiled
        Its compiled programs: user, and item if it has such columns.
    rows
        Raw rows to transform: first those of the one-row batches, then those of larger batches. The first
        have no null in a categorical column, since NVTabular raises on a column that is null in every row.
    """

    name: str
    says: str
    workflow: Any
    compiled: tuple[CompiledProgram, ...]
    rows: pd.DataFrame

    @property
    def columns(self) -> int:
        """Number of raw columns that the workflow reads."""
        return len(self.rows.columns)


def make_case(name: str, plan: Plan, scratch: Path, data_dir: Path | None = None) -> Case:
    """Make and fit one of :data:`CASES`.

    Parameters
    ----------
    name
        Its name.
    plan
        Sizes and repeats.
    scratch
        An existing directory for the vocabularies; it must outlive the case.
    data_dir
        Where MovieLens-100K is looked for.
    """
    return CASES[name](name, plan, scratch, data_dir)


def _three(name: str, plan: Plan, scratch: Path, data_dir: Path | None) -> Case:
    return _three_columns(name, plan, scratch, plan.entries)


def _three_small(name: str, plan: Plan, scratch: Path, data_dir: Path | None) -> Case:
    return _three_columns(name, plan, scratch, plan.entries // 100)


def _three_columns(name: str, plan: Plan, scratch: Path, entries: int) -> Case:
    rng = np.random.default_rng(3)
    sizes = (entries, max(entries // 10, 2))
    people, towns = np.arange(sizes[0]), _words("town-", sizes[1])

    def draw(rows: int, *, fit: bool) -> pd.DataFrame:
        user, town = (_draw(rng, values, rows, plan, fit=fit) for values in (people, towns))
        price = np.where(rng.random(rows) < NULL, np.nan, rng.lognormal(3, 1, rows))
        return pd.DataFrame({"user": user, "town": town, "price": price})

    graph = ["user", "town"] >> ops.Categorify(out_path=str(scratch / name))
    graph = graph + (["price"] >> ops.FillMissing() >> ops.LogOp() >> ops.Normalize())
    says = f"an integer with a vocabulary of {sizes[0]:,}, a string with one of {sizes[1]:,}, a float"
    return _fitted(name, says, graph, draw(max(sizes), fit=True), draw(plan.singles + plan.pool, fit=False))


def _movielens(name: str, plan: Plan, scratch: Path, data_dir: Path | None) -> Case:
    dataset, says = _movielens_data(data_dir)
    split = split_dataset(dataset, train=0.75, validation=0.1, seed=42)
    recipe = movielens.RECIPE
    workflow = fit_workflow(recipe, dataset, split.fit, directory=scratch / name)
    rows = dataset.joined(split.test)[list(root_columns(recipe.features()))].dropna().reset_index(drop=True)
    picked = np.random.default_rng(0).integers(0, len(rows), plan.singles + plan.pool)
    return _compiled(name, says, workflow, rows.iloc[picked].reset_index(drop=True))


def _movielens_data(data_dir: Path | None) -> tuple[Dataset, str]:
    if find_ml_100k(data_dir) is None:
        return _stand_in(), "the MovieLens recipe, on MADE-UP data: MovieLens-100K is not on this machine"
    dataset = load_dataset(movielens.RECIPE.dataset, data_dir=data_dir)
    return dataset, "the MovieLens recipe on MovieLens-100K"


def _stand_in() -> Dataset:
    """Return synthetic tables with the columns, dtypes and sizes of MovieLens-100K."""
    rng = np.random.default_rng(100)
    users, items, rows = 943, 1682, 100_000
    genres = np.array(["Action", "Comedy", "Crime", "Drama", "Film-Noir", "Horror", "Thriller", "War"])
    jobs = np.array([f"occupation {i}" for i in range(21)], dtype=object)
    zips = np.array([f"{i:03d}" for i in range(400)], dtype=object)
    return Dataset(
        "stand-in",
        pd.DataFrame(
            {
                "user_id": np.arange(1, users + 1),
                "age": rng.integers(7, 74, users),
                "gender": rng.choice(np.array(["F", "M"], dtype=object), users),
                "occupation": rng.choice(jobs, users),
                "zip_prefix": rng.choice(zips, users),
            }
        ),
        pd.DataFrame(
            {
                "item_id": np.arange(1, items + 1),
                "genres": [rng.choice(genres, 1 + i % 3, replace=False).tolist() for i in range(items)],
                "year": rng.integers(1922, 1999, items).astype(np.float64),
            }
        ),
        pd.DataFrame(
            {
                "user_id": rng.integers(1, users + 1, rows),
                "item_id": rng.integers(1, items + 1, rows),
                "timestamp": rng.integers(874724710, 893286638, rows),
            }
        ),
        source="made up",
    )


def _criteo_int(name: str, plan: Plan, scratch: Path, data_dir: Path | None) -> Case:
    return _criteo(name, plan, scratch, "32-bit integers", lambda keys: keys)


def _criteo_text(name: str, plan: Plan, scratch: Path, data_dir: Path | None) -> Case:
    return _criteo(name, plan, scratch, "eight hexadecimal digits", hexadecimal)


def _criteo(name: str, plan: Plan, scratch: Path, kind: str, spell: Callable[[Array], Array]) -> Case:
    """Make 26 columns with the vocabulary sizes of Criteo's data, limited to the plan's largest."""
    rng = np.random.default_rng(26)
    vocabularies = [spell(scattered(min(size, plan.largest), rng)) for size in CRITEO_SIZES]
    cats = [f"C{i + 1}" for i in range(len(vocabularies))]
    numbers = [f"I{i + 1}" for i in range(CRITEO_NUMBERS)]

    def draw(rows: int, *, fit: bool) -> pd.DataFrame:
        columns = {
            column: _draw(rng, vocabulary, rows, plan, fit=fit)
            for column, vocabulary in zip(cats, vocabularies, strict=True)
        }
        for column in numbers:
            counts = np.floor(rng.lognormal(2, 2, rows)) - 1
            columns[column] = np.where(rng.random(rows) < NULL, np.nan, counts).astype(np.float32)
        return pd.DataFrame(columns)

    graph = cats >> ops.Categorify(out_path=str(scratch / name))
    graph = graph + (numbers >> ops.FillMissing() >> ops.Clip(min_value=0) >> ops.LogOp() >> ops.Normalize())
    entries = sum(len(vocabulary) for vocabulary in vocabularies)
    says = (
        f"26 categorical columns whose keys are {kind}, vocabularies of {min(CRITEO_SIZES)} to "
        f"{max(map(len, vocabularies)):,} and {entries:,} entries in all, and 13 float32 numbers"
    )
    return _fitted(name, says, graph, draw(plan.largest, fit=True), draw(plan.singles + plan.pool, fit=False))


def scattered(count: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Return ``count`` distinct integers of 32 bits in random order."""
    keys = np.unique(rng.integers(0, 1 << 32, count + count // 100 + 16))
    return rng.permutation(keys)[:count]


def hexadecimal(keys: Array) -> Array:
    """Return integers as ``str`` objects of eight hexadecimal digits."""
    text = np.empty(len(keys), np.object_)
    text[:] = [f"{key:08x}" for key in keys.tolist()]
    return text


def _words(prefix: str, count: int) -> Array:
    text = np.empty(count, np.object_)
    text[:] = [f"{prefix}{i}" for i in range(count)]
    return text


def _draw(rng: np.random.Generator, values: Array, rows: int, plan: Plan, *, fit: bool) -> Array:
    """Draw a column: for a fit with every value in it, else uniformly, with unseen values and nulls."""
    if fit:
        every: Array = values[rng.permutation(rows) % len(values)]
        return every
    drawn: Array = values[rng.integers(0, len(values), rows)]
    unseen = rng.random(rows) < UNSEEN
    if values.dtype != np.object_:
        drawn[unseen] = (1 << 33) + np.flatnonzero(unseen)
        return drawn
    drawn[unseen] = "unseen"
    null = rng.random(rows) < NULL
    null[: plan.singles] = False
    drawn[null] = None
    return drawn


def _fitted(name: str, says: str, graph: Any, frame: pd.DataFrame, rows: pd.DataFrame) -> Case:
    return _compiled(name, says, fit_graph(graph, frame), rows)


def fit_graph(graph: Any, frame: pd.DataFrame) -> Any:
    """Return a workflow of only user features, fitted on a frame in memory."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        workflow = nvtabular.Workflow(graph >> ops.AddTags([Tags.USER]))
        workflow.fit(MerlinDataset(frame, cpu=True))
    return workflow


def _compiled(name: str, says: str, workflow: Any, rows: pd.DataFrame) -> Case:
    cut = cut_workflow(workflow)
    parts: Sequence[str] = [part for part in ("user", "item") if cut.output_names(part)]
    return Case(name, says, workflow, tuple(compile_workflow(cut, part) for part in parts), rows)


CASES: Mapping[str, Callable[[str, Plan, Path, Path | None], Case]] = {
    "three": _three,
    "three-small": _three_small,
    "movielens": _movielens,
    "criteo-int": _criteo_int,
    "criteo-text": _criteo_text,
}
