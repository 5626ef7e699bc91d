"""The contracts of model families, and the tables of them.

A family's class is its settings: what a recipe writes, and what a run stores beside the weights. Fitting
returns a *fitted* model, which training asks for candidates or scores, and an export for its served form.
The contracts require no torch, gradients or epochs, so a family may also solve an equation or grow trees.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, TypeVar, runtime_checkable

from tiercel_serving.kinds import Kind, Kinds
from tiercel_serving.problems import Problem
from tiercel_serving.spec import Array, Arrays

from ..arrays.inputs import ModelInputs
from ..arrays.lists import RankingLists
from ..arrays.packed import Packed
from ..arrays.pairs import Pairs
from ..data import Progress
from ..tasks.table import ListSettings
from .ranks import ALONE, Ranks

#: Arrays by name, and facts that JSON holds.
State = tuple[dict[str, Array], dict[str, Any]]


class EpochStates(Protocol):
    """Keeps the training state of one model."""

    def read(self) -> State | None:
        """Return the state kept before the process was killed, if any."""
        ...

    def offer(self, state: Callable[[], State]) -> None:
        """Keep the state after an epoch, if it is time to; the state is computed only then."""
        ...


@dataclass(frozen=True)
class Plan:
    """How one training is run.

    Parameters
    ----------
    seed
        Random seed: the same seed gives the same model, on the same machine with the same number of threads.
    label
        Its name in progress and messages.
    judge
        Returns a fitted model's quality on held-out data, higher is better. A family that trains in epochs
        stops when it no longer improves, and keeps the best. None: nothing is judged.
    epochs
        Number of epochs if there is no judge; None is as many as the settings allow. Families without epochs
        ignore it.
    progress
        Called after each epoch.
    states
        Keeps the state after an epoch, so that a killed training continues from there. A family that does not
        use it starts again, and gives the same model.
    ranks
        The processes that train together. A family that ignores them does the same in each.
    """

    seed: int
    label: str
    judge: Callable[[Any], float] | None = None
    epochs: int | None = None
    progress: Progress | None = None
    states: EpochStates | None = None
    ranks: Ranks = ALONE


@dataclass(frozen=True)
class Course:
    """How a training went.

    Parameters
    ----------
    epochs
        Number of epochs of the kept model; 0 for a family without epochs.
    losses
        Mean loss of each epoch run.
    validation
        The judge's scores: before the first epoch, then after each. Empty without a judge.
    """

    epochs: int
    losses: tuple[float, ...] = ()
    validation: tuple[float, ...] = ()


@dataclass(frozen=True)
class RetrievalData:
    """What a retrieval family learns from: packed tensors, the interactions, and the tensors' columns."""

    packed: Packed
    pairs: Pairs
    inputs: ModelInputs


@dataclass(frozen=True)
class RankingData:
    """What a ranking family learns from.

    Parameters
    ----------
    packed, inputs
        As for retrieval.
    lists
        Lists of candidates whose positives retrieval did not know; may be empty.
    kept
        K: number of candidates that the ranker gets in serving.
    scale
        Factor that turns retrieval scores into log-probabilities, up to a constant.
    """

    packed: Packed
    inputs: ModelInputs
    lists: RankingLists
    kept: int
    scale: float


class Fitted(Protocol):
    """A fitted model."""

    def save(self, folder: Path) -> None:
        """Write what its family's ``load`` reads into a folder of its own."""
        ...

    def served(self) -> Any:
        """Return its served form, or the ranker, as :func:`tiercel_export.build_release` takes it."""
        ...


class FittedRetrieval(Fitted, Protocol):
    """A fitted retrieval model."""

    def query(self, users: Arrays) -> Array | None:
        """Return the queries ``[B, D]`` of user tensors ``[B, …]``; None for a form without queries."""
        ...

    def form(self, items: Arrays) -> dict[str, Array]:
        """Return the arrays of its served form for item tensors ``[I, …]``, from which its source is made."""
        ...


class FittedRanking(Fitted, Protocol):
    """A fitted ranker."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the tensors that :meth:`scores` reads."""
        ...

    def scores(self, arrays: Arrays) -> Array:
        """Return ``rank_score [B, K, T]`` of user and candidate tensors, as the stage gets them."""
        ...


Data = TypeVar("Data", contravariant=True)
Model = TypeVar("Model", covariant=True)


class Family(Protocol[Data, Model]):
    """The settings of a model."""

    def problems(self) -> list[Problem]:
        """Return what is wrong with the settings by themselves."""
        ...

    def needs(self) -> Mapping[str, str]:
        """Return the serving settings that it needs, each with what to do if it is missing."""
        ...

    def fit(self, data: Data, plan: Plan) -> tuple[Model, Course]:
        """Fit a model; a ranker without lists keeps retrieval's order."""
        ...

    def load(self, folder: Path, inputs: ModelInputs) -> Model:
        """Read what the model's ``save`` wrote."""
        ...


