"""From a recipe and its data set to a run.

::

    split ─ fit workflow ─ pack ─┬─ two-tower on all but fold 0; early stopping on fold 0
                                 │     └─ its candidates: the lists that the ranker is judged on
                                 ├─ two-tower on all but folds 0 and f, for each further fold f
                                 │     └─ its candidates, of which fold f's interactions are positives:
                                 │        the lists that the ranker learns; early stopping on fold 0
                                 └─ two-tower on all folds, for as many epochs as were best: the one served

Fold 0 is the validation part. The ranker must not know it, neither as history nor as something seen:
an unseen item that a user will like is a negative in training as it is in the test, and a validation
that spares its own positives this fate rewards learning the negatives by heart. The test part is
looked at once, at the end.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..data import Dataset, Progress, Split, split_dataset
from ..errors import TrainingError
from ..families.dlrm import DLRM, DLRMConfig
from ..families.two_tower import TwoTower, TwoTowerConfig
from ..features.workflow import fit_workflow, packed_columns
from ..offline.metrics import Relevance, ranking_metrics
from ..recipe.recipe import IMPLICIT, Recipe
from .fitting import Course, fit_dlrm, fit_two_tower
from .packing import build_pairs, pack_dataset, side_of
from .pairs import IntArray, Packed, Pairs, assign_folds, history_rows
from .retrieval import (
    Candidates,
    allowed_items,
    item_vectors,
    keep,
    popular_items,
    queries,
    rank,
    reorder,
    retrieve,
)
from .run import TrainedRun, check_destination, whole_directory, write_run
from .sampling import RankingLists, make_lists

#: Places of the offline figures.
FIGURES_AT = 10


def train_recipe(
    recipe: Recipe,
    dataset: Dataset,
    run_dir: str | Path,
    *,
    replace: bool = False,
    progress: Progress | None = None,
) -> TrainedRun:
    """Train a recipe and write a run.

    Parameters
    ----------
    recipe
        The recipe.
    dataset
        Its loaded data set.
    run_dir
        Where the run goes. It appears there only when it is whole.
    replace
        Whether a run that is already there may be replaced.
    progress
        Called as ``progress(what, done, total)``.

    Returns
    -------
    TrainedRun
        The opened run.

    Raises
    ------
    RecipeError
        If the recipe does not fit the data set.
    TrainingError
        If there is nothing to learn from, a loss is not finite, or the directory is taken.
    """
    destination = Path(run_dir)
    check_destination(destination, replace)
    recipe.check(dataset)
    clock = _Clock()
    split = split_dataset(
        dataset, train=recipe.split.train, validation=recipe.split.validation, seed=recipe.split.seed
    )
    if not len(split.train):
        raise TrainingError(f"recipe {recipe.name!r}: the training part is empty; give more interactions")
    with whole_directory(destination, replace) as directory:
        with clock.part("workflow"):
            if progress is not None:
                progress("workflow", 0, None)
            workflow = fit_workflow(recipe, dataset, split.fit, directory=directory / "workflow")
            trainer = Trainer.prepare(recipe, dataset, split, workflow, progress)
        two_tower, ranker, courses = trainer.fit(clock)
        with clock.part("figures"):
            figures = trainer.figures(two_tower, ranker, split.test)
        info = {
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "recipe": recipe.to_json(),
            "dataset": _describe(dataset, split),
            "metrics": {**figures, "epochs": courses, "seconds": clock.seconds},
        }
        tables = {
            "users": dataset.users,
            "items": dataset.items,
            "train": split.train,
            "valid": split.valid,
            "test": split.test,
        }
        write_run(directory, info, two_tower, ranker, tables)
    return TrainedRun.open(destination)


@dataclass(frozen=True)
class Trainer:
    """One recipe's data, packed and ready to train on.

    Parameters
    ----------
    recipe
        The recipe.
    dataset
        Its data set.
    packed
        The packed tensors.
    pairs
        Training and validation interactions.
    folds
        ``[n]`` the fold of each; fold 0 is the validation part, -1 is in no fold.
    two_tower, dlrm
        Columns and widths of both models.
    progress
        See :func:`train_recipe`.
    """

    recipe: Recipe
    dataset: Dataset
    packed: Packed
    pairs: Pairs
    folds: IntArray
    two_tower: TwoTowerConfig
    dlrm: DLRMConfig
    progress: Progress | None = None

    @classmethod
    def prepare(
        cls, recipe: Recipe, dataset: Dataset, split: Split, workflow: Any, progress: Progress | None = None
    ) -> Trainer:
        """Pack a data set by its fitted workflow and deal its interactions into folds."""
        target = recipe.ranking.target
        weights = None if target in (None, IMPLICIT) else target
        fit = split.fit
        packed = pack_dataset(workflow, dataset, fit, recipe.serving)
        pairs, source = build_pairs(dataset, fit, weights, packed)
        valid = fit.index.isin(split.valid.index)[source]
        folds = _deal(pairs, valid, recipe)
        user = side_of(packed_columns(workflow, "user"), "user", packed.user)
        item = side_of(packed_columns(workflow, "item"), "item", packed.item)
        retrieval, ranking = recipe.retrieval, recipe.ranking
        history = recipe.serving.history_columns
        return cls(
            recipe,
            dataset,
            packed,
            pairs,
            folds,
            TwoTowerConfig(
                user=user,
                item=item,
                history_columns=history if retrieval.use_history else (),
                dimension=retrieval.dimension,
                embedding_dimension=retrieval.embedding_dimension,
                user_layers=tuple(retrieval.user_layers),
                item_layers=tuple(retrieval.item_layers),
                dropout=retrieval.dropout,
            ),
            DLRMConfig(
                user=user,
                item=item,
                history_columns=history if ranking.use_history else (),
                sources=len(recipe.serving.sources),
                embedding_dimension=ranking.embedding_dimension,
                bottom_layers=tuple(ranking.bottom_layers),
                top_layers=tuple(ranking.top_layers),
                dropout=ranking.dropout,
                scale=1 / retrieval.temperature if ranking.use_retrieval_score else None,
            ),
            progress,
        )

    def fit(self, clock: _Clock) -> tuple[TwoTower, DLRM, dict[str, Any]]:
        """Train both models as the module's picture says."""
        settings, seed = self.recipe.retrieval, self.recipe.seed
        rng = np.random.default_rng(seed)
        count = int(self.folds.max(initial=-1)) + 1
        lists: list[RankingLists] = []
        best: Course | None = None
        with clock.part("two-tower"):
            for fold in range(count):
                rest = self.pairs.select((self.folds != 0) & (self.folds != fold))
                held_out = self.pairs.select(self.folds == fold)
                model, course = fit_two_tower(
                    self.two_tower,
                    settings,
                    self.packed,
                    rest,
                    seed=seed + fold,
                    valid=held_out if fold == 0 else None,
                    epochs=None if best is None else max(1, best.epochs),
                    progress=self.progress,
                    label=f"two-tower, fold {fold + 1} of {count}",
                )
                best = best or course
                candidates = self._candidates(model, rest)
                dropout = self.recipe.ranking.context_dropout
                lists.append(make_lists(rest, held_out, self.packed, candidates, dropout, rng))
            two_tower, last = fit_two_tower(
                self.two_tower,
                settings,
                self.packed,
                self.pairs,
                seed=seed,
                epochs=None if best is None else max(1, best.epochs),
                progress=self.progress,
            )
        with clock.part("ranker"):
            ranker, ranked = self._fit_ranker(lists)
        return two_tower, ranker, {"two_tower": _course(best or last), "ranker": _course(ranked)}

    def _fit_ranker(self, lists: list[RankingLists]) -> tuple[DLRM, Course]:
        """Train the ranker on the further folds' lists, judged on fold 0's."""
        settings, kept, seed = self.recipe.ranking, self.recipe.serving.kept, self.recipe.seed
        if len(lists) < 2:
            # Nothing to learn from that retrieval did not know, or nothing to judge it by.
            return fit_dlrm(self.dlrm, settings, self.packed, self._no_lists(), kept, seed=seed, epochs=0)
        return fit_dlrm(
            self.dlrm,
            settings,
            self.packed,
            RankingLists.concatenate(lists[1:]),
            kept,
            seed=seed,
            valid=(lists[0], self.pairs.select(self.folds == 0)),
            progress=self.progress,
        )

    def _no_lists(self) -> RankingLists:
        nothing = np.zeros((0, self.recipe.serving.candidates))
        rows = nothing.astype(np.int64)
        history = np.zeros((0, self.packed.history_length), dtype=np.int64)
        score = nothing.astype(np.float32)
        return RankingLists(rows[:, 0], rows[:, 0], history, rows, score, nothing.astype(np.int32), score)

    def _candidates(self, model: TwoTower, seen: Pairs) -> Candidates:
        """Return what retrieval gives each user who has ``seen`` this."""
        return retrieve(
            queries(model.user_tower, self.packed, seen),
            item_vectors(model.item_tower, self.packed),
            seen,
            popular_items(seen, self.packed.n_items),
            self.recipe.serving,
        )

    def figures(self, two_tower: TwoTower, ranker: DLRM, test: pd.DataFrame) -> dict[str, Any]:
        """Return the figures of popularity, retrieval and ranking on the test part.

        All follow the served path: seen items masked before the best N, filter rules, the first K
        ranked, no context.
        """
        if not len(test):
            return {}
        users, items = _rows(self.dataset, test)
        relevance = Relevance.from_pairs(users, items, self.packed.n_users)
        everyone = np.arange(self.packed.n_users)
        serving = self.recipe.serving
        allowed = allowed_items(self.dataset.items, serving.rules)
        kept = keep(self._candidates(two_tower, self.pairs), allowed, serving.kept)
        history = history_rows(self.pairs, everyone, self.packed.history_length, self.packed.n_items)
        scores = rank(ranker, self.packed, everyone, history, kept)
        ranked = {
            "popularity": self._popular(allowed),
            "retrieval": kept[0],
            "ranking": reorder(kept[0], scores),
        }
        return {
            name: ranking_metrics(
                rows, (rows != self.packed.n_items).sum(axis=1), relevance, FIGURES_AT, self.packed.n_items
            ).to_json()
            for name, rows in ranked.items()
        }

    def _popular(self, allowed: Any) -> IntArray:
        """Return each user's most popular unseen items that pass the rules ``[U, 10]``."""
        n_items, pairs = self.packed.n_items, self.pairs
        place = np.empty(n_items, dtype=np.int64)
        place[popular_items(pairs, n_items)] = np.arange(n_items)
        place[~allowed] = n_items
        places = np.tile(place, (self.packed.n_users, 1))
        places[pairs.users, pairs.items] = n_items
        width = min(FIGURES_AT, n_items)
        rows = np.argsort(places, axis=1, kind="stable")[:, :width]
        return np.where(np.take_along_axis(places, rows, axis=1) < n_items, rows, n_items)


