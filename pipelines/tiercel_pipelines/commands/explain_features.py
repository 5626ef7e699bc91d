"""``tiercel explain-features``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from tiercel_serving.commands.shell import Debug, Json, Refused, Report, Shell, shell
from tiercel_serving.commands.tables import heading, number, table

from .data import DataDir
from .transform import KeepRows, TargetEncoding, check_target_encoding, origin_of

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from tiercel_export.explain.program import PartPlan
    from tiercel_export.explain.workflow import WorkflowPlan
    from tiercel_export.workflow.cut import WorkflowParts
    from tiercel_serving.features import InputColumn
    from tiercel_serving.spec import Array

    from ..features.origin import FeatureOrigin
    from ..features.sample_rows import SampleRows

#: Maximum number of columns of a step that are named; of more, the first ones and the last are.
NAMED = 6


def command(
    source: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE",
            help="A recipe; or the directory of a run, a release or a saved NVTabular workflow.",
        ),
    ],
    part: Annotated[
        str | None, typer.Option("--part", metavar="user|item", help="Show only this part. Default: both.")
    ] = None,
    fit: Annotated[
        bool, typer.Option("--fit", help="Fit a recipe's workflow again, even if runs/<recipe> exists.")
    ] = False,
    timed: Annotated[
        bool, typer.Option("--time", help="Also measure each step, on one row and on a batch.")
    ] = False,
    rows: Annotated[
        int, typer.Option("--rows", min=2, help="Rows of the batch that --time measures.")
    ] = 1_000,
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="FILE", help="Parquet file whose first rows --time measures."),
    ] = None,
    target_encoding: TargetEncoding = None,
    keep_rows: KeepRows = False,
    data_dir: DataDir = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Show what the compiler made of a feature workflow: inputs, steps in order, tables, outputs.

    Says which columns run together, which operators each step was lowered from, what vanished because
    nothing served needs it, and what can't be compiled. A recipe is explained by its run in runs/<recipe>;
    where there is none, its workflow is fitted for the purpose.

    Example: [bold]tiercel explain-features movielens --time[/]
    """
    with shell(json=json, debug=debug) as sh:
        with sh.work(f"Explaining {source}") as progress:
            if part not in (None, "user", "item"):
                raise Refused(f"--part {part}: the parts are user and item")
            explained = explain(source, part, fit, (target_encoding, keep_rows), data_dir, progress, sh)
            if timed:
                explained = explained.timed(rows, data, progress)
        document = explained.to_json()
        sh.emit(document, *pages(explained, document))


# ------------------------------------------------------------------------------------------- explaining


