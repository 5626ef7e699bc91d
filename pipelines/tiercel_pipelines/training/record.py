"""The contents of ``run.json``: one typed object with one codec."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from tiercel_serving.kinds import Kinds
from tiercel_serving.problems import Problem
from tiercel_serving.release.manifest import File, encode, read_kind
from tiercel_serving.settings import ServingSettings

from ..arrays.inputs import ModelInputs
from ..data import DATASETS, DatasetSpec
from ..errors import RunMissing, TrainingError
from ..families.table import RANKING_FAMILIES, RETRIEVAL_FAMILIES, RankingFamily, RetrievalFamily
from ..recipe.recipe import Recipe, SplitSettings, TrainingSettings
from ..tasks.table import RANKING_TASKS, RETRIEVAL_TASKS, RankingTask, RetrievalTask

RUN_FORMAT = 2
RUN_NAME = "run.json"

_TABLES: Mapping[Any, Kinds[Any]] = {
    DatasetSpec: DATASETS,
    RetrievalFamily: RETRIEVAL_FAMILIES,
    RankingFamily: RANKING_FAMILIES,
    RetrievalTask: RETRIEVAL_TASKS,
    RankingTask: RANKING_TASKS,
}


class _Struct(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of the parts of the record."""


class RecipeRecord(_Struct, frozen=True):
    """The recipe, without its graph (which is the saved workflow) and its models."""

    name: str
    origin: str
    seed: int
    dataset: DatasetSpec
    split: SplitSettings
    serving: ServingSettings
    training: TrainingSettings = TrainingSettings()
    rows: str | None = None

    @classmethod
    def of(cls, recipe: Recipe) -> RecipeRecord:
        """Return the record of a recipe, with its default sources written out."""
        return cls(
            recipe.name,
            recipe.origin,
            recipe.seed,
            recipe.dataset,
            recipe.split,
            recipe.served,
            recipe.training,
            recipe.rows,
        )


class DataRecord(_Struct, frozen=True):
    """The data set: its column names, the number of rows of each table or part, and of ``repeats``.

    A repeat is an interaction whose pair of user and item occurred before.
    """

    name: str
    source: str
    user_id: str
    item_id: str
    timestamp: str | None
    users: int
    items: int
    train: int
    valid: int
    test: int
    repeats: int = 0


class ModelsRecord(_Struct, frozen=True):
    """Each model's settings, whose kind says which family loads its weights."""

    retrieval: dict[str, RetrievalFamily]
    ranking: RankingFamily | None


class RunRecord(_Struct, frozen=True):
    """A run, as it describes itself.

    Parameters
    ----------
    format
        :data:`RUN_FORMAT`.
    created
        Time of creation in UTC (ISO 8601).
    recipe, data
        What was trained, and on what.
    inputs
        The packed columns that the models may use.
    models
        The models.
    metrics
        Offline figures: see ``docs/training.md``.
    files
        Every other file of the run by its path.
    notes
        What a reader should know about how the run was made.
    """

    format: int
    created: str
    recipe: RecipeRecord
    data: DataRecord
    inputs: ModelInputs
    models: ModelsRecord
    metrics: dict[str, Any]
    files: dict[str, File] = {}
    notes: tuple[str, ...] = ()


def kept_problems(recipe: Recipe) -> Iterator[Problem]:
    """Yield a problem for each setting that ``run.json`` could not store or restore."""
    served = recipe.served
    places: list[tuple[str, Any]] = [
        (f"serving.{section}[{place}]", kind)
        for section in ("sources", "rules", "reorder")
        for place, kind in enumerate(getattr(served, section))
    ]
    places += [(f"retrieval {family.name!r}", family) for family in recipe.models]
    places += [] if recipe.ranking is None else [("ranking", recipe.ranking)]
    for where, settings in places:
        try:
            kept = msgspec.json.decode(encode(settings), type=type(settings), dec_hook=_read_kind)
        except (TypeError, ValueError, OverflowError, msgspec.MsgspecError) as error:
            problem = f"run.json can't hold these settings ({error})"
            yield Problem(where, problem, "write plain numbers and text, and tuples of them")
            continue
        yield from (problem.within(where) for problem in kept.problems())


def read_record(file: Path) -> RunRecord:
    """Read ``run.json``.

    Raises
    ------
    RunMissing
        There is no run.
    TrainingError
        It does not describe a run, or has another format than this Tiercel writes.
    """
    if not file.is_file():
        if (file.parent / "manifest.json").is_file():
            raise RunMissing(f"{file.parent}: a release, not a run; name the run that it was exported from")
        raise RunMissing(f"{file}: no run here; make one with `tiercel train`")
    text = file.read_bytes()
    try:
        version = msgspec.json.decode(text, type=_Head)
    except ValueError as error:
        raise TrainingError(f"{file}: not the description of a run ({error}); train again") from error
    if version.format > RUN_FORMAT:
        raise TrainingError(
            f"{file}: run format {version.format}, but this Tiercel reads format {RUN_FORMAT}; "
            "upgrade Tiercel or train again"
        )
    if version.format < RUN_FORMAT:
        origin = str(version.recipe.get("origin", ""))
        recipe = origin if origin.endswith(".py") else version.recipe.get("name", "RECIPE")
        raise TrainingError(
            f"{file}: run format {version.format}, but this Tiercel reads format {RUN_FORMAT}; make the run "
            f"anew with `tiercel train {recipe} --run {file.parent} --replace`"
        )
    try:
        return msgspec.json.decode(text, type=RunRecord, dec_hook=_read_kind)
    except ValueError as error:
        raise TrainingError(f"{file}: {error}; it was changed by hand or damaged: train again") from error


def _read_kind(kind: Any, data: Any) -> Any:
    table = _TABLES.get(kind)
    return read_kind(kind, data) if table is None else table.read(data, _read_kind)


class _Head(msgspec.Struct):
    format: int
    recipe: dict[str, Any] = {}
