"""Settings of how a recommender is served: limits, sources, rules and steps, as written in a recipe."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any, ClassVar

import msgspec

from .mistyped import mistyped
from .problems import (
    AT_LEAST_0,
    COUNT,
    COUNT_OR_0,
    POSITIVE,
    Problem,
    Range,
    choose,
    named_twice,
    out_of_range,
)
from .reorder.inputs import source_problems
from .reorder.per_request import Amount, PerRequest, amount_problems, per_request, shared_problems
from .reorder.table import REORDER, HasPlace, ReorderKind
from .rules.table import RULES, RuleKind
from .sources.table import SOURCES, SourceKind, timeless
from .stores.bloom import SeenFilter
from .stores.memory_mapped import MemoryMapped
from .stores.table import STORES, StoreKind

#: ``filter_reason`` of a candidate that was kept, of an empty slot, and of one that passed every rule
#: but came after the first K. Rule number i has reason ``FIRST_RULE_REASON + i``.
KEPT, EMPTY_SLOT, BEYOND_KEPT, FIRST_RULE_REASON = 0, 1, 2, 3

#: ``source`` of an empty slot. Source number i of the settings has code ``i + 1``.
NO_SOURCE = 0

#: ``status`` of a user: known to the release or the store; unknown, but the request sends features or a
#: history; nothing is known.
KNOWN, UNKNOWN_WITH_FEATURES, UNKNOWN = 0, 1, 2
STATUS_NAMES = ("known", "unknown_with_features", "unknown")

#: Values of :attr:`ServingSettings.unknown_users`.
FALLBACK, RANK = "fallback", "rank"

#: A source's name becomes part of the names of tensors, models and files.
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


class ServingSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All settings of serving that are independent of the trained models.

    Parameters
    ----------
    candidates
        N, the number of candidates from retrieval.
    kept
        K, the number of candidates that filtering passes to the ranker.
    k_default, k_max
        Number of items in an answer, by default and at most.
    history_length
        L, the number of a user's latest items that the models see.
    max_batch_size
        Largest number of users in one request and in one Triton batch.
    max_excluded
        Largest length of each list of item ids in a request.
    allow_seen
        Whether users may get items that they have already seen (by the store, or by the history that the
        request sends), unless their request says otherwise. Items that a request excludes are never
        recommended.
    seen_again_days
        Days after which an item that a user has seen may be recommended again; None is never. Times are those
        of the interactions and of appends to the store; a request's history counts as seen now.
    seen_filter
        Length of a history beyond which older items are kept in a Bloom filter; None keeps all items, except
        those that a store drops beyond its ``history_most``.
    sources
        Where candidates come from, in order of precedence. If one fails or has too few, the others fill up in
        that order. The first that needs no user (its quota may be 0) serves unknown users, and fills last.
    blend
        Names of sources, each with its weight. A candidate's score, by which all are sorted and which the
        ranker sees, is the weighted sum of its scores from these sources. Empty uses the first source that
        can score any item.
    rules
        Which items may be recommended.
    reorder
        Steps from the ranker's scores to the final order; empty sorts by the first task's score.
    related
        Names of sources that can find similar items, for the model ``related``: a later source fills what
        earlier ones leave empty. Empty: no such model is served.
    store
        Where live values of users, and changes of items, are stored, if any are written.
    added_items
        Number of new items that may be put between releases (``tiercel items put``): the tables reserve rows
        for them. Items of the release can be changed and withdrawn without it.
    unknown_users
        ``fallback`` (the default: that source's items, no ranker) or ``rank`` (like all other users).
    history_columns
        Categorical item columns whose category ids make ``history_cat [B, L, H]``, in this order.
    title_column
        The raw item column that is shown to people, or None.
    kept_buckets
        Numbers of candidates below ``kept``, smallest first, for which smaller engines of the ranker are
        built too. A batch with few candidates runs on the smallest that fits. Useful if requests name few
        candidates, or rules keep few.
    queue_delay_us, max_queue_size
        Triton's dynamic batching: how long a request may wait for others, in microseconds, and how many may
        wait (0 is no limit).
    instances
        Instances of each Python model.
    engine_threads
        Threads of one engine instance.
    """

    candidates: int = 200
    kept: int = 100
    k_default: int = 10
    k_max: int = 100
    history_length: int = 50
    max_batch_size: int = 64
    max_excluded: int = 10_000
    allow_seen: bool = False
    seen_again_days: float | PerRequest | None = None
    seen_filter: SeenFilter | None = None
    sources: tuple[SourceKind, ...] = ()
    blend: tuple[tuple[str, float], ...] = ()
    rules: tuple[RuleKind, ...] = ()
    reorder: tuple[ReorderKind, ...] = ()
    related: tuple[str, ...] = ()
    store: StoreKind = MemoryMapped()
    added_items: int = 0
    unknown_users: str = FALLBACK
    history_columns: tuple[str, ...] = ()
    title_column: str | None = None
    kept_buckets: tuple[int, ...] = ()
    queue_delay_us: int = 0
    max_queue_size: int = 0
    instances: int = 1
    engine_threads: int = 1

    RANGES: ClassVar[Mapping[str, Range]] = {
        # Beyond these, a request needs too much memory, or Triton's config can't hold the number.
        **dict.fromkeys(("candidates", "kept", "k_default", "k_max"), Range(1, 10**6, whole=True)),
        "max_batch_size": Range(1, 2**16, whole=True),
        "max_excluded": Range(1, 10**7, whole=True),
        **dict.fromkeys(("instances", "engine_threads"), Range(1, 1024, whole=True)),
        "history_length": Range(0, 10**7, whole=True),
        **dict.fromkeys(("queue_delay_us", "max_queue_size"), Range(0, 2**31 - 1, whole=True)),
        "added_items": Range(0, 10**7, whole=True),
    }

    def shape_problems(self) -> list[Problem]:
        """Return fields of a wrong type; nothing else can be checked in such settings."""
        return list(mistyped(self)) or list(_shapes(self))

    def problems(self) -> list[Problem]:
        """Return what is wrong with the settings themselves."""
        shapes = self.shape_problems()
        if shapes:
            return shapes
        wrong = [*out_of_range(self, self.RANGES), *_limits(self), *_buckets(self), *_sources(self)]
        for field in ("sources", "rules", "reorder"):
            for place, kind in enumerate(getattr(self, field)):
                within = [problem.within(f"{field}[{place}]") for problem in kind.problems()]
                told = {problem.field for problem in wrong}
                wrong += [problem for problem in within if problem.field not in told]
        if not wrong:
            wrong += [*source_problems(self.reorder, {source.name: source for source in self.sources})]
            wrong += shared_problems(self.placed())
            wrong += [*_histories(self), *_places(self)]
        wrong += [problem.within("store") for problem in self.store.problems()]
        wrong += named_twice((rule.name for rule in self.rules), "rules", "rules")
        wrong += [
            Problem(f"rules[{place}].name", f"expected a name, got {rule.name!r}", "say what people read")
            for place, rule in enumerate(self.rules)
            if not rule.name.strip()
        ]
        return wrong

    def placed(self) -> dict[str, msgspec.Struct]:
        """Return place in the settings → part, for the parts that may have numbers set by requests."""
        steps: dict[str, Any] = {f"reorder[{place}]": step for place, step in enumerate(self.reorder)}
        return {**steps, "": self}

    def numbers(self) -> tuple[PerRequest, ...]:
        """Return the numbers that a request may set, each once."""
        return per_request(self.placed().values())

    def timeless(self) -> Iterator[Problem]:
        """Yield the problems of the settings for interactions without times."""
        yield from timeless(self.sources)
        if self.seen_again_days is not None:
            problem = "it asks when interactions were, but they have no timestamp"
            yield Problem("seen_again_days", problem, "name the column of their time, or leave it out")

    @property
    def fallback(self) -> int:
        """The index of the source that serves unknown users and fills empty slots last."""
        return next(place for place, source in enumerate(self.sources) if not source.personal)

    @property
    def fillers(self) -> tuple[int, ...]:
        """The indexes of the sources that fill empty slots, in order; the fallback is last."""
        giving = (place for place, quota in enumerate(self.quotas()) if quota > 0 and place != self.fallback)
        return (*giving, self.fallback)

    def quotas(self) -> tuple[int, ...]:
        """Return the number of candidates that each source may give, in order."""
        given = sum(source.quota for source in self.sources if source.quota is not None)
        rest = max(self.candidates - given, 0)
        return tuple(rest if source.quota is None else source.quota for source in self.sources)

    def blend_places(self) -> tuple[tuple[int, float], ...]:
        """Return the index of each source of the blend, with its weight."""
        place = {source.name: at for at, source in enumerate(self.sources)}
        return tuple((place[name], weight) for name, weight in self.blend)

    def raw_columns(self) -> tuple[str, ...]:
        """Return the raw item columns that sources, rules, steps and titles read, each once."""
        kinds: tuple[SourceKind | RuleKind | ReorderKind, ...] = (*self.sources, *self.rules, *self.reorder)
        names = [name for kind in kinds for name in kind.columns()]
        if self.title_column is not None:
            names.append(self.title_column)
        return tuple(dict.fromkeys(names))


