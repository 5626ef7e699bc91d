"""The run over the chosen cells, each saved in the JSON file as soon as it is measured."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.accuracy.cell import measure
from benchmarks.accuracy.contenders import COMPARISONS, UNSEEDED
from tiercel_pipelines.data import Dataset, load_dataset
from tiercel_pipelines.recipe import Recipe, replace
from tiercel_pipelines.training.checkpoint import recipe_document
from tiercel_serving.bench.machine import describe_machine, installed_versions
from tiercel_serving.commands.bench import write_whole

PACKAGES = ("tiercel", "numpy", "scipy", "torch", "onnxruntime", "faiss-cpu", "nvidia-pytriton")
#: The first seed; further seeds count up from it.
FIRST_SEED = 42


@dataclass(frozen=True)
class Cell:
    """A data set, a contender and a seed, with the resulting recipe."""

    data: str
    family: str
    seed: int
    recipe: Recipe

    @property
    def key(self) -> dict[str, Any]:
        """The values that identify a finished cell, including every setting that training depends on."""
        document = json.loads(json.dumps(recipe_document(self.recipe)))
        return {"data": self.data, "family": self.family, "seed": self.seed, "recipe": document}

    def done(self, one: Mapping[str, Any]) -> bool:
        """Return whether ``one``, from a saved document, is this cell."""
        return {name: one.get(name) for name in self.key} == self.key


class Kept:
    """The JSON document of all measurements, and its file; with ``save=None`` nothing is written.

    Raises
    ------
    ValueError
        If the file exists but holds something else.
    """

    def __init__(self, save: Path | None, command: str = "") -> None:
        self.document, self._save, self._command = _document(save), save, command

    def has(self, part: str, key: Mapping[str, Any]) -> bool:
        """Return whether a part of the document holds an entry with this key."""
        return any(_same(one, key) for one in self.document.get(part, ()))

    def add(self, part: str, key: Mapping[str, Any], found: Mapping[str, Any]) -> None:
        """Add an entry to a part, and remove any whose key equals this one apart from its settings."""
        place = {name: value for name, value in key.items() if name != "settings"}
        rest = [one for one in self.document.get(part, ()) if not _same(one, place)]
        self.document[part] = [*rest, {**key, **found, **self.facts()}]
        self.write()

    def facts(self) -> dict[str, Any]:
        """Return the date, command, machine and versions of a measurement."""
        return {
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "command": self._command,
            "machine": describe_machine(),
            "versions": installed_versions(PACKAGES),
        }

    def write(self) -> None:
        """Write the whole file, if there is one."""
        if self._save is not None:
            write_whole(self._save, self.document)


def _same(one: Mapping[str, Any], key: Mapping[str, Any]) -> bool:
    same: bool = {name: one.get(name) for name in key} == json.loads(json.dumps(key))
    return same


def cells_of(data: Iterable[str], families: Iterable[str] | None, seeds: int) -> list[Cell]:
    """Return the cells of data sets for all (None) or some contenders; unseeded ones have one seed."""
    found = []
    for name in data:
        base, contenders = COMPARISONS[name].base(), COMPARISONS[name].contenders
        for family in contenders if families is None else [one for one in families if one in contenders]:
            for seed in range(FIRST_SEED, FIRST_SEED + (1 if family in UNSEEDED else seeds)):
                recipe = replace(contenders[family].recipe(base), seed=seed)
                found.append(Cell(name, family, seed, recipe))
    return found


def run_cells(
    cells: Iterable[Cell],
    kept: Kept,
    *,
    served: Iterable[str] = (),
    data_dir: Path | None = None,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> None:
    """Measure the cells that ``kept`` does not hold yet.

    Parameters
    ----------
    cells
        The cells to measure.
    kept
        The document, whose file is written after each cell.
    served
        Families that are measured through a real Triton, rather than the stages in this process.
    data_dir
        Folder of the data sets.
    progress
        Called as ``progress(next step, cells done, all cells)``.
    """
    asked, real, document = list(cells), set(served), kept.document
    datasets: dict[str, Dataset] = {}
    for number, cell in enumerate(asked):
        label = f"{cell.data}, {cell.family}, seed {cell.seed}"
        by_triton = cell.family in real
        before = next((one for one in document["cells"] if cell.done(one)), None)
        if before is not None and (not by_triton or before["answered"] == "triton"):
            continue
        progress(label, number, len(asked))
        if cell.data not in datasets:
            datasets[cell.data] = load_dataset(cell.recipe.dataset, data_dir=data_dir)
        found = measure(
            cell.recipe,
            datasets[cell.data],
            served=by_triton,
            say=partial(_say, progress, label, number, len(asked)),
        )
        rest = [one for one in document["cells"] if _place(one) != _place(cell.key)]
        document["cells"] = sorted([*rest, {**cell.key, **found, **kept.facts()}], key=_place)
        kept.write()


def _say(progress: Callable[[str, int, int], None], label: str, done: int, total: int, what: str) -> None:
    progress(f"{label}: {what}", done, total)


def _place(one: Mapping[str, Any]) -> tuple[str, str, int]:
    return one["data"], one["family"], one["seed"]


def _document(save: Path | None) -> dict[str, Any]:
    if save is None or not save.exists():
        return {"cells": []}
    try:
        document: dict[str, Any] = json.loads(save.read_text(encoding="utf-8"))
        if {"data", "family", "seed", "answered"} <= set().union(*document["cells"]) or not document["cells"]:
            return document
    except (ValueError, KeyError, TypeError):
        pass
    raise ValueError(f"{save}: expected what this command saved before, found something else; name another")
