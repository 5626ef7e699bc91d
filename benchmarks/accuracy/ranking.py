"""Comparison of ranking families over the same retrieval (``--ranking``).

Retrieval is trained, and candidate lists are made, once per seed. Every ranker learns from the same lists,
orders the same 200 candidates of each user, and is evaluated on the test part by the served stages in memory.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import msgspec

from benchmarks.accuracy.cell import processor_s, seconds
from benchmarks.accuracy.contenders import RANKED, RANKERS, TESTS
from benchmarks.accuracy.run import FIRST_SEED, Kept
from tiercel_pipelines.arrays.packing import rows_of
from tiercel_pipelines.data import Dataset, load_dataset, split_dataset
from tiercel_pipelines.recipe import LogisticRegression, Recipe, replace
from tiercel_pipelines.recipe.check_fit import fit_checked
from tiercel_pipelines.training.figures import offline_figures
from tiercel_pipelines.training.trainer import Retrieved, Trained, Trainer

#: Number of candidates that a ranker orders.
CANDIDATES = 200


@dataclass(frozen=True)
class Ready:
    """A trained retrieval with the lists of its rankers, and the test part (user and item rows)."""

    trainer: Trainer
    retrieved: Retrieved
    test: tuple[Any, Any]

    @classmethod
    def of(cls, recipe: Recipe, dataset: Dataset) -> Ready:
        """Train the retrieval of a recipe with a ranker, and make the lists that the ranker learns from."""
        split = split_dataset(dataset, **msgspec.structs.asdict(recipe.split))
        with tempfile.TemporaryDirectory() as folder:
            workflow = fit_checked(recipe, dataset, split.fit, Path(folder) / "workflow", None)
            trainer = Trainer.prepare(recipe, dataset, split, workflow, None)
        return cls(trainer, trainer.fit_retrieval(), rows_of(dataset, split.test))

    def measure(self, ranker: Any) -> dict[str, Any]:
        """Train a ranker and return the figures at 10 before and after it orders the candidates."""
        begun = processor_s()
        fitted, course = self.trainer.fit_ranking(ranker, self.retrieved.lists)
        ended = processor_s()
        trained = Trained(self.retrieved.models, fitted, {}, self.retrieved.settings)
        figures = offline_figures(self.trainer, trained, *self.test)
        return {
            "before": figures["retrieval"],
            "after": figures["ranking"],
            "best_epoch": course.epochs,
            "validation": [round(value, 5) for value in course.validation],
            "train_cpu_s": round(ended - begun, 2),
        }


def recipe_of(retrieval: str, seed: int) -> Recipe:
    """Return a recipe with a ranker that determines the form of the lists, which all rankers here share."""
    found = RANKED[retrieval].recipe(TESTS.base())
    serving = msgspec.structs.replace(found.serving, candidates=CANDIDATES, kept=CANDIDATES)
    return replace(found, ranking=LogisticRegression(), serving=serving, seed=seed)


def run_rankings(
    retrievals: Iterable[str],
    rankers: Iterable[str],
    seeds: int,
    kept: Kept,
    data_dir: Path | None = None,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> None:
    """Measure each ranker over each retrieval with each seed, unless ``kept`` already holds the result."""
    asked = [
        (retrieval, seed, ranker)
        for retrieval in retrievals
        for seed in range(FIRST_SEED, FIRST_SEED + seeds)
        for ranker in rankers
    ]
    dataset: Dataset | None = None
    ready: dict[tuple[str, int], Ready] = {}
    for number, (retrieval, seed, name) in enumerate(asked):
        key = {"retrieval": retrieval, "ranker": name, "seed": seed, "settings": _settings(name)}
        if kept.has("rankings", key):
            continue
        progress(f"{name} over {retrieval}, seed {seed}", number, len(asked))
        recipe = recipe_of(retrieval, seed)
        dataset = dataset or load_dataset(recipe.dataset, data_dir=data_dir)
        if (retrieval, seed) not in ready:
            ready = {(retrieval, seed): Ready.of(recipe, dataset)}
        kept.add("rankings", key, ready[retrieval, seed].measure(RANKERS[name]))


def _settings(name: str) -> Any:
    return msgspec.to_builtins(RANKERS[name])


HEAD = ("ranker", "seeds", "nDCG@10", "lift", "recall@10", "coverage", "training, processor s")


def table(cells: Iterable[Mapping[str, Any]]) -> list[list[str]]:
    """Return the rows of one retrieval by descending lift, and a row for retrieval's own order."""
    mine = list(cells)
    groups = [[cell for cell in mine if cell["ranker"] == name] for name in {c["ranker"]: 0 for c in mine}]
    groups.sort(key=lambda group: -mean(_lifts(group)))
    rows = [
        [
            group[0]["ranker"],
            str(len(group)),
            *(_spread([cell["after"][figure] for cell in group]) for figure in ("ndcg",)),
            _spread(_lifts(group), "+"),
            _spread([cell["after"]["recall"] for cell in group]),
            f"{mean(cell['after']['coverage'] for cell in group):.2f}",
            seconds(group),
        ]
        for group in groups
    ]
    own = list({cell["seed"]: cell["before"] for cell in mine}.values())
    before = [_spread([one[name] for one in own]) for name in ("ndcg", "recall")]
    coverage = f"{mean(one['coverage'] for one in own):.2f}"
    return [*rows, ["none: retrieval's order", str(len(own)), before[0], "", before[1], coverage, ""]]


def _lifts(cells: Iterable[Mapping[str, Any]]) -> list[float]:
    return [cell["after"]["ndcg"] - cell["before"]["ndcg"] for cell in cells]


def _spread(values: list[float], sign: str = "") -> str:
    spread = f" ± {stdev(values):.4f}" if len(values) > 1 else ""
    return f"{mean(values):{sign}.4f}{spread}"


def markdown(document: Mapping[str, Any]) -> list[str]:
    """Return the parts of ``docs/accuracy.md``."""
    cells = document.get("rankings", [])
    parts = [_TEXT] if cells else []
    for name in dict.fromkeys(cell["retrieval"] for cell in cells):
        parts.append(f"Over `{name}`:")
        rows = table(cell for cell in cells if cell["retrieval"] == name)
        parts.append("\n".join("| " + " | ".join(row) + " |" for row in (HEAD, ["---"] * len(HEAD), *rows)))
    return parts


_TEXT = """\
## Rankers, ml-100k

`python -m benchmarks.accuracy --ranking` compares ranking families on the same 200 candidates of each user.
Retrieval is trained once for each seed. Every ranker learns from the same lists, which were retrieved without
knowledge of their positives, stops early by the validation part, and is judged on the test part by the served
stages in memory. Lift is the difference to retrieval's own order with the same seed, as mean ± standard
deviation over seeds. Settings are the defaults."""
