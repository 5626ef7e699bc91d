"""Bad input to the feature program: each error names the file or the column.

``test_workflow_cut.py`` tests how saved workflows of other versions are refused.
"""

from __future__ import annotations

import json
import shutil
import warnings

import numpy as np
import nvtabular as nvt
import pandas as pd
import pytest
from nvtabular import ops

from tiercel_export.errors import ExportInputError, WorkflowError
from tiercel_export.workflow.cut import compile_workflow
from tiercel_export.workflow.frames import columns_from_frame
from tiercel_serving.columns import Column
from tiercel_serving.errors import (
    ArtefactCorrupt,
    ArtefactMissing,
    BuildMismatch,
    InvalidRequest,
    NewerFormat,
)
from tiercel_serving.features import FeatureProgram
from tiercel_serving.release.artefacts import open_artefact

FIT = pd.DataFrame(
    {
        "age": [20, 30, 40, 20],
        "price": [1.5, np.nan, 0.1, 1e6],
        "flag": [True, False, True, True],
        "city": ["Zürich", "", None, "東京"],
        "words": [["x", "y"], ["y"], [], ["é"]],
        "codes": [[1, 2], [2], [], [30]],
    }
)


def save(node, place, frame=FIT):
    workflow = nvt.Workflow(node >> ops.TagAsUserFeatures())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        workflow.fit(nvt.Dataset(frame))
    workflow.save(place / "saved")
    return place / "saved"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    place = tmp_path_factory.mktemp("bad")
    node = (
        (["age", "price"] >> ops.Normalize())
        + (["flag"] >> ops.LogOp())
        + (["city", "words"] >> ops.Categorify(out_path=str(place)))
        + (["codes"] >> ops.LogOp())
        + (["age"] >> ops.JoinGroupby(cont_cols=["price"], stats=["mean"], out_path=str(place)))
    )
    return save(node, place)


@pytest.fixture(scope="module")
def program(saved):
    return compile_workflow(saved, "user").program


# --------------------------------------------------------------------------------- files of the workflow


def cut_short(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def without_its_last_row(file):
    pd.read_parquet(file).iloc[:-1].to_parquet(file)


def with_a_value_twice(file):
    frame = pd.read_parquet(file)
    frame.iloc[-1] = frame.iloc[0]
    frame.to_parquet(file)


def with_an_id_twice(file):
    frame = pd.read_parquet(file)
    frame.index = [3] * len(frame)
    frame.to_parquet(file)


def without_its_column(file):
    pd.read_parquet(file).rename(columns={"city": "town"}).to_parquet(file)


def empty(file):
    file.write_bytes(b"")


@pytest.mark.parametrize(
    ("file", "alter", "message"),
    [
        ("unique.city.parquet", None, "expected the vocabulary of 'city', but there is no such file"),
        ("unique.city.parquet", cut_short, "not a readable vocabulary of 'city'"),
        ("unique.city.parquet", empty, "not a readable vocabulary of 'city'"),
        ("unique.city.parquet", without_its_column, "not a readable vocabulary of 'city'"),
        ("unique.city.parquet", without_its_last_row, "fitted with 3 categories of 'city', the file has 2"),
        ("unique.city.parquet", with_a_value_twice, "a value occurs twice in the vocabulary of 'city'"),
        ("unique.words.parquet", with_an_id_twice, "an id occurs twice in the vocabulary of 'words'"),
        ("cat_stats.age.parquet", None, "there is no such"),
        ("cat_stats.age.parquet/part.0.parquet", cut_short, "not readable|not a readable"),
    ],
)
def test_category_file_missing_or_altered(saved, tmp_path, file, alter, message):
    copy = tmp_path / "copy"
    shutil.copytree(saved, copy)
    place = copy / "categories" / file
    if alter is not None:
        alter(place)
    elif place.is_dir():
        shutil.rmtree(place)
    else:
        place.unlink()
    with pytest.raises(WorkflowError, match=message) as caught:
        compile_workflow(copy, "user")
    assert file.split("/")[0] in str(caught.value)
    assert "fit it again" in str(caught.value)


def test_vocabulary_that_another_fit_overwrote(tmp_path):
    # Two workflows share one out_path: the second fit overwrites the first one's files.
    first = nvt.Workflow(["age"] >> ops.Categorify(out_path=str(tmp_path)) >> ops.TagAsUserFeatures())
    first.fit(nvt.Dataset(FIT))
    second = nvt.Workflow(["age"] >> ops.Categorify(out_path=str(tmp_path)) >> ops.TagAsUserFeatures())
    second.fit(nvt.Dataset(pd.DataFrame({"age": [1, 2, 3, 4, 5]})))
    compile_workflow(second, "user")
    with pytest.raises(WorkflowError, match=r"unique\.age\.parquet: .*3 categories of 'age', the file has 5"):
        compile_workflow(first, "user")


# ------------------------------------------------------------------------------------- columns of a frame


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("age", ["old", "young"], "column 'age': expected int64"),
        ("age", [1.5, 2.0], r"column 'age': expected int64, found 1\.5"),
        ("price", ["much", "more"], "column 'price': expected float64"),
        ("city", [1, 2], "column 'city': expected text, found 1"),
        ("words", ["x", "y"], "column 'words': expected lists, found 'x'"),
        ("words", [[1], [2]], "column 'words': expected text, found 1"),
        ("codes", [["x"], ["y"]], "column 'codes': expected int64"),
        ("codes", [1, 2], "column 'codes': expected lists, found 1"),
    ],
)
def test_frame_column_of_another_dtype(program, name, values, message):
    frame = FIT.iloc[:2].assign(**{name: pd.Series(values)})
    with pytest.raises(ExportInputError, match=message):
        columns_from_frame(frame, program.inputs)


