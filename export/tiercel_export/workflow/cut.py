"""From a fitted NVTabular workflow to compiled feature programs.

The steps are load (``load.py``) → cut into user and item columns by schema tags → trace each output as a
typed expression of the inputs (``trace.py``) → schedule (``program.py``) → write.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from tiercel_serving.features import FeatureProgram, InputColumn, OutputColumn
from tiercel_serving.release.artefacts import write_artefact
from tiercel_serving.spec import Array

from ..errors import WorkflowError
from ..lowering.expressions import REFUSED, Columns, Expression
from ..lowering.filters import KEEP
from ..lowering.own_times import units_read
from ..lowering.target_encoding import NO_FOLD
from .lineage import Behind, lineage_of, tags_of
from .load import load_workflow
from .program import Output, schedule
from .trace import Observer, raw_column, trace

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
#: Tag → the part that it puts a column into; the first tag that matches wins.
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

    @cached_property
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

    def with_lengths(self, lengths: Mapping[str, int]) -> CompiledProgram:
        """Return the program with other packed lengths for some list outputs."""
        outputs = [
            {**column, "length": lengths.get(column["name"], column["length"])}
            for column in self.document["outputs"]
        ]
        return replace(self, document={**self.document, "outputs": outputs})

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
        Output column → its part: ``user``, ``context``, ``item`` or ``label``.
    lineage
        Output column → the input columns that it is computed from.
    asked
        Output column → the input columns that NVTabular needs in the frame for it, which includes columns
        that it does not read, such as the target of a statistic.
    events
        Output column → the columns of ``lineage`` that hold the events of a session.
    keys
        The input columns that the keys of sessions are computed from.
    target_encoding, rows
        As for :func:`cut_workflow`.
    of_users
        The input columns that the user table is known to have.
    """

    workflow: Any
    outputs: Mapping[str, str]
    lineage: Mapping[str, frozenset[str]]
    asked: Mapping[str, frozenset[str]]
    events: Mapping[str, frozenset[str]]
    keys: frozenset[str] = frozenset()
    target_encoding: str | None = None
    rows: str | None = None
    of_users: frozenset[str] = frozenset()

    def output_names(self, part: str) -> list[str]:
        """Return the output columns of a part, in the workflow's order; ``user`` includes context."""
        return [name for name, of in self.outputs.items() if _served_in(of) == part]

    def input_names(self, part: str) -> list[str]:
        """Return the raw columns that a part reads, in the workflow's order; ``user`` includes context."""
        used = frozenset().union(*(self.lineage[name] for name in self.output_names(part)))
        return [name for name in self.workflow.input_schema.column_names if name in used]

    def event_names(self, part: str) -> list[str]:
        """Return the raw columns of a part whose rows are lists with one value for each event."""
        used = frozenset().union(*(self.events[name] for name in self.output_names(part)))
        return [name for name in self.workflow.input_schema.column_names if name in used]

    def input_part(self, name: str, part: str) -> str:
        """Return ``item``, ``user`` or ``context`` for a raw column that a part reads.

        In the user part, a column is context if its own tag says so, or if only context outputs read it and
        the user table is not known to have it. Requests need not send what the store holds.
        """
        if part == "item":
            return part
        readers = {of for output, of in self.outputs.items() if name in self.lineage[output]}
        own = _tag_part(tags_of(self.workflow.input_schema[name]))
        of_user = "user" in readers or name in self.of_users
        return "user" if of_user and own != "context" else "context"


