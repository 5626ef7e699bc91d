"""From a fitted NVTabular workflow to compiled feature programs.

Reads top to bottom: load → trace (each output as a typed expression of the inputs) → cut (into user and
item by schema tags) → schedule (``workflow_program.py``) → write.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tiercel_serving.artefacts import write_artefact
from tiercel_serving.features import FeatureProgram, InputColumn, OutputColumn
from tiercel_serving.spec import Array

from .errors import UnsupportedOperator, WorkflowError
from .lowering.categorify import vocabulary_of
from .lowering.expressions import (
    INTEGER_DTYPES,
    REFUSED,
    Columns,
    Expression,
    Lowering,
    Where,
    input_column,
    refused_column,
)
from .lowering.table import TABLE, key_of
from .workflow_program import Output, schedule

#: Tags that make a column a label, which serving does not have.
LABEL_TAGS = frozenset(
    (
        "target",
        "regression",
        "classification",
        "binary",
        "multi_class",
        "binary_classification",
        "multi_class_classification",
    )
)
#: Tags that put a column into a part; the first that matches counts.
PART_TAGS: Mapping[str, str] = {
    "item": "item",
    "item_id": "item",
    "user": "user",
    "user_id": "user",
    "context": "context",
    "session": "context",
    "session_id": "context",
}


@dataclass(frozen=True)
class CompiledProgram:
    """One part of a workflow, compiled.

    Parameters
    ----------
    document
        The program's JSON form.
    arrays
        Its tables.
    """

    document: Mapping[str, Any]
    arrays: Mapping[str, Array]

    @property
    def program(self) -> FeatureProgram:
        """The program, in memory."""
        return FeatureProgram(self.document, self.arrays)

    @property
    def part(self) -> str:
        """``user`` (with context columns) or ``item``."""
        return str(self.document["part"])

    @property
    def inputs(self) -> tuple[InputColumn, ...]:
        """The raw columns that it reads."""
        return self.program.inputs

    @property
    def outputs(self) -> tuple[OutputColumn, ...]:
        """The features that it computes."""
        return self.program.outputs

    def write(self, path: Path, build_id: str) -> None:
        """Write the artefact of kind ``features``."""
        write_artefact(path, "features", build_id, self.arrays, {"program": self.document})


@dataclass(frozen=True)
class WorkflowParts:
    """A workflow cut by schema tags.

    Parameters
    ----------
    workflow
        The whole fitted workflow.
    outputs
        Part of each output column: ``user``, ``context``, ``item`` or ``label``.
    lineage
        The input columns that each output is computed from.
    """

    workflow: Any
    outputs: Mapping[str, str]
    lineage: Mapping[str, frozenset[str]]

    def output_names(self, part: str) -> list[str]:
        """Return the output columns of a part, in the workflow's order; ``user`` includes context."""
        return [name for name, of in self.outputs.items() if _served_in(of) == part]

    def input_names(self, part: str) -> list[str]:
        """Return the raw columns that a part reads, in the workflow's order; ``user`` includes context."""
        used = frozenset().union(*(self.lineage[name] for name in self.output_names(part)))
        return [name for name in self.workflow.input_schema.column_names if name in used]

    def input_part(self, name: str, part: str) -> str:
        """Return ``item``, ``user`` or ``context`` for a raw column that a part reads.

        Of the user part, a column is context if its own tag says so or only context outputs read it.
        """
        if part == "item":
            return part
        readers = {of for output, of in self.outputs.items() if name in self.lineage[output]}
        own = _tag_part(_tags(self.workflow.input_schema[name]))
        return "context" if own == "context" or "user" not in readers else "user"


def load_workflow(workflow: Any) -> Any:
    """Return a fitted workflow, from memory or from the folder that ``Workflow.save`` wrote.

    Raises
    ------
    WorkflowError
        The folder is not a saved workflow, another NVTabular or pandas wrote it, or it was never fitted.
    """
    if isinstance(workflow, (str, Path)):
        workflow = _read_saved(Path(workflow))
    if not hasattr(workflow, "output_node"):
        raise WorkflowError(
            f"expected an nvtabular.Workflow or a path to one, came {type(workflow).__name__}"
        )
    if workflow.output_schema is None:
        raise WorkflowError("the workflow was never fitted: call fit() on the training data first")
    return workflow


