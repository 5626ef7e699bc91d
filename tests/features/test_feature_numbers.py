"""Edge cases of numbers and lists: dtypes in groups, integer overflow, null lists."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from nvtabular import ops
from parity_helpers import check, pair
from test_feature_operators import FIT, MATRIX, REQUEST, fitted, path, run, similarity

from drawing import every_pair
from tiercel_export.errors import UnsupportedOperator
from tiercel_export.workflow.cut import compile_workflow
from tiercel_export.workflow.frames import columns_from_frame, oracle_frame

#: One column of each dtype that a group may contain.
GROUP = ["tiny", "count", "rank", "age", "score", "price", "flag"]
#: Each operator on a group of differing dtypes, and the dtypes of its outputs.
GROUPS = {
    "FillMissing": (
        lambda p, names: names >> ops.FillMissing(1),
        ["int8", "uint8", "int32", "int64", "float32", "float64", "bool"],
    ),
    "FillMedian": (
        lambda p, names: names >> ops.FillMedian(),
        # The medians of tiny, rank and score lie between two representable values.
        ["int8", "uint8", "float64", "int64", "float64", "float64", "bool"],
    ),
    "Clip": (
        lambda p, names: names[:-1] >> ops.Clip(0, 100),
        ["int8", "uint8", "int32", "int64", "float32", "float64"],
    ),
    "LogOp": (lambda p, names: names >> ops.LogOp(), ["float32"] * 7),
    "Normalize": (lambda p, names: names >> ops.Normalize(), ["float64"] * 7),
    "Normalize to float32": (lambda p, names: names >> ops.Normalize(out_dtype="float32"), ["float32"] * 7),
    "NormalizeMinMax": (lambda p, names: names[:-1] >> ops.NormalizeMinMax(), ["float64"] * 6),
    "Bucketize": (lambda p, names: names >> ops.Bucketize([0, 0.5, 3]), ["int32"] * 7),
    "Categorify": (lambda p, names: names >> ops.Categorify(out_path=p), ["int64"] * 7),
    "ReduceDtypeSize": (
        lambda p, names: names >> ops.ReduceDtypeSize(),
        ["int8", "uint8", "int8", "int8", "float32", "float32", "bool"],
    ),
}
#: Rows without a null, for which NVTabular's dtypes do not depend on the batch.
FULL = REQUEST.iloc[[0, 2, 4, 5]].reset_index(drop=True)


def frame_of(both, frame):
    return oracle_frame(frame, both.program.inputs)


def columns_of(both, frame):
    return columns_from_frame(frame_of(both, frame), both.program.inputs)


@pytest.mark.parametrize("operator", GROUPS)
def test_groups_of_differing_dtypes(operator, tmp_path):
    build, dtypes = GROUPS[operator]
    both = pair(fitted(build(path(tmp_path), GROUP)), anchor=FIT)
    assert [output.dtype for output in both.program.outputs] == dtypes
    if operator == "FillMedian":  # always as wide as in a batch with a null
        both.wide = frozenset(["rank", "score"])
    for frame in (FULL, FULL.iloc[:1], FIT):
        check(both, frame, strict=True)
    check(both, REQUEST)
    # Columns of one dtype share their steps.
    assert len(both.program.to_json()["steps"]) <= 3 * len(GROUP)


def test_normalize_min_max_wraps_round_as_integers_do():
    # Batches without a null, up to the limits of int32 and int64.
    frame = pd.DataFrame({"a": np.array([5, -7, 9], np.int32), "b": [-3, 2**40, 5], "c": [4, 4, 4]})
    both = pair(fitted(["a", "b", "c"] >> ops.NormalizeMinMax(), frame))
    edges32 = [2**31 - 1, -(2**31), 0, -7, 2**31 - 8, 2**30]
    edges64 = [2**63 - 1, -(2**63), 2**63 - 4, 2**53 + 1, -(2**62), 0]
    request = pd.DataFrame({"a": np.array(edges32, np.int32), "b": edges64, "c": edges64})
    check(both, request, strict=True)
    for i in range(len(request)):
        check(both, request.iloc[[i]], strict=True)


def test_normalize_min_max_of_a_column_that_was_constant_at_fit():
    frame = pd.DataFrame({"same": [7, 7], "still": np.array([0.25, 0.25], np.float32), "zero": [0.0, 0.0]})
    workflow = fitted(["same", "still", "zero"] >> ops.NormalizeMinMax(), frame)
    values = {"same": [7, 0, -3], "still": [0.25, 0.0, 3e38], "zero": [0.0, np.inf, None]}
    got = run(workflow, pd.DataFrame(values, dtype=object))
    assert got["same"][0] == got["same"][2] == 0.5
    assert np.isnan(got["same"][1])
    assert got["still"][0] == 0.5
    assert got["still"][2] == 0.0  # 2 * x is infinite in float32
    assert np.isnan(got["zero"]).all()


def test_narrow_integers_beside_float32_columns_are_refused():
    # Found by random graphs: int8 minus a float32 minimum is float32, but float64 if a row is null.
    frame = pd.DataFrame({"tiny": np.array([6, -50, 40], np.int8), "f": np.array([8, 9, 1], np.float32)})
    workflow = fitted(["tiny", "f"] >> ops.NormalizeMinMax(), frame)
    with pytest.raises(UnsupportedOperator, match=r"'tiny'.*int8 in float32.*of its own"):
        compile_workflow(workflow, "user")
    request = pd.DataFrame({"tiny": np.array([7], np.int8), "f": np.array([8], np.float32)})
    assert workflow.transform(request)["tiny"][0] != (7.0 + 50.0) / 90.0
    wider = frame.assign(tiny=frame["tiny"].astype("int32"))
    assert check(pair(fitted(["tiny", "f"] >> ops.NormalizeMinMax(), wider)), request, strict=True) == "equal"


def test_a_range_near_the_end_of_float32_is_refused():
    # Found by random graphs: NumPy divides in float64 by a number from 3.4e38 on, which float32 still holds.
    frame = pd.DataFrame({"i": [1, 5, 2**40], "f": np.array([-3.4028235e38, 1.0, 1e30], np.float32)})
    workflow = fitted(["i", "f"] >> ops.NormalizeMinMax(out_dtype="float64"), frame)
    request = pd.DataFrame({"i": [3], "f": np.array([1.0], np.float32)})
    assert workflow.transform(request)["f"][0] == pytest.approx(0.999999997061264, abs=1e-15)
    with pytest.raises(UnsupportedOperator, match=r"'f'.*beyond float32's range"):
        compile_workflow(workflow, "user")


def test_min_max_of_an_unsigned_column_with_a_minimum_is_refused():
    frame = pd.DataFrame({"count": np.array([5, 200], np.uint8), "small": np.array([5, 7], np.int16)})
    for name in frame:
        with pytest.raises(UnsupportedOperator, match=rf"{name}.*wraps round.*Store the column as int64"):
            compile_workflow(fitted([name] >> ops.NormalizeMinMax(), frame), "user")


def test_reduced_integers_wrap_round():
    both = pair(fitted(["age", "rank"] >> ops.ReduceDtypeSize()))
    request = pd.DataFrame(
        {
            "age": [127, 128, -129, 2**40 + 5, -(2**63)],
            "rank": np.array([0, 255, 256, 2**31 - 1, -128], np.int32),
        }
    )
    check(both, request, strict=True)


def test_reduced_columns_are_total():
    workflow = fitted(["age", "count", "flag", "price"] >> ops.ReduceDtypeSize())
    frame = pd.DataFrame(
        {"age": [None, 30], "count": [5, None], "flag": [None, False], "price": [None, 1e300]}, dtype=object
    )
    both = pair(workflow)
    with pytest.raises(ValueError, match="non-finite"):
        both.oracle(frame_of(both, frame))
    columns = columns_of(both, frame)
    out = both.program.run(columns, 2)
    assert out["age"].valid.tolist() == [False, True]
    assert out["count"].valid.tolist() == [True, False]
    assert (out["age"].values.dtype, out["count"].values.dtype) == (np.int8, np.uint8)
    assert out["flag"].values.tolist() == [True, False]  # as NVTabular does
    assert out["flag"].valid is None
    assert np.isnan(out["price"].values[0])
    assert out["price"].values[1] == np.inf


def test_reduced_text():
    # Found by random graphs: in text of pandas dtype ``string``, a null becomes the word None.
    fit = FIT.assign(town=FIT["town"].astype("string"))
    request = pd.DataFrame({"town": ["a", None, ""]}, dtype=object)
    for frame in (FIT, fit):
        both = pair(fitted(["town"] >> ops.ReduceDtypeSize(), frame))
        assert check(both, request, strict=True) == "equal"
    assert run(fitted(["town"] >> ops.ReduceDtypeSize(), fit), request) == {"town": [b"a", b"None", b""]}


def test_fill_median_of_a_column_without_a_number_changes_nothing():
    workflow = fitted(["void"] >> ops.FillMedian(add_binary_cols=True))
    got = run(workflow, pd.DataFrame({"void": [None, 2.5]}, dtype=object))
    assert got["void_filled"] == [True, False]
    assert np.isnan(got["void"][0])
    assert got["void"][1] == 2.5


def test_float32_that_a_fill_widens_is_wider_always():
    # NVTabular: float64 if a row of the batch is null, else float32. The values are equal.
    both = pair(fitted(["score"] >> ops.FillMissing(0.1)))
    assert [output.dtype for output in both.program.outputs] == ["float64"]
    both.wide = frozenset(["score"])
    assert both.oracle(frame_of(both, FULL))["score"].dtype == np.float32
    assert both.oracle(frame_of(both, REQUEST))["score"].dtype == np.float64
    assert check(both, FULL, strict=True) == check(both, REQUEST, strict=True) == "equal"


# ------------------------------------------------------------------------------------------------ lists


def test_list_slice_is_total():
    frame = pd.DataFrame({"codes": [None, [1, 2, 3]], "words": [["a", None], None]})
    workflow = fitted(["codes", "words"] >> ops.ListSlice(1, 3))
    with pytest.raises(TypeError):
        workflow.transform(frame)
    assert run(workflow, frame) == {"codes": [[], [2, 3]], "words": [[b""], []]}
    out = pair(workflow).program.run(columns_of(pair(workflow), frame), 2)
    assert out["codes"].row_valid.tolist() == [False, True]
    assert out["words"].valid.tolist() == [False]

    padded = fitted(["codes"] >> ops.ListSlice(2, pad=True, pad_value=9))
    assert run(padded, frame) == {"codes": [[9, 9], [1, 2]]}
    computed = fitted(["codes"] >> ops.LogOp() >> ops.ListSlice(2, pad=True, pad_value=9))
    assert run(computed, pd.DataFrame({"codes": [None, [0, 0, 0]]})) == {"codes": [[], [0.0, 0.0]]}


@pytest.mark.parametrize("start", [-4, -1, 0, 1, 3])
@pytest.mark.parametrize("end", [None, -3, -1, 1, 2, 5])
@pytest.mark.parametrize("pad", [False, True])
def test_list_slice_bounds(start, end, pad):
    operator = ops.ListSlice(start, end, pad=pad, pad_value=-1)
    frame = pd.DataFrame({"row": [[], [1], [1, 2], [1, 2, 3], list(range(9))]})
    try:
        workflow = fitted(["row"] >> operator, frame)
    except (ValueError, TypeError):  # a length below 1, or only empty lists
        return
    if pad and operator.max_elements == np.iinfo(np.int64).max:
        with pytest.raises(UnsupportedOperator, match="an end that is not given"):
            compile_workflow(workflow, "user")
        return
    both = pair(workflow)
    check(both, frame, strict=True)
    for i in range(len(frame)):
        check(both, frame.iloc[[i]], strict=True)


def test_list_slice_pads_what_a_request_sends_whatever_the_fit_had():
    # In the oracle's frame integers are Python lists; NVTabular does not pad them if they are arrays.
    lists = pd.DataFrame({"row": [[1, 2], [], [3]]})
    arrays = pd.DataFrame({"row": [np.array(row, np.int32) for row in lists["row"]]})
    for fit in (lists, arrays):
        both = pair(fitted(["row"] >> ops.ListSlice(2, pad=True, pad_value=7), fit))
        assert check(both, lists, strict=True) == check(both, arrays, strict=True) == "equal"
        assert both.program.run(columns_of(both, arrays), 3)["row"].values.tolist() == [1, 2, 7, 7, 3, 7]


def test_list_slice_of_huge_integers_and_of_booleans():
    frame = pd.DataFrame({"ids": [[2**62 + 1, 5], [1]], "flags": [[True], [False, True]]})
    both = pair(fitted(["ids", "flags"] >> ops.ListSlice(3, pad=True, pad_value=0), frame))
    assert check(both, frame, strict=True) == "equal"
    assert {output.dtype for output in both.program.outputs} == {"int64", "bool"}


# ------------------------------------------------------------------------------------------- similarity


def test_column_similarity_is_total():
    workflow = fitted(similarity(metric="inner"))
    frame = pd.DataFrame(
        {"left": [0, None, 2, 5, 2**40, -(2**40)], "right": [2, 0, None, 0, 0, 0]}, dtype=object
    )
    got = run(workflow, frame)["left_right_sim"]
    assert got[0] == 4.0
    assert np.isnan(got[1:3]).all()
    assert got[3:] == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("metric", "dtype"), every_pair(["tfidf", "cosine", "inner"], [np.float64, np.float32])
)
def test_column_similarity_sums_in_nvtabulars_order(metric, dtype):
    # Hundreds of products per row: another order of summation would change the last bits.
    rng = np.random.default_rng(5)
    left = scipy.sparse.random(300, 2000, 0.3, "csr", dtype, rng, lambda n: rng.normal(0, 1e3, n))
    right = scipy.sparse.random(400, 1500, 0.4, "coo", dtype, rng, lambda n: rng.lognormal(0, 9, n))
    right.data[::97] = np.nan
    frame = pd.DataFrame({"a": rng.integers(0, 300, 500), "b": rng.integers(0, 400, 500).astype(np.int16)})
    operator = ops.ColumnSimilarity(left, right.astype(dtype), metric=metric)
    both = pair(fitted([["a", "b"]] >> operator, frame))
    assert both.program.outputs[0].dtype == (
        "float32" if metric == "inner" and dtype == np.float32 else "float64"
    )
    check(both, frame, strict=True)
    for i in (0, 7, 499):
        check(both, frame.iloc[[i]], strict=True)
    request = pd.DataFrame({"a": np.arange(-301, 300), "b": np.resize(np.arange(-401, 400), 601)})
    check(both, request, strict=True)


def test_column_similarity_leaves_the_operator_as_it_was():
    operator = ops.ColumnSimilarity(MATRIX, metric="cosine")
    workflow = fitted([["left", "right"]] >> operator)
    before = operator.left_features.copy()
    compile_workflow(workflow, "user")
    assert operator.on_device is False
    assert (operator.left_features != before).nnz == 0
    # The state of a fitted operator that has not run on a frame, as after its matrices are replaced.
    operator._initialized, operator.left_features, operator.right_features = False, MATRIX, None
    expected = pair(workflow)
    assert not operator._initialized
    check(expected, FIT, strict=True)


def test_similarity_of_no_rows():
    both = pair(fitted(similarity()))
    out = both.program.packed(columns_of(both, FIT.iloc[:0]), 0)
    assert out["user_num"].shape == (0, 1)
