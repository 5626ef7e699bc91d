"""The lineage of each output of a workflow: raw columns and tags, from the graph alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import WorkflowError
from ..lowering.table import TABLE, key_of


@dataclass(frozen=True)
class Behind:
    """The lineage of one output column.

    Parameters
    ----------
    reads
        The raw columns that it is computed from, row by row.
    asks
        The raw columns that NVTabular needs in the frame, including those it does not read, such as the
        target of a statistic.
    lent
        Tags that it inherited from columns that it does not read.
    lost
        Tags of columns that it reads but did not inherit, which are those of a statistic's keys.
    events
        The columns of ``reads`` that have one value per event of a session, aggregated into one row.
    keys
        The raw columns that the keys of such sessions are computed from.
    """

    reads: frozenset[str] = frozenset()
    asks: frozenset[str] = frozenset()
    lent: frozenset[str] = frozenset()
    lost: frozenset[str] = frozenset()
    events: frozenset[str] = frozenset()
    keys: frozenset[str] = frozenset()


def lineage_of(workflow: Any) -> dict[str, Behind]:
    """Return the lineage of each output.

    This reads no fitted state, so it is fast for any workflow.
    """
    raw = {name: Behind(frozenset([name]), frozenset([name])) for name in workflow.input_schema.column_names}
    return _lineage(workflow.output_node, raw)


def tags_of(column: Any) -> frozenset[str]:
    """Return the tags of a column's schema, in lower case."""
    return frozenset(str(getattr(tag, "value", tag)).lower() for tag in column.tags)


def _lineage(output_node: Any, raw: Mapping[str, Behind]) -> dict[str, Behind]:
    done: dict[int, dict[str, Behind]] = {}
    grouped = _before_groups(output_node)

    def visit(node: Any) -> dict[str, Behind]:
        if id(node) in done:
            return done[id(node)]
        above: dict[str, Behind] = {}
        for parent in node.parents_with_dependencies:
            above.update(visit(parent))
        for name in (*node.input_schema.column_names, *node.dependency_columns.names):
            if name not in above and name in raw:
                above[name] = raw[name]
        if node.op.is_subgraph:
            made = _lineage(node.op.graph.output_node, above)
        else:
            made = _behind(node, above, id(node) in grouped)
        known = above | {name: behind for name, behind in made.items() if behind.reads}
        done[id(node)] = {name: known.get(name, Behind()) for name in node.output_schema.column_names}
        return done[id(node)]

    return visit(output_node)


def _before_groups(output_node: Any) -> set[int]:
    """Return the ``id`` of each node before an operator that groups events into rows."""
    found: set[int] = set()

    def visit(node: Any, before: bool) -> None:
        if before and id(node) in found:
            return
        if before:
            found.add(id(node))
        entry = None if node.op is None else TABLE.get(key_of(node.op))
        groups = entry is not None and entry.keys is not None
        for parent in node.parents_with_dependencies:
            visit(parent, before or groups)

    visit(output_node, False)
    return found


def _behind(node: Any, above: Mapping[str, Behind], events: bool) -> dict[str, Behind]:
    """Return the lineage of each output of a node; ``events`` says whether its rows are events."""
    selector = node.input_columns.resolve(node.input_schema)
    mapping = _mapping(node.op, selector)
    entry = TABLE.get(key_of(node.op))
    asks = entry.asks(node.op) if entry is not None and entry.asks is not None else []
    group_keys = entry.keys(node.op) if entry is not None and entry.keys is not None else []
    # A statistic does not inherit the tags of its keys; a session's sort columns are ordinary inputs.
    keyed = entry is not None and entry.reads is not None and not (entry.drops_rows or group_keys)
    keys = union(above.get(key, Behind()).reads for key in group_keys)
    tags = {column.name: tags_of(column) for column in node.input_schema}
    made = {}
    for new, olds in columns_read(node.op, selector, events).items():
        unread = [name for name in mapping.get(new, []) if name not in olds]
        sources = [above.get(old, Behind()) for old in olds]
        asked = [above.get(old, Behind()) for old in (*olds, *unread, *asks)]
        reads = union(source.reads for source in sources)
        made[new] = Behind(
            reads,
            union(source.asks for source in asked),
            union([*(source.lent for source in sources), *(tags[name] for name in unread if name in tags)]),
            union(
                [
                    *(source.lost for source in sources),
                    *(tags.get(name, frozenset()) for name in olds if keyed),
                ]
            ),
            reads - keys if group_keys and new not in group_keys else union(of.events for of in sources),
            keys | union(source.keys for source in sources),
        )
    return made


def union(sets: Iterable[frozenset[str]]) -> frozenset[str]:
    """Return the union of the sets."""
    return frozenset().union(*sets)


def columns_read(op: Any, selector: Any, events: bool) -> Mapping[str, list[str]]:
    """Return the columns that each output of an operator is computed from, row by row.

    An operator that drops rows leaves each column unchanged, unless the rows are events of a session.
    """
    entry = TABLE.get(key_of(op))
    if entry is None or entry.reads is None or (entry.drops_rows and not events):
        return _mapping(op, selector)
    return entry.reads(op, selector)


def _mapping(op: Any, selector: Any) -> Mapping[str, list[str]]:
    """Return NVTabular's own mapping from an operator's output columns to the columns they come from."""
    try:
        mapping: Mapping[str, list[str]] = op.column_mapping(selector)
    except Exception as error:
        raise WorkflowError(
            f"{type(op).__name__} on {selector.names}: NVTabular itself can't tell which columns it makes "
            f"({type(error).__name__}: {error}); if remove_inputs took a column of a group away, fit a "
            "workflow without the group"
        ) from error
    return mapping
