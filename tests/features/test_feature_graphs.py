"""Random operator graphs and random frames: the compiled program equals NVTabular to the last bit.

Each graph is compiled as a whole; columns whose operator is refused are left out, as labels are, and the rest
is compared. Graphs that NVTabular itself cannot fit do not count.
"""

from __future__ import annotations

import itertools
import warnings
from collections import Counter
from pathlib import Path
from zlib import crc32

import nvtabular as nvt
import pytest
from drawn_frames import Request, fit_frame, request_frame, requests
from graph_kinds import KINDS, TAGGING
from graph_plans import Plan, build, plans
from hypothesis import HealthCheck, Phase, assume, given, seed, settings
from hypothesis.strategies import integers
from merlin.dag.node import iter_nodes
from parity_helpers import Unanswered, answers_its_fit, check, check_rows_alone, pairs_of_compiled

from tiercel_export.errors import ExportInputError, WorkflowError
from tiercel_export.lowering.table import TABLE, key_of

#: Graphs of each kind, and frames of each graph. A frame takes a second, mostly NVTabular's, and an ordinary
#: run always draws the same ones. ``--slow`` draws at least 1,000 × 50.
GRAPHS, FRAMES = 1, 5
SLOW_GRAPHS, SLOW_FRAMES = 50, 50
#: Batch sizes that occur for each graph.
SIZES = (0, 1, 1000)

#: Operators that make a column's dtype depend on the batch in NVTabular, but not in the program.
WIDENING = ("fill", "median", "clip", "slice", "join groupby", "join external", "subgraph", "ours")

COUNTER = itertools.count()


class Tally:
    """Counts the outcomes of one test's graphs and frames."""

    def __init__(self) -> None:
        self.graphs: Counter[str] = Counter()
        self.frames: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()

    def __str__(self) -> str:
        return f"graphs {dict(self.graphs)}, comparisons {dict(self.frames)}, {dict(self.reasons)}"


def run_graph(plan: Plan, frames: list[Request], folder: Path, tally: Tally) -> set[str]:
    """Compare a graph on its frames.

    Returns
    -------
    Keys of its operators; none if NVTabular cannot fit it or nothing of it compiles.
    """
    place = folder / str(next(COUNTER))
    place.mkdir()
    fitted = fit_frame(plan.columns, plan.rows, plan.seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            workflow = build(plan, place)
            workflow.fit(nvt.Dataset(fitted))
            if plan.removed:
                workflow.remove_inputs(list(plan.removed))
        except Exception as error:  # an empty vocabulary, a column that an operator has removed …
            tally.graphs["unfit"] += 1
            tally.reasons[f"{type(error).__name__}: {error}"] += 1
            return set()
        names = workflow.output_schema.column_names
        parts = {name: "item" if plan.split and number % 2 else "user" for number, name in enumerate(names)}
        wide = any(step.kind in WIDENING for step in plan.steps)
        try:
            pairs, refused = pairs_of_compiled(workflow, fitted, parts, wide=wide)
        except WorkflowError:
            # remove_inputs breaks some graphs; then NVTabular must raise as well.
            assert plan.removed
            with pytest.raises((KeyError, ValueError, IndexError)):
                workflow.transform(fitted)
            tally.graphs["broken"] += 1
            return set()
        tally.reasons.update(str(error) for error in refused)
        if not pairs:
            tally.graphs["refused"] += 1
            return set()
        inputs = {column.name for both in pairs for column in both.program.inputs}
        if inputs - set(fitted.columns):  # remove_inputs has left a joined table's column without its join
            assert plan.removed
            tally.graphs["broken"] += 1
            return set()
        if not all(answers_its_fit(both, refused) for both in pairs):
            tally.graphs["unanswered"] += 1
            return set()
        for request in frames:
            frame = request_frame(plan.columns, request)
            try:
                for both in pairs:
                    tally.frames[check(both, frame)] += 1
                    check_rows_alone(both, frame)
            except ExportInputError as error:
                # An integer that the fit's floats cannot hold is refused, never rounded.
                if "the workflow was fitted on float" not in str(error):
                    raise
                tally.frames["refused"] += 1
            except Unanswered:
                # A refused operator may raise on any input, and NVTabular runs it too.
                if not refused:
                    raise
                tally.frames["unanswered"] += 1
            except Exception as error:
                error.add_note(f"asked {request}")
                raise
        tally.graphs["compared"] += 1
        nodes = iter_nodes([workflow.output_node], flatten_subgraphs=True)
        return {key_of(node.op) for node in nodes}


def test_every_compiled_operator_is_drawn():
    # Sessions have their own graphs and frames, in test_sessions.py.
    compiled = {
        key
        for key, entry in TABLE.items()
        if entry.lower is not None and not (entry.keys or entry.drops_rows)
    }
    assert set().union(*(kind.keys for kind in KINDS.values())) == compiled
    assert len(KINDS) * SLOW_GRAPHS >= 1000


def test_tagging_operators_have_their_keys():
    assert {key_of(make()) for make in TAGGING.values()} == set(TAGGING) == KINDS["tag"].keys


def compare_graphs(name: str, graphs: int, frames: int, folder: Path) -> Tally:
    """Draw graphs with the operator ``name``, from its own seed, until enough are compared."""
    tally = Tally()

    @seed(crc32(name.encode()))
    @settings(
        max_examples=graphs,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        database=None,
    )
    @given(integers(0, 2**32), plans(name), requests(SIZES, frames))
    def compare(number, plan, asked):
        # Hypothesis starts with the smallest graph, which is refused or fails to fit after a second.
        assume(number)
        # The operator may have been removed with an input, or may not lead to any output.
        assume(KINDS[name].keys & run_graph(plan, asked, folder, tally))

    compare()
    print(name, tally)
    return tally


@pytest.mark.parametrize("name", KINDS)
def test_random_graphs(tmp_path, name):
    tally = compare_graphs(name, GRAPHS, FRAMES, tmp_path)
    assert tally.graphs["compared"] >= GRAPHS
    assert tally.frames.total() >= GRAPHS * FRAMES


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_many_random_graphs(tmp_path, name):
    tally = compare_graphs(name, SLOW_GRAPHS, SLOW_FRAMES, tmp_path)
    assert tally.graphs["compared"] >= SLOW_GRAPHS
    assert tally.frames.total() >= SLOW_GRAPHS * SLOW_FRAMES