@dataclass(frozen=True)
class Explained:
    """The plans, their programs, and the function that returns rows to time them on."""

    name: str
    kind: str
    parts: tuple[PartPlan, ...]
    programs: tuple[tuple[Mapping[str, Any], Mapping[str, Array]], ...]
    sample: Callable[[str, Sequence[InputColumn], int], SampleRows]
    workflow: WorkflowPlan | None = None
    timed_on: str | None = None

    def timed(self, rows: int, data: Path | None, progress: Report) -> Explained:
        """Return a copy whose plans have times, on the first rows of ``data`` or else the source's own."""
        from tiercel_export.explain.program import time_plan

        from ..features.sample_rows import rows_of_file

        plans, what = [], ""
        for plan, (document, arrays) in zip(self.parts, self.programs, strict=True):
            progress(f"timing the {plan.part} part", 0, None)
            if data is not None:
                sample = rows_of_file(data, plan.inputs, rows)
            else:
                sample = self.sample(plan.part, plan.inputs, rows)
            what = sample.what
            plans.append(time_plan(plan, document, arrays, {n: sample.take(n) for n in (1, rows)}))
        return replace(self, parts=tuple(plans), timed_on=what)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON form."""
        made: dict[str, Any] = {
            "source": self.name,
            "kind": self.kind,
            "parts": [plan.to_json() for plan in self.parts],
            "steps": sum(plan.computing for plan in self.parts),
            "applications": None,
            "vanished": [],
            "timed_on": self.timed_on,
        }
        if self.workflow is not None:
            made["applications"] = sum(plan.applications or 0 for plan in self.parts)
            made["vanished"] = [vars(gone) for gone in self.workflow.vanished]
        return made


def explain(
    source: str,
    part: str | None,
    fit: bool,
    how: tuple[str | None, bool],
    data_dir: Path | None,
    progress: Report,
    sh: Shell,
) -> Explained:
    """Explain a source; ``how`` holds the values of ``--target-encoding`` and ``--keep-rows``."""
    from ..features.origin import kind_of

    path = Path(source)
    kind = kind_of(path)
    if kind is not None:
        if fit:
            raise Refused(
                f"--fit: {source} is a {kind}, whose workflow is fitted; name a recipe, or leave it out"
            )
        return explain_source(origin_of(kind, path, [], *how), source, part)
    if path.is_dir() or ("/" in source and path.suffix != ".py"):
        came = "this directory is none of them" if path.is_dir() else "there is nothing of that name"
        raise Refused(
            f"{source}: expected a recipe, or the directory of a run, a release or a saved NVTabular "
            f"workflow; {came}"
        )
    from ..recipe.load import load_recipe

    recipe = load_recipe(source)
    run = Path("runs") / recipe.name
    if not fit and kind_of(run) == "run":
        sh.note(f"By the run {run}; --fit fits the recipe's workflow anew.")
        return explain_source(origin_of("run", run, [], *how), str(run), part)
    check_target_encoding(how[0])
    return explain_recipe(recipe, part, how, data_dir, progress)


def explain_source(source: FeatureOrigin, name: str, part: str | None) -> Explained:
    """Explain a directory."""
    from ..features.sample_rows import rows_of_origin

    sample = partial(rows_of_origin, source)
    if part is not None and part not in source.parts:
        raise Refused(f"--part {part}: {name} has only {', '.join(source.parts)}")
    if source.has_workflow:
        return explain_cut(source.workflow, name, source.kind, part, sample)
    from tiercel_export.explain.program import explain_program

    programs = tuple(source.compiled(of) for of in source.parts if part in (None, of))
    plans = tuple(explain_program(document, arrays) for document, arrays in programs)
    return Explained(name, source.kind, plans, programs, sample)


def explain_recipe(
    recipe: Any, part: str | None, how: tuple[str | None, bool], data_dir: Path | None, progress: Report
) -> Explained:
    """Fit a recipe's workflow, as training would, and explain it."""
    from msgspec.structs import asdict

    from tiercel_export.workflow.frames import columns_from_frame
    from tiercel_serving.stages.seen_again import given_again

    from ..data import load_dataset, split_dataset
    from ..features.fit_progress import fit_progress
    from ..features.origin import cut_or_whole
    from ..features.sample_rows import SampleRows
    from ..features.workflow import fit_workflow
    from ..recipe.check import check_recipe

    dataset = load_dataset(recipe.dataset, data_dir=data_dir, progress=progress)
    recipe = check_recipe(recipe, dataset)
    fit = split_dataset(dataset, **asdict(recipe.split), given_again=given_again(recipe.serving)).fit
    progress("fitting the workflow", 0, None)
    with fit_progress(progress):
        workflow = fit_workflow(recipe, dataset, fit)

    def sample(of: str, inputs: Sequence[InputColumn], n: int) -> SampleRows:
        return SampleRows(columns_from_frame(dataset.joined(fit.head(n)), inputs), "training interactions")

    target_encoding, keep_rows = how
    cut = cut_or_whole(workflow, target_encoding, "keep" if keep_rows else recipe.rows)
    return explain_cut(cut, recipe.name, "recipe", part, sample)


def explain_cut(
    cut: WorkflowParts,
    name: str,
    kind: str,
    part: str | None,
    sample: Callable[[str, Sequence[InputColumn], int], SampleRows],
) -> Explained:
    """Explain a workflow."""
    from tiercel_export.explain.workflow import explain_workflow

    plan = explain_workflow(cut, part=part)
    programs = tuple((program.document, program.arrays) for program in plan.programs)
    return Explained(name, kind, plan.parts, programs, sample, plan)


# --------------------------------------------------------------------------------------------- printing


def pages(explained: Explained, document: Mapping[str, Any]) -> Iterator[RenderableType]:
    """Yield the output for people."""
    yield heading(
        f"{explained.name} ({explained.kind}): {effect(document['applications'], document['steps'])}"
    )
    for plan in explained.parts:
        yield from part_page(plan)
    if document["vanished"]:
        yield heading("\nnot served")
        yield filled(((gone["column"], gone["reason"]) for gone in document["vanished"]), "column", "why")
    if explained.timed_on is not None:
        yield f"\n[dim]µs are medians, on {escape(explained.timed_on)}.[/]"


