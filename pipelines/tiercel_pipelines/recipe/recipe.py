"""A recipe: one Python module that describes one recommender, from its data to its serving limits.

A recipe module holds ``RECIPE = Recipe(...)``. ``docs/recipes.md`` explains every field;
``tiercel_pipelines/recipes/movielens.py`` is the one to copy.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from tiercel_serving.settings import Rule, ServingSettings, Source

from ..data import Dataset, DatasetSpec, MovieLens100K, Parquet, Synthetic
from ..errors import Mistake, RecipeError

__all__ = [
    "BUILT_IN",
    "IMPLICIT",
    "IndexSettings",
    "MovieLens100K",
    "Parquet",
    "RankingSettings",
    "Recipe",
    "RetrievalSettings",
    "Rule",
    "ServingSettings",
    "Source",
    "SplitSettings",
    "Synthetic",
    "load_recipe",
]

#: Recipes that come with Tiercel.
BUILT_IN: Mapping[str, str] = {
    "movielens": "tiercel_pipelines.recipes.movielens",
    "synthetic": "tiercel_pipelines.recipes.synthetic",
}

#: The target of a ranker that learns which items a user picked at all.
IMPLICIT = "interaction"


@dataclass(frozen=True)
class SplitSettings:
    """How interactions become training, validation and test parts, at random for each user.

    Parameters
    ----------
    train
        Share of each user's interactions that is not the test part.
    validation
        Share of that which early stopping looks at.
    seed
        Same seed, same split.
    """

    train: float = 0.75
    validation: float = 0.1
    seed: int = 42


@dataclass(frozen=True)
class RetrievalSettings:
    """The model that finds candidates among all items.

    Parameters
    ----------
    model
        ``two_tower``: a user tower and an item tower that meet in an inner product, trained with an
        in-batch sampled softmax.
    dimension
        D, the length of the query and of the item vectors.
    embedding_dimension
        Length of each categorical column's embedding.
    user_layers, item_layers
        Widths of the hidden layers of each tower.
    temperature
        The softmax's temperature: inner products of unit vectors are divided by it.
    logq_correction
        Whether popular items, which are negatives more often, are corrected for.
    use_history
        Whether the user tower sees the items a user had before.
    history_dropout
        Share of the history's items that is left out at random in training.
    dropout
        Dropout of the hidden layers and of the user's embeddings.
    learning_rate, weight_decay
        Of the optimiser.
    id_dropout
        Share of a user's category ids that training makes null or unknown, so that the model has
        something to say about users it does not know.
    context_dropout
        Share of the interactions whose context is hidden in training, since requests may come without.
    batch_size
        Interactions in a batch; the other items of a batch are the negatives.
    positives
        How many interactions of one user share one query in a batch; the rest of the user's items
        is its history.
    max_epochs, patience
        Training stops after so many epochs, or after so many without a better validation.
    """

    model: str = "two_tower"
    dimension: int = 64
    embedding_dimension: int = 64
    user_layers: tuple[int, ...] = ()
    item_layers: tuple[int, ...] = ()
    temperature: float = 0.2
    logq_correction: bool = True
    use_history: bool = True
    history_dropout: float = 0.5
    dropout: float = 0.0
    id_dropout: float = 0.1
    context_dropout: float = 0.3
    learning_rate: float = 1e-2
    weight_decay: float = 0.1
    batch_size: int = 4096
    positives: int = 16
    max_epochs: int = 24
    patience: int = 4


@dataclass(frozen=True)
class RankingSettings:
    """The model that orders the candidates which passed the filters.

    Parameters
    ----------
    model
        ``dlrm``: embeddings and a bottom network for numbers, whose pairwise inner products a top
        network turns into a score.
    target
        What it learns: ``interaction`` (a user picked the item; items that the user did not pick
        are the negatives), or a column of the interactions between 0 and 1.
    embedding_dimension
        Length of each column's embedding, and the width at which columns interact.
    bottom_layers, top_layers
        Widths of the hidden layers before and after the interaction.
    use_retrieval_score
        Whether it sees the score of the retrieval model.
    use_history
        Whether it sees the items a user had before.
    history_dropout
        Share of the history's items that is left out at random in training.
    folds
        The ranker learns from interactions that the retrieval model did not know. The training part
        is dealt into so many folds, and for each a retrieval model is trained without it: more
        folds, histories closer to those when serving, more time. At least 2.
    negatives
        Negatives in the list of a user.
    hard_negatives
        Share of the negatives drawn from the ``serving.kept`` best candidates, the others from all
        candidates.
    context_dropout
        Share of the lists whose context is hidden in training.
    dropout
        Dropout of the hidden layers and of the user's embeddings.
    learning_rate, weight_decay
        Of the optimiser.
    batch_size
        Users in a batch.
    max_epochs, patience
        Training stops after so many epochs, or after so many without a better validation.
    """

    model: str = "dlrm"
    target: str | None = IMPLICIT
    embedding_dimension: int = 32
    bottom_layers: tuple[int, ...] = ()
    top_layers: tuple[int, ...] = (64,)
    use_retrieval_score: bool = True
    use_history: bool = True
    history_dropout: float = 0.3
    folds: int = 3
    negatives: int = 100
    hard_negatives: float = 0.9
    context_dropout: float = 0.3
    dropout: float = 0.2
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    batch_size: int = 64
    max_epochs: int = 8
    patience: int = 2


@dataclass(frozen=True)
class IndexSettings:
    """The index over the item vectors.

    Parameters
    ----------
    factory
        A FAISS factory string: ``Flat`` (exact), ``IVF256,Flat``, ``HNSW32`` and so on.
    parameters
        FAISS search parameters, such as ``{"nprobe": 16}``.
    min_recall
        The export fails if the index finds a smaller share of what exact search finds.
    """

    factory: str = "Flat"
    parameters: Mapping[str, int | float] = field(default_factory=dict)
    min_recall: float = 0.99


@dataclass(frozen=True)
class Recipe:
    """One recommender.

    Parameters
    ----------
    name
        Names runs and releases: letters, digits, ``-`` and ``_``.
    dataset
        Where users, items and interactions come from.
    features
        A function without arguments that returns a new NVTabular graph. Each of its output columns
        has one of the tags USER, ITEM and CONTEXT; one has ITEM_ID.
    retrieval, ranking, index, serving, split
        See each.
    seed
        Of initial weights, batches and negatives.
    origin
        The module or file it was loaded from; set by :func:`load_recipe`.
    """

    name: str
    dataset: DatasetSpec
    features: Callable[[], Any]
    retrieval: RetrievalSettings = field(default_factory=RetrievalSettings)
    ranking: RankingSettings = field(default_factory=RankingSettings)
    index: IndexSettings = field(default_factory=IndexSettings)
    serving: ServingSettings = field(default_factory=ServingSettings)
    split: SplitSettings = field(default_factory=SplitSettings)
    seed: int = 42
    origin: str = ""

    def check(self, dataset: Dataset | None = None) -> Recipe:
        """Return the recipe itself if it makes sense.

        Parameters
        ----------
        dataset
            The loaded data set; with it, columns and their types are checked too.

        Raises
        ------
        RecipeError
            With every mistake that was found.
        """
        from .check import find_mistakes

        mistakes = find_mistakes(self, dataset)
        if mistakes:
            raise RecipeError(self._title(), mistakes)
        return self

    def to_json(self) -> dict[str, Any]:
        """Return a JSON form of everything but the feature graph, for manifests and logs."""
        parts = ("retrieval", "ranking", "index", "split")
        return {
            "name": self.name,
            "origin": self.origin,
            "seed": self.seed,
            "dataset": {"kind": type(self.dataset).__name__, **asdict(self.dataset)},
            **{part: asdict(getattr(self, part)) for part in parts},
            "serving": self.serving.to_json(),
        }

    def _title(self) -> str:
        return f"{self.name!r} ({self.origin})" if self.origin else repr(self.name)


def load_recipe(name_or_path: str | Path) -> Recipe:
    """Load a recipe and check what can be checked without its data.

    Parameters
    ----------
    name_or_path
        A name of :data:`BUILT_IN`, the path of a ``.py`` file, or the dotted name of a module.

    Raises
    ------
    RecipeError
        If there is no such recipe, the module cannot be run, it has no ``RECIPE``, or the recipe
        has mistakes.
    """
    text = str(name_or_path)
    is_file = text.endswith(".py") or "/" in text
    with warnings.catch_warnings():
        # NVTabular warns on import about TensorFlow and others that nothing here uses.
        warnings.simplefilter("ignore")
        module = _load_file(Path(text)) if is_file else _load_module(text)
    recipe = getattr(module, "RECIPE", None)
    if not isinstance(recipe, Recipe):
        problem = "there is no RECIPE" if recipe is None else f"RECIPE is a {type(recipe).__name__}"
        raise _failure(text, "RECIPE", problem, "end the module with RECIPE = Recipe(...)")
    origin = str(Path(text).resolve()) if is_file else BUILT_IN.get(text, text)
    return replace(recipe, origin=origin).check()


def _load_module(name: str) -> ModuleType:
    module = BUILT_IN.get(name, name)
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and (module == error.name or module.startswith(f"{error.name}.")):
            known = ", ".join(BUILT_IN)
            remedy = f"use one of {known}, the path of a .py file, or the name of a module on the Python path"
            raise _failure(name, "recipe", "there is no such recipe", remedy) from None
        raise _explained(name, error) from error
    except Exception as error:
        raise _explained(name, error) from error


def _load_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise _failure(str(path), "file", f"{path.absolute()} does not exist", "correct the path")
    module_name = f"tiercel_recipe_{path.stem}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise _failure(str(path), "file", "it is no Python module", "give a file that ends in .py")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up while they are made; afterwards the name is free again, so that
    # functions of the recipe are pickled by value into the workflow and not by a name nobody can import.
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise _explained(str(path), error) from error
    finally:
        sys.modules.pop(module_name, None)
    return module


def _failure(recipe: str, where: str, problem: str, remedy: str) -> RecipeError:
    return RecipeError(recipe, [Mistake(where, problem, remedy)])


def _explained(recipe: str, error: BaseException) -> RecipeError:
    """Say in one line where the recipe's own code went wrong."""
    if isinstance(error, RecipeError):
        return error
    if isinstance(error, SyntaxError):
        where = f"line {error.lineno}"
        code = (error.text or "").strip()
        return _failure(recipe, where, f"not valid Python: {error.msg}: {code}", "correct that line")
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "importlib" not in frame.filename and frame.filename != __file__]
    where = f"line {own[-1].lineno}" if own else "module"
    mine = [frame for frame in own if Path(recipe).name in frame.filename]
    if mine:
        where = f"line {mine[-1].lineno}"
    return _failure(recipe, where, _in_words(error), "correct that line (docs/recipes.md lists every field)")


def _in_words(error: BaseException) -> str:
    if isinstance(error, TypeError) and "unexpected keyword argument" in str(error):
        maker, _, name = str(error).partition(".__init__() got an unexpected keyword argument ")
        suggestion = _nearest(maker, name.strip("'"))
        return f"{maker} has no field {name}{suggestion}"
    if isinstance(error, TypeError) and "required positional argument" in str(error):
        maker, _, rest = str(error).partition(".__init__() missing ")
        return f"{maker} needs {rest.partition(': ')[2]}"
    return f"{type(error).__name__}: {error}"


def _nearest(maker: str, name: str) -> str:
    from dataclasses import fields
    from difflib import get_close_matches

    kind = globals().get(maker)
    if kind is None:
        return ""
    known = [item.name for item in fields(kind)]
    close = get_close_matches(name, known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else f" (it has {', '.join(known)})"
