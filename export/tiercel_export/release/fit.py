"""Check settings by themselves and against the data, and match sources with served forms."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import msgspec

from tiercel_serving.columns import Column
from tiercel_serving.problems import Problem, choose
from tiercel_serving.reorder.inputs import FitsItems
from tiercel_serving.reorder.table import place_tasks, unknown_tasks
from tiercel_serving.settings import ServingSettings
from tiercel_serving.sources.table import SOURCES, SourceKind, default_sources
from tiercel_serving.stages.specs import query_stage

from ..errors import ExportInputError
from ..forms import ServedForm

#: The settings whose kinds read raw item columns.
_READERS = ("sources", "rules", "reorder")


def refuse(problems: Iterable[Problem]) -> None:
    """Raise one :class:`ExportInputError` that lists every problem of the settings, if there are any."""
    wrong = [str(problem.within("settings")) for problem in problems]
    if wrong:
        raise ExportInputError("\n".join(wrong))


def checked_settings(settings: ServingSettings, retrieval: Mapping[str, ServedForm]) -> ServingSettings:
    """Check the settings and return them with their sources.

    Parameters
    ----------
    settings
        If it has no sources, one for each served form and a fallback are added.
    retrieval
        Source → its served form.

    Raises
    ------
    ExportInputError
        The settings have problems, or sources and served forms do not match.
    """
    stray = {name: form for name, form in retrieval.items() if not isinstance(form, ServedForm)}
    for name, came in stray.items():
        raise ExportInputError(
            f"retrieval[{name!r}]: expected a served form, got {type(came).__name__}; "
            "give Vectors(query, items), or another form of tiercel_export.forms"
        )
    if not settings.sources:
        sources = default_sources({name: form.form for name, form in retrieval.items()})
        settings = msgspec.structs.replace(settings, sources=sources)
    refuse(settings.problems())
    wrong = list(_unmatched(settings.sources, retrieval))
    if wrong:
        raise ExportInputError("\n".join(wrong))
    return settings


def _unmatched(sources: Sequence[SourceKind], retrieval: Mapping[str, ServedForm]) -> Iterator[str]:
    """Yield each mismatch between sources and served forms: one is missing, or the form is wrong."""
    for kind in sources:
        what, given = f"the source {kind.name!r} ({SOURCES.name_of(kind)})", retrieval.get(kind.name)
        if given is None:
            if kind.form is not None:
                there = choose(kind.name, retrieval)
                yield (
                    f"retrieval: {what} needs a served form {kind.form!r} of its name, which is not there "
                    f"({there}); add it, or leave the source out"
                )
        elif kind.form is None:
            yield f"retrieval[{kind.name!r}]: {what} takes no served form; leave it out, or rename it"
        elif given.form != kind.form:
            yield f"retrieval[{kind.name!r}]: {what} takes the form {kind.form!r}, got {given.form!r}"
        elif given.query is None and query_stage(kind.name) in kind.reads():
            yield f"retrieval[{kind.name!r}]: {what} reads queries, but got {given.form!r} without a module"
    names = [kind.name for kind in sources]
    for name in retrieval:
        if name not in names:
            yield f"retrieval[{name!r}]: no source of settings.sources has this name; {choose(name, names)}"


def check_columns(settings: ServingSettings, items: Sequence[str], item_cat: Sequence[str]) -> None:
    """Refuse settings that name columns which the items do not have.

    Parameters
    ----------
    settings
        The settings.
    items
        Names of the raw item columns.
    item_cat
        Names of the items' packed scalar categories.
    """
    named = [
        (f"{field}[{place}]", column)
        for field in _READERS
        for place, kind in enumerate(getattr(settings, field))
        for column in kind.columns()
    ]
    if settings.title_column is not None:
        named.append(("title_column", settings.title_column))
    wrong = [
        Problem(field, f"{column!r} is not a column of `items`", choose(column, items))
        for field, column in named
        if column not in items
    ]
    wrong += [
        Problem(field, f"the column {column!r} has an empty name", "rename it in `items` and here")
        for field, column in named
        if column == ""
    ]
    wrong += [
        Problem("history_columns", f"{name!r} is not a scalar category of the items", choose(name, item_cat))
        for name in settings.history_columns
        if name not in item_cat
    ]
    refuse(wrong)


def check_rules(settings: ServingSettings, columns: Mapping[str, Column]) -> None:
    """Refuse rules and reorder steps that do not fit the raw item columns."""
    wrong = [
        problem.within(f"rules[{place}]")
        for place, rule in enumerate(settings.rules)
        for problem in rule.misfits(columns)
    ]
    wrong += [
        problem.within(f"reorder[{place}]")
        for place, step in enumerate(settings.reorder)
        if isinstance(step, FitsItems)
        for problem in step.unfit(columns)
    ]
    refuse(wrong)


def named_tasks(settings: ServingSettings, names: Sequence[str]) -> ServingSettings:
    """Return the settings with task names in reorder steps resolved to positions; refuse unknown names."""
    if settings.shape_problems():  # reported by checked_settings()
        return settings
    refuse(unknown_tasks(settings.reorder, names))
    return msgspec.structs.replace(settings, reorder=place_tasks(settings.reorder, names))


def check_reorder(settings: ServingSettings, tasks: int, names: Sequence[str]) -> None:
    """Refuse reorder steps and task names that do not fit a ranker with ``tasks`` scores; 0 is no ranker."""
    if names and len(names) != tasks:
        raise ExportInputError(
            f"tasks: expected {tasks} names, one for each score that the ranker gives, got {len(names)} "
            f"({', '.join(map(repr, names))})"
        )
    refuse(
        problem.within(f"reorder[{place}]")
        for place, step in enumerate(settings.reorder)
        for problem in step.misfits(tasks)
    )
