"""Cutting a workflow by schema tags, reading it from disk, and what is refused."""

from __future__ import annotations

import json
import pickle
import shutil
import warnings

import numpy as np
import nvtabular as nvt
import pandas as pd
import pytest
from merlin.dag.node import iter_nodes
from merlin.schema import Tags
from nvtabular import ops

from tiercel_export.errors import ExportInputError, UnsupportedOperator, WorkflowError
from tiercel_export.workflow.cut import compile_workflow, cut_workflow
from tiercel_export.workflow.frames import (
    FrameOracle,
    columns_from_frame,
    frame_oracle,
    golden_rows,
    oracle_frame,
)

FRAME = pd.DataFrame(
    {
        "user_id": [1, 2, 3, 1],
        "age": [20, 30, 40, 20],
        "hour": [1.0, 2.0, np.nan, 4.0],
        "item_id": [10, 20, 30, 10],
        "year": [1990, 1991, 1992, 1990],
        "genres": [["a"], ["b", "a"], [], ["c"]],
        "clicked": [1, 0, 1, 0],
    }
)


def graph(folder):
    user = (["user_id"] >> ops.Categorify(out_path=str(folder / "u")) >> ops.TagAsUserID()) + (
        ["age"] >> ops.Normalize() >> ops.TagAsUserFeatures()
    )
    context = ["hour"] >> ops.FillMissing() >> ops.AddTags([Tags.CONTEXT])
    item = (["item_id"] >> ops.Categorify(out_path=str(folder / "i")) >> ops.TagAsItemID()) + (
        (["year"] >> ops.Normalize()) + (["genres"] >> ops.Categorify(out_path=str(folder / "g")))
        >> ops.TagAsItemFeatures()
    )
    label = ["clicked"] >> ops.LambdaOp(lambda column: column > 0) >> ops.AddTags([Tags.TARGET])
    return user + context + item + label


def fit(node, frame=FRAME):
    workflow = nvt.Workflow(node)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        workflow.fit(nvt.Dataset(frame))
    return workflow


