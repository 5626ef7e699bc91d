"""How a recommender is served: the limits and rules that a recipe states and the stages obey."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import Any

#: Comparisons a filter rule may use on a raw item column.
RULE_OPERATORS = ("==", "!=", "<", "<=", ">", ">=", "in", "not in")

#: ``filter_reason`` of a candidate that was kept, of an empty slot, and of one that passed every rule
#: but came after the first K. Rule number i has reason ``FIRST_RULE_REASON + i``.
KEPT, EMPTY_SLOT, BEYOND_KEPT, FIRST_RULE_REASON = 0, 1, 2, 3

#: ``source`` of an empty slot. Source number i of the settings has code ``i + 1``.
NO_SOURCE = 0

#: ``status`` of a user: in the store; not in the store, but the request carries features or a
#: history; nothing is known.
KNOWN, UNKNOWN_WITH_FEATURES, UNKNOWN = 0, 1, 2
STATUS_NAMES = ("known", "unknown_with_features", "unknown")


@dataclass(frozen=True)
class Source:
    """One place that candidates come from.

    Parameters
    ----------
    name
        What ``--explain`` calls it.
    kind
        ``index`` (nearest item vectors to the query) or ``popular`` (most interactions first).
    quota
        How many candidates it may give; None is whatever the other quotas leave.
    """

    name: str
    kind: str
    quota: int | None = None


@dataclass(frozen=True)
class Rule:
    """Keep a candidate only if ``column operator value`` holds for its raw item column.

    A null in the column fails every rule.
    """

    name: str
    column: str
    operator: str
    value: Any


@dataclass(frozen=True)
class ServingSettings:
    """Everything about serving that is a choice and not a fact of the trained models.

    Parameters
    ----------
    candidates
        N, how many candidates retrieval gives.
    kept
        K, how many of them filtering passes to the ranker.
    k_default, k_max
        How many items an answer has if the request says nothing, and at most.
    history_length
        L, how many of a user's latest items the models see.
    max_batch_size
        Users in one request and in one Triton batch, at most.
    max_excluded
        Length of ``exclude_item_ids`` and of ``history_item_ids`` in a request, at most.
    sources
        Where candidates come from, in order of precedence; exactly one has the kind ``popular``
        (its quota may be 0: then it serves unknown users and fills what the others leave empty).
    rules
        Filter rules on raw item columns.
    unknown_users
        ``popular`` (the default: popular items, no ranker) or ``rank`` (like everybody else).
    task_weights
        Weight of each ranker task in the final score; empty means 1 for the first task.
    history_columns
        Categorical item columns whose category ids make ``history_cat [B, L, H]``, in this order.
    title_column
        The raw item column that people see, or None.
    queue_delay_us, max_queue_size
        Triton's dynamic batching: how long a request may wait for company, in microseconds, and how
        many may wait (0 is no limit).
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
    sources: tuple[Source, ...] = (Source("index", "index"), Source("popular", "popular", 0))
    rules: tuple[Rule, ...] = ()
    unknown_users: str = "popular"
    task_weights: tuple[float, ...] = ()
    history_columns: tuple[str, ...] = ()
    title_column: str | None = None
    queue_delay_us: int = 0
    max_queue_size: int = 0
    instances: int = 1
    engine_threads: int = 1

    def to_json(self) -> dict[str, Any]:
        """Return a JSON form."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ServingSettings:
        """Read what :meth:`to_json` wrote."""
        nested = {"sources": Source, "rules": Rule}
        values: dict[str, Any] = {}
        for item in fields(cls):
            if item.name not in data:
                continue
            value = data[item.name]
            if item.name in nested:
                value = tuple(v if is_dataclass(v) else nested[item.name](**v) for v in value)
            elif isinstance(value, list):
                value = tuple(value)
            values[item.name] = value
        return cls(**values)