def cut_workflow(
    workflow: Any,
    *,
    parts: Mapping[str, str] | None = None,
    target_encoding: str | None = None,
    rows: str | None = None,
    homes: Mapping[str, str] | None = None,
) -> WorkflowParts:
    """Cut a workflow into user, context, item and label columns by the tags of its schema.

    An output's own tags take precedence, then the tags of the inputs that it is computed from, then the
    tables that contain these inputs. A statistic does not inherit the tags of the column that it aggregates,
    since the mean rating of an item is no label. An output of ``Groupby`` belongs to the part of the
    session's key, or else to the context, since a session's list of items is no feature of an item.

    Parameters
    ----------
    workflow
        A fitted workflow, or the path of a saved one.
    parts
        Part by output column, where tags are missing or wrong.
    target_encoding
        ``no_fold`` compiles TargetEncoding as if it had been fitted with ``kfold=1``, with statistics over
        all folds. None refuses its folds, which depend on the row's position in the batch.
    rows
        ``keep`` makes ``Filter`` and ``Dropna`` pass every row unchanged, because a served row can't be
        dropped. None refuses them, except where they drop events of a session.
    homes
        Part by raw column, for columns whose table is known.

    Raises
    ------
    WorkflowError
        An output has no tag, or depends on columns of both user and item.
    """
    if target_encoding not in (None, NO_FOLD):
        raise WorkflowError(f"target_encoding must be None or {NO_FOLD!r}, got {target_encoding!r}")
    if rows not in (None, KEEP):
        raise WorkflowError(f"rows must be None or {KEEP!r}, got {rows!r}")
    workflow = load_workflow(workflow)
    behind = lineage_of(workflow)
    chosen = parts or {}
    found = {
        name: chosen.get(name) or _part_of(workflow, name, of, homes or {}) for name, of in behind.items()
    }
    untagged = [name for name, part in found.items() if part is None]
    if untagged:
        raise _untagged(workflow, untagged)
    return WorkflowParts(
        workflow,
        {name: str(part) for name, part in found.items()},
        {name: of.reads for name, of in behind.items()},
        {name: of.asks for name, of in behind.items()},
        {name: of.events for name, of in behind.items()},
        frozenset().union(*(of.keys for of in behind.values())),
        target_encoding,
        rows,
        frozenset(name for name, home in (homes or {}).items() if home == "user"),
    )


def _part_of(workflow: Any, name: str, behind: Behind, homes: Mapping[str, str]) -> str | None:
    sources, tags = behind.reads, tags_of(workflow.output_schema[name]) - behind.lent
    if tags & LABEL_TAGS:
        return "label"
    if behind.keys:
        return _part_of_session(workflow, tags, behind, homes)
    part = _tag_part(tags)
    if part is not None:
        return part
    tags_of_inputs = [tags_of(workflow.input_schema[source]) for source in sources]
    if tags_of_inputs and all(of & LABEL_TAGS for of in tags_of_inputs):
        return "label"
    behind_it = [*tags_of_inputs, *(frozenset([tag]) for tag in behind.lost)]
    known = {side for side in map(_tag_part, behind_it) if side is not None}
    if len(known) == 1:
        return known.pop()
    if not known:
        known = {homes[source] for source in sources if source in homes}
    if not known:
        return None
    if len(known) == 1:
        return known.pop()
    raise WorkflowError(
        f"output column {name!r} is computed from {sorted(sources)}, columns of "
        f"{' and '.join(sorted(known))}; a served feature belongs to one side: tag it, or take it out of "
        "the workflow"
    )


def _part_of_session(workflow: Any, tags: frozenset[str], behind: Behind, homes: Mapping[str, str]) -> str:
    """Return the part of an output of a session: that of its key, unless its own tags say otherwise.

    An item tag does not count. Users tag a session's list of items, or its last item, as an item id in order
    to feed it to a model.
    """
    given = frozenset().union(*(tags_of(workflow.input_schema[name]) for name in behind.reads))
    tags_of_keys = frozenset().union(*(tags_of(workflow.input_schema[name]) for name in behind.keys))
    # Sorted, so that the choice among several keys is deterministic.
    at_home = (homes[name] for name in sorted(behind.keys) if name in homes)
    of_key = _tag_part(tags_of_keys) or next(at_home, "context")
    own = _tag_part(tags - given)
    return of_key if own in (None, "item") else own


