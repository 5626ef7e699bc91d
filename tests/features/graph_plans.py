"""Random operator graphs: their data model, how Hypothesis draws them, and how NVTabular's graph is built.

A graph is drawn as data (:class:`Plan`), so that a failure prints completely and can be kept as a test.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nvtabular as nvt
from drawn_frames import ELEMENTS, FLOAT_DTYPES, INT_DTYPES, SCALARS, ColumnSpec, columns
from graph_kinds import KINDS, REFUSED_KINDS, ROWS, Building, Draw, Specs, Type, Types, takeable
from hypothesis import strategies as st
from nvtabular import ops

RAW = -1
ALL_KINDS = {**KINDS, **REFUSED_KINDS}
#: Operators that may follow a refused operator.
TAILS = ("tag", "rename", "fill", "subset", "stats", "categorify")

#: Operators that a graph may contain besides the one under test.
ORDINARY = (
    "fill",
    "median",
    "clip",
    "log",
    "normalize",
    "min max",
    "bucketize",
    "categorify",
    "rename",
    "tag",
    "subset",
    "concat",
    "slice",
    "reduce",
)


@dataclass(frozen=True)
class Step:
    """One node of a graph.

    Parameters
    ----------
    kind
        Key of :data:`KINDS`.
    sources
        Indices of the nodes that it is applied to; -1 stands for the raw columns.
    names
        The columns that it takes from the first source; a tuple among them is a group.
    parameters
        The kind's drawn parameters.
    whole
        Whether it takes the whole node, with all of its columns; else the columns are selected first.
    """

    kind: str
    sources: tuple[int, ...]
    names: tuple[Any, ...]
    parameters: tuple[Any, ...] = ()
    whole: bool = False


@dataclass(frozen=True)
class Plan:
    """A whole graph, and the columns that it is fitted on.

    Parameters
    ----------
    columns
        The raw columns.
    steps
        Nodes in order.
    leaves
        The nodes whose columns are the workflow's outputs.
    apart
        Whether each leaf's columns get a postfix; else the later of two leaves wins a shared name.
    split
        Whether every other output belongs to the item part.
    removed
        Raw columns that ``remove_inputs`` removes after the fit.
    rows, seed
        Of the fit's frame.
    """

    columns: tuple[ColumnSpec, ...]
    steps: tuple[Step, ...]
    leaves: tuple[int, ...]
    apart: bool
    split: bool
    removed: tuple[str, ...]
    rows: int
    seed: int


# --------------------------------------------------------------------------------------------- the strategy


@st.composite
def plans(draw: Draw, focus: str, steps: int = 5) -> Plan:
    """Draw a graph with the operator ``focus``: up to ``steps`` nodes, and up to 3 for refused operators."""
    specs = [
        draw(columns("i", INT_DTYPES)),
        draw(columns("f", FLOAT_DTYPES)),
        draw(columns("t", ("text",))),
        draw(columns("l", ELEMENTS, is_list=True)),
        *(draw(columns(f"s{i}", SCALARS)) for i in range(draw(st.integers(0, 2)))),
        *(draw(columns(f"m{i}", ELEMENTS, is_list=True)) for i in range(draw(st.integers(0, 1)))),
    ]
    if focus == "similarity":
        specs += [ColumnSpec(name, "int64", False, ROWS, ROWS) for name in ("left", "right")]
    raw = {spec.name: Type(_kind_of(spec), spec.is_list) for spec in specs}
    by_name = {spec.name: spec for spec in specs}
    made: list[Types] = []
    nodes: list[Step] = []
    count = draw(st.integers(1, steps))
    place = draw(st.integers(0, count - 1))
    for number in range(count):
        name = focus if number == place else draw(st.sampled_from(ORDINARY))
        step, types = _draw_step(draw, name, by_name, raw, made)
        nodes.append(step)
        made.append(types)
    if draw(st.integers(0, 3)) == 0:
        for name in [
            draw(st.sampled_from(sorted(REFUSED_KINDS))),
            *draw(st.lists(st.sampled_from(TAILS), max_size=2)),
        ]:
            _add_after(draw, name, by_name, raw, made, nodes)
    removed = draw(st.lists(st.sampled_from(sorted(raw)), max_size=2)) if draw(st.integers(0, 5)) == 0 else []
    used = {source for step in nodes for source in step.sources}
    leaves = [n for n in range(len(nodes)) if n not in used or draw(st.integers(0, 4)) == 0]
    return Plan(
        tuple(specs),
        tuple(nodes),
        tuple(leaves),
        draw(st.integers(0, 3)) > 0,
        draw(st.integers(0, 3)) == 0,
        tuple(removed),
        draw(st.sampled_from([1, 3, 12, 30, 60])),
        draw(st.integers(0, 2**32 - 1)),
    )


def _add_after(draw: Draw, name: str, specs: Specs, raw: Types, made: list[Types], nodes: list[Step]) -> None:
    """Add a refused operator, or a tail after one, if it takes any column. Its leaf is a later one."""
    kind = ALL_KINDS[name]
    if name in TAILS:
        able = [len(made) - 1] if takeable(kind, made[-1]) else []
    else:
        able = [n for n in range(RAW, len(made)) if takeable(kind, raw if n == RAW else made[n])]
    if able:
        step, types = _draw_step(draw, name, specs, raw, made, draw(st.sampled_from(able)))
        nodes.append(step)
        made.append(types)


def _kind_of(spec: ColumnSpec) -> str:
    if spec.values == ROWS:
        return "row"
    if spec.form == "floats" or spec.dtype in FLOAT_DTYPES:
        return "float"
    return {"bool": "bool", "text": "text"}.get(spec.dtype, "int")


def _draw_step(
    draw: Draw, name: str, specs: Specs, raw: Types, made: list[Types], source: int | None = None
) -> tuple[Step, Types]:
    kind = ALL_KINDS[name]

    def offered(source: int) -> Types:
        types = raw if source == RAW else made[source]
        return {name: types[name] for name in types if name in raw} if kind.named else types

    sources = [RAW] if kind.raw else range(RAW, len(made))
    able = [source for source in sources if takeable(kind, offered(source))]
    # Half of all steps start from raw columns, the others go on from a node.
    if source is None:
        source = RAW if draw(st.booleans()) else draw(st.sampled_from(able))
    types = offered(source)
    eligible = draw(st.sampled_from(takeable(kind, types)))
    whole = source != RAW and eligible == list(types) and draw(st.booleans())
    names = (
        eligible
        if whole
        else draw(st.lists(st.sampled_from(eligible), min_size=kind.least, max_size=4, unique=True))
    )
    taken = {name: types[name] for name in names}
    parameters = kind.draw(draw, taken, specs)
    others = tuple(draw(st.integers(RAW, len(made) - 1)) for _ in range(kind.others))
    result = kind.makes(taken, parameters)
    for other in others:
        result = {**(raw if other == RAW else made[other]), **result}
    grouped = kind.grouped and len(names) > 1 and not whole
    groups = _groups(draw, tuple(names)) if grouped else tuple(names)
    return Step(name, (source, *others), groups, parameters, whole), result


def _groups(draw: Draw, names: tuple[str, ...]) -> tuple[Any, ...]:
    size = draw(st.integers(2, len(names)))
    return (names[:size], *names[size:])


# -------------------------------------------------------------------------------------------- the real graph


def build(plan: Plan, folder: Path) -> nvt.Workflow:
    """Make NVTabular's graph of a plan."""
    specs = {spec.name: spec for spec in plan.columns}
    raw = list(specs)
    nodes: list[Any] = []
    for number, step in enumerate(plan.steps):
        place = folder / str(number)
        place.mkdir()
        first, *others = (raw if source == RAW else nodes[source] for source in step.sources)
        names = [list(name) if isinstance(name, tuple) else name for name in step.names]
        node = names if step.sources[0] == RAW else (first if step.whole else first[names])
        nodes.append(
            ALL_KINDS[step.kind].build(Building(node, others, tuple(names), place, specs), *step.parameters)
        )
    total = None
    for number in plan.leaves:
        leaf = nodes[number]
        leaf = leaf >> ops.Rename(postfix=f"_{number}") if plan.apart else leaf >> ops.AddMetadata()
        total = leaf if total is None else total + leaf
    return nvt.Workflow(total)
