"""The explained plan matches the program: its steps, tables and outputs, and the fate of each operator."""

from __future__ import annotations

import numpy as np
import nvtabular as nvt
import pandas as pd
import pytest
from merlin.schema import Tags
from nvtabular import ops
from test_feature_operators import CASES, FIT, fitted, path

from tiercel_export.explain.arrays import describe_arrays
from tiercel_export.explain.program import MOVING, explain_program, time_plan
from tiercel_export.explain.workflow import explain_workflow
from tiercel_export.workflow.cut import compile_workflow, cut_workflow
from tiercel_export.workflow.frames import columns_from_frame, oracle_frame
from tiercel_pipelines.features.sample_rows import made_up_rows
from tiercel_serving.features import steps as runtime
from tiercel_serving.features.registers import Register

CONTINUOUS = [f"I{i}" for i in range(1, 14)]
CATEGORICAL = [f"C{i}" for i in range(1, 27)]


def plan_of(node, frame: pd.DataFrame = FIT, part: str = "user"):
    whole = explain_workflow(cut_workflow(fitted(node, frame)))
    return whole, next(plan for plan in whole.parts if plan.part == part)


def step_of(plan, name: str):
    return next(step for step in plan.steps if step.step == name)


@pytest.fixture(scope="module")
def criteo() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    frame = {name: rng.gamma(2, 3, 300) for name in CONTINUOUS}
    frame |= {name: rng.integers(0, 40, 300) for name in CATEGORICAL}
    return pd.DataFrame(frame)


def test_columns_that_share_a_chain_are_one_step_each(criteo, tmp_path):
    continuous = CONTINUOUS >> ops.FillMissing() >> ops.Clip(min_value=0) >> ops.LogOp() >> ops.Normalize()
    encoded = CATEGORICAL >> ops.Categorify(out_path=path(tmp_path))
    whole, plan = plan_of(continuous + encoded, criteo)
    assert whole.applications == plan.applications == 13 * 4 + 26
    assert sorted(step.step for step in plan.steps if step.computes) == [
        *("clip", "encode_direct", "fill", "log", "normalize")
    ]
    assert plan.computing == 5
    assert step_of(plan, "normalize").columns == tuple(CONTINUOUS)
    assert step_of(plan, "encode_direct").columns == tuple(CATEGORICAL)
    assert step_of(plan, "normalize").outputs == tuple(CONTINUOUS)
    assert step_of(plan, "log").outputs == ()
    assert [plan.steps[step].columns for step in plan.fused] == [tuple(CATEGORICAL)]
    assert {names: len(steps) for names, steps in plan.chains} == {
        tuple(CONTINUOUS): 4,
        tuple(CATEGORICAL): 1,
    }


def test_tables_are_told_with_their_entries_and_bytes(criteo, tmp_path):
    frame = criteo.assign(
        far=criteo["C1"] * 10**9, far2=criteo["C2"] * 10**9 + 7, word=criteo["C3"].astype(str)
    )
    frame["long"] = "x" * 200 + frame["word"]
    names = ["C1", "C2", "far", "far2", "word", "long"]
    _, plan = plan_of(names >> ops.Categorify(out_path=path(tmp_path)), frame)
    by_layout = {}
    for step in plan.steps:
        if step.table is not None:
            by_layout.setdefault(step.table.layout, []).append(step)
    assert set(by_layout) == {"direct", "hash", "text hash"}
    distinct = {name: frame[name].nunique() for name in names}
    for steps in by_layout.values():
        for step in steps:
            assert step.table.entries == sum(distinct[name] for name in step.columns)
            assert step.lowered_from == ("Categorify",)
    compiled = compile_workflow(
        cut_workflow(fitted(names >> ops.Categorify(out_path=path(tmp_path)), frame)), "user"
    )
    assert plan.nbytes == sum(array.nbytes for array in compiled.arrays.values())


def test_columns_of_one_vocabulary_count_its_entries_once(tmp_path):
    node = [["city", "town"]] >> ops.Categorify(out_path=path(tmp_path), encode_type="joint")
    _, plan = plan_of(node)
    distinct = pd.concat([FIT["city"], FIT["town"]]).nunique()
    assert sum(step.table.entries for step in plan.steps if step.table is not None) == distinct


def test_what_nothing_served_needs_is_named(tmp_path):
    filled = ["age", "price"] >> ops.FillMissing(0, add_binary_cols=True) >> ops.Normalize()
    served = filled["age", "price", "price_filled"] >> ops.TagAsUserFeatures()
    label = ["flag"] >> ops.AddTags([Tags.TARGET])
    unused = ["rank"] >> ops.LogOp() >> ops.TagAsItemFeatures()
    workflow = nvt.Workflow(served + label + unused)
    workflow.fit(nvt.Dataset(FIT))
    whole = explain_workflow(cut_workflow(workflow))
    assert [plan.part for plan in whole.parts] == ["user", "item"]
    user = whole.parts[0]
    assert [(gone.column, gone.operator) for gone in user.vanished] == [
        ("age_filled", "FillMissing"),
        ("age_filled", "Normalize"),
    ]
    assert {gone.column: gone.reason for gone in whole.vanished} == {
        "flag": "a label, which serving does not have"
    }
    assert not any("age_filled" in (*step.columns, *step.outputs) for step in user.steps)


def test_raw_columns_that_no_program_reads_are_named(tmp_path):
    rated = ["age"] >> ops.LogOp() >> ops.AddTags([Tags.TARGET]) >> ops.Rename(name="label")
    workflow = nvt.Workflow((["price"] >> ops.Normalize() >> ops.TagAsUserFeatures()) + rated)
    workflow.fit(nvt.Dataset(FIT))
    whole = explain_workflow(cut_workflow(workflow))
    assert {gone.column: gone.reason for gone in whole.vanished} == {
        "label": "a label, which serving does not have",
        "age": "only label (label) needs it",
    }
    assert (whole.applications, whole.parts[0].applications) == (2, 1)