def _untagged(workflow: Any, names: list[str]) -> WorkflowError:
    """Return the error that names all columns without a part, and the setting that assigns one."""
    one = len(names) == 1
    tags = sorted(tags_of(workflow.output_schema[names[0]])) if one else []
    has = f" (it has {tags or 'no tags'})" if one else ""
    line = "{" + ", ".join(f"{name!r}: 'user'" for name in names) + "}"
    what, has_or_have = ("", "has") if one else ("s", "have")
    return WorkflowError(
        f"output column{what} {', '.join(map(repr, names))} {has_or_have} none of the tags "
        f"USER, ITEM, CONTEXT or TARGET{has}, and no table is known that has what "
        f"{'it is' if one else 'they are'} made of; tag {'it' if one else 'them'} in the graph, with >> "
        f"TagAsUserFeatures() or the like, or give FeatureOptions(parts={line})"
    )


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
    target_encoding: str | None = None,
    rows: str | None = None,
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
    parts, target_encoding, rows
        As for :func:`cut_workflow`, unless the workflow is already cut.

    Raises
    ------
    UnsupportedOperator
        An operator can't be compiled exactly.
    WorkflowError
        The workflow can't be read or cut.
    """
    if part not in ("user", "item"):
        raise WorkflowError(f"part must be 'user' or 'item', got {part!r}")
    cut = workflow
    if not isinstance(cut, WorkflowParts):
        cut = cut_workflow(workflow, parts=parts, target_encoding=target_encoding, rows=rows)
    names = cut.output_names(part)
    traced = trace_part(cut, part)
    refuse_lost(names, traced)
    outputs = [_output(cut.workflow, name, traced[name], (list_lengths or {}).get(name)) for name in names]
    inputs = [{**column, "part": cut.input_part(column["name"], part)} for column in _inputs(cut, outputs)]
    document, arrays = schedule(part, inputs, outputs)
    return CompiledProgram(document, arrays)


def refuse_lost(names: Sequence[str], traced: Columns) -> None:
    """Raise WorkflowError if no operator makes an output column."""
    lost = [name for name in names if name not in traced]
    if lost:
        raise WorkflowError(
            f"no operator of the workflow makes its output columns {lost}, so that NVTabular's transform "
            "raises too; if remove_inputs took their columns away, fit a workflow without them"
        )


def trace_part(cut: WorkflowParts, part: str | None, observe: Observer | None = None) -> Columns:
    """Return the output columns of a cut workflow that can be traced from one part's inputs; None is all."""
    return trace(
        cut.workflow,
        None if part is None else set(cut.input_names(part)),
        target_encoding=cut.target_encoding,
        rows=cut.rows,
        events=None if part is None else cut.event_names(part),
        observe=observe,
    )


def _inputs(cut: WorkflowParts, outputs: list[Output]) -> list[dict[str, Any]]:
    units = units_read(output.expression for output in outputs)
    used = frozenset().union(*(output.expression.inputs for output in outputs))
    events = frozenset().union(*(output.expression.events for output in outputs))
    found = []
    for name in cut.workflow.input_schema.column_names:
        if name in used:
            expression = raw_column(cut.workflow, name)
            dtype = "bool" if expression.dtype == "bool" else expression.physical
            column = {"name": name, "dtype": dtype, "is_list": expression.is_list or name in events}
            if expression.time_unit is not None:
                column |= {"unit": expression.time_unit, "is_date": True}
            elif name in units and dtype == "int64":
                column["unit"] = units[name]
            found.append(column)
    return found


def _output(workflow: Any, name: str, expression: Expression, length: int | None) -> Output:
    if expression.op == REFUSED:
        error: WorkflowError = dict(expression.own)["error"]
        raise error
    if expression.axis is not None and not (expression.of_key and not expression.axis):
        raise WorkflowError(
            f"output column {name!r} has a value for each event of a session, but a served row is one "
            f"session (Groupby makes rows of {sorted(expression.events) or 'them'}): let Groupby aggregate "
            "it, or compute it from another raw column"
        )
    categorical = "categorical" in tags_of(workflow.output_schema[name])
    number = "cat" if categorical and not expression.is_float else "num"
    kind = "raw" if expression.is_text or expression.time_unit is not None else number
    if expression.time_unit is not None:
        expression = replace(expression, dtype="int64")
    return Output(name, kind, expression, length if expression.is_list else None)
