"""The artefact: what is written is what runs, in a process that has no pandas and no NVTabular."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap

import numpy as np
import nvtabular as nvt
import pytest
from nvtabular import ops
from test_feature_operators import FIT, REQUEST

from tiercel_export.workflow import compile_workflow
from tiercel_export.workflow_frames import columns_from_frame, frame_oracle, oracle_frame
from tiercel_serving.artefacts import open_artefact
from tiercel_serving.columns import Column
from tiercel_serving.errors import ArtefactCorrupt, InvalidRequest, NewerFormat
from tiercel_serving.features import FeatureProgram

CHILD = textwrap.dedent(
    """
    import sys

    class Block:
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] in ("pandas", "nvtabular", "merlin", "dask", "pyarrow", "torch", "pickle5"):
                raise ImportError(f"{name} is not there")
    sys.meta_path.insert(0, Block())

    import numpy as np
    from pathlib import Path
    from tiercel_serving.artefacts import open_artefact
    from tiercel_serving.columns import Column
    from tiercel_serving.features import FeatureProgram

    folder = Path(sys.argv[1])
    program = FeatureProgram.open(open_artefact(folder / "artefact", "features", "b1"))
    given = np.load(folder / "inputs.npz")
    columns = {}
    for column in program.inputs:
        part = lambda name: given.get(f"{column.name}.{name}")
        values = part("values")
        if column.dtype == "bytes":
            ends = part("ends")
            blob = values.tobytes()
            values = np.empty(len(ends), object)
            values[:] = [blob[a:b] for a, b in zip([0, *ends[:-1].tolist()], ends.tolist())]
        columns[column.name] = Column(values, part("valid"), part("offsets"), part("row_valid"))
    out = program.run(columns, int(given["n"]))
    np.savez(folder / "outputs.npz", **{name: column.values for name, column in out.items()})
    assert not any(name.split(".")[0] in ("pandas", "nvtabular", "merlin", "dask") for name in sys.modules)
    """
)


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


def test_runs_from_disk_without_nvtabular(workflow, tmp_path):
    compiled = compile_workflow(workflow, "user")
    compiled.write(tmp_path / "artefact", "b1")
    assert not list((tmp_path / "artefact").rglob("*.pkl"))

    frame = oracle_frame(REQUEST.iloc[[0, 2, 3, 4]], compiled.inputs)
    columns = columns_from_frame(frame, compiled.inputs)
    arrays = {"n": np.array(len(frame))}
    for name, column in columns.items():
        values = column.values
        if values.dtype == object:
            arrays[f"{name}.ends"] = np.cumsum([len(v) for v in values])
            values = np.frombuffer(b"".join(values), np.uint8)
        arrays[f"{name}.values"] = values
        for part in ("valid", "offsets", "row_valid"):
            if getattr(column, part) is not None:
                arrays[f"{name}.{part}"] = getattr(column, part)
    np.savez(tmp_path / "inputs.npz", **arrays)
    subprocess.run([sys.executable, "-c", CHILD, str(tmp_path)], check=True, timeout=60)

    expected = frame_oracle(workflow, "user", frame)
    outputs = np.load(tmp_path / "outputs.npz")
    assert set(outputs) == set(expected)
    for name, got in outputs.items():
        want = expected[name].to_numpy()
        want = np.concatenate(want) if want.dtype == object else want
        assert got.dtype == want.dtype, name
        assert got.tobytes() == want.tobytes(), name


def test_round_trip_keeps_inputs_and_outputs(workflow, tmp_path):
    compiled = compile_workflow(workflow, "user", list_lengths={"words": 4})
    compiled.write(tmp_path / "a", "b1")
    program = FeatureProgram.open(open_artefact(tmp_path / "a", "features", "b1"))
    assert program.inputs == compiled.inputs
    assert program.outputs == compiled.outputs
    assert {output.name: output.length for output in program.outputs}["words"] == 4
    assert program.to_json() == json.loads(json.dumps(compiled.document))


def edited(tmp_path, compiled, change):
    compiled.write(tmp_path / "a", "b1")
    file = tmp_path / "a" / "header.json"
    header = json.loads(file.read_text())
    change(header["meta"]["program"])
    file.write_text(json.dumps(header))
    return open_artefact(tmp_path / "a", "features")


def test_program_of_a_newer_format_is_refused(workflow, tmp_path):
    artefact = edited(tmp_path, compile_workflow(workflow, "user"), lambda p: p.update(format=99))
    with pytest.raises(NewerFormat, match="format 99"):
        FeatureProgram.open(artefact)


def test_unknown_step_is_refused(workflow, tmp_path):
    artefact = edited(
        tmp_path, compile_workflow(workflow, "user"), lambda p: p["steps"][0].update(op="magic")
    )
    with pytest.raises(ArtefactCorrupt, match="'magic'"):
        FeatureProgram.open(artefact)


@pytest.mark.parametrize(
    ("name", "column", "message"),
    [
        ("age", None, "column 'age' is missing"),
        ("age", Column(np.zeros(3, np.int64)), "column 'age' has 3 rows, expected 2"),
        ("age", Column(np.zeros(2)), "column 'age' must be int64, but float64 came"),
        ("age", Column(np.zeros(2, np.int64), None, np.array([0, 1, 2])), "'age' holds scalars, but lists"),
        ("city", Column(np.zeros(2, np.int64)), "column 'city' must be bytes, but int64 came"),
        ("words", Column(np.array([b"", b""], object)), "'words' holds lists, but scalars"),
    ],
)
def test_columns_that_do_not_fit(workflow, name, column, message):
    program = compile_workflow(workflow, "user").program
    columns = columns_from_frame(oracle_frame(FIT.iloc[:2], program.inputs), program.inputs)
    columns[name] = column
    if column is None:
        del columns[name]
    with pytest.raises(InvalidRequest, match=message):
        program.run(columns, 2)


def test_rows_do_not_influence_each_other(workflow):
    program = compile_workflow(workflow, "user", list_lengths={"words": 5, "codes": 5}).program
    frame = oracle_frame(REQUEST, program.inputs)
    together = program.packed(columns_from_frame(frame, program.inputs), len(frame))
    for i in range(len(frame)):
        one = program.packed(columns_from_frame(frame.iloc[[i]], program.inputs), 1)
        for name, array in together.items():
            assert array[i : i + 1].tobytes() == one[name].tobytes(), name


def test_list_slices_of_a_larger_buffer(workflow):
    # Offsets need not start at 0, and what lies in a null list does not count.
    program = compile_workflow(workflow, "user").program
    columns = columns_from_frame(oracle_frame(FIT.iloc[:2], program.inputs), program.inputs)
    words = np.array([b"x", b"y", b"x", b"q", b"y"], object)
    columns["words"] = Column(words, None, np.array([1, 3, 4]), np.array([True, False]))
    got = program.run(columns, 2)["words"]
    plain = Column(words[1:3], None, np.array([0, 2, 2]))
    assert got.offsets.tolist() == [0, 2, 2]
    assert got.values.tolist() == program.run({**columns, "words": plain}, 2)["words"].values.tolist()
