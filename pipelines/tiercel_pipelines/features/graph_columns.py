"""The columns of a recipe's NVTabular graph: their parts, kinds, and origins."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd

from tiercel_export.errors import WorkflowError
from tiercel_export.lowering.table import TABLE, key_of
from tiercel_export.workflow.cut import LABEL_TAGS, WorkflowParts, cut_workflow
from tiercel_export.workflow.lineage import tags_of

from ..data import Dataset

with warnings.catch_warnings():
    # Merlin warns on import about TensorFlow and CUDA packages that nothing here uses.
    warnings.simplefilter("ignore")
    import nvtabular
    from merlin.dag import BaseOperator, ColumnSelector, Node
    from merlin.dag.node import iter_nodes
    from merlin.schema import ColumnSchema, Schema, Tags

Part = Literal["user", "item"]

#: The tag that says which table a feature comes from.
PART_TAGS: Mapping[str, Any] = {"user": Tags.USER, "item": Tags.ITEM, "context": Tags.CONTEXT}


@dataclass(frozen=True)
class FeatureColumn:
    """One output column of a recipe's graph.

    Parameters
    ----------
    name
        Its name in the workflow's output.
    parts
        Those of ``user``, ``item``, ``context`` that its tags name; a valid column has exactly one.
    is_id
        Whether it has the tag ID (with ITEM: the item id).
    kind
        ``cat`` (an integer category) or ``num``.
    is_list
        Whether each row is a list.
    inputs
        The raw columns it is made of.
    operators
        The operators that make it, first to last, without those that only tag.
    cardinality
        For ``cat`` of a fitted workflow, one more than the largest id; else None.
    is_label
        Whether its tags say that it is a label, which is learned from and not served.
    """

    name: str
    parts: tuple[str, ...]
    is_id: bool
    kind: str
    is_list: bool
    inputs: tuple[str, ...]
    operators: tuple[Any, ...]
    cardinality: int | None
    is_label: bool = False

    @property
    def part(self) -> str:
        """The part it belongs to; the models see context as part of the user."""
        return self.parts[0]


def is_graph(value: object) -> bool:
    """Whether a value is an NVTabular graph: chains of operators, joined by ``+``."""
    return isinstance(value, Node)


def root_columns(graph: Any) -> tuple[str, ...]:
    """Return the raw columns that a graph reads, each once, in the order of the graph."""
    names: dict[str, None] = {}
    for node in _nodes(graph):
        if node.parents or node.dependencies:
            continue
        if node.op is not None and node.op.is_subgraph:
            names.update(dict.fromkeys(root_columns(node.op.graph.output_node)))
        elif node.selector is not None:
            names.update(dict.fromkeys(node.selector.names))
    return tuple(names)


def given_nothing(graph: Any) -> tuple[str, ...]:
    """Return the operators that are given an empty list of columns, or an empty group among others."""
    found: dict[str, None] = {}
    for node in _nodes(graph):
        if node.op is not None and node.op.is_subgraph:
            found.update(dict.fromkeys(given_nothing(node.op.graph.output_node)))
        selections = [above.selector for above in node.parents_with_dependencies if not above.parents]
        # Statistics of no column, for which NVTabular makes no node.
        selections.append(getattr(node.op, "dependencies", None))
        if any(isinstance(one, ColumnSelector) and _selects_nothing(one) for one in selections):
            found[operator_name(node.op)] = None
    return tuple(found)


def operator_name(op: Any) -> str:
    """Return the name that users write for an operator; Merlin's class of a LambdaOp has another one."""
    return type(op).__name__.replace("UDF", "LambdaOp")


def raised_by(error: BaseException) -> str | None:
    """Return the operator in which NVTabular raised an error; None if it was in none."""
    methods_of = [frame.f_locals.get("self") for frame, _ in traceback.walk_tb(error.__traceback__)]
    operators = [one for one in methods_of if isinstance(one, BaseOperator)]
    return operator_name(operators[-1]) if operators else None


def _selects_nothing(selector: Any) -> bool:
    whole = selector.all or selector.tags or selector.names
    return not whole or any(_selects_nothing(group) for group in selector.subgroups)


