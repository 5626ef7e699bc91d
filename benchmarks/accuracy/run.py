"""All cells that were asked for, each kept in the JSON file as soon as it is there."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.accuracy.cell import measure
from benchmarks.accuracy.contenders import COMPARISONS
from tiercel_pipelines.data import Dataset, load_dataset
from tiercel_pipelines.recipe import Recipe, replace
from tiercel_pipelines.training.checkpoint import recipe_document
from tiercel_serving.bench.machine import describe_machine, installed_versions
from tiercel_serving.commands.bench import write_whole

PACKAGES = ("tiercel", "numpy", "scipy", "torch", "onnxruntime", "faiss-cpu", "nvidia-pytriton")
#: Of the first seed, those of the others are counted up from it.
FIRST_SEED = 42


@dataclass(frozen=True)
class Cell:
    """A data set, a contender and a seed, with the recipe that they make."""

    data: str
    family: str
    seed: int
    recipe: Recipe

    @property
    def key(self) -> dict[str, Any]:
        """What a finished cell must have in common with it: also every setting that training depends on."""
        document = json.loads(json.dumps(recipe_document(self.recipe)))
        return {"data": self.data, "family": self.family, "seed": self.seed, "recipe": document}

    def done(self, one: Mapping[str, Any]) -> bool:
        """Return whether ``one`` is this cell, finished before."""
        return {name: one.get(name) for name in self.key} == self.key


def cells_of(data: Iterable[str], families: Iterable[str] | None, seeds: int) -> list[Cell]:
    """Return the cells of data sets, of all their contenders or of some, seed by seed."""
    found = []
    for name in data:
        base, contenders = COMPARISONS[name].base(), COMPARISONS[name].contenders
        for family in contenders if families is None else [one for one in families if one in contenders]:
            for seed in range(FIRST_SEED, FIRST_SEED + seeds):
                recipe = replace(contenders[family].recipe(base), seed=seed)
                found.append(Cell(name, family, seed, recipe))
    return found


def run_cells(
    cells: Iterable[Cell],
    *,
    served: Iterable[str] = (),
    data_dir: Path | None = None,
    save: Path | None = None,
    command: str = "",
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> dict[str, Any]:
    """Measure what is not finished in the file ``save``.

    Parameters
    ----------
    cells
        What is measured.
    served
        Families that a real Triton answers for, rather than the stages in this process.
    data_dir
        Where data sets lie.
    save
        The file that keeps every cell, written anew after each; None keeps nothing.
    command
        What was typed.
    progress
        Called with what comes next, how many cells are done, and of how many.

    Returns
    -------
    dict
        The document: facts, and ``cells`` old and new.
    """
    asked, real = list(cells), set(served)
    document = _document(save)
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
        facts = {
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "command": command,
            "machine": describe_machine(),
            "versions": installed_versions(PACKAGES),
        }
        rest = [one for one in document["cells"] if _place(one) != _place(cell.key)]
        document["cells"] = sorted([*rest, {**cell.key, **found, **facts}], key=_place)
        if save is not None:
            write_whole(save, document)
    return document


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
