"""The served graph in memory, for training and offline figures.

It runs the served sources, rules, reorder steps and store over artefacts in memory, without writing a
release. An index is searched exactly. Users are processed in blocks, so that no array is as large as all
users × items.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt
import torch

from tiercel_serving.columns import with_null_row
from tiercel_serving.ranked.masks import Mask, make_mask
from tiercel_serving.ranked.order import sort_by_score
from tiercel_serving.release.artefacts import Artefact
from tiercel_serving.reorder.inputs import source_columns
from tiercel_serving.reorder.steps import Steps
from tiercel_serving.rules.kept import KeptRules, allowed_items, reason_table
from tiercel_serving.rules.table import RuleKind
from tiercel_serving.settings import KNOWN, ServingSettings
from tiercel_serving.sources.merged import Candidates, MergedSources
from tiercel_serving.sources.table import SOURCES, Material, Source, SourceKind
from tiercel_serving.spec import Array, Arrays
from tiercel_serving.stages.specs import query_stage

from ..arrays.packed import Packed
from ..arrays.pairs import IntArray, Pairs
from ..data import Progress
from ..errors import TrainingError
from ..families.table import FittedRanking, FittedRetrieval
from .had import Had

#: Number of users in a block.
BLOCK = 256


def blocks(users: IntArray, what: str = "", progress: Progress | None = None) -> Iterator[IntArray]:
    """Yield users in blocks, and report progress under the name ``what``."""
    for start in range(0, len(users), BLOCK):
        yield users[start : start + BLOCK]
        if progress is not None:
            progress(what, min(start + BLOCK, len(users)), len(users))


def finite(values: Array, what: str) -> Array:
    """Return a trained model's output; raise TrainingError if any of it is NaN or infinite.

    A loss is computed with the weights before its step, so only this check sees those of the last step.
    """
    wrong = int(values.size - np.count_nonzero(np.isfinite(values)))
    if wrong:
        raise TrainingError(
            f"{what}: {wrong} of {values.size} numbers are NaN or infinite; lower the "
            "learning rate, or look for numbers among the features that are null (FillMissing) or that no "
            "Normalize() tames"
        )
    return values


def queries_of(model: FittedRetrieval, name: str, tensors: Arrays) -> Array | None:
    """Return a model's queries ``[B, D]``, or None if it has none; raise TrainingError if not finite."""
    query = model.query(tensors)
    return None if query is None else finite(query, f"{name}, its queries of users")


class KnownUsers:
    """Users and the items that they had so far (``pairs``), behind the served store.

    ``settings`` and ``now_s`` are those of :class:`~.had.Had`; without settings no item that a user had may
    be recommended again.
    """

    def __init__(
        self,
        packed: Packed,
        pairs: Pairs,
        settings: ServingSettings | None = None,
        now_s: npt.NDArray[np.float64] | None = None,
    ) -> None:
        settings = ServingSettings() if settings is None else settings
        self._packed = packed
        self.had = Had(pairs.offsets, pairs.items, pairs.times, settings, now_s)

    def history(self, users: IntArray) -> IntArray:
        """Return the users' latest items ``[B, L]``, oldest first."""
        return self.had.of(users).history(self._packed.history_length, self._packed.n_items)[0]

    def tensors(self, users: IntArray) -> dict[str, Array]:
        """Return the users' tensors ``[B, …]``, without context."""
        return self._packed.user_tensors(users, self.history(users))

    def mask(self, users: IntArray) -> Mask:
        """Return the mask of items that the users must not get."""
        return make_mask(len(users), self._packed.n_items, *self.had.masked(users))


def open_source(
    kind: SourceKind,
    model: FittedRetrieval | None,
    packed: Packed,
    pairs: Pairs,
    candidates: int,
    rules: Sequence[RuleKind] = (),
) -> Source:
    """Make a source and open it, in memory; the parameters are those of :func:`make_source`."""
    with SOURCES.using(kind):
        artefact = make_source(kind, model, packed, pairs, candidates, rules)
        # FAISS and torch share one thread count, so opening a source must not change that of the training.
        return kind.open(artefact, packed.n_items, torch.get_num_threads())


def make_source(
    kind: SourceKind,
    model: FittedRetrieval | None,
    packed: Packed,
    pairs: Pairs,
    candidates: int,
    rules: Sequence[RuleKind] = (),
) -> Artefact:
    """Make the artefact of a source, in memory.

    Parameters
    ----------
    kind, candidates
        The source's settings, and the number of candidates N.
    model
        The retrieval model that feeds the source; None for a source without one.
    packed, pairs
        The items, and the interactions that the source may know.
    rules
        Rules that the source's items must pass.
    """
    form = {} if model is None else model.form(packed.catalogue)
    for name, array in form.items():
        finite(array, f"{kind.name}, its {name} of items")
    material = Material(
        items=packed.n_items,
        users=pairs.users,
        rows=pairs.items,
        columns={name: packed.raw[name] for name in kind.columns()},
        form=form,
        allowed=allowed_items(rules, packed.raw, packed.n_items) if rules else None,
        candidates=candidates,
        times=pairs.times,
    )
    with SOURCES.using(kind):
        made = kind.make(material)
        return Artefact.in_memory("source", made.arrays, made.meta)