def _read_saved(path: Path) -> Any:
    import nvtabular

    for name in ("workflow.pkl", "metadata.json"):
        if not (path / name).is_file():
            raise WorkflowError(f"{path}: expected a folder written by Workflow.save, but it has no {name}")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            workflow = nvtabular.Workflow.load(path)
    except Exception as error:
        raise WorkflowError(
            f"{path}: not a readable workflow ({type(error).__name__}: {error}); fit and save it again here"
        ) from error
    for warning in caught:
        if "Loading workflow generated" in str(warning.message):
            raise WorkflowError(f"{path}: {warning.message}; fit and save it again with these versions")
    return workflow


def cut_workflow(workflow: Any, *, parts: Mapping[str, str] | None = None) -> WorkflowParts:
    """Cut a workflow into user, context, item and label columns by the tags of its schema.

    An output's own tags count first, then those of the inputs it is computed from.

    Parameters
    ----------
    workflow
        A fitted workflow, or the path of a saved one.
    parts
        Part by output column, where tags are missing or wrong.

    Raises
    ------
    WorkflowError
        An output has no tag, or depends on columns of both user and item.
    """
    workflow = load_workflow(workflow)
    lineage = _lineage(workflow)
    chosen = parts or {}
    outputs = {
        name: chosen.get(name) or _part_of(workflow, name, sources) for name, sources in lineage.items()
    }
    return WorkflowParts(workflow, outputs, lineage)


def _part_of(workflow: Any, name: str, sources: frozenset[str]) -> str:
    tags = _tags(workflow.output_schema[name])
    if tags & LABEL_TAGS:
        return "label"
    part = _tag_part(tags)
    if part is not None:
        return part
    of_inputs = {_tag_part(_tags(workflow.input_schema[source])) for source in sources}
    known = {side for side in of_inputs if side is not None}
    if len(known) == 1:
        return known.pop()
    if not known:
        raise WorkflowError(
            f"output column {name!r} has none of the tags USER, ITEM, CONTEXT or TARGET (it has "
            f"{sorted(tags) or 'no tags'}); tag it, for instance with >> TagAsUserFeatures()"
        )
    raise WorkflowError(
        f"output column {name!r} is computed from {sorted(sources)}, columns of "
        f"{' and '.join(sorted(known))}; a served feature belongs to one side: tag it, or take it out of "
        "the workflow"
    )


def _tags(column: Any) -> frozenset[str]:
    return frozenset(str(getattr(tag, "value", tag)).lower() for tag in column.tags)


def _tag_part(tags: frozenset[str]) -> str | None:
    return next((part for tag, part in PART_TAGS.items() if tag in tags), None)


def _served_in(part: str) -> str:
    return "user" if part == "context" else part


# ------------------------------------------------------------------------------------------------ tracing


def compile_workflow(
    workflow: Any,
    part: str,
    *,
    list_lengths: Mapping[str, int] | None = None,
    parts: Mapping[str, str] | None = None,
) -> CompiledProgram:
    """Compile one part of a fitted workflow.

    Parameters
    ----------
    workflow
        A fitted workflow, the path of a saved one, or :class:`WorkflowParts`.
    part
        ``user`` (user and context columns) or ``item``.
    list_lengths
        Packed length by list output; a list without one packs to the longest row of each batch.
    parts
        As for :func:`cut_workflow`.

    Raises
    ------
    UnsupportedOperator
        An operator can't be compiled exactly.
    WorkflowError
        The workflow can't be read or cut.
    """
    if part not in ("user", "item"):
        raise WorkflowError(f"part must be 'user' or 'item', came {part!r}")
    cut = workflow if isinstance(workflow, WorkflowParts) else cut_workflow(workflow, parts=parts)
    names = cut.output_names(part)
    traced = trace(cut.workflow, set(cut.input_names(part)))
    outputs = [_output(cut.workflow, name, traced[name], (list_lengths or {}).get(name)) for name in names]
    inputs = [
        {"name": name, "dtype": dtype, "is_list": is_list, "part": cut.input_part(name, part)}
        for name, dtype, is_list in _inputs(cut, outputs)
    ]
    document, arrays = schedule(part, inputs, outputs)
    return CompiledProgram(document, arrays)


