"""From a fitted NVTabular workflow to compiled feature programs.

Reads top to bottom: load → cut (into user and item by schema tags) → trace (each output as a typed
expression of the inputs: ``workflow_trace.py``) → schedule (``workflow_program.py``) → write.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tiercel_serving.artefacts import write_artefact
from tiercel_serving.features import FeatureProgram, InputColumn, OutputColumn
from tiercel_serving.spec import Array

from .errors import WorkflowError
from .lowering.expressions import REFUSED, Expression
from .workflow_program import Output, schedule
from .workflow_trace import lineage_of, raw_column, trace

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
    lineage = lineage_of(workflow)
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


# --------------------------------------------------------------------------------------------- compiling


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
            expression = raw_column(cut.workflow, name)
            dtype = "bool" if expression.dtype == "bool" else expression.physical
            found.append((name, dtype, expression.is_list))
    return found


def _output(workflow: Any, name: str, expression: Expression, length: int | None) -> Output:
    if expression.op == REFUSED:
        error: WorkflowError = dict(expression.own)["error"]
        raise error
    categorical = "categorical" in _tags(workflow.output_schema[name])
    number = "cat" if categorical and not expression.is_float else "num"
    kind = "raw" if expression.is_text else number
    return Output(name, kind, expression, length if expression.is_list else None)