def _deal(pairs: Pairs, valid: Any, recipe: Recipe) -> IntArray:
    """Return each interaction's fold: 0 for the validation part, the others dealt at random.

    Without a ranker to train there are no further folds: -1.
    """
    folds = np.where(valid, 0, -1)
    if recipe.ranking.target is not None and valid.any():
        dealt = assign_folds(pairs.select(~valid), recipe.ranking.folds, np.random.default_rng(recipe.seed))
        folds[~valid] = 1 + dealt
    return folds


def _rows(dataset: Dataset, interactions: pd.DataFrame) -> tuple[IntArray, IntArray]:
    """Return the user rows and catalogue rows of interactions."""
    users = pd.Index(dataset.users[dataset.user_id]).get_indexer(interactions[dataset.user_id])
    items = pd.Index(dataset.items[dataset.item_id]).get_indexer(interactions[dataset.item_id])
    return users.astype(np.int64), items.astype(np.int64)


def _describe(dataset: Dataset, split: Split) -> dict[str, Any]:
    return {
        "name": dataset.name,
        "source": dataset.source,
        "user_id": dataset.user_id,
        "item_id": dataset.item_id,
        "timestamp": dataset.timestamp,
        "users": len(dataset.users),
        "items": len(dataset.items),
        "train": len(split.train),
        "valid": len(split.valid),
        "test": len(split.test),
    }


def _course(course: Course) -> dict[str, Any]:
    return {
        "best": course.epochs,
        "run": len(course.losses),
        "validation_ndcg": course.validation[course.epochs] if course.validation else None,
    }


class _Clock:
    """Wall time of each part, in seconds."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - begun, 2)