@pytest.fixture(scope="module")
def workflow(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cut")
    for name in "uig":
        (folder / name).mkdir()
    return fit(graph(folder))


def test_parts_by_tags(workflow):
    cut = cut_workflow(workflow)
    assert cut.outputs == {
        "user_id": "user",
        "age": "user",
        "hour": "context",
        "item_id": "item",
        "year": "item",
        "genres": "item",
        "clicked": "label",
    }
    assert cut.output_names("user") == ["user_id", "age", "hour"]
    assert cut.output_names("item") == ["item_id", "year", "genres"]
    assert cut.input_names("item") == ["item_id", "year", "genres"]
    assert [cut.input_part(name, "user") for name in ("age", "hour")] == ["user", "context"]


def test_label_operators_do_not_matter(workflow):
    user = compile_workflow(workflow, "user")
    assert [(column.name, column.part) for column in user.inputs] == [
        ("user_id", "user"),
        ("age", "user"),
        ("hour", "context"),
    ]
    assert [(column.name, column.kind) for column in user.outputs] == [
        ("user_id", "cat"),
        ("age", "num"),
        ("hour", "num"),
    ]
    item = compile_workflow(workflow, "item", list_lengths={"genres": 3})
    assert {column.part for column in item.inputs} == {"item"}
    assert item.outputs[-1].length == 3


def test_packed_tensors(workflow):
    item = compile_workflow(workflow, "item", list_lengths={"genres": 1}).program
    packed = item.packed(columns_from_frame(FRAME, item.inputs), 4)
    expected = frame_oracle(workflow, "item", FRAME)
    assert packed["item_cat"].tolist() == [[v] for v in expected["item_id"]]
    assert packed["item_num"].dtype == np.float32
    assert np.array_equal(packed["item_num"][:, 0], expected["year"].to_numpy().astype(np.float32))
    assert packed["item_list_genres"].tolist() == [[*row, 0][:1] for row in expected["genres"].map(list)]
    whole = compile_workflow(workflow, "item").program.packed(columns_from_frame(FRAME, item.inputs), 4)
    assert whole["item_list_genres"].shape == (4, 2)


def test_input_tags_count_where_outputs_have_none(tmp_path):
    schema = nvt.Dataset(FRAME[["age", "year"]]).schema
    schema["age"] = schema["age"].with_tags([Tags.USER])
    schema["year"] = schema["year"].with_tags([Tags.ITEM])
    workflow = nvt.Workflow(["age", "year"] >> ops.LogOp())
    workflow.fit(nvt.Dataset(FRAME[["age", "year"]], schema=schema))
    assert cut_workflow(workflow).outputs == {"age": "user", "year": "item"}


def test_column_without_tags_is_named():
    workflow = fit(["age"] >> ops.LogOp())
    with pytest.raises(WorkflowError, match=r"'age' has none of the tags USER, ITEM.*TagAsUserFeatures"):
        cut_workflow(workflow)
    assert cut_workflow(workflow, parts={"age": "item"}).outputs == {"age": "item"}


def test_one_input_on_both_sides():
    user = ["year"] >> ops.Rename(postfix="_user") >> ops.TagAsUserFeatures()
    item = ["year"] >> ops.LogOp() >> ops.TagAsItemFeatures()
    workflow = fit(user + item)
    cut = cut_workflow(workflow)
    assert cut.outputs == {"year_user": "user", "year": "item"}
    assert compile_workflow(cut, "user").inputs[0].name == "year"
    assert compile_workflow(cut, "item").inputs[0].name == "year"


def test_never_fitted():
    with pytest.raises(WorkflowError, match="never fitted"):
        cut_workflow(nvt.Workflow(["age"] >> ops.LogOp()))
    with pytest.raises(WorkflowError, match=r"expected an nvtabular\.Workflow.*dict"):
        cut_workflow({})


def test_part_must_be_user_or_item(workflow):
    with pytest.raises(WorkflowError, match="'user' or 'item', got 'label'"):
        compile_workflow(workflow, "label")


def test_unsupported_operator_on_a_served_column():
    workflow = fit(["age"] >> ops.LambdaOp(lambda column: column) >> ops.TagAsUserFeatures())
    with pytest.raises(UnsupportedOperator, match=r"'age'.*arbitrary Python"):
        compile_workflow(workflow, "user")


def test_refused_operator_of_one_side_does_not_block_the_other():
    user = ["year"] >> ops.LambdaOp(lambda column: column) >> ops.Rename(postfix="_user")
    item = ["year"] >> ops.LogOp() >> ops.TagAsItemFeatures()
    workflow = fit((user >> ops.LogOp() >> ops.TagAsUserFeatures()) + item)
    assert [column.name for column in compile_workflow(workflow, "item").outputs] == ["year"]
    with pytest.raises(UnsupportedOperator, match=r"on column 'year'.*arbitrary Python"):
        compile_workflow(workflow, "user")


class Doubled(ops.Operator):
    """An operator that NVTabular does not have."""

    def transform(self, col_selector, df):
        return df[col_selector.names] * 2


@pytest.mark.parametrize(
    "operator",
    [
        lambda: ops.LambdaOp(lambda column: column * 2),
        lambda: ops.HashBucket(4),
        lambda: ops.DifferenceLag("user_id"),
        lambda: ops.Bucketize([3, 1, 2]),
        Doubled,
    ],
)
def test_refused_operator_of_the_item_side_does_not_block_the_user_side(operator):
    frame = FRAME.assign(clicked=FRAME["clicked"].astype("int64"))
    node = (["age"] >> ops.Normalize() >> ops.TagAsUserFeatures()) + (
        ["year", "user_id"] >> operator() >> ops.Rename(postfix="_2") >> ops.TagAsItemFeatures()
    )
    workflow = nvt.Workflow(node)
    try:
        workflow.fit(nvt.Dataset(frame))
    except ValueError:  # boundaries that are not in order
        workflow.fit_schema(nvt.Dataset(frame).schema)
        for one in iter_nodes([workflow.output_node]):
            if isinstance(one.op, ops.Normalize):
                one.op.means, one.op.stds, one.op.fitted = {"age": 1.0}, {"age": 2.0}, True
    assert [column.name for column in compile_workflow(workflow, "user").outputs] == ["age"]
    with pytest.raises(UnsupportedOperator, match=r"on column '(year|user_id)'"):
        compile_workflow(workflow, "item")


@pytest.mark.parametrize(
    "label",
    [
        lambda: ["clicked"] >> ops.LambdaOp(lambda column: column > 0, tags=[Tags.TARGET]),
        lambda: ["clicked"] >> ops.LambdaOp(lambda c, frame: c * frame["age"], dependency=["age"]),
        lambda: ["clicked"] >> ops.DifferenceLag("user_id"),
        lambda: ["clicked"] >> Doubled(),
        lambda: ["clicked"] >> ops.Normalize() >> ops.LambdaOp(lambda column: column) >> ops.LogOp(),
        lambda: ["clicked"] >> ops.Filter(lambda frame: frame["clicked"] >= 0),
        lambda: ["clicked", "age"] >> ops.Rename(postfix="_2") >> ops.HashBucket(2),
    ],
)
def test_labels_are_dropped_whatever_makes_them(label):
    served = (["age"] >> ops.LogOp() >> ops.TagAsUserFeatures()) + (
        ["year"] >> ops.LogOp() >> ops.TagAsItemFeatures()
    )
    workflow = fit(served + (label() >> ops.AddTags([Tags.TARGET])))
    cut = cut_workflow(workflow)
    assert [name for name, part in cut.outputs.items() if part != "label"] == ["age", "year"]
    assert [name for name, part in cut.outputs.items() if part == "label"]
    for part, name in (("user", "age"), ("item", "year")):
        compiled = compile_workflow(cut, part)
        assert [column.name for column in compiled.outputs] == [name]
        assert [column.name for column in compiled.inputs] == [name]


def test_a_column_made_of_labels_alone_is_a_label():
    schema = nvt.Dataset(FRAME).schema
    schema["clicked"] = schema["clicked"].with_tags([Tags.BINARY_CLASSIFICATION])
    schema["age"] = schema["age"].with_tags([Tags.USER])
    workflow = nvt.Workflow((["clicked"] >> ops.LogOp() >> ops.Rename(postfix="_log")) + ["age"])
    workflow.fit(nvt.Dataset(FRAME, schema=schema))
    assert cut_workflow(workflow).outputs == {"clicked_log": "label", "age": "user"}


def test_a_raw_column_that_no_request_can_carry_counts_only_if_it_is_served():
    frame = FRAME.assign(when=np.arange(len(FRAME), dtype=np.uint64))
    served = ["age"] >> ops.LogOp() >> ops.TagAsUserFeatures()
    label = ["when"] >> ops.LambdaOp(lambda column: column) >> ops.AddTags([Tags.TARGET])
    assert len(compile_workflow(fit(served + label, frame), "user").outputs) == 1
    with pytest.raises(WorkflowError, match=r"input column 'when' is uint64.*cast it"):
        compile_workflow(fit(served + (["when"] >> ops.TagAsUserFeatures()), frame), "user")


@pytest.mark.parametrize(
    ("operator", "name"),
    [
        (lambda: ops.Dropna(), "Dropna"),
        (lambda: ops.Filter(lambda frame: frame["age"] > 0), "Filter"),
    ],
)
def test_dropping_rows_above_a_served_column(operator, name):
    node = ["age", "hour"] >> operator() >> ops.FillMissing() >> ops.Normalize() >> ops.Rename(postfix="_n")
    workflow = fit(node >> ops.TagAsUserFeatures())
    with pytest.raises(UnsupportedOperator) as caught:
        compile_workflow(workflow, "user")
    assert (caught.value.operator, caught.value.column) == (name, "age")
    assert "it drops rows" in caught.value.reason
    assert "before the fit" in caught.value.remedy


def test_saved_workflow(workflow, tmp_path):
    saved = tmp_path / "saved"
    node = ["genres"] >> ops.Categorify(out_path=str(tmp_path)) >> ops.TagAsItemFeatures()
    original = fit(node)
    original.save(saved)
    moved = tmp_path / "moved"
    shutil.move(saved, moved)
    program = compile_workflow(moved, "item").program
    columns = columns_from_frame(FRAME, program.inputs)
    expected = frame_oracle(str(moved), "item", FRAME)["genres"]
    assert program.run(columns, 4)["genres"].values.tolist() == [v for row in expected for v in row]


@pytest.fixture
def saved(tmp_path):
    workflow = fit(["age"] >> ops.Normalize() >> ops.TagAsUserFeatures())
    workflow.save(tmp_path / "saved")
    return tmp_path / "saved"


def metadata(saved, **versions):
    """Overwrite the saved versions; None removes one."""
    file = saved / "metadata.json"
    found = json.loads(file.read_text())
    for name, version in versions.items():
        found["versions"].pop(name, None)
        if version is not None:
            found["versions"][name] = version
    file.write_text(json.dumps(found))


def test_saved_by_the_versions_that_are_here(saved):
    found = json.loads((saved / "metadata.json").read_text())["versions"]
    assert set(found) == {"nvtabular", "pandas", "python"}
    metadata(saved, pandas=".".join(pd.__version__.split(".")[:2]) + ".99")
    assert [column.name for column in compile_workflow(saved, "user").outputs] == ["age"]


@pytest.mark.parametrize(
    ("versions", "message"),
    [
        (
            {"nvtabular": "1.2.0"},
            rf"nvtabular version 1\.2\.0, expected {nvt.__version__}.*fit and save it again",
        ),
        ({"pandas": "2.2.3"}, rf"pandas version 2\.2\.3, expected {pd.__version__}"),
        ({"python": "3.8.10 (default)"}, r"python version 3\.8\.10, expected 3\.\d+"),
        ({"pandas": None}, "pandas version unknown"),
        ({"pandas": None, "cudf": "23.08.00"}, r"fitted on a GPU \(cudf 23\.08\.00\), expected pandas"),
    ],
)
def test_saved_by_another_version(saved, versions, message):
    metadata(saved, **versions)
    with pytest.raises(WorkflowError, match=rf"metadata\.json: .*{message}"):
        compile_workflow(saved, "user")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"versions": 3}', "\udcff"])
