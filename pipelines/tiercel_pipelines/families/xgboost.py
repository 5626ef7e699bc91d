r"""``xgboost``: gradient-boosted trees that learn to order lists.

.. math:: s = \alpha\, r + \sum_m f_m(x)

r is retrieval's score and :math:`\alpha` the factor that turns it into a log-probability. The trees
:math:`f_m` learn how to change its order (Chen and Guestrin 2016, "XGBoost: a scalable tree boosting system",
eq. 1; the objective ``ndcg`` is LambdaMART, Burges 2010). x are the rows of :mod:`.tree_features`. The model
is served as one ONNX graph.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from msgspec.structs import replace

from tiercel_serving.errors import KindUnavailable
from tiercel_serving.kinds import Settings
from tiercel_serving.machine_faults import fault_of
from tiercel_serving.problems import AT_LEAST_0, COUNT, POSITIVE, Problem, Range, out_of_range
from tiercel_serving.spec import Array, Arrays

from ..arrays.inputs import ModelInputs
from ..arrays.lists import RankingLists
from ..errors import TrainingError
from ..tasks.listwise_softmax import ListwiseSoftmax
from ..tasks.table import RANKING_TASKS, RankingTask, task_problems
from .table import RANKING_FAMILIES, Columns, Course, Plan, RankingData
from .tree_features import FeatureGraph, FeatureRows
from .trees import Trees, add_trees

#: Objective → XGBoost's name for it.
OBJECTIVES: Mapping[str, str] = {
    "ndcg": "rank:ndcg",
    "pairwise": "rank:pairwise",
    "logistic": "binary:logistic",
}

#: Labels are weights between 0 and 1, not grades of relevance.
_OF_LISTS = {"eval_metric": "ndcg@10", "ndcg_exp_gain": False}

_FILE = "trees.json"

_SHARE = Range(0, 1, open_low=True)


class XGBoost(Settings, frozen=True, tag="xgboost"):
    """Gradient-boosted trees.

    Parameters
    ----------
    objective
        ``ndcg`` or ``pairwise`` order each list; ``logistic`` treats every candidate separately.
    use_retrieval_score
        Whether the model sees the retrieval score and starts from its order.
    use_history
        Whether the model sees the items of the user's history.
    learning_rate
        Factor of each tree's values.
    max_depth, min_child_weight, l2
        For each tree: maximum depth, minimum sum of Hessians in a leaf, and L2 regularisation of its values.
    subsample, column_share
        Share of the rows and of the columns that each tree sees.
    trees_per_epoch, max_epochs, patience
        In each of at most ``max_epochs`` epochs, ``trees_per_epoch`` trees are added; training stops after
        ``patience`` epochs without a better validation score.
    task
        Defines the lists to learn from; ``objective`` replaces its loss.
    """

    objective: Literal["ndcg", "pairwise", "logistic"] = "ndcg"
    use_retrieval_score: bool = True
    use_history: bool = True
    learning_rate: float = 0.05
    max_depth: int = 6
    min_child_weight: float = 5.0
    l2: float = 1.0
    subsample: float = 0.8
    column_share: float = 0.8
    trees_per_epoch: int = 20
    max_epochs: int = 25
    patience: int = 3
    task: RankingTask = ListwiseSoftmax()

    ranges: ClassVar[Mapping[str, Range]] = {
        "learning_rate": POSITIVE,
        "max_depth": Range(1, 16, whole=True),
        "min_child_weight": AT_LEAST_0,
        "l2": AT_LEAST_0,
        "subsample": _SHARE,
        "column_share": _SHARE,
        "trees_per_epoch": COUNT,
        "max_epochs": COUNT,
        "patience": COUNT,
    }

    def problems(self) -> list[Problem]:
        """Return a problem for each number outside its range, for the task, and for several targets."""
        wrong = list(out_of_range(self, self.ranges))
        wrong += task_problems(self.task, RANKING_TASKS)
        if not wrong and self.task.tasks != 1:
            problem = f"{self.task.tasks} targets, but trees give one score"
            wrong.append(Problem("task", problem, "take ListwiseSoftmax(…), or MMoE for several targets"))
        return wrong

    def needs(self) -> Mapping[str, str]:
        """Return ``history_columns`` if the model reads the history."""
        remedy = "name the item id feature, or set use_history=False"
        return {"history_columns": remedy} if self.use_history else {}

    def misfits(self, user: Columns, item: Columns, timed: bool) -> list[Problem]:
        """Return a problem if XGBoost is not installed; any features will do."""
        try:
            _library()
        except KindUnavailable as error:
            problem, _, remedy = str(error).rpartition("; ")
            return [Problem("", problem, remedy)]
        return []

    def fit(self, data: RankingData, plan: Plan) -> tuple[FittedTrees, Course]:
        """Add trees until the judge's score no longer improves; without lists keep retrieval's order."""
        fitted = FittedTrees(self, data.inputs, data.scale)
        task = self.task.start(data.lists, data.kept, data.packed.n_items)
        judged = [] if plan.judge is None else [plan.judge(fitted)]
        batches = list(task.epoch(np.random.default_rng(plan.seed))) if len(data.lists) else []
        if not batches:  # no list has a positive
            return fitted, Course(0, (), tuple(judged))
        matrix = _matrix(fitted, data, batches)
        total = plan.epochs if plan.judge is None and plan.epochs is not None else self.max_epochs
        losses: list[float] = []
        kept, best = fitted.booster, 0
        while len(losses) < total and not (judged and len(losses) - best >= self.patience):
            losses.append(fitted.grow(matrix, plan, len(losses) + 1))
            if plan.progress is not None:
                plan.progress(plan.label, len(losses), total)
            if plan.judge is not None:
                judged.append(plan.judge(fitted))
                if judged[-1] > judged[best]:
                    kept, best = fitted.booster, len(losses)
        if plan.judge is not None:
            fitted.booster = kept
        if plan.progress is not None and len(losses) < total:
            plan.progress(plan.label, total, total)
        return fitted, Course(best if judged else len(losses), tuple(losses), tuple(judged))

    def load(self, folder: Path, inputs: ModelInputs) -> FittedTrees:
        """Read the trees."""
        return FittedTrees(self, inputs, 1.0).restored(folder)


class FittedTrees:
    """Trees over candidates, and the graph of their features."""

    def __init__(self, settings: XGBoost, inputs: ModelInputs, scale: float) -> None:
        self.settings = settings
        self.scale = float(np.float32(scale)) if settings.use_retrieval_score else 0.0
        if not settings.use_history:
            inputs = replace(inputs, history=())
        self._inputs = inputs
        self._graph = FeatureGraph(inputs, scored=settings.use_retrieval_score)
        self.rows = FeatureRows(self._graph)
        #: An ``xgboost.Booster``; None has no trees.
        self.booster: Any = None

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the tensors that it reads."""
        return self._graph.input_names

    def scores(self, arrays: Arrays) -> Array:
        """Return ``rank_score [B, K, 1]``."""
        shape = arrays["item_cat" if "item_cat" in arrays else self._item_tensor()].shape[:2]
        start = self.start(arrays, shape)
        if self.booster is None:
            return start[..., None]
        matrix = _library().DMatrix(self.rows(arrays), base_margin=start.reshape(-1), nthread=1)
        found = self.booster.predict(matrix, output_margin=True)
        return np.asarray(found, np.float32).reshape(*shape, 1)

    def start(self, arrays: Arrays, shape: tuple[int, ...]) -> Array:
        """Return the scores ``[B, K]`` float32 that the trees add to."""
        if not self.settings.use_retrieval_score:
            return np.zeros(shape, np.float32)
        return np.asarray(arrays["kept_score"] * np.float32(self.scale), np.float32)

    def grow(self, matrix: Any, plan: Plan, epoch: int) -> float:
        """Add an epoch's trees and return the training loss; raise TrainingError if it is not finite."""
        settings = self.settings
        evaluated: dict[str, dict[str, list[float]]] = {}
        self.booster = _library().train(
            {
                "objective": OBJECTIVES[settings.objective],
                **({"eval_metric": "logloss"} if settings.objective == "logistic" else _OF_LISTS),
                "eta": settings.learning_rate,
                "max_depth": settings.max_depth,
                "min_child_weight": settings.min_child_weight,
                "lambda": settings.l2,
                "subsample": settings.subsample,
                "colsample_bytree": settings.column_share,
                "seed": plan.seed,
                "tree_method": "hist",
                "nthread": 1,  # the result depends on it, and there are few lists
                "verbosity": 0,
            },
            matrix,
            settings.trees_per_epoch,
            evals=[(matrix, "learned")],
            evals_result=evaluated,
            verbose_eval=False,
            xgb_model=self.booster,
        )
        (values,) = evaluated["learned"].values()
        loss = values[-1] if settings.objective == "logistic" else 1 - values[-1]
        if not np.isfinite(loss):
            raise TrainingError(
                f"{plan.label}: the loss became {loss} in epoch {epoch}; lower the learning rate, or look "
                "for numbers among the features that no Normalize() tames"
            )
        return float(loss)

    def save(self, folder: Path) -> None:
        """Write the trees as XGBoost's JSON, with the factor of retrieval's score."""
        trees = None if self.booster is None else json.loads(self.booster.save_raw("json"))
        document = {"scale": self.scale, "trees": trees}
        (folder / _FILE).write_text(json.dumps(document), encoding="utf-8")

    def restored(self, folder: Path) -> FittedTrees:
        """Read what :meth:`save` wrote, and return it."""
        path = folder / _FILE
        if not path.is_file():
            raise TrainingError(f"{path}: expected a model's trees, found no file; train again")
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            self.scale = float(document["scale"])
            if document["trees"] is not None:
                self.booster = _library().Booster()
                self.booster.load_model(bytearray(json.dumps(document["trees"]), "utf-8"))
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise fault_of(error, path) or TrainingError(
                f"{path}: these are not trees of XGBoost ({error}); train again"
            ) from error
        return self

    def served(self) -> Any:
        """Return the ONNX graph: rows of features, trees, and retrieval's score."""
        graph = FeatureGraph(self._inputs, scored=self.settings.use_retrieval_score)
        add_trees(graph, self.trees, self._item_tensor(), self.scale)
        return graph.model("rank_score", 3)

    @property
    def trees(self) -> Trees | None:
        """The trees as arrays; None if there are none."""
        return None if self.booster is None else Trees.read(json.loads(self.booster.save_raw("json")))

    def _item_tensor(self) -> str:
        return next(name for name in self._inputs.item.tensor_names if name in self.inputs)


