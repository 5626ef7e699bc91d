"""The contract of a source of candidates, and the table of sources."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, cast, runtime_checkable

import numpy as np
import numpy.typing as npt

from ..columns import Column
from ..errors import KindUnavailable
from ..kinds import Kind, Kinds
from ..problems import Problem
from ..ranked.masks import Mask
from ..ranked.order import Rows, Scores
from ..release.artefacts import Artefact
from ..spec import Array, Arrays

#: Tensors of one user, for a plain reference: without the user axis.
UserTensors = Mapping[str, Array]


@dataclass(frozen=True)
class Material:
    """Data that sources are made from, in catalogue order.

    Parameters
    ----------
    items
        I.
    users, rows
        ``[n]`` user and item rows of the interactions, in order of time; a user row of -1 is an unknown user.
    columns
        Raw item columns ``[I]`` that the source asked for.
    form
        The served form of the source's retrieval model: arrays by name (``vectors [I, D]`` float32), and
        any other data that the kind takes; empty for a source without a model.
    queries
        ``[Q, D]`` realistic queries to measure with; None if nothing is to be measured.
    seen
        For each query, the catalogue rows that its user has seen.
    allowed
        ``[I]``: which items pass every rule; None is all. A source must not return others.
    candidates
        N.
    seed
        Random seed.
    times
        ``[n]`` float64, the time of each interaction in seconds; None if unknown.
    """

    items: int
    users: Rows
    rows: Rows
    columns: Mapping[str, Column] = field(default_factory=dict)
    form: Mapping[str, Any] = field(default_factory=dict)
    queries: Array | None = None
    seen: Sequence[Rows] = ()
    allowed: npt.NDArray[np.bool_] | None = None
    candidates: int = 0
    seed: int = 0
    times: Array | None = None


@dataclass(frozen=True)
class Made:
    """The contents of a source's artefact before it is written.

    Parameters
    ----------
    arrays, meta
        Those of the artefact.
    files
        File name → function that writes the file to a given path.
    figures
        Measurements for people, stored in the manifest. ``exact`` False means that the source may miss items
        that its plain reference finds; ``recall`` is then the share that it finds.
    notes
        Notes for people.
    """

    arrays: Mapping[str, Array] = field(default_factory=dict)
    meta: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, Callable[[str], None]] = field(default_factory=dict)
    figures: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()


class Source(Protocol):
    """An opened source."""

    def candidates(self, arrays: Arrays, mask: Mask, count: int) -> tuple[Scores, Rows]:
        """Return each user's ``count`` best allowed items, by (score descending, row ascending).

        Parameters
        ----------
        arrays
            The tensors that the kind reads, for the users of ``mask``.
        mask
            Which items each user must not get.
        count
            How many.

        Returns
        -------
        ``[B, count]`` float32 scores and int64 rows; -inf and the pad row I in empty slots.
        """
        ...


@runtime_checkable
class Scorer(Protocol):
    """An opened source that can score any item for a user, so that all candidates get one scale."""

    def score(self, arrays: Arrays, rows: Rows) -> Scores:
        """Return the scores ``[B, M]`` of items ``[B, M]``; -inf for the pad row."""
        ...


@runtime_checkable
class Relates(Protocol):
    """An opened source that can find similar items; its settings say ``relates = True``."""

    def related(self, rows: Rows, mask: Mask, count: int) -> tuple[Scores, Rows]:
        """Return the ``count`` items most similar to those of ``rows [B, M]`` together, like ``candidates``.

        The pad row I among ``rows`` is no item.
        """
        ...


@runtime_checkable
class Grows(Protocol):
    """An opened source to which items can be added by their vectors, between releases."""

    def holds(self, rows: Rows) -> npt.NDArray[np.bool_]:
        """Return ``[n]`` booleans: which of the items it can already find."""
        ...

    def grown(self, vectors: Array, rows: Rows) -> Source:
        """Return a source that also finds the items ``rows [n]``, ascending, with ``vectors [n, D]``."""
        ...


@runtime_checkable
class SourceKind(Protocol):
    """A kind of source: its settings, how its artefact is made and opened, and its plain reference."""

    #: Whether it needs to know the user. One that does not also serves unknown users and fills empty slots.
    personal: ClassVar[bool]
    #: The served form that the retrieval model of the source's name must have; None needs no model.
    form: ClassVar[str | None]

    @property
    def name(self) -> str:
        """Its name in ``--explain``; the retrieval model of this name feeds it."""
        ...

    @property
    def quota(self) -> int | None:
        """Number of candidates that it may give; None is what the other quotas leave."""
        ...

    def problems(self) -> list[Problem]:
        """Return what is wrong with the settings by themselves."""
        ...

    def columns(self) -> tuple[str, ...]:
        """Return the raw item columns that it is made from."""
        ...

    def reads(self) -> tuple[str, ...]:
        """Return the names of the tensors that :meth:`Source.candidates` reads."""
        ...

    def make(self, material: Material) -> Made:
        """Make its artefact, for a release or in memory for training."""
        ...

    def open(self, artefact: Artefact, items: int, threads: int) -> Source:
        """Open an artefact that :meth:`make` made, for I ``items``, with ``threads`` threads.

        The last :attr:`~tiercel_serving.release.artefacts.Artefact.room` items are reserved for items that
        are added later. The source has no data for them and must not return them.
        """
        ...

    def reference(
        self, arrays: Mapping[str, Array], user: UserTensors, allowed: npt.NDArray[np.bool_], count: int
    ) -> list[tuple[int, float]]:
        """Return (row, score) of one user's best allowed items, best first, in plain code.

        A kind whose opened source is a :class:`Scorer` also has ``reference_score(arrays, user, row)``.
        """
        ...


@runtime_checkable
class FitsModel(Protocol):
    """A kind of source that can check, before anything is trained, whether a model fits it."""

    def misfits(self, dimension: int, items: int | None = None, allowed: int | None = None) -> list[Problem]:
        """Return problems with this query dimension, number of items, or number that pass the rules."""
        ...


@runtime_checkable
class ReadsTimes(Protocol):
    """A kind of source that may need the times of interactions."""

    @property
    def needs_times(self) -> bool:
        """Whether its settings need them."""
        ...


def timeless(kinds: Sequence[SourceKind]) -> Iterator[Problem]:
    """Yield the problems of sources that need times of interactions, for data without them."""
    for place, kind in enumerate(kinds):
        if isinstance(kind, ReadsTimes) and kind.needs_times:
            problem = "it asks when interactions were, but they have no timestamp"
            remedy = "name the column of their time, or leave that setting out"
            yield Problem(f"sources[{place}] ({kind.name})", problem, remedy)


#: Every kind of source.
SOURCES: Kinds[SourceKind] = Kinds(
    "source",
    {
        "index": Kind(
            "tiercel_serving.sources.index:Index",
            extra="serving",
            on_device="tiercel_serving.sources.index_torch:IndexTensors",
        ),
        "item_weights": Kind("tiercel_serving.sources.item_weights:ItemWeights"),
        "user_neighbours": Kind("tiercel_serving.sources.user_neighbours:UserNeighbours"),
        "lists": Kind("tiercel_serving.sources.lists:Lists"),
        "popular": Kind(
            "tiercel_serving.sources.popular:Popular",
            on_device="tiercel_serving.sources.popular_torch:PopularTensors",
        ),
    },
)


def open_source(kind: SourceKind, artefact: Artefact, items: int, threads: int) -> Source:
    """Open a source; see :meth:`SourceKind.open`.

    Raises
    ------
    KindUnavailable
        A library that it needs is not installed.
    """
    with SOURCES.using(SOURCES.name_of(kind)):
        return kind.open(artefact, items, threads)


def default_sources(models: Mapping[str, str]) -> tuple[SourceKind, ...]:
    """Return the default sources of a recommender.

    Parameters
    ----------
    models
        Retrieval model → its served form.

    Returns
    -------
    tuple of SourceKind
        For each model the first kind in the table that takes its form; then, with a quota of 0 unless it is
        alone, the first kind that needs neither model nor user. With several models, set quotas yourself: all
        but one need a number.

    Raises
    ------
    KindUnavailable
        No source takes the form of a model, or a kind can't be imported.
    """
    found = []
    for model, form in models.items():
        kind = next((kind for kind in _kinds() if kind.form == form), None)
        if kind is None:
            raise KindUnavailable(f"no source takes the form {form!r} of the retrieval model {model!r}")
        found.append(_made(kind, name=model))
    fallback = next(kind for kind in _kinds() if kind.form is None and not kind.personal)
    return (*found, _made(fallback, quota=0 if found else None))


def _kinds() -> Iterator[type[SourceKind]]:
    # Imported one by one: a missing library matters only if the search for a kind gets that far.
    return map(SOURCES.find, SOURCES)


def _made(kind: type[SourceKind], **fields: Any) -> SourceKind:
    # A protocol does not describe constructors; every kind takes a name and a quota.
    return cast("Callable[..., SourceKind]", kind)(**fields)