def test_saved_with_unreadable_metadata(saved, text):
    (saved / "metadata.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(WorkflowError, match=r"metadata\.json: expected the versions that"):
        compile_workflow(saved, "user")


def test_saved_folder_missing_or_incomplete(saved, tmp_path):
    with pytest.raises(WorkflowError, match=r"nowhere: expected a folder.*there is no such folder"):
        compile_workflow(tmp_path / "nowhere", "user")
    with pytest.raises(WorkflowError, match=r"workflow\.pkl: expected a folder.*it is a file"):
        compile_workflow(saved / "workflow.pkl", "user")
    (saved / "workflow.pkl").write_bytes(b"no pickle")
    with pytest.raises(WorkflowError, match=r"workflow\.pkl: not a readable workflow"):
        compile_workflow(saved, "user")
    (saved / "workflow.pkl").write_bytes(pickle.dumps({"not": "a workflow"}))
    with pytest.raises(WorkflowError, match=r"workflow\.pkl: not a readable workflow"):
        compile_workflow(str(saved), "user")
    (saved / "metadata.json").unlink()
    with pytest.raises(WorkflowError, match=r"has no metadata\.json"):
        compile_workflow(saved, "user")
    (saved / "workflow.pkl").unlink()
    with pytest.raises(WorkflowError, match=r"has no workflow\.pkl"):
        compile_workflow(saved, "user")


def test_saved_but_never_fitted(tmp_path):
    nvt.Workflow(["age"] >> ops.Normalize()).save(tmp_path)
    with pytest.raises(WorkflowError, match=rf"{tmp_path}: the workflow was never fitted"):
        cut_workflow(tmp_path)
    # Schemas alone do not count as a fit.
    workflow = nvt.Workflow(["age"] >> ops.Normalize() >> ops.TagAsUserFeatures())
    workflow.fit_schema(nvt.Dataset(FRAME).schema)
    with pytest.raises(UnsupportedOperator, match=r"Normalize on column 'age'.*never fitted.*Call fit\(\)"):
        compile_workflow(workflow, "user")


def test_list_column_whose_first_row_was_empty(tmp_path):
    frame = pd.DataFrame({"tags": [[], ["b"], ["a", "b"]]})
    workflow = fit(["tags"] >> ops.Categorify(out_path=str(tmp_path)) >> ops.TagAsItemFeatures(), frame)
    (column,) = compile_workflow(workflow, "item").inputs
    assert (column.dtype, column.is_list) == ("bytes", True)


def test_dead_columns_vanish_and_shared_chains_run_as_one_step():
    user = (["age", "year", "item_id"] >> ops.LogOp() >> ops.Normalize())["age", "year"]
    compiled = compile_workflow(fit(user >> ops.TagAsUserFeatures()), "user")
    assert [column.name for column in compiled.inputs] == ["age", "year"]
    assert [step["op"] for step in compiled.document["steps"]] == ["load", "log", "normalize"]


def test_frames(workflow):
    inputs = compile_workflow(workflow, "user").inputs
    frame = pd.DataFrame(
        {"user_id": [1, None], "age": pd.array([5, None], "Int64"), "hour": [None, 2]}, dtype=object
    )
    oracle = oracle_frame(frame, inputs)
    assert oracle.dtypes.astype(str).to_dict() == dict.fromkeys(["user_id", "age", "hour"], "float64")
    columns = columns_from_frame(oracle, inputs)
    assert columns["age"].values.tolist() == [5, 0]
    assert columns["age"].valid.tolist() == [True, False]
    assert columns_from_frame(frame, inputs)["user_id"].valid.tolist() == [True, False]
    assert len(FrameOracle(workflow, "user")(FRAME)) == 4


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("age", "old", "column 'age': expected int64"),
        ("age", 1.5, r"column 'age': expected int64, found 1\.5"),
        ("hour", "late", "column 'hour': expected float64"),
    ],
)
def test_frames_that_do_not_fit(workflow, column, value, message):
    inputs = compile_workflow(workflow, "user").inputs
    frame = pd.DataFrame({**{name: [1.0] for name in ("user_id", "age", "hour")}, column: [value]})
    with pytest.raises(ExportInputError, match=message):
        columns_from_frame(frame, inputs)
    with pytest.raises(ExportInputError, match=rf"columns \['{column}'\] are missing"):
        columns_from_frame(frame.drop(columns=column), inputs)


