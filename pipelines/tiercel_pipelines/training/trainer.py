"""Which models are trained and judged on which interactions.

::

    pack ─┬─ retrieval on all but fold 0; early stopping on fold 0
          │     ├─ the weights of a blend, if the recipe asks to choose them
          │     └─ its candidates: the lists that the ranker is judged on
          ├─ retrieval on all but folds 0 and f, for each further fold f
          │     └─ its candidates, of which fold f's interactions are positives:
          │        the lists that the ranker learns from; early stopping on fold 0
          └─ retrieval on all folds, for as many epochs as were best: the one served

Fold 0 is the validation part. The ranker must not know it, neither as history nor as seen items. An
unseen item that a user will like is a negative in training, as it is in the test; if that did not
hold for validation's positives, validation would reward memorising the negatives. The test part is
used once, at the end. Without a ranker there are no further folds.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import numpy as np

from tiercel_export.workflow.cut import cut_workflow
from tiercel_serving.settings import ServingSettings

from ..arrays.inputs import ModelInputs
from ..arrays.lists import IMPLICIT, RankingLists, draw_contexts, positive_targets, positive_weights
from ..arrays.packed import Packed
from ..arrays.packing import build_pairs, inputs_of, pack_dataset
from ..arrays.pairs import Array, IntArray, Pairs, assign_folds, narrow
from ..data import Dataset, Progress, Split
from ..data.split import TEST, VALID
from ..families.ranks import ALONE, Ranks
from ..families.table import (
    Course,
    FittedRanking,
    FittedRetrieval,
    Plan,
    RankingData,
    RankingFamily,
    RetrievalData,
    RetrievalFamily,
    learned_columns,
)
from ..offline.in_memory import OfflineRetrieval, blocks
from ..recipe.recipe import Recipe
from ..tasks.table import NamedScores
from .blend import chosen_blend
from .checkpoint import Checkpoint
from .judges import RankingJudge, RetrievalJudge, sampled_users

#: Difference between the seeds of two retrieval models of one recipe, so that they draw differently.
_APART = 7_919

Models = Mapping[str, FittedRetrieval]


@dataclass(frozen=True)
class Trained:
    """Result of a training: the models to serve, how to serve them, and each model's course as JSON."""

    retrieval: Models
    ranking: FittedRanking | None
    courses: Mapping[str, Any]
    settings: ServingSettings


@dataclass(frozen=True)
class Retrieved:
    """Result of training retrieval: the models to serve, how to serve them, and lists for the ranker."""

    models: Models
    #: The lists of each fold.
    lists: tuple[RankingLists, ...]
    courses: Mapping[str, Course]
    settings: ServingSettings


