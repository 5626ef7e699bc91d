"""Item data that reorder steps read: raw columns, and vectors or scores from sources of the release.

Both are columns ``[I + 1]``, whose last row is null.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np

from ..columns import Column
from ..problems import Problem, choose
from ..spec import Array


@runtime_checkable
class ReadsSources(Protocol):
    """A kind of step that reads item data of sources, as columns named by :func:`of_source`."""

    #: What it reads from each source: ``vectors`` or ``scores``.
    wants: ClassVar[str]

    def sources(self) -> tuple[str, ...]:
        """Return the names of those sources."""
        ...


@runtime_checkable
class FitsItems(Protocol):
    """A kind of step that checks whether it fits the raw item columns."""

    def problems(self) -> list[Problem]:
        """Return what is wrong with the settings by themselves."""
        ...

    def columns(self) -> tuple[str, ...]:
        """Return the raw item columns that it reads."""
        ...

    def unfit(self, columns: Mapping[str, Column]) -> list[Problem]:
        """Return how the step does not fit its columns, all of which are given."""
        ...


def of_source(name: str) -> str:
    """Return the column name of a source's item data; its NUL keeps it apart from raw columns."""
    return f"source\0{name}"


def sources_read(steps: Iterable[Any]) -> tuple[str, ...]:
    """Return the names of the sources that steps read, each once."""
    names = (name for step in steps if isinstance(step, ReadsSources) for name in step.sources())
    return tuple(dict.fromkeys(names))


def source_columns(
    steps: Iterable[Any], arrays_of: Callable[[str], Mapping[str, Array]], items: int
) -> dict[str, Column]:
    """Return the item data of the steps' sources.

    Parameters
    ----------
    steps
        The settings of the steps.
    arrays_of
        Source name → the arrays of its artefact.
    items
        I.

    Returns
    -------
    Column name → column ``[I + 1]``: a list column of vectors ``[D]`` for a source with vectors, a float32
    column of scores for a source that is one list; null for items that the source lacks.
    """
    return {of_source(name): _column(arrays_of(name), items) for name in sources_read(steps)}


def _column(arrays: Mapping[str, Array], items: int) -> Column:
    if "vectors" in arrays:
        vectors = arrays["vectors"]
        there = np.zeros(items + 1, np.bool_)
        there[arrays.get("rows", np.arange(len(vectors)))] = True
        offsets = np.zeros(items + 2, np.int64)
        np.cumsum(there * vectors.shape[1], out=offsets[1:])
        # A view, so that memory-mapped vectors are not copied.
        return Column(vectors.reshape(-1), None, offsets, there)
    scores = np.full(items + 1, np.nan, np.float32)
    scores[arrays["rows"]] = arrays["scores"]
    return Column(scores)


def source_problems(steps: Iterable[Any], sources: Mapping[str, Any]) -> Iterable[Problem]:
    """Yield a problem for each step that reads a missing source, or one without the data it wants.

    Parameters
    ----------
    steps
        The settings of the steps.
    sources
        Source name → its settings.
    """
    for place, step in enumerate(steps):
        for name in step.sources() if isinstance(step, ReadsSources) else ():
            where = f"reorder[{place}].source"
            if name not in sources:
                yield Problem(where, f"there is no source {name!r}", choose(name, sources))
            elif (knows := _knows(sources[name])) != step.wants:
                problem = f"the source {name!r} has {knows or 'no number'} for each item, not {step.wants}"
                yield Problem(where, problem, "name another source, or a column of the items")


def _knows(source: Any) -> str:
    if getattr(source, "form", None) == "vectors":
        return "vectors"
    return "scores" if not source.personal else ""