def _library() -> Any:
    """Import XGBoost; raise KindUnavailable, which names the extra to install, if it is missing."""
    with RANKING_FAMILIES.using("xgboost"):
        return importlib.import_module("xgboost")


def _matrix(fitted: FittedTrees, data: RankingData, batches: list[RankingLists]) -> Any:
    """Return the lists' candidates as an XGBoost ``DMatrix``, without padding."""
    packed, rows, labels, margins = data.packed, [], [], []
    owners: list[Array] = []
    for batch in batches:
        arrays = packed.user_tensors(batch.contexts, batch.history)
        arrays.update({name: array[batch.rows] for name, array in packed.item.items()})
        arrays.update(kept_score=batch.scores, kept_source=batch.sources)
        real = (batch.rows != packed.n_items).reshape(-1)
        rows.append(fitted.rows(arrays)[real])
        labels.append(batch.weights.reshape(-1)[real])
        margins.append(fitted.start(arrays, batch.rows.shape).reshape(-1)[real])
        owners.append((len(owners) << 32) + np.repeat(np.arange(len(batch)), batch.rows.shape[1])[real])
    _, groups = np.unique(np.concatenate(owners), return_inverse=True)
    known = {"label": np.concatenate(labels), "base_margin": np.concatenate(margins)}
    if fitted.settings.objective != "logistic":
        known["qid"] = groups
    return _library().DMatrix(np.concatenate(rows), nthread=1, **known)