def effect(applications: int | None, steps: int) -> str:
    """Return the optimiser's effect in one line."""
    if applications is None:
        return f"{steps} steps"
    return f"{applications} applications of an operator to a column → {steps} steps"


def part_page(plan: PartPlan) -> Iterator[RenderableType]:
    """Yield the page of one part."""
    loads = len(plan.steps) - plan.computing
    size = f"{plan.nbytes / 1e6:,.1f} MB" if plan.nbytes >= 1e5 else f"{plan.nbytes / 1e3:,.1f} kB"
    title = f"{plan.part}: {effect(plan.applications, plan.computing)}, after {loads} that load"
    yield heading(f"\n{title}; {size} of tables")
    yield inputs_table(plan)
    yield ""
    yield steps_table(plan)
    for names, path in plan.chains:
        steps = " → ".join(plan.steps[step].step for step in path)
        yield f"  [bold]{len(names)} columns as one[/]: {escape(short(names))}: {steps}"
    for step in plan.fused:
        names = plan.steps[step].columns
        yield f"  [bold]{len(names)} lookups in one[/]: {escape(short(names))}"
    if plan.merged:
        yield f"  [bold]computed once[/], though written more than once: {escape(short(plan.merged))}"
    for operator in dict.fromkeys(gone.operator for gone in plan.vanished):
        names = tuple(gone.column for gone in plan.vanished if gone.operator == operator)
        yield f"  [bold]vanished[/], for no output needs it: {escape(short(names))} of {operator}"
    yield ""
    yield outputs_table(plan)
    if plan.refused:
        yield heading(f"\n{plan.part}: refused, and left out above")
        yield refusals_table(plan)


def short(names: Sequence[str]) -> str:
    """Return names joined by commas; of many only the first ones, the last, and their number."""
    if len(names) <= NAMED:
        return ", ".join(names)
    return f"{', '.join(names[: NAMED - 2])} … {names[-1]} ({len(names)})"


def inputs_table(plan: PartPlan) -> Table:
    """Return the table of raw columns."""
    rows = ((column.name, words(column.dtype, column.is_list), column.part) for column in plan.inputs)
    return filled(rows, "raw column", "dtype", "part")


def filled(rows: Iterable[Sequence[str]], *columns: str) -> Table:
    """Return a table of plain text."""
    made = table(*columns)
    for row in rows:
        made.add_row(*map(escape, row))
    return made


def steps_table(plan: PartPlan) -> Table:
    """Return the table of steps, in order."""
    times = [f"µs, {n:,} row{'s' if n > 1 else ''}" for n in plan.total_us]
    right = ("", "entries", "bytes", *times)
    made = table(
        "", "step", "columns together", "from", "reads", "table", "entries", "bytes", *times, right=right
    )
    for step in plan.steps:
        arrays = step.table
        made.add_row(
            str(step.number),
            step.step,
            escape(short(step.columns)),
            ", ".join(step.lowered_from),
            ", ".join(map(str, step.reads)),
            arrays.layout if arrays is not None else "",
            number(arrays.entries) if arrays is not None and arrays.entries is not None else "",
            number(arrays.nbytes) if arrays is not None else "",
            *(f"{step.microseconds[n]:,.1f}" for n in plan.total_us),
        )
    if times:
        made.add_section()
        totals = (f"{total:,.1f}" for total in plan.total_us.values())
        made.add_row("", "whole program", "", "", "", "", "", number(plan.nbytes), *totals)
    return made


def outputs_table(plan: PartPlan) -> Table:
    """Return the table of features."""
    rows = []
    for output in plan.outputs:
        packed = output.packed or "not packed"
        if output.is_list and output.packed:
            packed += f" [:, {output.length or 'longest'}]"
        elif output.position is not None:
            packed += f" [:, {output.position}]"
        path = " → ".join(map(str, output.path))
        rows.append((output.name, output.kind, words(output.dtype, output.is_list), packed, path))
    return filled(rows, "feature", "kind", "dtype", "packed as", "steps")


def words(dtype: str, is_list: bool) -> str:
    """Return a dtype in words."""
    element = "text" if dtype == "bytes" else dtype
    return f"list of {element}" if is_list else element


def refusals_table(plan: PartPlan) -> Table:
    """Return the table of what can't be compiled, and what to do instead."""
    rows = ((gone.output, gone.operator, gone.column, gone.reason, gone.remedy) for gone in plan.refused)
    return filled(rows, "feature", "operator", "column", "why", "what to do")