def test_what_is_written_twice_is_computed_once():
    node = (["age"] >> ops.LogOp()) + (["age"] >> ops.LogOp() >> ops.Normalize() >> ops.Rename(postfix="_n"))
    _, plan = plan_of(node)
    assert (plan.applications, plan.computing, plan.merged) == (3, 2, ("age",))


def test_what_can_not_be_compiled_is_named_and_the_rest_planned(tmp_path):
    buckets = ["age", "town"] >> ops.Categorify(num_buckets={"age": 1, "town": 5}, out_path=path(tmp_path))
    node = buckets + (["city"] >> ops.HashBucket(10)) + ["rank"]
    _, plan = plan_of(node)
    assert [output.name for output in plan.outputs] == ["age", "rank"]
    refused = {refusal.output: refusal for refusal in plan.refused}
    assert set(refused) == {"town", "city"}
    assert (refused["town"].operator, refused["town"].column) == ("Categorify", "town")
    assert refused["city"].operator == "HashBucket"
    assert all(refusal.reason and refusal.remedy for refusal in plan.refused)


def test_a_cast_on_the_way_belongs_to_its_operator():
    _, plan = plan_of(["age"] >> ops.Clip(min_value=1.5))
    assert [step.lowered_from for step in plan.steps] == [(), ("Clip",), ("Clip",)]
    assert plan.steps[-1].step == "clip"


@pytest.mark.parametrize("key", CASES)
def test_every_compiled_operator_is_explained(key, tmp_path):
    """Each step has columns, an earlier source, and an origin."""
    workflow = fitted(CASES[key][0](path(tmp_path)))
    part = "item" if "TagAsItem" in key else "user"
    cut = cut_workflow(workflow)
    whole = explain_workflow(cut, part=part)
    plan, program = whole.parts[0], whole.programs[0].program
    assert plan.refused == ()
    for step in plan.steps:
        assert step.columns
        assert all(step.columns)
        assert all(read < step.number for read in step.reads)
        assert bool(step.lowered_from) == (step.step not in MOVING), step
    frame = oracle_frame(FIT.head(3), program.inputs)
    columns = columns_from_frame(frame, program.inputs)
    with np.errstate(all="ignore"):
        packed = program.packed(columns, 3)
    for output in plan.outputs:
        assert output.name in plan.steps[output.path[-1]].outputs
        if output.packed is None:
            assert output.kind == "raw"
        elif output.position is None:
            assert output.packed in packed
        else:
            got = program.run(columns, 3)[output.name]
            with np.errstate(all="ignore"):
                want = got.values.astype(packed[output.packed].dtype)
            same = packed[output.packed][:, output.position] == want
            assert (same | (want != want) | (False if got.valid is None else ~got.valid)).all()
    alone = explain_program(whole.programs[0].document, whole.programs[0].arrays)
    assert [(s.step, s.reads, s.table, s.dtype) for s in alone.steps] == [
        (s.step, s.reads, s.table, s.dtype) for s in plan.steps
    ]
    assert alone.applications is None


def test_a_step_of_another_module_is_described_by_its_json_and_arrays(monkeypatch):
    class Magic:
        def __init__(self, step, arrays):
            self._in, self._magic = step["in"], arrays["magic0"]

        def run(self, registers, columns, n):
            x = np.concatenate([registers[register].x[row : row + 1] for register, row in self._in])
            return Register(np.repeat(x, 3, axis=0) + self._magic)

    monkeypatch.setitem(runtime.STEPS, "magic", Magic)
    compiled = compile_workflow(cut_workflow(fitted(["age", "price"] >> ops.Normalize())), "user")
    number = len(compiled.document["steps"])
    last = [[step, 0] for step in range(number) if compiled.document["steps"][step]["op"] == "normalize"]
    steps = [*compiled.document["steps"], {"op": "magic", "in": last, "spell": "abracadabra"}]
    arrays = {**compiled.arrays, f"s{number}.magic0": np.zeros(2), f"s{number}.magic1": np.zeros(3)}
    document = {**compiled.document, "steps": steps}
    plan = explain_program(document, {**arrays, f"s{number}.magic0": np.zeros((1, 1))})
    magic = plan.steps[-1]
    assert (magic.step, magic.parameters) == ("magic", {"spell": "abracadabra"})
    assert magic.columns == (" × ".join(plan.steps[at].columns[0] for at, _ in last),) * 3 * len(last)
    assert (magic.table.layout, magic.table.entries, magic.table.nbytes) == ("magic", None, 32)
    assert magic.reads == tuple(at for at, _ in last)


def test_arrays_without_a_lookup_are_listed():
    assert describe_arrays({"boundaries0": np.zeros(3), "boundaries1": np.zeros(1)}).layout == "boundaries"


def test_times_are_measured_for_each_step(tmp_path):
    node = (["city", "words"] >> ops.Categorify(out_path=path(tmp_path))) + (["price"] >> ops.Normalize())
    whole, plan = plan_of(node)
    program = whole.programs[0]
    sample = made_up_rows(plan.inputs, 50)
    timed = time_plan(plan, program.document, program.arrays, {n: sample.take(n) for n in (1, 50)})
    assert set(timed.total_us) == {1, 50}
    for step in timed.steps:
        assert set(step.microseconds) == {1, 50}
        assert all(0 < us < 1e5 for us in step.microseconds.values())
    assert sum(step.microseconds[1] for step in timed.steps) < 3 * timed.total_us[1]