def table_schema(frame: pd.DataFrame) -> Any:
    """Return the merlin schema of a frame's columns, without tags."""
    columns = []
    for name in frame.columns:
        first = next((value for value in frame[name] if value is not None), None)
        is_list = isinstance(first, list | np.ndarray)
        dtype = "object" if frame[name].dtype == object else str(frame[name].dtype)
        columns.append(ColumnSchema(name, dtype=dtype, dims=(None, None) if is_list else None))
    return Schema(columns)


def blank_schema(names: Iterable[str]) -> Any:
    """Return a schema of numbers, to inspect a graph's names and tags without any data."""
    return Schema([ColumnSchema(name, dtype="float64") for name in names])


def describe_graph(graph: Any, schema: Any) -> tuple[tuple[FeatureColumn, ...], tuple[str, ...]]:
    """Describe the output columns of an unfitted graph, and name the columns that occur more than once.

    Raises
    ------
    WorkflowError
        An operator gives a column no name, so that NVTabular would silently drop it, or has no boundaries for
        a column that it should bucketise.
    """
    workflow = nvtabular.Workflow(graph)
    workflow.fit_schema(schema)
    doubled: dict[str, None] = {}
    for node in _nodes(workflow):
        for name in node.output_schema.column_names:
            if not isinstance(name, str) or not name:
                of = ", ".join(map(repr, node.input_columns.names))
                raise WorkflowError(
                    f"{type(node.op).__name__} of {of} gives a column the name {name!r}; give it one of at "
                    "least one letter"
                )
        above = [name for parent in node.parents_with_dependencies for name in parent.output_columns.names]
        if type(node.op).__name__ == "ConcatColumns":
            doubled.update(dict.fromkeys(name for name in above if above.count(name) > 1))
    return feature_columns(workflow), tuple(doubled)


def feature_columns(workflow: Any) -> tuple[FeatureColumn, ...]:
    """Describe the output columns of a workflow that is fitted, or has ``fit_schema`` done, in its order."""
    return tuple(_feature_column(workflow, column) for column in workflow.output_schema)


def passed_on(graph: Any) -> dict[str, str]:
    """Return the columns that combinations of columns read, each with the combination's name.

    NVTabular's combinations pass these on unchanged, and overwrite an earlier feature of that name.
    """
    found: dict[str, str] = {}
    for node in _nodes(graph):
        if type(node.op).__name__ == "Categorify" and node.op.encode_type == "combo":
            made: Mapping[str, list[str]] = node.column_mapping
            found |= {name: output for output, read in made.items() for name in read if name not in made}
    return found


def home_of(name: str, dataset: Dataset) -> str:
    """Return the part of a raw column, which is that of its table."""
    tables = {"user": dataset.users, "item": dataset.items}
    return next((part for part, table in tables.items() if name in table.columns), "context")


def placed(column: FeatureColumn, dataset: Dataset) -> FeatureColumn:
    """Return a column with its part; without a tag, that of the only table that holds its inputs."""
    homes = () if column.parts else tuple({home_of(name, dataset) for name in column.inputs})
    return replace(column, parts=homes) if len(homes) == 1 else column


def _feature_column(workflow: Any, column: Any) -> FeatureColumn:
    inputs, operators = _lineage(workflow.output_node, column.name)
    # The same rule as the compiler's, so that both pack a column into the same tensor.
    categorical = Tags.CATEGORICAL in column.tags and not column.dtype.is_float
    return FeatureColumn(
        name=column.name,
        parts=tuple(part for part, tag in PART_TAGS.items() if tag in column.tags),
        is_id=Tags.ID in column.tags,
        kind="cat" if categorical else "num",
        is_list=bool(column.is_list),
        inputs=tuple(dict.fromkeys(inputs)),
        operators=operators,
        cardinality=_cardinality(column, operators) if categorical else None,
        is_label=bool(tags_of(column) & LABEL_TAGS),
    )