def _shapes(settings: ServingSettings) -> Iterator[Problem]:
    """Yield a problem for each single value in place of a tuple, and for each object that is not a kind."""
    kinds: tuple[tuple[str, Any, str], ...] = (
        ("sources", SOURCES, 'Popular("popular", quota=0)'),
        ("rules", RULES, 'Compare("in stock", column="stock", operator=">", value=0)'),
        ("reorder", REORDER, "WeightedSum((1.0,))"),
    )
    for field, table, example in kinds:
        value = getattr(settings, field)
        if isinstance(value, str) or not isinstance(value, tuple | list):
            problem = f"expected a tuple, got {value!r}"
            yield Problem(field, problem, f"write {field}=({example},): a tuple of one needs its comma")
            continue
        for place, item in enumerate(value):
            if table.row_of(item) is None:
                remedy = f"write {field}=({example},)"
                yield Problem(f"{field}[{place}]", f"expected {example}, got {item!r}", remedy)
    yield from STORES.misfit(settings.store, "store")


def _limits(settings: ServingSettings) -> Iterator[Problem]:
    limits = ("candidates", "kept", "k_max", "k_default")
    meaning = {
        "kept": "more than are retrieved",
        "k_max": "more than the candidates that are ranked",
        "k_default": "more than a request may ask for",
    }
    for upper, lower in pairwise(limits):
        top, value = getattr(settings, upper), getattr(settings, lower)
        if COUNT.holds(top) and COUNT.holds(value) and value > top:
            remedy = f"lower it to at most {top}, or raise {upper}"
            yield Problem(lower, f"{value} is {meaning[lower]} ({upper} is {top})", remedy)
    counts = COUNT.holds(settings.history_length) and COUNT.holds(settings.max_excluded)
    if counts and settings.max_excluded < settings.history_length:
        problem = f"{settings.max_excluded} is below history_length ({settings.history_length})"
        yield Problem("max_excluded", problem, "raise it: a request's history counts against it")
    yield from _seen_again(settings)
    yield from _seen_filter(settings)
    if settings.unknown_users not in (FALLBACK, RANK):
        problem = f"there is no way {settings.unknown_users!r} to serve unknown users"
        yield Problem("unknown_users", problem, choose(settings.unknown_users, (FALLBACK, RANK)))
    if settings.history_columns and not settings.history_length:
        yield Problem("history_columns", "need a history_length above 0", "raise it, or leave them out")


