"""The plan of a workflow: the origin of each step, columns that were dropped, outputs that were refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..errors import UnsupportedOperator
from ..lowering.expressions import REFUSED, Columns, Expression
from ..lowering.table import TABLE, key_of
from ..workflow.cut import CompiledProgram, WorkflowParts, compile_workflow, refuse_lost, trace_part
from .program import Origins, PartPlan, Refusal, Vanished, explain_program


@dataclass(frozen=True)
class WorkflowPlan:
    """The plan of a workflow.

    Parameters
    ----------
    parts
        The plan of each part that has outputs.
    programs
        Their programs, without refused outputs.
    vanished
        Labels, and raw columns that no part reads.
    applications
        The number of times that the whole workflow, including labels, applies an operator to a column.
    """

    parts: tuple[PartPlan, ...]
    programs: tuple[CompiledProgram, ...]
    vanished: tuple[Vanished, ...]
    applications: int


def explain_workflow(cut: WorkflowParts, *, part: str | None = None) -> WorkflowPlan:
    """Compile the parts of a workflow and describe the result.

    Parameters
    ----------
    cut
        The workflow.
    part
        ``user`` or ``item``; None is both.

    Returns
    -------
    The plan. It lists outputs that can't be compiled, and covers the program without them.

    Raises
    ------
    WorkflowError
        Its fitted state can't be read, or no operator makes an output column.
    """
    parts, programs = [], []
    for name in ("user", "item"):
        if cut.output_names(name) and part in (None, name):
            plan, program = _explain_part(cut, name)
            parts.append(plan)
            programs.append(program)
    vanished = tuple(_unserved(cut, parts)) if part is None else ()
    return WorkflowPlan(tuple(parts), tuple(programs), vanished, _observe(cut, None).applications)


def _explain_part(cut: WorkflowParts, part: str) -> tuple[PartPlan, CompiledProgram]:
    names = cut.output_names(part)
    seen = _observe(cut, part)
    refuse_lost(names, seen.outputs)
    refused = tuple(
        _refusal(name, dict(seen.outputs[name].own)["error"])
        for name in names
        if seen.outputs[name].op == REFUSED
    )
    gone = {refusal.output for refusal in refused}
    left = {name: "refused" if name in gone else of for name, of in cut.outputs.items()}
    compiled = compile_workflow(replace(cut, outputs=left), part)
    plan = explain_program(compiled.document, compiled.arrays, _origins(compiled.document, seen))
    needed: set[Expression] = set()
    for name in names:
        _collect(seen.outputs[name], needed)
    plan = replace(
        plan,
        applications=seen.applications,
        merged=tuple(seen.names[made] for made, times in seen.times.items() if times > 1 and made in needed),
        vanished=tuple(_unneeded(seen, needed)),
        refused=refused,
    )
    return plan, compiled


def _refusal(output: str, error: Exception) -> Refusal:
    if isinstance(error, UnsupportedOperator):
        return Refusal(output, error.operator, error.column, error.reason, error.remedy)
    return Refusal(output, "", output, str(error), "")


def _unneeded(seen: _Seen, needed: set[Expression]) -> Iterator[Vanished]:
    for made, name in seen.names.items():
        if made not in needed and made.sources and made.op != REFUSED:
            operators = list(seen.operators.get(made, ()))
            yield Vanished(name, operators[0] if operators else None, "no output needs it")


def _unserved(cut: WorkflowParts, parts: Sequence[PartPlan]) -> Iterator[Vanished]:
    """Yield labels, and raw columns that no program reads."""
    for name, of in cut.outputs.items():
        if of == "label":
            yield Vanished(name, None, "a label, which serving does not have")
    read = {column.name for plan in parts for column in plan.inputs}
    refused = {refusal.output for plan in parts for refusal in plan.refused}
    for name in cut.workflow.input_schema.column_names:
        readers = [output for output, sources in cut.lineage.items() if name in sources]
        if name not in read and readers != [name]:
            kinds = {"refused" if reader in refused else cut.outputs[reader] for reader in readers}
            why = f"only {', '.join(readers)} ({', '.join(sorted(kinds))}) needs it"
            yield Vanished(name, None, why if readers else "no output needs it")


# -------------------------------------------------------------------------------------------- observing


def _observe(cut: WorkflowParts, part: str | None) -> _Seen:
    seen = _Seen()
    seen.outputs = trace_part(cut, part, seen.node)
    return seen


class _Seen:
    """Observations of a trace: which operators made which columns, and how often operators were applied."""

    def __init__(self) -> None:
        self.applications = 0
        #: Expression → the operators of the nodes that made it, or made a column that is computed from it.
        self.operators: dict[Expression, dict[str, None]] = {}
        #: Expression → its first name.
        self.names: dict[Expression, str] = {}
        #: Expression → how many nodes made it.
        self.times: Counter[Expression] = Counter()
        self.outputs: Columns = {}

    def node(self, node: Any, given: Columns, made: Columns) -> None:
        """Record the columns that one node of the graph read and made."""
        for name, expression in given.items():
            self.names.setdefault(expression, name)
        if node.op is None or node.op.is_subgraph:
            return
        names = [name for name in node.input_columns.resolve(node.input_schema).names if name in given]
        if not _only_moves(node.op):
            self.applications += len(names)
        known: set[Expression] = set()
        for expression in given.values():
            _collect(expression, known)
        new: set[Expression] = set()
        for name, expression in made.items():
            _collect(expression, new, known)
            if expression not in known:
                self.names.setdefault(expression, name)
                self.times[expression] += 1
        for expression in new:
            self.operators.setdefault(expression, {})[type(node.op).__name__] = None


def _only_moves(op: Any) -> bool:
    """Return whether an operator only selects, renames or tags columns."""
    entry = TABLE.get(key_of(op))
    return entry is not None and entry.lower is not None and entry.lower.__module__.endswith(".structure")


def _collect(expression: Expression, found: set[Expression], stop: set[Expression] | None = None) -> None:
    """Add to ``found`` an expression and all that it is computed from, except those in ``stop``."""
    if expression in found or (stop is not None and expression in stop):
        return
    found.add(expression)
    for source in expression.sources:
        _collect(source, found, stop)


def _origins(document: Mapping[str, Any], seen: _Seen) -> Origins:
    """Find the expression of each row of each step, by walking both back from the outputs."""
    at: dict[tuple[int, int], Expression] = {}

    def walk(expression: Expression, number: int, row: int) -> None:
        step = document["steps"][number]
        if step["op"] == "rows":
            walk(expression, step["in"], step["rows"][row])
            return
        # On a mismatch a row gets no origin, which is better than a wrong one.
        if step["op"] != expression.op or (number, row) in at:
            return
        at[number, row] = expression
        source = step.get("in")
        if isinstance(source, int):
            walk(expression.sources[0], source, step["rows"][row] if "rows" in step else row)
        elif source is not None:
            for of, (register, its_row) in zip(expression.sources, source, strict=True):
                walk(of, register, its_row)

    for column in document["outputs"]:
        walk(seen.outputs[column["name"]], column["register"], column["row"])
    operators: dict[int, dict[str, None]] = {}
    for (number, _), expression in at.items():
        operators.setdefault(number, {}).update(seen.operators.get(expression, {}))
    return Origins(
        {place: seen.names[expression] for place, expression in at.items() if expression in seen.names},
        {number: tuple(names) for number, names in operators.items()},
    )
