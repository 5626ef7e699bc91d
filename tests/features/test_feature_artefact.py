"""The program and its artefact: the program read back gives the same results, row by row."""

from __future__ import annotations

import json

import numpy as np
import nvtabular as nvt
import pytest
from nvtabular import ops
from test_feature_operators import FIT, REQUEST

from tiercel_export.workflow.cut import compile_workflow
from tiercel_export.workflow.frames import columns_from_frame, oracle_frame
from tiercel_serving.columns import Column
from tiercel_serving.features import FeatureProgram
from tiercel_serving.release.artefacts import open_artefact


@pytest.fixture(scope="module")
def workflow(tmp_path_factory):
    folder = tmp_path_factory.mktemp("artefact")
    node = (
        (["age", "price", "score"] >> ops.FillMissing(0.5, add_binary_cols=True) >> ops.Normalize())
        + (["city", "words", "rank"] >> ops.Categorify(out_path=str(folder)))
        + (["codes"] >> ops.LogOp())
        + (["price"] >> ops.Bucketize([0, 1]) >> ops.Rename(postfix="_bucket"))
    )
    workflow = nvt.Workflow(node >> ops.TagAsUserFeatures())
    workflow.fit(nvt.Dataset(FIT))
    return workflow


def test_round_trip_keeps_inputs_and_outputs(workflow, tmp_path):
    compiled = compile_workflow(workflow, "user", list_lengths={"words": 4})
    compiled.write(tmp_path / "a", "b1")
    program = FeatureProgram.open(open_artefact(tmp_path / "a", "features", "b1"))
    assert program.inputs == compiled.inputs
    assert program.outputs == compiled.outputs
    assert {output.name: output.length for output in program.outputs}["words"] == 4
    assert program.to_json() == json.loads(json.dumps(compiled.document))


def test_rows_do_not_influence_each_other(workflow):
    program = compile_workflow(workflow, "user", list_lengths={"words": 5, "codes": 5}).program
    frame = oracle_frame(REQUEST, program.inputs)
    together = program.packed(columns_from_frame(frame, program.inputs), len(frame))
    for i in range(len(frame)):
        one = program.packed(columns_from_frame(frame.iloc[[i]], program.inputs), 1)
        for name, array in together.items():
            assert array[i : i + 1].tobytes() == one[name].tobytes(), name


def test_list_slices_of_a_larger_buffer(workflow):
    # Offsets need not start at 0, and the elements of a null list are ignored.
    program = compile_workflow(workflow, "user").program
    columns = columns_from_frame(oracle_frame(FIT.iloc[:2], program.inputs), program.inputs)
    words = np.array([b"x", b"y", b"x", b"q", b"y"], object)
    columns["words"] = Column(words, None, np.array([1, 3, 4]), np.array([True, False]))
    got = program.run(columns, 2)["words"]
    plain = Column(words[1:3], None, np.array([0, 2, 2]))
    assert got.offsets.tolist() == [0, 2, 2]
    assert got.values.tolist() == program.run({**columns, "words": plain}, 2)["words"].values.tolist()