def _inputs(cut: WorkflowParts, outputs: list[Output]) -> list[tuple[str, str, bool]]:
    used = frozenset().union(*(output.expression.inputs for output in outputs))
    found = []
    for name in cut.workflow.input_schema.column_names:
        if name in used:
            expression = _input(cut.workflow, name)
            dtype = "bool" if expression.dtype == "bool" else expression.physical
            found.append((name, dtype, expression.is_list))
    return found


def _output(workflow: Any, name: str, expression: Expression, length: int | None) -> Output:
    if expression.op == REFUSED:
        error: UnsupportedOperator = dict(expression.own)["error"]
        raise error
    categorical = "categorical" in _tags(workflow.output_schema[name])
    number = "cat" if categorical and not expression.is_float else "num"
    kind = "raw" if expression.is_text else number
    return Output(name, kind, expression, length if expression.is_list else None)


def trace(workflow: Any, needed: set[str] | None = None) -> Columns:
    """Return each output column as an expression of the inputs.

    Parameters
    ----------
    workflow
        A fitted workflow.
    needed
        Raw columns to begin with; None is all. What is computed from other columns is left out.

    Returns
    -------
    Expression by output name. One whose ``op`` is ``refused`` carries the error of the operator that
    can't be compiled: it matters only if the column is served.
    """
    wanted = set(workflow.output_schema.column_names)
    columns = _Tracer(workflow, needed).run(workflow.output_node)
    return {name: expression for name, expression in columns.items() if name in wanted}


class _Tracer:
    """Walks the graph as NVTabular's executor does, with expressions in place of a data frame."""

    def __init__(self, workflow: Any, needed: set[str] | None) -> None:
        self._workflow = workflow
        self._needed = needed
        self._done: dict[int, Columns] = {}

    def run(self, node: Any) -> Columns:
        """Return what the node makes, column by column."""
        if id(node) not in self._done:
            self._done[id(node)] = self._transform(node, self._gather(node))
        return self._done[id(node)]

    def _gather(self, node: Any) -> Columns:
        """Join what the node's parents make; of a name that occurs twice the later counts."""
        columns: Columns = {}
        for parent in node.parents_with_dependencies:
            columns.update(self.run(parent))
        wanted = [*node.input_schema.column_names, *node.dependency_columns.names]
        for name in wanted:
            if name not in columns and self._is_needed(name):
                columns[name] = _input(self._workflow, name)
        return columns

    def _is_needed(self, name: str) -> bool:
        return name in self._workflow.input_schema.column_names and (
            self._needed is None or name in self._needed
        )

    def _transform(self, node: Any, columns: Columns) -> Columns:
        if node.op is None:
            return columns
        selector = node.input_columns.resolve(node.input_schema)
        names = [name for name in selector.names if name in columns]
        key = key_of(node.op)
        entry = TABLE.get(key)
        if not names:
            return {} if entry is None or entry.lower is None else dict(columns)
        if entry is None:
            raise UnsupportedOperator(
                key,
                names[0],
                "it is not an operator of NVTabular 23.08",
                "Apply it to the data before the fit",
            )
        where = Where(type(node.op).__name__, _Present(selector, set(names)))
        blocked = {name: columns[name] for name in names if columns[name].op == REFUSED}
        if entry.lower is None:
            blocked = {
                name: refused_column(columns[name], where.refuse(name, entry.note, entry.remedy))
                for name in names
            }
        free = [name for name in names if name not in blocked]
        made = _lower(entry.lower, node.op, free, columns, where) if entry.lower and free else dict(columns)
        for new, olds in node.op.column_mapping(selector).items():
            stopped = [blocked[old] for old in olds if old in blocked]
            if stopped:
                made[new] = stopped[0]
        return made