def _lineage(node: Any, name: str) -> tuple[list[str], tuple[Any, ...]]:
    """Follow an output column back to its raw columns; operators come first to last."""
    above = node.parents_with_dependencies
    if node.op is not None and node.op.is_subgraph:
        sources, inner = _lineage(node.op.graph.output_node, name)
        behind = [_lineage_above(above, source) or ([source], ()) for source in sources]
        before = [step for _, earlier in behind for step in earlier]
        return [column for found, _ in behind for column in found], (*before, *inner)
    if not above:
        return [name], ()
    inputs: list[str] = []
    operators: tuple[Any, ...] = ()
    for source in _read_by(node).get(name, [name]):
        behind_source = _lineage_above(above, source)
        if behind_source is None:
            continue
        found, earlier = behind_source
        inputs += found
        operators += earlier
    own = (
        ()
        if type(node.op).__name__ in STRUCTURE or _drops_rows(node)
        else (_Step(type(node.op).__name__, node.op, name),)
    )
    return inputs, operators + own


def _read_by(node: Any) -> Mapping[str, list[str]]:
    """Return the columns that a node's outputs are computed from; for statistics only their keys."""
    entry = TABLE.get(key_of(node.op))
    if _drops_rows(node):
        return {}  # each column is computed from itself
    if entry is None or entry.reads is None:
        mapping: Mapping[str, list[str]] = node.column_mapping
        return mapping
    return entry.reads(node.op, node.input_columns.resolve(node.input_schema))


def _drops_rows(node: Any) -> bool:
    entry = TABLE.get(key_of(node.op))
    return entry is not None and entry.drops_rows


def _lineage_above(above: Iterable[Any], name: str) -> tuple[list[str], tuple[Any, ...]] | None:
    parent = next((parent for parent in above if name in parent.output_columns.names), None)
    return None if parent is None else _lineage(parent, name)


#: Nodes that move or tag columns and do not change them.
STRUCTURE = frozenset(
    {
        *("SelectionOp", "SubsetColumns", "SubtractionOp", "ConcatColumns", "Rename"),
        *("AddMetadata", "AddTags", "AddProperties"),
        *("TagAsUserID", "TagAsItemID", "TagAsUserFeatures", "TagAsItemFeatures"),
    }
)


@dataclass(frozen=True)
class _Step:
    """An operator applied to one column, with the name that the column has there."""

    operator: str
    op: Any
    column: str

    @property
    def looks_up(self) -> bool:
        """Whether its output comes from a table that it fitted or was given, with its input as keys."""
        entry = TABLE.get(key_of(self.op))
        return entry is not None and entry.reads is not None


def _cardinality(column: Any, operators: tuple[_Step, ...]) -> int | None:
    last = operators[-1] if operators else None
    if last is not None and last.operator == "Bucketize":
        # NVTabular writes no domain for buckets; values past the last boundary are one more bucket.
        try:
            return len(last.op.boundaries(last.column)) + 1
        except KeyError as error:
            raise WorkflowError(
                f"Bucketize has no boundaries for {last.column!r}; add them to its dict"
            ) from error
    domain = column.int_domain
    return int(domain.max) + 1 if domain is not None and domain.max is not None else None


def _nodes(graph: Any) -> Iterator[Any]:
    output = graph if not isinstance(graph, nvtabular.Workflow) else graph.output_node
    return iter(list(iter_nodes([output])))


def packed_columns(workflow: Any, part: Part) -> tuple[FeatureColumn, ...]:
    """Return one part's output columns in the order in which they are packed: the workflow's own.

    ``user`` includes the context columns.
    """
    cut = workflow if isinstance(workflow, WorkflowParts) else cut_workflow(workflow)
    by_name = {column.name: column for column in feature_columns(cut.workflow)}
    return tuple(by_name[name] for name in cut.output_names(part))


def list_lengths(workflow: Any, dataset: Dataset) -> dict[str, int]:
    """Return the length L of each packed list: that of the longest list in the data set, at least 1.

    No operator of a workflow changes the length of a list.
    """
    lengths = {}
    for column in feature_columns(workflow):
        if column.is_list:
            tables = {"user": dataset.users, "item": dataset.items, "context": dataset.interactions}
            rows = tables[column.part][column.inputs[0]]
            lengths[column.name] = max(1, int(rows.map(len).max()))
    return lengths