def _seen_again(settings: ServingSettings) -> Iterator[Problem]:
    days: Amount | None = settings.seen_again_days
    if days is None:
        return
    wrong = list(amount_problems(settings, {"seen_again_days": AT_LEAST_0}, optional=("seen_again_days",)))
    yield from wrong
    if settings.allow_seen:
        problem = "allow_seen lets everything come at once"
        yield Problem("seen_again_days", problem, "leave one of the two out")


def _seen_filter(settings: ServingSettings) -> Iterator[Problem]:
    kept = settings.seen_filter
    if kept is None:
        return
    wrong = kept.problems()
    yield from (problem.within("seen_filter") for problem in wrong)
    if not wrong and COUNT_OR_0.holds(settings.history_length) and kept.beyond < settings.history_length:
        problem = f"{kept.beyond} is below history_length ({settings.history_length})"
        yield Problem("seen_filter.beyond", problem, "raise it: models see the latest items as they are")
    if settings.seen_again_days is not None:
        problem = "a Bloom filter does not know when items were had, and seen_again_days asks for it"
        yield Problem("seen_filter", problem, "leave one of the two out")


def _buckets(settings: ServingSettings) -> Iterator[Problem]:
    buckets = settings.kept_buckets
    if (
        not all(map(COUNT.holds, buckets))
        or sorted(set(buckets)) != list(buckets)
        or any(k >= settings.kept for k in buckets)
    ):
        problem = f"expected numbers from 1 to below kept ({settings.kept}), smallest first, got {buckets!r}"
        yield Problem("kept_buckets", problem, "write kept_buckets=(16,), or leave it out")