class OfflineRetrieval:
    """The candidates that the served sources would return; each model feeds the source of the same name.

    ``pairs`` holds the items that each user had. They determine histories and popularity, and are masked
    unless the settings allow them again at the user's time ``now_s [U]``, in seconds since 1970.
    """

    def __init__(
        self,
        settings: ServingSettings,
        models: Mapping[str, FittedRetrieval],
        packed: Packed,
        pairs: Pairs,
        now_s: npt.NDArray[np.float64] | None = None,
    ) -> None:
        self.users = KnownUsers(packed, pairs, settings, now_s)
        self._models = models
        self._make = {
            kind.name: partial(
                make_source, kind, models.get(kind.name), packed, pairs, settings.candidates, settings.rules
            )
            for kind in settings.sources
        }
        opened = [
            open_source(kind, models.get(kind.name), packed, pairs, settings.candidates, settings.rules)
            for kind in settings.sources
        ]
        self._sources = MergedSources(settings, opened, packed.n_items)

    def arrays_of(self, source: str) -> Arrays:
        """Return the arrays of a source's artefact."""
        return self._make[source]().arrays

    def candidates(self, users: IntArray) -> tuple[dict[str, Array], Candidates]:
        """Return the tensors of a block of users, and their candidates: scores, rows, sources ``[B, N]``."""
        tensors = self.users.tensors(users)
        return tensors, self._found(users, self._arrays(tensors))

    def terms(self, users: IntArray) -> tuple[IntArray, Array]:
        """Return the candidates ``[B, N]`` of a block of users, and their scores by each blended source.

        The scores ``[T, B, N]`` exclude the sources' weights and are -inf for the pad row. T counts the
        sources whose weighted sum is the common scale (``MergedSources.terms``).
        """
        arrays = self._arrays(self.users.tensors(users))
        rows = self._found(users, arrays)[1]
        return rows, self._sources.term_scores(arrays, rows)

    def _arrays(self, tensors: dict[str, Array]) -> dict[str, Array]:
        """Return the inputs of the sources: the users' tensors and queries."""
        queries = {
            query_stage(name): queries_of(model, name, tensors) for name, model in self._models.items()
        }
        return tensors | {name: query for name, query in queries.items() if query is not None}

    def _found(self, users: IntArray, arrays: Arrays) -> Candidates:
        found = self._sources.personal(arrays, self.users.mask(users))
        finite(found[0], "retrieval, its scores")
        return found


class OfflineOrdering:
    """Filter, rank and order candidates as served; without a ranker, retrieval's order is kept.

    ``arrays_of`` returns the arrays of a source's artefact, for steps that read a source's item data.
    """

    def __init__(
        self,
        settings: ServingSettings,
        ranker: FittedRanking | None,
        packed: Packed,
        arrays_of: Callable[[str], Arrays] | None = None,
    ) -> None:
        reasons = reason_table(settings.rules, packed.raw, packed.n_items)
        self._rules = KeptRules(reasons, settings.candidates, settings.kept)
        read = [name for step in settings.reorder for name in step.columns()]
        padded = {name: with_null_row(packed.raw[name]) for name in read}
        if arrays_of is not None:
            padded |= source_columns(settings.reorder, arrays_of, packed.n_items)
        self._steps = Steps(settings, padded, packed.n_items)
        self._ranker, self._packed = ranker, packed

    def keep(self, candidates: Candidates) -> dict[str, Array]:
        """Return the kept candidates ``[B, K]``: the first K that pass every rule."""
        scores, rows, sources = candidates
        return self._rules.keep(rows, scores, sources)

    def order(self, users: Arrays, kept: Arrays) -> IntArray:
        """Return the kept rows ``[B, K]`` in their final order, pad rows last."""
        arrays = {**users, **kept, "status": np.full((len(kept["kept_row"]), 1), KNOWN, np.int32)}
        if self._ranker is not None:
            read = [name for name in self._ranker.inputs if name in self._packed.item]
            items = {name: self._packed.item[name].take(kept["kept_row"], axis=0) for name in read}
            arrays["rank_score"] = finite(self._ranker.scores({**arrays, **items}), "ranking, its scores")
        final = self._steps.apply(arrays)
        return sort_by_score(final.scores, final.rows)[1]
