"""Categorify: combinations, joint vocabularies, buckets, dtypes, given vocabularies and bad files."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import nvtabular as nvt
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from keyed_frames import KEYS, REQUESTS, SOME, Drawn, fit_frame, groups, request_frame, requests
from merlin.schema import Tags
from nvtabular import ops
from parity_helpers import Pair, check, pair
from quiet_fits import fit, path

from drawing import every_pair
from tiercel_export.errors import UnsupportedOperator, WorkflowError
from tiercel_export.lowering import keys as lowering_keys
from tiercel_export.workflow.cut import compile_workflow, cut_workflow
from tiercel_export.workflow.frames import columns_from_frame, oracle_frame

FIT = fit_frame(400, 2)


def fitted(node, frame: pd.DataFrame = FIT) -> nvt.Workflow:
    return fit(node, frame)


def exact(node, frame: pd.DataFrame = FIT) -> Pair:
    return pair(fitted(node, frame), anchor=frame)


def ids(both: Pair, frame: pd.DataFrame) -> dict[str, list]:
    columns = columns_from_frame(oracle_frame(frame, both.program.inputs), both.program.inputs)
    return {name: c.values.tolist() for name, c in both.program.run(columns, len(frame)).items()}


def check_all(both: Pair, names: list[str], fit: pd.DataFrame = FIT) -> None:
    check(both, fit[names], strict=True)
    for request in REQUESTS:
        check(both, request_frame(request, names))


# ----------------------------------------------------------------------------------------- combinations

#: Overlapping groups, of columns of every dtype.
GROUPS: list[Any] = [["text", "maybe"], ["maybe", "holes", "flag"], ["int", "single"], "small", ["unsigned"]]


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"freq_threshold": 3},
        {"max_size": 9},
        {"name_sep": " × ", "dtype": np.int32},
        {"dtype": np.int8},
        pytest.param({"dtype": "float32"}, marks=pytest.mark.slow),
        {"single_table": True},
        {"split_out": 2},
        pytest.param({"cat_cache": None}, marks=pytest.mark.slow),
        {"num_buckets": 1},
    ],
)
def test_combinations(tmp_path, parameters):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        encode = ops.Categorify(out_path=path(tmp_path), encode_type="combo", **parameters)
    check_all(exact(GROUPS >> encode), [name for name in KEYS if name != "double"])


def test_a_tuple_with_some_nulls_is_vocabulary_and_all_null_is_1(tmp_path):
    fit = pd.DataFrame({"a": [1.0, 1.0, np.nan, np.nan], "b": ["x", None, "x", None]})
    both = exact([["a", "b"]] >> ops.Categorify(out_path=path(tmp_path), encode_type="combo"), fit)
    rows = [(1, "x"), (1, None), (None, "x"), (None, None), (2, None), (None, "y"), (2, "y"), (1.5, "x")]
    frame = pd.DataFrame(rows, columns=["a", "b"], dtype=object)
    assert check(both, frame, strict=True) == "equal"
    made = ids(both, frame)["a_b"]
    assert sorted(made[:3]) == [3, 4, 5]
    assert made[3:] == [1, 2, 2, 2, 2]


def test_nulls_into_a_combination_of_integers(tmp_path):
    # NVTabular raises on a null where the vocabulary is integer, and on columns that are all null.
    fit = pd.DataFrame({"a": [1, 2], "b": ["x", "x"]})
    both = exact([["a", "b"]] >> ops.Categorify(out_path=path(tmp_path), encode_type="combo"), fit)
    frame = pd.DataFrame({"a": [None, None, 1], "b": ["x", None, None]}, dtype=object)
    with pytest.raises(RuntimeError):
        both.oracle(oracle_frame(frame, both.program.inputs))
    assert ids(both, frame)["a_b"] == [2, 1, 2]


def test_a_null_flag_in_a_combination_is_true(tmp_path):
    # Found by random frames: beside a null the flags are float64, and NaN cast to bool is True.
    fit = pd.DataFrame({"a": [7.0, 7.0, 8.0, np.nan], "flag": [True, False, False, True]})
    both = exact([["a", "flag"]] >> ops.Categorify(out_path=path(tmp_path), encode_type="combo"), fit)
    rows = [(7, None), (7, True), (8, None), (None, True), (None, None), (9, None), (None, False)]
    frame = pd.DataFrame(rows, columns=["a", "flag"], dtype=object)
    assert check(both, frame, strict=True) == "equal"
    made = ids(both, frame)["a_flag"]
    assert made[0] == made[1] > 2
    assert made[2:] == [2, made[3], 1, 2, 2]


def test_a_column_alone_and_in_a_combination(tmp_path):
    encode = ops.Categorify(out_path=path(tmp_path), encode_type="combo")
    both = exact(["text", ["text", "int"]] >> encode)
    assert [output.name for output in both.program.outputs] == ["text", "text_int"]
    check_all(both, ["text", "int"])


def test_combinations_of_one_side(tmp_path):
    user, item = ["text", "int"] >> ops.TagAsUserFeatures(), ["maybe", "small"] >> ops.TagAsItemFeatures()
    user, item = (
        columns[[names]] >> ops.Categorify(out_path=path(tmp_path), encode_type="combo")
        for columns, names in ((user, ["text", "int"]), (item, ["maybe", "small"]))
    )
    workflow = nvt.Workflow((user >> ops.TagAsUserFeatures()) + (item >> ops.TagAsItemFeatures()))
    workflow.fit(nvt.Dataset(FIT))
    for part, names in (("user", ["text", "int"]), ("item", ["maybe", "small"])):
        both = pair(workflow, part, anchor=FIT)
        assert sorted(column.name for column in both.program.inputs) == sorted(names)
        check_all(both, names)


def test_a_combination_that_lacks_a_column_makes_nothing(tmp_path):
    # The user part lacks ``small``, and ``text`` alone is no combination.
    encode = ops.Categorify(out_path=path(tmp_path), encode_type="combo")
    workflow = fitted([["text", "int"], ["text", "small"]] >> encode)
    cut = cut_workflow(workflow, parts={"text_small": "item"})
    assert [output.name for output in compile_workflow(cut, "user").outputs] == ["text_int"]
    assert [output.name for output in compile_workflow(cut, "item").outputs] == ["text_small"]


def test_combinations_that_outgrow_one_key(tmp_path, monkeypatch):
    names = ["text", "maybe", "holes", "flag", "small"]
    encode = ops.Categorify(out_path=path(tmp_path), encode_type="combo")
    workflow = fitted([names] >> encode)
    whole = pair(workflow, anchor=FIT)
    monkeypatch.setattr(lowering_keys, "_KEY_LIMIT", 200)
    split = pair(workflow, anchor=FIT)
    steps = [step["op"] for step in split.compiled.document["steps"]]
    assert steps.count("combine_keys") > 1
    assert [step["op"] for step in whole.compiled.document["steps"]].count("combine_keys") == 1
    for both in (whole, split):
        check_all(both, names)


def test_a_combination_of_wide_columns(tmp_path):
    rng = np.random.default_rng(0)
    n = 20_000
    fit = pd.DataFrame({name: rng.permutation(n) * 3 + i for i, name in enumerate("abcde")})
    both = exact([list("abcde")] >> ops.Categorify(out_path=path(tmp_path), encode_type="combo"), fit)
    assert check(both, fit.iloc[:2000], strict=True) == "equal"
    mixed = pd.DataFrame({name: rng.permutation(fit[name])[:500] for name in fit})
    assert check(both, mixed, strict=True) == "equal"
    assert set(ids(both, mixed)["a_b_c_d_e"]) == {2}


@SOME
@given(
    st.lists(groups, min_size=1, max_size=3, unique_by=lambda group: "_".join(group)),
    st.sampled_from(
        [{}, {"freq_threshold": 2}, {"max_size": 6}, {"dtype": np.int32}, {"single_table": True}]
    ),
    st.integers(1, 300),
    st.integers(0, 99),
    st.lists(requests, min_size=6, max_size=6),
)
def test_combinations_of_drawn_frames(tmp_path, selected, parameters, rows, seed, drawn):
    encode = ops.Categorify(out_path=path(tmp_path), encode_type="combo", **parameters)
    fit = fit_frame(rows, seed)
    try:
        workflow = fitted(selected >> encode, fit)
    except Exception:  # NVTabular can't fit an empty vocabulary, such as one of rare values only
        return
    both = pair(workflow, anchor=fit)
    names = sorted({name for group in selected for name in group})
    for request in drawn:
        check(both, request_frame(request, names))


# ---------------------------------------------------------------------------------- joint vocabularies


@pytest.mark.parametrize(
    ("group", "parameters"),
    every_pair(
        [
            ["int", "small"],
            ["small", "holes"],
            ["single", "double"],
            ["text", "maybe"],
            ["unsigned", "single"],
        ],
        [{}, {"max_size": 7, "dtype": np.int32}, {"single_table": True}],
    ),
)
def test_joint_vocabularies_of_several_dtypes(tmp_path, group, parameters):
    encode = ops.Categorify(out_path=path(tmp_path), **parameters)
    others = [name for name in ("flag", "text", "int") if name not in group]
    both = exact([group, *others] >> encode)
    check_all(both, [*group, *others])


def test_joint_vocabularies_with_lists(tmp_path):
    fit = pd.DataFrame(
        {
            "one": ["a", "b", None, "c"],
            "many": [["b", "é"], [], ["d"], ["a", "a"]],
            "number": [1, 2, 3, 4],
            "numbers": [[4], [5, 1], [], [6]],
        }
    )
    both = exact([["one", "many"], ["numbers", "number"]] >> ops.Categorify(out_path=path(tmp_path)), fit)
    assert check(both, fit, strict=True) == "equal"
    frame = pd.DataFrame(
        {
            "one": ["é", None, "unseen"],
            "many": [["unseen", "c"], [None, "d"], []],
            "number": [6, 7, 5],
            "numbers": [[2, 8], [], [3]],
        }
    )
    assert check(both, frame, strict=True) == "equal"
    assert check(both, frame.iloc[:0]) == "equal"


@SOME
@given(
    st.sampled_from([["int", "small", "unsigned"], ["holes", "small"], ["text", "maybe"], ["double", "int"]]),
    st.sampled_from([{}, {"freq_threshold": 3}, {"max_size": 8}, {"num_buckets": 3, "max_size": 20}]),
    st.integers(1, 300),
    st.integers(0, 99),
    st.lists(requests, min_size=6, max_size=6),
)
def test_joint_vocabularies_of_drawn_frames(tmp_path, group, parameters, rows, seed, drawn):
    fit = fit_frame(rows, seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        encode = ops.Categorify(out_path=path(tmp_path), **parameters)
    try:
        workflow = fitted([group] >> encode, fit)
    except Exception:
        return
    both = pair(workflow, anchor=fit)
    for request in drawn:
        check(both, request_frame(request, group))


# ---------------------------------------------------------------------------------------------- buckets


def buckets(folder: Path, number: Any, **more: Any) -> ops.Categorify:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ops.Categorify(out_path=path(folder), num_buckets=number, max_size=30, **more)


@pytest.mark.parametrize("encode_type", ["joint", "combo"])
def test_nvtabulars_buckets_depend_on_the_position(tmp_path, encode_type):
    node = ["text"] if encode_type == "joint" else [["text", "maybe"]]
    workflow = fitted(node >> buckets(tmp_path, 5, encode_type=encode_type))
    same = pd.DataFrame({"text": ["unseen"] * 16, "maybe": ["a"] * 16})
    assert workflow.transform(same).iloc[:, 0].nunique() > 1
    with pytest.raises(UnsupportedOperator, match=r"num_buckets=5 spreads.*row's position in the batch"):
        compile_workflow(workflow, "user")


def test_buckets_by_column_stop_their_own_columns_alone(tmp_path):
    workflow = fitted(["text", "maybe"] >> buckets(tmp_path, {"text": 1, "maybe": 5}))
    with pytest.raises(UnsupportedOperator, match=r"'maybe'.*num_buckets=5"):
        compile_workflow(workflow, "user")
    cut = cut_workflow(workflow, parts={"maybe": "label"})
    assert [output.name for output in compile_workflow(cut, "user").outputs] == ["text"]


def test_a_joint_vocabulary_knows_no_integer_buckets(tmp_path):
    # NVTabular looks the number up by the vocabulary's name and does not find it, so nothing is hashed.
    both = exact([["text", "maybe"]] >> buckets(tmp_path, 4))
    frame = pd.DataFrame({"text": ["unseen"] * 16, "maybe": ["other"] * 16})
    assert check(both, frame, strict=True) == "equal"
    assert set(ids(both, frame)["text"]) == {2}
    assert min(ids(both, FIT)["text"]) == 6
    check_all(both, ["text", "maybe"])


def test_a_joint_vocabulary_with_buckets_by_name(tmp_path):
    names = {"text_maybe": 3, "text": 1, "maybe": 4}
    workflow = fitted([["text", "maybe"]] >> buckets(tmp_path, names))
    with pytest.raises(UnsupportedOperator, match=r"'maybe'.*num_buckets=4"):
        compile_workflow(workflow, "user")
    # The first column has one bucket, so every unseen value gets the same id.
    compiled = compile_workflow(cut_workflow(workflow, parts={"maybe": "label"}), "user")
    frame = oracle_frame(request_frame(Drawn(200, 3, 0.2, 0.4), ["text"]), compiled.inputs)
    made = compiled.program.run(columns_from_frame(frame, compiled.inputs), 200)["text"]
    assert made.values.tolist() == workflow.transform(frame.assign(maybe="a"))["text"].tolist()


@pytest.mark.parametrize("node", [["order"], [["text", "order"]]])
def test_a_column_called_order(tmp_path, node):
    # NVTabular sorts the batch by this column and mixes up the ids of rows: equal rows get different ids.
    fit = FIT.rename(columns={"small": "order"})
    workflow = fitted(node >> ops.Categorify(out_path=path(tmp_path), encode_type="combo"), fit)
    made = workflow.transform(fit[["text", "order"]]).iloc[:, 0]
    assert made.groupby([fit["text"], fit["order"]]).nunique().max() > 1
    with pytest.raises(UnsupportedOperator, match=r"'order'.*sorts the batch"):
        compile_workflow(workflow, "user")


# ------------------------------------------------------------------------------- dtypes and vocabularies


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "int32", "uint64", "float32", "float64"])
def test_dtypes_hold_the_ids_as_nvtabulars_do(tmp_path, dtype):
    fit = pd.DataFrame({"many": np.arange(300) * 7, "list": [[i, i + 1] for i in range(300)]})
    both = exact(["many", "list"] >> ops.Categorify(out_path=path(tmp_path), dtype=dtype), fit)
    assert {output.dtype for output in both.program.outputs} == {dtype}
    assert check(both, fit, strict=True) == "equal"
    assert check(both, fit.assign(many=fit["many"] + 7), strict=True) == "equal"


@pytest.mark.parametrize("names", [["number"], ["word"], [["number", "word"]]])
def test_two_dtypes_of_one_column(tmp_path, names):
    fit = pd.DataFrame({"number": np.arange(300) * 10**9, "word": [f"w{i}" for i in range(300)]})
    narrow, wide = (
        names
        >> ops.Categorify(out_path=path(tmp_path), encode_type="combo", dtype=dtype)
        >> ops.Rename(postfix=f"_{dtype}")
        for dtype in ("int8", "int64")
    )
    both = exact(narrow + wide, fit)
    assert check(both, fit, strict=True) == "equal"


@pytest.mark.parametrize("dtype", ["float16", "object"])
def test_dtypes_that_no_tensor_has(tmp_path, dtype):
    workflow = fitted(["int"] >> ops.Categorify(out_path=path(tmp_path), dtype=dtype))
    with pytest.raises(UnsupportedOperator, match=dtype):
        compile_workflow(workflow, "user")


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("int", np.array([5, 2**53 + 1, -1, 0], np.int64)),
        ("int", np.array([2.0**53, 1.0, 0.5])),
        ("int", np.array([2**24, 1, 3], np.float32)),
        ("double", np.array([1.5, 0.1, -0.0, 7.0], np.float32)),
        ("double", np.array([1.0, 2.0, 0.0], np.float32)),
        ("double", np.array([1, 0, 7], np.int8)),
        ("single", np.array([1.0, 0.1, 1.5])),
        ("flag", np.array([1, 0], np.int64)),
        ("small", np.array([True, False])),
        ("text", np.array(["a", "", "東京"], object)),
    ],
)
def test_given_vocabularies_of_other_dtypes(tmp_path, column, values):
    given_values = {column: pd.Series(values)}
    finite = FIT[[column]].replace([np.inf, -np.inf], 1.0)
    if values.dtype.kind in "iub":
        finite = finite.fillna(1)
    both = exact([column] >> ops.Categorify(out_path=path(tmp_path), vocabs=given_values), finite)
    assert check(both, finite, strict=True) == "equal"
    extra = {"int": [2**24 + 1, 2**53 + 1, 0], "double": [1.0000000001, 0.1, 16777217.0], "small": [0, 3, 99]}
    if column in extra:
        assert check(both, pd.DataFrame({column: extra[column]}), strict=True) == "equal"
    check(both, request_frame(Drawn(200, 1, 0.2, 0.3), [column]))


def test_a_vocabulary_in_a_file_without_ids(tmp_path):
    pd.DataFrame({"text": [None, "b", "a", "é"]}).to_parquet(tmp_path / "given.parquet", index=False)
    vocabulary = {"text": str(tmp_path / "given.parquet")}
    both = exact(["text"] >> ops.Categorify(out_path=path(tmp_path), vocabs=vocabulary))
    check_all(both, ["text"])
    assert ids(both, pd.DataFrame({"text": ["b", "a", "é", None, "unseen"]}))["text"] == [4, 5, 6, 1, 2]


def test_text_that_pandas_takes_for_the_same_at_fit(tmp_path):
    # At fit, pandas counts strings up to the first NUL, as C does; the transform compares whole strings.
    fit = pd.DataFrame({"text": ["a\0", "a", "b\0x", "b", "\0", ""] * 3})
    both = exact(["text"] >> ops.Categorify(out_path=path(tmp_path)), fit)
    assert check(both, fit, strict=True) == "equal"
    assert 2 in ids(both, fit)["text"]


@pytest.mark.parametrize("dtype", ["Int64", "Int8", "boolean", "string"])
def test_extension_dtypes(tmp_path, dtype):
    values = {"boolean": [True, False, None], "string": ["a", "", None]}.get(dtype, [1, 2, None])
    fit = pd.DataFrame({"x": pd.Series(values * 5, dtype=dtype), "y": ["u", "v", "w"] * 5})
    for node in (["x"], [["x", "y"]]):
        encode = ops.Categorify(out_path=path(tmp_path), encode_type="combo")
        both = pair(fitted(node >> encode, fit), anchor=fit.astype(object))
        for frame in (fit.astype(object), fit.iloc[:1].astype(object), fit.dropna().astype(object)):
            check(both, frame)


# --------------------------------------------------------------------------------------------- bad input


def _files(folder: Path) -> tuple[nvt.Workflow, dict[str, Path]]:
    place = path(folder)
    encode = ops.Categorify(out_path=place, encode_type="combo")
    workflow = fitted(["text", ["maybe", "int"]] >> encode)
    return workflow, {file.name.split(".")[1]: file for file in Path(place).rglob("unique.*.parquet")}


@pytest.mark.parametrize("name", ["text", "maybe_int"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.drop(columns=f.columns[0]), r"{file}: not a readable vocabulary of .{name}"),
        (lambda f: pd.concat([f, f.iloc[:1]]), r"{file}: a value occurs twice in the vocabulary of .{name}"),
        (lambda f: f.set_index(pd.Index([3] * len(f))), r"{file}: an id occurs twice .* of .{name}"),
        (lambda f: f.iloc[:-1], r"{file}: .* fitted with \d+ categories of .{name}.*, the file has \d+"),
        (
            lambda f: f.assign(**{f.columns[0]: range(len(f))}),
            r".(text|maybe). .*: the column holds bytes, but its fitted vocabulary int64",
        ),
    ],
)
def test_altered_vocabulary_files(tmp_path, name, change, message):
    workflow, files = _files(tmp_path)
    change(pd.read_parquet(files[name])).to_parquet(files[name])
    columns = {"text": "text", "maybe_int": r"maybe(, |_)int"}[name]
    expected = message.replace("{file}", rf"unique\.{name}\.parquet").replace("{name}", columns)
    with pytest.raises(WorkflowError, match=expected):
        compile_workflow(workflow, "user")


@pytest.mark.parametrize("name", ["text", "maybe_int"])
def test_missing_and_unreadable_vocabulary_files(tmp_path, name):
    workflow, files = _files(tmp_path)
    files[name].write_bytes(files[name].read_bytes()[:40])
    with pytest.raises(WorkflowError, match=rf"unique\.{name}\.parquet: not a readable vocabulary"):
        compile_workflow(workflow, "user")
    files[name].unlink()
    with pytest.raises(WorkflowError, match=rf"unique\.{name}\.parquet: expected the vocabulary"):
        compile_workflow(workflow, "user")


@pytest.mark.parametrize("encode_type", ["joint", "combo"])
def test_a_vocabulary_that_was_never_fitted(tmp_path, encode_type):
    encode = ops.Categorify(out_path=path(tmp_path), encode_type=encode_type)
    workflow = nvt.Workflow([["text", "maybe"]] >> encode >> ops.AddTags([Tags.USER]))
    workflow.fit_schema(nvt.Dataset(FIT).schema)
    with pytest.raises(UnsupportedOperator, match=r"never fitted|no fitted vocabulary"):
        compile_workflow(workflow, "user")


@pytest.mark.parametrize("node", [["text"], [["text", "maybe"]], [["int", "small"], "flag"]])
@pytest.mark.parametrize("encode_type", ["joint", "combo"])
def test_saved_and_loaded(tmp_path, node, encode_type):
    workflow = fitted(node >> ops.Categorify(out_path=path(tmp_path), encode_type=encode_type))
    workflow.save(str(tmp_path / "saved"))
    names = [name for name in KEYS if name in repr(node)]
    frame = request_frame(Drawn(100, 1, 0.2, 0.2), [name for name in names if f"'{name}'" in repr(node)])
    loaded = pair(nvt.Workflow.load(str(tmp_path / "saved")), anchor=FIT)
    check(loaded, frame)
    assert ids(loaded, frame) == ids(pair(workflow, anchor=FIT), frame)