def test_lists_and_text_that_do_not_fit(workflow):
    inputs = compile_workflow(workflow, "item").inputs
    frame = pd.DataFrame({"item_id": [1], "year": [1], "genres": ["a"]})
    with pytest.raises(ExportInputError, match="column 'genres': expected lists, found 'a'"):
        columns_from_frame(frame, inputs)
    frame["genres"] = [[1]]
    with pytest.raises(ExportInputError, match="column 'genres': expected text, found 1"):
        columns_from_frame(frame, inputs)


def test_golden_rows(workflow):
    inputs = compile_workflow(workflow, "item").inputs
    wide = FRAME.assign(year=2**53 + 1)
    assert golden_rows(wide, inputs, rows=2)["year"].tolist()[:2] == [2**53 + 1] * 2
    rows = oracle_frame(golden_rows(FRAME, inputs, rows=2), inputs)
    assert rows["year"].tolist()[:2] == [1990, 1990]
    assert np.isnan(rows["year"].iloc[-1])
    assert rows["genres"].tolist() == [["a"], ["c"], []]


@pytest.mark.parametrize("ages", [[15, 22, 22, 37, 41, 41, 41, 68], [1, 40, 40, 40, 70, 20, 20, 59]])
def test_fitted_operators_that_share_a_file_stop_their_own_columns_alone(tmp_path, ages):
    # Workflow.save keeps both vocabularies in one file; those of the second frame have equal lengths.
    frame = pd.DataFrame({"age": ages, "price": np.arange(8.0), "rank": 1})
    folders = [str(tmp_path / name) for name in "abcd"]
    exact = ["age"] >> ops.Categorify(out_path=folders[0]) >> ops.Rename(postfix="_exact")
    groups = ["age"] >> ops.Bucketize([18, 30, 60]) >> ops.Categorify(out_path=folders[1])
    means = ["age"] >> ops.JoinGroupby(["price"], stats=["mean"], out_path=folders[2])
    encoding = ["age"] >> ops.Bucketize([30]) >> ops.TargetEncoding("price", kfold=1, out_path=folders[3])
    right = ["rank"] >> ops.Categorify(out_path=folders[3]) >> ops.TagAsUserFeatures()
    shared = exact + groups + means + encoding
    workflow = fit((shared >> ops.TagAsUserFeatures()) + right, frame)
    columns = ["age_exact", "age", "age_price_mean", "TE_age_price"]
    assert {*columns, "rank"} == {column.name for column in compile_workflow(workflow, "user").outputs}
    workflow.save(tmp_path / "saved")
    for place in (workflow, tmp_path / "saved"):
        for column in columns:
            sides = {**dict.fromkeys(columns, "label"), column: "item", "rank": "user"}
            with pytest.raises(UnsupportedOperator, match=r"in one file, .*age.parquet.* Rename"):
                compile_workflow(place, "item", parts=sides)
            (output,) = compile_workflow(place, "user", parts=sides).outputs
            assert output.name == "rank"