def _blend(settings: ServingSettings) -> Iterator[Problem]:
    named = {source.name: source for source in settings.sources}
    for place, (name, weight) in enumerate(settings.blend):
        where = f"blend[{place}]"
        if name not in named:
            yield Problem(where, f"there is no source {name!r}", choose(name, list(named)))
        elif not hasattr(named[name], "reference_score"):
            problem = f"the source {name!r} scores its own items alone"
            yield Problem(where, problem, "name sources that models feed, such as Index(…) or ItemWeights(…)")
        if not POSITIVE.holds(weight):
            yield Problem(where, f"expected a weight {POSITIVE}, got {weight!r}", "give such a number")
    yield from named_twice((name for name, _ in settings.blend), "blend", "sources")


def _histories(settings: ServingSettings) -> Iterator[Problem]:
    for place, step in enumerate(settings.reorder):
        if "history_row" in step.reads() and not settings.history_length:
            problem = "the step reads the user's history, but history_length is 0"
            yield Problem(f"reorder[{place}]", problem, "raise it, or leave the step out")


def _places(settings: ServingSettings) -> Iterator[Problem]:
    for number, step in enumerate(settings.reorder):
        if isinstance(step, HasPlace) and step.place > settings.k_max:
            problem = f"nobody sees place {step.place}: an answer has {settings.k_max} at most (k_max)"
            yield Problem(f"reorder[{number}].place", problem, "name one of those, or raise k_max")


def _sources(settings: ServingSettings) -> Iterator[Problem]:
    sources = settings.sources
    for place, source in enumerate(sources):
        if not _NAME.fullmatch(source.name):
            problem = f"{source.name!r} cannot name a source"
            remedy = "use letters, digits and _, and begin with a letter"
            yield Problem(f"sources[{place}].name", problem, remedy)
        if source.quota is not None and not COUNT_OR_0.holds(source.quota):
            problem = f"expected {COUNT_OR_0} or None, got {source.quota!r}"
            yield Problem(f"sources[{place}].quota", problem, "give such a number")
        elif source.quota == 0 and source.personal:
            problem = f"the source {source.name!r} has a quota of 0, so it would give nothing"
            yield Problem(f"sources[{place}].quota", problem, "raise it, or leave the source out")
    yield from named_twice((source.name for source in sources), "sources", "sources")
    if all(source.personal for source in sources):
        problem = "no source serves users of whom nothing is known"
        yield Problem("sources", problem, "add one that needs no user, such as Popular(quota=0)")
    relating = {source.name: getattr(source, "relates", False) for source in sources}
    for place, name in enumerate(settings.related):
        if name not in relating:
            yield Problem(f"related[{place}]", f"there is no source {name!r}", choose(name, list(relating)))
        elif not relating[name]:
            problem = f"the source {name!r} knows no items that are like others"
            yield Problem(f"related[{place}]", problem, "name one with vectors or item weights")
    yield from _blend(settings)
    quotas = [source.quota for source in sources]
    if quotas.count(None) > 1:
        remedy = "give all but one a number; None is what the others leave"
        yield Problem("sources", "more than one source has no quota", remedy)
    total = sum(quota for quota in quotas if quota is not None)
    if COUNT.holds(settings.candidates) and total > settings.candidates:
        problem = f"the quotas add up to {total}, more than candidates ({settings.candidates})"
        yield Problem("sources", problem, "lower a quota or raise candidates")
    elif COUNT.holds(settings.candidates) and sources and None not in quotas and total == 0:
        yield Problem("sources", "no source has a quota, so nobody gets anything", "give one a quota")