def test_frame_columns_missing_or_extra(program):
    with pytest.raises(ExportInputError, match=r"columns \['(age|city)', '(age|city)'\] are missing"):
        columns_from_frame(FIT.drop(columns=["age", "city"]), program.inputs)
    assert "more" not in columns_from_frame(FIT.assign(more=1), program.inputs)


# ------------------------------------------------------------------------------------ columns of a request


def request(program):
    return columns_from_frame(FIT.iloc[:2], program.inputs)


def texts(*values):
    out = np.empty(len(values), object)
    out[:] = values
    return out


def lists(*offsets, values=3, valid=None, row_valid=None, dtype=np.int64):
    return Column(np.arange(values), valid, np.array(offsets, dtype), row_valid)


def packed(blob, *ends, offsets=None):
    values = np.frombuffer(blob, np.uint8)
    return Column(values, None, None if offsets is None else np.array(offsets), None, np.array(ends))


YES = np.ones(3, bool)


@pytest.mark.parametrize(
    ("name", "column", "message"),
    [
        ("age", None, "column 'age' is missing"),
        ("words", None, "column 'words' is missing"),
        # another dtype
        ("age", Column(np.zeros(2)), "column 'age' must be int64, but got float64"),
        ("age", Column(texts(b"1", b"2")), "column 'age' must be int64, but got bytes"),
        ("price", Column(texts(b"1", b"2")), "column 'price' must be float64, but got bytes"),
        ("price", Column(np.zeros(2, complex)), "column 'price' must be float64, but got complex128"),
        ("flag", Column(np.zeros(2)), "column 'flag' must be int64, but got float64"),
        ("city", Column(np.zeros(2, np.int64)), "column 'city' must be bytes, but got int64"),
        ("city", Column(np.array(["a", "b"])), "column 'city' must be bytes, but got str"),
        ("codes", Column(np.zeros(2), None, np.array([0, 1, 2])), "'codes' must be int64, but got float64"),
        ("city", Column(texts("a", "b")), "column 'city' must be bytes, but got str: 'a'; encode text"),
        ("city", Column(texts(b"a", None)), "column 'city' must be bytes, but got NoneType: None"),
        (
            "words",
            Column(texts(b"a", 7), None, np.array([0, 1, 2])),
            "'words' must be bytes, but got int: 7",
        ),
        # scalars and lists
        (
            "age",
            Column(np.zeros(2, np.int64), None, np.array([0, 1, 2])),
            "'age' holds scalars, but got lists",
        ),
        ("words", Column(texts(b"", b"")), "'words' holds lists, but got scalars"),
        # unequal length
        ("age", Column(np.zeros(3, np.int64)), "column 'age' has 3 rows, expected 2"),
        ("age", Column(np.zeros(0, np.int64)), "column 'age' has 0 rows, expected 2"),
        ("codes", lists(0, 3), "column 'codes' has 1 rows, expected 2"),
        ("age", Column(np.zeros(2, np.int64), YES), "column 'age' has 2 values, but got 3 validity flags"),
        ("price", Column(np.zeros(2), YES), "column 'price' has 2 values, but got 3 validity flags"),
        ("city", Column(texts(b"", b""), YES), "column 'city' has 2 values, but got 3 validity flags"),
        ("age", Column(np.zeros(2, np.int64), np.ones(2)), "'age' has 2 values, but got 2 .* of float64"),
        ("codes", lists(0, 1, 3, valid=YES[:2]), "column 'codes' has 3 values, but got 2 validity flags"),
        ("codes", lists(0, 1, 3, row_valid=YES), "column 'codes' has 2 rows, but got 3 validity flags"),
        # list lengths that do not match the values
        ("codes", lists(), "column 'codes': its lists need int64 offsets.* but got 0 of int64"),
        ("codes", lists(0, 1, 3, dtype=np.float64), "'codes': its lists need int64.* got 3 of float64"),
        ("codes", lists(0, 1, 4), "column 'codes': its lists .* end at element 4, but there are 3"),
        ("codes", lists(-1, 1, 3), "column 'codes': its lists begin at element -1"),
        ("codes", lists(0, 5, 3), "'codes': number 1 of its lists ends at element 3, before .* element 5"),
        ("codes", lists(2, 1, 3), "'codes': number 0 of its lists ends at element 1, before .* element 2"),
        (
            "words",
            Column(texts(b"a"), None, np.array([0, 1, 2])),
            "'words': its lists .* element 2, but there are 1",
        ),
        # packed text
        ("city", packed(b"ab", 0, 1), "column 'city' has 1 rows, expected 2"),
        ("city", packed(b"ab", 0, 1, 3), "column 'city': its strings .* end at byte 3, but there are 2"),
        ("city", packed(b"ab", 0, 2, 1), "column 'city': number 1 of its strings ends at byte 1, before"),
        (
            "words",
            packed(b"ab", 0, 1, 2, offsets=[0, 1, 3]),
            "'words': its lists .* element 3, but there are 2",
        ),
    ],
)
def test_request_columns_that_do_not_fit(program, name, column, message):
    columns = request(program)
    good = {name: out.values.tobytes() for name, out in program.run(columns, 2).items()}
    bad = {**columns, name: column}
    if column is None:
        del bad[name]
    for run in (program.run, program.packed):
        with pytest.raises(InvalidRequest, match=message) as caught:
            run(bad, 2)
        assert repr(name) in str(caught.value)
    assert {name: out.values.tobytes() for name, out in program.run(columns, 2).items()} == good