def test_a_vocabulary_file_of_the_users_may_serve_two_operators(tmp_path):
    file = tmp_path / "ages.parquet"
    pd.DataFrame({"age": [20, 40]}, index=[3, 4]).to_parquet(file)
    chains = [
        ["age"]
        >> ops.Categorify(out_path=str(tmp_path / end), vocabs={"age": str(file)})
        >> ops.Rename(postfix=end)
        for end in "ab"
    ]
    workflow = fit((chains[0] + chains[1]) >> ops.TagAsUserFeatures())
    program = compile_workflow(workflow, "user").program
    made = program.run(columns_from_frame(FRAME, program.inputs), len(FRAME))
    assert made["agea"].values.tolist() == made["ageb"].values.tolist() == [3, 2, 4, 3]


def test_untagged_columns_belong_to_the_table_that_has_them(tmp_path):
    homes = {"age": "user", "year": "item", "item_id": "item", "hour": "context"}
    workflow = fit((["age", "year", "hour"] >> ops.LogOp()) + (["item_id"] >> ops.AddTags([Tags.USER])))
    assert cut_workflow(workflow, homes=homes).outputs == {
        "age": "user",
        "year": "item",
        "hour": "context",
        "item_id": "user",
    }
    mixed = fit(["age", "year"] >> ops.JoinGroupby(["hour"], stats=["mean"], out_path=str(tmp_path)))
    assert cut_workflow(mixed, homes=homes).outputs == {"age_hour_mean": "user", "year_hour_mean": "item"}


def test_all_untagged_columns_are_named_with_the_line_that_tags_them():
    workflow = fit((["age", "year"] >> ops.LogOp()) + (["hour"] >> ops.TagAsUserFeatures()))
    words = (
        r"output columns 'age', 'year' have none of the tags USER.*"
        r"FeatureOptions\(parts=\{'age': 'user', 'year': 'user'\}\)"
    )
    with pytest.raises(WorkflowError, match=words):
        cut_workflow(workflow)
    assert cut_workflow(workflow, parts={"age": "user", "year": "user"}).output_names("item") == []