@dataclass(frozen=True)
class Trainer:
    """One recipe's data, packed and ready to train on.

    Parameters
    ----------
    recipe, settings
        The recipe, and how it is served.
    packed, inputs
        The packed tensors, and their columns.
    pairs, folds
        Training and validation interactions, and ``[n]`` the fold of each; fold 0 is the validation part,
        -1 is in no fold.
    seconds
        Wall time of each part in seconds.
    checkpoint
        Where finished models and the state of the model in training are kept; None keeps nothing.
    ranks
        The processes that train together.
    """

    recipe: Recipe
    settings: ServingSettings
    packed: Packed
    inputs: ModelInputs
    pairs: Pairs
    folds: Array
    progress: Progress | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    checkpoint: Checkpoint | None = None
    ranks: Ranks = ALONE

    @classmethod
    def prepare(
        cls, recipe: Recipe, dataset: Dataset, split: Split, workflow: Any, progress: Progress | None = None
    ) -> Trainer:
        """Pack a data set by its fitted workflow and deal its interactions into folds."""
        settings, fit, cut = recipe.served, split.fit, cut_workflow(workflow, rows=recipe.rows)
        packed = pack_dataset(cut, dataset, fit, settings, progress)
        task = None if recipe.ranking is None else recipe.ranking.task
        weight = None if task is None or task.target == IMPLICIT else task.target
        targets = task.target_columns if isinstance(task, NamedScores) else ()
        pairs, source = build_pairs(dataset, fit, weight, packed, learned_columns(recipe.models), targets)
        return cls(
            recipe,
            settings,
            packed,
            inputs_of(cut, packed, settings),
            pairs,
            _deal(pairs, (split.parts[split.parts != TEST] == VALID)[source], recipe),
            progress,
        )

    def fit(self) -> Trained:
        """Train all models as the module's diagram shows."""
        retrieved = self.fit_retrieval()
        ranking, courses = None, dict(retrieved.courses)
        if self.recipe.ranking is not None:
            # A ranker sees the blend only through the scores in its lists.
            ranking, courses["ranking"] = self.fit_ranking(self.recipe.ranking, retrieved.lists)
        told = {name: _course(course) for name, course in courses.items()}
        return Trained(retrieved.models, ranking, told, retrieved.settings)

    def fit_retrieval(self) -> Retrieved:
        """Train the retrieval models, and make the lists for the ranker if the recipe has one."""
        count = int(self.folds.max(initial=-1)) + 1
        users = sampled_users(self._fold(0), self.recipe.seed, self.recipe.training.judged_users)
        rng = np.random.default_rng(self.recipe.seed)
        courses: dict[str, Course] = {}
        lists: list[RankingLists] = []
        listing = self
        with timed(self.seconds, "retrieval"):
            for fold in range(count):
                models = self._fit_without(fold, count, courses, users)
                if fold == 0 and self.recipe.training.choose_blend:
                    rest, held_out = self.pairs.select(self.folds != 0), self._fold(0)
                    chosen = chosen_blend(self.settings, models, self.packed, rest, held_out, users)
                    listing = replace(self, settings=chosen)
                if self.recipe.ranking is not None:
                    lists.append(listing._lists(models, fold, count, users if fold == 0 else None, rng))
            served = {}
            for place, family in enumerate(self.recipe.models):
                epochs = max(1, courses[family.name].epochs) if count else None
                plan = Plan(self._seed(place), family.name, epochs=epochs, progress=self.progress)
                served[family.name], course = self._fitted("served", family, self.pairs, plan)
                courses.setdefault(family.name, course)
        return Retrieved(served, tuple(lists), courses, listing.settings)

    def fit_ranking(
        self, family: RankingFamily, lists: Sequence[RankingLists]
    ) -> tuple[FittedRanking, Course]:
        """Train a ranker on the further folds' lists, judged on fold 0's."""
        with timed(self.seconds, "ranking"):
            judge = None
            if len(lists) > 1 and len(lists[0]):
                judge = RankingJudge(self.settings, self.packed, lists[0], self._fold(0))
            # With one fold or none, there are no interactions to learn from that retrieval did not know.
            learned = RankingLists.concatenate(lists[1:]) if len(lists) > 1 else self._no_lists()
            data = RankingData(self.packed, self.inputs, learned, self.settings.kept, self._scale())
            plan = Plan(self.recipe.seed, "ranking", judge, progress=self.progress)
            return self._kept("ranking", family, data, plan)

    def _fit_without(self, fold: int, count: int, courses: dict[str, Course], users: IntArray) -> Models:
        """Train retrieval without fold 0 and ``fold``; if only fold 0 is left out, judge it on that."""
        rest = self.pairs.select((self.folds != 0) & (self.folds != fold))
        models = {}
        for place, family in enumerate(self.recipe.models):
            judge = None
            if fold == 0:
                source = next(source for source in self.settings.sources if source.name == family.name)
                judge = RetrievalJudge(source, self.packed, rest, self._fold(0), users)
            plan = Plan(
                self._seed(place) + fold,
                f"{family.name}, fold {fold + 1} of {count}",
                judge,
                None if fold == 0 else max(1, courses[family.name].epochs),
                self.progress,
            )
            models[family.name], course = self._fitted(f"fold-{fold}", family, rest, plan)
            courses.setdefault(family.name, course)
        return models

    def _fitted(self, part: str, family: RetrievalFamily, pairs: Pairs, plan: Plan) -> tuple[Any, Course]:
        data = RetrievalData(self.packed, pairs, self.inputs)
        return self._kept(f"{part}-{family.name}", family, data, plan)

    def _kept(self, key: str, family: Any, data: Any, plan: Plan) -> tuple[Any, Course]:
        """Fit a model, or load it if a checkpoint has it."""
        plan = replace(plan, ranks=self.ranks)
        if self.checkpoint is None:
            fitted: tuple[Any, Course] = family.fit(data, plan)
            return fitted
        found = self.checkpoint.finished(key, family, self.inputs)
        if found is None:
            found = family.fit(data, replace(plan, states=self.checkpoint.states(key)))
            self.checkpoint.finish(key, *found)
        return found

    def _lists(
        self, models: Models, fold: int, count: int, users: IntArray | None, rng: np.random.Generator
    ) -> RankingLists:
        """Return the candidates of retrieval without fold 0 and ``fold``, for users in ``fold``."""
        assert self.recipe.ranking is not None
        rest, held_out = self.pairs.select((self.folds != 0) & (self.folds != fold)), self._fold(fold)
        contexts = draw_contexts(held_out, self.recipe.ranking.task.context_dropout, rng)
        if users is None:
            users = sampled_users(held_out, self.recipe.seed + fold, self.recipe.training.listed_users)
        # Seen items that may be recommended again are never held-out positives: in the lists they would be
        # negatives.
        settings = msgspec.structs.replace(self.settings, allow_seen=False, seen_again_days=None)
        retrieval = OfflineRetrieval(settings, models, self.packed, rest)
        parts = []
        for block in blocks(users, f"lists, fold {fold + 1} of {count}", self.progress):
            scores, rows, sources = retrieval.candidates(block)[1]
            weights = positive_weights(held_out, block, rows, self.packed.n_items)
            targets = positive_targets(held_out, block, rows, self.packed.n_items)
            history = retrieval.users.history(block)
            found = RankingLists(block, contexts[block], history, rows, scores, sources, weights, targets)
            if fold:
                # A list without a held-out item among its candidates teaches nothing about their order.
                found = found.take(np.flatnonzero((weights > 0).any(axis=1)))
            parts.append(found.narrowed())
        return RankingLists.concatenate(parts) if parts else self._no_lists()

    def _no_lists(self) -> RankingLists:
        nothing = np.zeros((0, self.settings.candidates))
        rows, score = nothing.astype(np.int64), nothing.astype(np.float32)
        history = np.zeros((0, self.packed.history_length), dtype=np.int64)
        return RankingLists(rows[:, 0], rows[:, 0], history, rows, score, nothing.astype(np.int32), score)

    def _scale(self) -> float:
        """Return the factor from retrieval scores to log-probabilities: that of the first source's model."""
        families: dict[str, RetrievalFamily] = {family.name: family for family in self.recipe.models}
        found = (families[s.name].scale for s in self.settings.sources if s.form and s.name in families)
        return next(found, 1.0)

    def _fold(self, fold: int) -> Pairs:
        return self.pairs.select(self.folds == fold)

    def _seed(self, place: int) -> int:
        return self.recipe.seed + _APART * place


def _deal(pairs: Pairs, valid: Any, recipe: Recipe) -> Array:
    """Return each interaction's fold: 0 for the validation part, the others dealt at random.

    Without a ranker, or without a validation part, the others are in no fold: -1.
    """
    folds = np.where(valid, 0, -1)
    if recipe.ranking is not None and valid.any():
        rng = np.random.default_rng(recipe.seed)
        folds[~valid] = 1 + assign_folds(pairs.select(~valid), recipe.ranking.task.folds, rng)
    return narrow(folds)


def _course(course: Course) -> dict[str, Any]:
    return {
        "best": course.epochs,
        "run": len(course.losses),
        "validation_ndcg": course.validation[course.epochs] if course.validation else None,
        "losses": list(course.losses),
        "validation": list(course.validation),
    }


@contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Record the wall time of a part in seconds."""
    begun = time.perf_counter()
    yield
    seconds[name] = round(time.perf_counter() - begun, 2)