def test_request_columns_beyond_the_programs_are_ignored(program):
    columns = request(program)
    more = program.run(columns | {"more": Column(np.zeros(7))}, 2)
    assert list(more) == [output.name for output in program.outputs]
    assert more["age"].values.tolist() == program.run(columns, 2)["age"].values.tolist()


# ------------------------------------------------------------------------------------------ the artefact


@pytest.fixture
def artefact(saved, tmp_path):
    compile_workflow(saved, "user").write(tmp_path / "features", "build-1")
    return tmp_path / "features"


def edit(artefact, change):
    file = artefact / "header.json"
    header = json.loads(file.read_text())
    change(header)
    file.write_text(json.dumps(header))


def open_program(artefact, build="build-1"):
    return FeatureProgram.open(open_artefact(artefact, "features", build))


def test_artefact_of_another_build(artefact):
    open_program(artefact)
    with pytest.raises(BuildMismatch, match=r"belongs to build build-1, but the release is build build-2"):
        open_program(artefact, "build-2")


def test_artefact_of_another_kind(artefact):
    edit(artefact, lambda header: header.update(kind="users"))
    with pytest.raises(ArtefactCorrupt, match="expected an artefact of kind 'features', found 'users'"):
        open_program(artefact)


def test_artefact_and_program_of_a_newer_format(artefact):
    edit(artefact, lambda header: header["meta"]["program"].update(format=99))
    with pytest.raises(NewerFormat, match=r"features.*format 99.*upgrade Tiercel or export again"):
        open_program(artefact)
    edit(artefact, lambda header: header.update(artefact_format=98))
    with pytest.raises(NewerFormat, match=r"header\.json: artefact format 98.*upgrade Tiercel"):
        open_program(artefact)


def test_program_with_an_unknown_step(artefact):
    edit(artefact, lambda header: header["meta"]["program"]["steps"][0].update(op="magic"))
    with pytest.raises(ArtefactCorrupt, match=r"features: not a readable feature program.*'magic'"):
        open_program(artefact)


def test_program_without_an_array(artefact):
    edit(artefact, lambda header: [header["arrays"].pop(name) for name in list(header["arrays"])])
    with pytest.raises(ArtefactCorrupt, match="features: not a readable feature program"):
        open_program(artefact)


def test_header_cut_short_or_missing(artefact):
    cut_short(artefact / "header.json")
    with pytest.raises(ArtefactCorrupt, match=r"header\.json: not a readable header"):
        open_program(artefact)
    (artefact / "header.json").unlink()
    with pytest.raises(ArtefactMissing, match=r"header\.json: expected the header"):
        open_program(artefact)


def test_array_file_cut_short_missing_or_replaced(artefact):
    file = max(artefact.glob("*.npy"), key=lambda file: file.stat().st_size)
    whole = file.read_bytes()
    cut_short(file)
    with pytest.raises(ArtefactCorrupt, match=rf"{file.name} .*: expected {len(whole)} bytes, found"):
        open_program(artefact)
    file.write_bytes(b"\0" * len(whole))
    with pytest.raises(ArtefactCorrupt, match=f"{file.name} .*: not a readable array"):
        open_program(artefact)
    file.unlink()
    with pytest.raises(ArtefactMissing, match=rf"{file.name} .*: listed in header\.json, but missing"):
        open_program(artefact)


def test_array_of_another_dtype(artefact):
    file = max(artefact.glob("*.npy"), key=lambda file: file.stat().st_size)
    array = np.load(file)
    np.save(file, array.view(f"V{array.itemsize}").view(array.dtype.newbyteorder()))
    with pytest.raises(ArtefactCorrupt, match=f"{file.name} .*: expected"):
        open_program(artefact)