def _lower(lower: Lowering, op: Any, names: list[str], columns: Columns, where: Where) -> Columns:
    """Lower an operator; what it can't do for one column or group of columns stops that one alone."""
    try:
        return lower(op, names, columns, where)
    except UnsupportedOperator:
        pass
    made: Columns = {}
    for unit in _units(where.selector, names):
        alone = _Present(where.selector, set(unit))
        try:
            result = lower(op, unit, columns, Where(where.operator, alone))
        except UnsupportedOperator as error:
            stopped = refused_column(columns[unit[0]], error)
            result = dict.fromkeys(op.column_mapping(alone), stopped)
        for name, expression in result.items():
            if name not in made or expression is not columns.get(name):
                made[name] = expression
    return made


def _units(selector: Any, names: list[str]) -> list[list[str]]:
    """Return the names in the groups that an operator takes together: subgroups, and the rest one by one."""
    groups = [[name for name in group.names if name in names] for group in selector.subgroups]
    grouped = {name for group in groups for name in group}
    return [group for group in groups if group] + [[name] for name in names if name not in grouped]


class _Present:
    """A column selector without the columns of other parts, and without groups that lack one of them."""

    def __init__(self, selector: Any, present: set[str]) -> None:
        self.names: list[str] = [name for name in selector.names if name in present]
        whole = [group for group in selector.subgroups if present.issuperset(group.names)]
        self.subgroups: list[_Present] = [_Present(group, present) for group in whole]
        grouped = {name for group in self.subgroups for name in group.names}
        self.grouped_names: list[Any] = [
            *(name for name in self.names if name not in grouped),
            *(tuple(group.names) for group in self.subgroups),
        ]


def _lineage(workflow: Any) -> dict[str, frozenset[str]]:
    """Return the raw columns behind each output, by the operators' own column mappings."""
    mapping: dict[int, dict[str, frozenset[str]]] = {}

    def visit(node: Any) -> dict[str, frozenset[str]]:
        if id(node) in mapping:
            return mapping[id(node)]
        above: dict[str, frozenset[str]] = {}
        for parent in node.parents_with_dependencies:
            above.update(visit(parent))
        raw = set(workflow.input_schema.column_names)
        for name in node.input_schema.column_names:
            if name not in above and name in raw:
                above[name] = frozenset([name])
        selector = node.input_columns.resolve(node.input_schema)
        made = {
            new: frozenset().union(*(above.get(old, frozenset()) for old in olds))
            for new, olds in node.op.column_mapping(selector).items()
        }
        mapping[id(node)] = {**above, **made}
        return mapping[id(node)]

    last = visit(workflow.output_node)
    return {name: last[name] for name in workflow.output_schema.column_names}


def _input(workflow: Any, name: str) -> Expression:
    """Return a raw column with the type that the schema of the fit gives it."""
    schema = workflow.input_schema[name]
    is_list = bool(schema.is_list)
    if schema.dtype.name == "unknown":
        dtype = _dtype_by_vocabulary(workflow, name)
    else:
        dtype = schema.dtype.without_shape.to_numpy
    if dtype.kind in "OUS":
        return input_column(name, "bytes", "bytes", is_list)
    if dtype.name == "bool" or dtype.name in INTEGER_DTYPES:
        return input_column(name, "int64", dtype.name, is_list)
    if dtype in (np.float32, np.float64):
        return input_column(name, dtype.name, dtype.name, is_list)
    raise WorkflowError(
        f"input column {name!r} is {dtype.name}, which no request can carry; cast it to int64, float64 or "
        "text before the fit"
    )


def _dtype_by_vocabulary(workflow: Any, name: str) -> np.dtype[Any]:
    """Return the dtype of a column that the schema does not know (its first row was an empty list).

    The vocabulary that encodes it tells.
    """
    from merlin.dag.node import iter_nodes

    for node in iter_nodes([workflow.output_node]):
        if key_of(node.op) == "nvtabular.Categorify" and name in node.input_columns.names:
            kind = vocabulary_of(node.op, name).kind
            return np.dtype(np.object_ if kind == "text" else kind)
    raise WorkflowError(
        f"input column {name!r} has no dtype in the workflow's schema (its first row was an empty list): fit "
        "on a Dataset with a schema, or put a row first that has elements"
    )