@runtime_checkable
class RetrievalFamily(Family[RetrievalData, FittedRetrieval], Protocol):
    """A family of models that find candidates among all items."""

    #: The served form: a source of this form and of the model's name serves it.
    form: ClassVar[str]

    @property
    def name(self) -> str:
        """Name of its source and its stage."""
        ...

    @property
    def dimension(self) -> int | None:
        """D of its queries; None for a form without queries."""
        ...

    @property
    def scale(self) -> float:
        """Factor that turns its scores into log-probabilities, up to a constant."""
        ...


@runtime_checkable
class RankingFamily(Family[RankingData, FittedRanking], Protocol):
    """A family of models that order the candidates which passed the rules."""

    @property
    def task(self) -> ListSettings:
        """What it learns, and from which lists."""
        ...


#: Column → what a row of it holds.
Columns = Mapping[str, Literal["category", "categories", "number", "numbers"]]


@runtime_checkable
class FitsFeatures(Protocol):
    """A family that can tell before training whether the features and the data suit it."""

    def misfits(self, user: Columns, item: Columns, timed: bool) -> list[Problem]:
        """Return a problem for each feature or property of the data that the family lacks.

        Parameters
        ----------
        user, item
            The columns of both sides that reach the models; context is the user's.
        timed
            Whether interactions have a time, so that histories have an order.
        """
        ...


@runtime_checkable
class LimitsItems(Protocol):
    """A family that can't be fitted over any number of items."""

    def too_large(self, n_items: int) -> list[Problem]:
        """Return a problem if this number of items is too large."""
        ...


@runtime_checkable
class LearnsFromColumns(Protocol):
    """A family that also learns from columns of the interactions, such as ratings."""

    def interaction_columns(self) -> tuple[str, ...]:
        """Return the numeric columns; :attr:`~tiercel_pipelines.arrays.pairs.Pairs.numbers` holds them."""
        ...


def learned_columns(models: Iterable[object]) -> tuple[str, ...]:
    """Return the columns of the interactions that some models learn from, each once."""
    learning = (model for model in models if isinstance(model, LearnsFromColumns))
    return tuple(dict.fromkeys(name for model in learning for name in model.interaction_columns()))


#: Every family that finds candidates.
RETRIEVAL_FAMILIES: Kinds[RetrievalFamily] = Kinds(
    "retrieval family",
    {
        "two_tower": Kind("tiercel_pipelines.families.two_tower:TwoTower"),
        "item_knn": Kind("tiercel_pipelines.families.item_knn:ItemKNN"),
        "user_knn": Kind("tiercel_pipelines.families.user_knn:UserKNN"),
        "ease": Kind("tiercel_pipelines.families.ease:EASE"),
        "slim": Kind("tiercel_pipelines.families.slim:SLIM"),
        "als": Kind("tiercel_pipelines.families.als:ALS"),
        "bpr_mf": Kind("tiercel_pipelines.families.bpr_mf:BPRMF"),
        "vbpr": Kind("tiercel_pipelines.families.vbpr:VBPR"),
        "biased_mf": Kind("tiercel_pipelines.families.biased_mf:BiasedMF"),
        "softmax_dnn": Kind("tiercel_pipelines.families.softmax_dnn:SoftmaxDNN"),
        "item2vec": Kind("tiercel_pipelines.families.item2vec:Item2Vec"),
        "kmeans": Kind("tiercel_pipelines.families.kmeans:KMeans"),
        "sasrec": Kind("tiercel_pipelines.families.sasrec:SASRec"),
        "gru4rec": Kind("tiercel_pipelines.families.gru4rec:GRU4Rec"),
        "mult_vae": Kind("tiercel_pipelines.families.mult_vae:MultVAE"),
        "cdae": Kind("tiercel_pipelines.families.cdae:CDAE"),
        "deep_autoencoder": Kind("tiercel_pipelines.families.deep_autoencoder:DeepAutoencoder"),
    },
)

#: Every family that orders candidates.
RANKING_FAMILIES: Kinds[RankingFamily] = Kinds(
    "ranking family",
    {
        "dlrm": Kind("tiercel_pipelines.families.dlrm:DLRM"),
        "logistic_regression": Kind("tiercel_pipelines.families.logistic_regression:LogisticRegression"),
        "fm": Kind("tiercel_pipelines.families.fm:FM"),
        "mlp": Kind("tiercel_pipelines.families.mlp:MLP"),
        "gmf": Kind("tiercel_pipelines.families.gmf:GMF"),
        "ncf": Kind("tiercel_pipelines.families.ncf:NCF"),
        "neumf": Kind("tiercel_pipelines.families.neumf:NeuMF"),
        "wide_and_deep": Kind("tiercel_pipelines.families.wide_and_deep:WideAndDeep"),
        "deepfm": Kind("tiercel_pipelines.families.deepfm:DeepFM"),
        "dcn": Kind("tiercel_pipelines.families.dcn:DCN"),
        "dcn_v2": Kind("tiercel_pipelines.families.dcn_v2:DCNv2"),
        "din": Kind("tiercel_pipelines.families.din:DIN"),
        "bst": Kind("tiercel_pipelines.families.bst:BST"),
        "mmoe": Kind("tiercel_pipelines.families.mmoe:MMoE"),
        "xgboost": Kind("tiercel_pipelines.families.xgboost:XGBoost", extra="xgboost"),
    },
)
