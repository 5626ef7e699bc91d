"""JoinGroupby, TargetEncoding and JoinExternal: lookups by key in fitted tables."""

from __future__ import annotations

import itertools
from pathlib import Path

import dask.dataframe as dd
import numpy as np
import nvtabular as nvt
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from keyed_frames import KEYS, REQUESTS, SOME, Drawn, fit_frame, groups, known_keys, request_frame, requests
from merlin.schema import Tags
from nvtabular import ops
from parity_helpers import Pair, check
from quiet_fits import fit, path

from drawing import every_pair
from tiercel_export.errors import UnsupportedOperator, WorkflowError
from tiercel_export.workflow.cut import compile_workflow, cut_workflow, trace
from tiercel_export.workflow.frames import FrameOracle, columns_from_frame, oracle_frame

FIT = fit_frame(400, 1)
STATS = ["sum", "mean", "std", "var", "min", "max"]


def fitted(node, frame: pd.DataFrame | nvt.Dataset = FIT) -> nvt.Workflow:
    return fit(node, frame)


def exact(workflow: nvt.Workflow, **cut: str) -> Pair:
    """Return a pair whose outputs may differ in dtype where a key is unseen."""
    parts = cut_workflow(workflow, **cut)
    traced = trace(workflow, **cut)
    lineage = {name: expression.inputs for name, expression in traced.items()}
    outputs = frozenset(parts.output_names("user"))
    return Pair(compile_workflow(parts, "user"), FrameOracle(parts, "user"), lineage, outputs, FIT)


def run(both: Pair, frame: pd.DataFrame) -> dict[str, list]:
    program = both.program
    columns = columns_from_frame(oracle_frame(frame, program.inputs), program.inputs)
    out = {}
    for name, column in program.run(columns, len(frame)).items():
        values = [v if ok else None for v, ok in zip(column.values.tolist(), _valid(column), strict=True)]
        if column.is_list:
            rows = itertools.pairwise(column.offsets.tolist())
            is_list = np.ones(len(frame), bool) if column.row_valid is None else column.row_valid
            values = [values[a:b] if ok else None for (a, b), ok in zip(rows, is_list, strict=True)]
        out[name] = values
    return out


def _valid(column) -> np.ndarray:
    return np.ones(len(column.values), bool) if column.valid is None else column.valid


# ------------------------------------------------------------------------------------------- JoinGroupby


@pytest.mark.parametrize("keys", [*([key] for key in KEYS), ["text", "maybe", "holes"], ["int", "flag"]])
def test_join_groupby_by_keys_of_every_kind(tmp_path, keys):
    selected = keys if len(keys) == 1 else [keys]
    stats = ops.JoinGroupby(cont_cols=["x", "y", "n", "hit"], stats=STATS, out_path=path(tmp_path))
    both = exact(fitted(selected >> stats))
    for request in REQUESTS:
        check(both, request_frame(request, keys), strict=True)
    check(both, FIT[keys], strict=True)


@SOME
@given(
    st.lists(groups, min_size=1, max_size=2),
    st.lists(st.sampled_from(STATS), min_size=1, max_size=6, unique=True),
    st.lists(st.sampled_from(["x", "y", "n", "hit"]), min_size=1, max_size=3, unique=True),
    st.integers(1, 300),
    st.integers(0, 99),
    st.lists(requests, min_size=4, max_size=4),
)
def test_join_groupby_of_drawn_frames(tmp_path, keys, stats, values, rows, seed, drawn):
    # NVTabular cannot fit a column that is both alone and in a group, or in two groups.
    keys = keys if len(keys) == 1 or not set(keys[0]) & set(keys[1]) else keys[:1]
    fit = fit_frame(rows, seed)
    stats = stats if set(stats) - {"min", "max"} else [*stats, "sum"]  # otherwise NVTabular cannot fit them
    selected = [group[0] if len(group) == 1 else group for group in keys]
    names = [name for group in keys for name in group]
    join = {"cont_cols": values, "out_path": path(tmp_path)}
    both = exact(fitted(selected >> ops.JoinGroupby(stats=stats, **join), fit))
    join["out_path"] = path(tmp_path)
    counts = exact(fitted(selected >> ops.JoinGroupby(stats=["count", *stats], **join), fit))
    for request in drawn:
        # In the oracle's form, where integers beside a null are rounded to floats.
        frame = oracle_frame(request_frame(request, names), both.program.inputs).astype(object)
        check(both, frame, strict=True)
        known = np.logical_and.reduce([known_keys(fit, frame, group) for group in keys])
        check(counts, frame[known], strict=True)
        counted = run(counts, frame)
        for group in keys:
            unseen = ~known_keys(fit, frame, group)
            assert not np.array(counted[f"{'_'.join(group)}_count"])[unseen].any()


def test_an_unseen_key_counts_zero_and_has_no_statistics(tmp_path):
    join = ops.JoinGroupby(cont_cols=["n", "x"], stats=["count", *STATS], out_path=path(tmp_path))
    both = exact(fitted(["text"] >> join))
    frame = pd.DataFrame({"text": ["a", "unseen", None]}, dtype=object)
    with pytest.raises(ValueError, match="non-finite"):
        both.oracle(frame)
    made = run(both, frame)
    assert made["text_count"][0] > 0
    assert made["text_count"][1:] == [0, 0]
    assert made["text_n_sum"][1:] == [None, None]
    assert np.isnan(made["text_x_mean"][1:]).all()
    dtypes = {output.name: output.dtype for output in both.program.outputs}
    assert dtypes["text_count"] == dtypes["text_n_min"] == "int32"
    packed = both.program.packed(columns_from_frame(frame, both.program.inputs), 3)["user_num"]
    at = [output.name for output in both.program.outputs].index("text_n_sum")
    assert np.isnan(packed[:, at]).tolist() == [False, True, True]


def test_a_null_key_is_a_group_of_its_own(tmp_path):
    join = ops.JoinGroupby(cont_cols=["hit"], stats=["sum", "min"], out_path=path(tmp_path))
    both = exact(fitted([["maybe", "double"]] >> join))
    frame = FIT[["maybe", "double"]]
    assert frame.isna().all(axis=1).any()
    assert check(both, frame, strict=True) == "equal"
    assert None not in run(both, frame)["maybe_double_hit_sum"]


def test_a_name_that_two_groups_make_is_the_first_ones(tmp_path):
    fit = FIT.rename(columns={"text": "a_b", "maybe": "a", "y": "b_x"})
    join = ops.JoinGroupby(cont_cols=["b_x", "x"], stats=["mean", "sum"], out_path=path(tmp_path))
    for keys in (["a", "a_b"], ["a_b", "a"]):
        both = exact(fitted(keys >> join, fit))
        assert check(both, fit[keys], strict=True) == "equal"


def test_columns_of_one_table_share_one_lookup(tmp_path):
    join = ops.JoinGroupby(cont_cols=["x", "y"], stats=["mean", "std"], out_path=path(tmp_path))
    steps = compile_workflow(fitted([["text", "int"]] >> join), "user").document["steps"]
    assert [step["op"] for step in steps].count("combine_keys") == 1
    assert [step for step in steps if step["op"] == "gather"] == [
        {"op": "gather", "in": len(steps) - 2, "rows": [0, 0, 0, 0]}
    ]


def test_a_statistic_of_a_target_is_no_label(tmp_path):
    target = ["hit"] >> ops.AddTags([Tags.TARGET])
    keys = ["text"] >> ops.AddTags([Tags.USER])
    node = keys >> ops.JoinGroupby(cont_cols=target, stats=["mean", "count"], out_path=path(tmp_path))
    workflow = nvt.Workflow(node + target)
    workflow.fit(nvt.Dataset(FIT))
    cut = cut_workflow(workflow)
    assert cut.outputs == {"text_hit_mean": "user", "text_count": "user", "hit": "label"}
    assert cut.input_names("user") == ["text"]
    both = exact(workflow)
    assert [column.name for column in both.program.inputs] == ["text"]
    assert check(both, FIT[["text"]], strict=True) == "equal"


# ---------------------------------------------------------------------------------------- TargetEncoding


@pytest.mark.parametrize(
    ("parameters", "kfold"),
    every_pair(
        [
            {},
            {"p_smooth": 0},
            {"p_smooth": 0.5, "out_dtype": "float64"},
            {"out_dtype": "float32", "name_sep": "|"},
            {"p_smooth": 3, "split_out": 2},
        ],
        [1, 4],
    ),
)
def test_target_encoding_without_folds(tmp_path, parameters, kfold):
    groups = ["text", ["maybe", "int"], ["double", "flag", "text"]]
    encoding = ops.TargetEncoding(["hit", "x", "y"], kfold=kfold, out_path=path(tmp_path), **parameters)
    workflow = fitted(groups >> encoding)
    if kfold > 1:
        with pytest.raises(UnsupportedOperator, match=rf"kfold={kfold}.*target_encoding='no_fold'"):
            compile_workflow(workflow, "user")
    both = exact(workflow, target_encoding="no_fold")
    names = ["double", "flag", "int", "maybe", "text"]
    assert sorted(column.name for column in both.program.inputs) == names
    for request in REQUESTS:
        check(both, request_frame(request, names), strict=True)


def test_the_no_fold_form_is_what_a_fit_without_folds_gives(tmp_path):
    made = []
    for kfold in (1, 4):
        encoding = ops.TargetEncoding("hit", kfold=kfold, out_path=path(tmp_path), out_dtype="float64")
        both = exact(fitted([["maybe", "small"]] >> encoding), target_encoding="no_fold")
        made.append(run(both, request_frame(Drawn(200, 3, 0.2, 0.2), ["maybe", "small"])))
    assert made[0] == made[1]


@SOME
@given(
    st.lists(groups, min_size=1, max_size=3, unique_by=lambda group: "_".join(group)),
    st.lists(st.sampled_from(["x", "y", "n", "hit"]), min_size=1, max_size=2, unique=True),
    st.sampled_from([0, 1, 20, 0.3]),
    st.sampled_from([None, "float64", "float32"]),
    st.sampled_from([1, 2]),
    st.integers(1, 300),
    st.integers(0, 99),
    st.lists(requests, min_size=6, max_size=6),
)
def test_target_encoding_of_drawn_frames(
    tmp_path, keys, targets, p_smooth, out_dtype, kfold, rows, seed, drawn
):
    selected = [group[0] if len(group) == 1 else group for group in keys]
    encoding = ops.TargetEncoding(
        targets, kfold=kfold, p_smooth=p_smooth, out_dtype=out_dtype, out_path=path(tmp_path)
    )
    try:
        workflow = fitted(selected >> encoding, fit_frame(rows, seed))
    except ValueError as error:
        # NVTabular can't fit a single row whose keys are null: pandas refuses to merge what it counted.
        assume("You are trying to merge on object and float64 columns" not in str(error))
        raise
    both = exact(workflow, target_encoding="no_fold")
    names = sorted({name for group in keys for name in group})
    for request in drawn:
        check(both, request_frame(request, names), strict=True)


def test_two_encodings_of_one_column(tmp_path):
    few, many = (
        ["text"]
        >> ops.TargetEncoding("hit", kfold=1, p_smooth=p_smooth, out_path=path(tmp_path))
        >> ops.Rename(postfix=f"_{p_smooth}")
        for p_smooth in (1, 50)
    )
    both = exact(fitted(few + many))
    assert check(both, FIT[["text"]], strict=True) == "equal"
    made = run(both, FIT)
    assert made["TE_text_hit_1"] != made["TE_text_hit_50"]


def test_target_encoding_under_names_of_its_own(tmp_path):
    names = ["TE_maybe_int_hit", "TE_text_hit"]  # the other group's name, which the schema accepts
    encoding = ops.TargetEncoding("hit", kfold=1, out_path=path(tmp_path), out_col=names)
    both = exact(fitted(["text", ["maybe", "int"]] >> encoding))
    check(both, FIT[["text", "maybe", "int"]], strict=True)
    alone = ops.TargetEncoding("hit", kfold=1, out_path=path(tmp_path))
    text = exact(fitted(["text"] >> alone))
    assert run(both, FIT)["TE_maybe_int_hit"] == run(text, FIT)["TE_text_hit"]


def test_one_side_of_a_target_encoding(tmp_path):
    user = ["text"] >> ops.TagAsUserFeatures()
    item = ["int"] >> ops.TagAsItemFeatures()
    names = ["TE_text_hit", "TE_int_hit"]
    node = (user + item) >> ops.TargetEncoding("hit", kfold=2, out_path=path(tmp_path), out_col=names)
    workflow = nvt.Workflow(node)
    workflow.fit(nvt.Dataset(FIT))
    cut = cut_workflow(workflow, target_encoding="no_fold")
    assert cut.outputs == {"TE_text_hit": "user", "TE_int_hit": "item"}
    for part, inputs in (("user", ["text"]), ("item", ["int"])):
        compiled = compile_workflow(cut, part)
        assert [column.name for column in compiled.inputs] == inputs
        lineage = {name: frozenset(inputs) for name in cut.output_names(part)}
        both = Pair(compiled, FrameOracle(cut, part), lineage)
        check(both, request_frame(Drawn(40, 5, 0.2, 0.3), inputs), strict=True)


def test_the_fold_itself_is_refused(tmp_path):
    encoding = ops.TargetEncoding("hit", kfold=3, drop_folds=False, out_path=path(tmp_path))
    workflow = fitted(["text"] >> encoding)
    with pytest.raises(UnsupportedOperator, match=r"'__fold__'.*drop_folds=True"):
        compile_workflow(workflow, "user", target_encoding="no_fold")
    cut = cut_workflow(workflow, parts={"__fold__": "label"}, target_encoding="no_fold")
    assert [output.name for output in compile_workflow(cut, "user").outputs] == ["TE_text_hit"]


def test_nvtabulars_folds_depend_on_the_position(tmp_path):
    workflow = fitted(["text"] >> ops.TargetEncoding("hit", kfold=3, out_path=path(tmp_path)))
    same = pd.DataFrame({"text": ["a"] * 8, "hit": [0] * 8})
    assert workflow.transform(same)["TE_text_hit"].nunique() > 1


def test_a_recipe_has_no_folds():
    # With folds, training would use NVTabular's per-fold encoding, and serving another one.
    from tiercel_pipelines.recipe.check_graph import why_unsupported

    assert why_unsupported(ops.TargetEncoding("hit", kfold=1)) is None
    assert why_unsupported(ops.TargetEncoding("hit")) == (
        "its folds depend on the row's position",
        "fit it with kfold=1",
    )


def test_another_form_than_no_fold_is_an_error():
    with pytest.raises(WorkflowError, match="'no_fold', got 'folds'"):
        cut_workflow(fitted(["int"] >> ops.LogOp()), target_encoding="folds")


def test_infinite_encodings_do_not_fit_integers(tmp_path):
    encoding = ops.TargetEncoding("hit", kfold=1, p_smooth=0, out_dtype="int32", out_path=path(tmp_path))
    # The null group has no rows. NVTabular tries its transform on the first partition of a fit.
    fit = FIT.sort_values("maybe")
    with pytest.raises(UnsupportedOperator, match="infinite"):
        compile_workflow(fitted(["maybe"] >> encoding, nvt.Dataset(fit, npartitions=2)), "user")


# ------------------------------------------------------------------------------------------ JoinExternal


def external(keys: list[str], rows: int = 60, seed: int = 9) -> pd.DataFrame:
    """Return a table with these keys, and with columns of every kind."""
    rng = np.random.default_rng(seed)
    table = fit_frame(rows, seed)[keys].drop_duplicates().reset_index(drop=True)
    n = len(table)
    pick = rng.integers(0, 3, n)
    pick[0] = 0  # NVTabular reads the dtype of a list column from its first row
    return table.assign(
        whole=rng.integers(-9, 9, n).astype(np.int16),
        huge=rng.integers(-(2**62), 2**62, n),
        share=np.where(pick == 0, np.nan, rng.normal(size=n)),
        narrow=rng.normal(size=n).astype(np.float32),
        told=pick > 0,
        word=[["", None, "東京"][i] for i in pick],
        words=[[["a", "é"], [], None][i] for i in pick],
        numbers=[[[1, 2, 3], [], [2**40]][i] for i in pick],
        floats=[[np.array([0.5], np.float32), np.array([], np.float32), None][i] for i in pick],
    )


@pytest.mark.parametrize(
    "keys", [["int"], ["small"], ["holes"], ["double"], ["flag"], ["text"], ["maybe", "int"], KEYS[:5]]
)
def test_join_external_by_keys_of_every_kind(keys):
    both = exact(fitted(keys >> ops.JoinExternal(external(keys).drop(columns="huge"), on=keys)))
    for request in REQUESTS:
        check(both, request_frame(request, keys), strict=True)


def test_huge_integers_stay_integers():
    # pandas rounds them as soon as one key of the batch is unseen.
    both = exact(fitted(["text"] >> ops.JoinExternal(external(["text"])[["text", "huge"]], on="text")))
    known = external(["text"])
    assert check(both, known[["text"]], strict=True) == "equal"
    frame = pd.concat([known[["text"]], pd.DataFrame({"text": ["unseen"]})], ignore_index=True)
    assert run(both, frame)["huge"] == [*known["huge"], None]


@SOME
@given(
    st.lists(st.sampled_from(KEYS), min_size=1, max_size=3, unique=True),
    st.booleans(),
    st.lists(
        st.sampled_from(["whole", "share", "told", "word", "words", "numbers"]), min_size=1, unique=True
    ),
    st.integers(1, 80),
    st.integers(0, 99),
    st.lists(requests, min_size=6, max_size=6),
)
def test_join_external_of_drawn_tables(keys, renamed, columns, rows, seed, drawn):
    table = external(keys, rows, seed)
    on_ext = [f"key of {name}" for name in keys] if renamed else keys
    table = table.rename(columns=dict(zip(keys, on_ext, strict=True)))
    if "flag" in keys and len(set(table[on_ext[keys.index("flag")]])) < 2:
        columns = columns[:1]
    join = ops.JoinExternal(table, on=keys, on_ext=on_ext, columns_ext=[*on_ext, *columns])
    # Without the table's own keys: pandas rounds huge ones if a key of the batch is unseen.
    both = exact(fitted((keys >> join)[[*keys, *columns]]))
    for request in drawn:
        check(both, request_frame(request, keys), strict=True)


def test_an_unseen_key_joins_nulls():
    both = exact(fitted(["text"] >> ops.JoinExternal(external(["text"]), on="text")))
    made = run(both, pd.DataFrame({"text": ["unseen", None]}, dtype=object))
    assert made.pop("text") == [b"unseen", None]
    assert np.isnan(made.pop("share")).all()
    assert np.isnan(made.pop("narrow")).all()
    assert all(values == [None, None] for values in made.values()), made


def test_joined_columns_go_on(tmp_path):
    def joined_columns():
        return ["text", "int"] >> ops.JoinExternal(external(["text"]), on="text")

    joined = joined_columns()
    node = joined["word", "share", "narrow"] >> ops.Categorify(out_path=path(tmp_path))
    node = node + (joined["whole"] >> ops.FillMissing(-1) >> ops.LogOp())
    both = exact(fitted(node))
    for rows, share in itertools.product([1, 40], [0.0, 0.4]):
        check(both, request_frame(Drawn(rows, 7, share, share), ["text", "int"]))
    lists = joined_columns()["words", "numbers"] >> ops.Categorify(out_path=path(tmp_path))
    table = external(["text"])
    with_lists = exact(fitted(lists, FIT[FIT["text"].isin(table["text"][table["words"].notna()])]))
    columns = columns_from_frame(pd.DataFrame({"text": ["unseen"], "int": [0]}), with_lists.program.inputs)
    assert {k: v.shape for k, v in with_lists.program.packed(columns, 1).items()} == {
        "user_list_words": (1, 0),
        "user_list_numbers": (1, 0),
    }


def test_joined_text_is_encoded_when_the_workflow_is_compiled(tmp_path):
    table = external(["text"])[["text", "word", "words"]]
    fit = FIT[FIT["text"].isin(table["text"][table["words"].notna()])]
    joined = (["text"] >> ops.JoinExternal(table, on="text"))["word", "words"]
    both = exact(fitted(joined >> ops.Categorify(out_path=path(tmp_path)), fit))
    assert [step["op"] for step in both.compiled.document["steps"]] == [
        "load",
        "encode_text",
        "gather",
        "gather_list",
    ]
    assert check(both, fit[["text"]], strict=True) == "equal"


def test_joined_text_of_a_table_too_long_for_objects(monkeypatch):
    monkeypatch.setattr("tiercel_serving.features.joins.TEXTS_IN_MEMORY", 3)
    both = exact(
        fitted(["text"] >> ops.JoinExternal(external(["text"])[["text", "word", "words"]], on="text"))
    )
    for rows, share in itertools.product([0, 1, 40], [0.0, 0.4]):
        check(both, request_frame(Drawn(rows, 3, share, share), ["text"]), strict=True)


def test_a_table_from_parquet_and_a_dataset(tmp_path):
    table = external(["text", "small"])
    table.to_parquet(tmp_path / "table.parquet")
    # NVTabular takes no plain path where cuDF is not installed.
    parquet = nvt.Dataset(str(tmp_path / "table.parquet"), engine="parquet")
    for source in (parquet, nvt.Dataset(table), pa.Table.from_pandas(table), dd.from_pandas(table, 3)):
        join = ops.JoinExternal(source, on=["text", "small"], columns_ext=["text", "small", "share", "words"])
        both = exact(fitted(["text", "small"] >> join))
        for share in (0.0, 0.5):
            check(both, request_frame(Drawn(40, 2, share, share), ["text", "small"]), strict=True)


def test_a_table_of_several_partitions(tmp_path):
    table = external(["maybe"], rows=300)[["maybe", "whole", "share"]]
    assert len(table) > 5
    join = ops.JoinExternal(nvt.Dataset(table, npartitions=3), on="maybe")
    both = exact(fitted(["maybe"] >> join))
    for share in (0.0, 0.5):
        check(both, request_frame(Drawn(40, 2, share, share), ["maybe"]), strict=True)
    numbers = external(["int"])[["int", "share"]]
    workflow = fitted(["int"] >> ops.JoinExternal(nvt.Dataset(numbers, npartitions=3), on="int"))
    with pytest.raises(UnsupportedOperator, match="3 partitions"):
        compile_workflow(workflow, "user")


def test_rows_that_occur_twice():
    table = pd.DataFrame({"text": ["a", "a", "b"], "z": [1, 1, 2]})
    both = exact(fitted(["text"] >> ops.JoinExternal(table, on="text", drop_duplicates_ext=True)))
    assert check(both, FIT[["text"]], strict=True) == "equal"
    for more in (table, pd.DataFrame({"text": ["a", None, None], "z": [1, 2, 3]})):
        workflow = fitted(["text"] >> ops.JoinExternal(more, on="text"))
        with pytest.raises(UnsupportedOperator, match="more than once"):
            compile_workflow(workflow, "user")


def test_the_rows_columns_are_the_whole_nodes(tmp_path):
    # Dropped or multiplied rows change every column of the node, including those that are not joined.
    workflow = fitted(["text", "int"] >> ops.JoinExternal(external(["text"]), on="text", how="inner"))
    cut = cut_workflow(workflow, parts=dict.fromkeys(set(workflow.output_schema.column_names), "label"))
    parts = {**cut.outputs, "int": "user"}
    with pytest.raises(UnsupportedOperator, match="drops rows"):
        compile_workflow(workflow, "user", parts=parts)


def test_a_column_that_no_program_carries_stops_itself_alone():
    table = external(["text"])[["text", "share"]].assign(when=pd.Timestamp("2026-01-01"))
    workflow = fitted(["text"] >> ops.JoinExternal(table, on="text"))
    with pytest.raises(UnsupportedOperator, match=r"'when'.*datetime64"):
        compile_workflow(workflow, "user")
    cut = cut_workflow(workflow, parts={"when": "label"})
    assert [output.name for output in compile_workflow(cut, "user").outputs] == ["text", "share"]


def test_one_side_beside_a_join_that_the_first_rows_of_the_other_miss(tmp_path):
    # Categorify raises on an all-null column, and NVTabular computes both sides at once.
    rows = pd.DataFrame({"city": ["Łódź", "Köln", "Köln", None], "brand": ["a", "b", "a", "c"]})
    regions = pd.DataFrame({"city": ["Köln"], "region": ["west"]})
    joined = (["city"] >> ops.JoinExternal(regions, on="city"))["region"]
    user = joined >> ops.Categorify(out_path=path(tmp_path)) >> ops.TagAsUserFeatures()
    item = ["brand"] >> ops.Categorify(out_path=path(tmp_path)) >> ops.TagAsItemFeatures()
    workflow = nvt.Workflow(user + item)
    workflow.fit(nvt.Dataset(rows))
    answers = FrameOracle(workflow, "item", known={"city": rows["city"].dropna()})(rows[["brand"]])
    assert answers["brand"].tolist() == workflow.transform(rows)["brand"].tolist()


def test_keys_of_another_type_are_refused():
    table = pd.DataFrame({"flag": [0, 1], "z": [1, 2]})
    with pytest.raises(UnsupportedOperator, match="changes the column's dtype"):
        compile_workflow(fitted(["flag"] >> ops.JoinExternal(table, on="flag")), "user")


def test_one_side_of_a_join():
    user, item = ["text"] >> ops.TagAsUserFeatures(), ["int", "small"] >> ops.TagAsItemFeatures()
    table = external(["int"])[["int", "share", "word"]]
    workflow = nvt.Workflow((user + item) >> ops.JoinExternal(table, on="int"))
    workflow.fit(nvt.Dataset(FIT))
    cut = cut_workflow(workflow)
    assert cut.output_names("user") == ["text"]
    assert cut.output_names("item") == ["int", "small", "share", "word"]
    for part in ("user", "item"):
        compiled = compile_workflow(cut, part)
        lineage = {name: expression.inputs for name, expression in trace(workflow).items()}
        both = Pair(compiled, FrameOracle(cut, part), lineage, frozenset(cut.output_names(part)), FIT)
        names = [column.name for column in compiled.inputs]
        check(both, request_frame(Drawn(40, 4, 0.2, 0.2), names), strict=True)


@pytest.mark.parametrize(
    ("dtype", "nulls"), every_pair(["Int64", "Float64", "boolean", "string"], [True, False])
)
def test_keys_of_extension_dtypes(tmp_path, dtype, nulls):
    values = {"boolean": [True, False], "string": ["a", ""], "Float64": [0.5, 1.0]}.get(dtype, [1, 2**60])
    key = pd.Series([*values, None if nulls else values[0]] * 5, dtype=dtype)
    fit = pd.DataFrame({"key": key, "x": np.arange(15.0), "hit": [0, 1, 1] * 5})
    frame = pd.DataFrame({"key": [*values, None, values[0]]}, dtype=object)
    for node in (
        ["key"] >> ops.JoinGroupby(cont_cols=["x"], stats=STATS, out_path=path(tmp_path)),
        ["key"] >> ops.TargetEncoding("hit", kfold=1, out_path=path(tmp_path)),
    ):
        workflow = fitted(node, fit)
        if dtype == "Int64" and nulls:
            with pytest.raises(UnsupportedOperator, match="Int64 with a null"):
                compile_workflow(workflow, "user")
            continue
        both = exact(workflow)
        # A batch with a null is float64, which pandas can't merge with Int64.
        check(both, frame.dropna() if dtype == "Int64" else frame, strict=True)
        check(both, frame.iloc[[0]], strict=True)
    with pytest.raises(UnsupportedOperator, match=f"the table's key {dtype}"):
        compile_workflow(fitted(["key"] >> ops.JoinExternal(fit.iloc[:2], on="key"), fit), "user")


# --------------------------------------------------------------------------------------------- bad input


def _statistics(folder: Path, operator: str) -> tuple[nvt.Workflow, Path]:
    place = path(folder)
    if operator == "JoinGroupby":
        node = ["text"] >> ops.JoinGroupby(cont_cols=["x"], stats=["count", "sum"], out_path=place)
    else:
        node = ["text"] >> ops.TargetEncoding("x", kfold=1, out_path=place)
    return fitted(node), next(Path(place).rglob("cat_stats.text.parquet"))


@pytest.mark.parametrize("operator", ["JoinGroupby", "TargetEncoding"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.drop(columns="text"), r"expected the columns \['text', .*\], found \["),
        (
            lambda f: f.drop(columns="text_x_sum"),
            r"expected the columns \['text', .*\], found \['text', 'text_count'\]",
        ),
        (lambda f: pd.concat([f, f.iloc[:1]]), r"the key \[''\] occurs twice"),
        (lambda f: f.assign(text=range(len(f))), r"text.*holds bytes.*vocabulary int64"),
    ],
)
def test_altered_statistics(tmp_path, operator, change, message):
    workflow, file = _statistics(tmp_path, operator)
    frame = change(pd.read_parquet(file).sort_values("text"))
    for part in file.iterdir():
        part.unlink()
    frame.to_parquet(file / "part.0.parquet", index=False)
    with pytest.raises(WorkflowError, match=message):
        compile_workflow(workflow, "user")


def test_two_operators_that_overwrite_each_others_file(tmp_path):
    # A saved workflow has a single folder, and one file per set of keys.
    join = ["text"] >> ops.JoinGroupby(cont_cols=["x"], stats=["count", "mean"], out_path=path(tmp_path))
    workflow = fitted(join + (["text"] >> ops.TargetEncoding("hit", kfold=1, out_path=path(tmp_path))))
    assert check(exact(workflow), FIT[["text"]], strict=True) == "equal"
    workflow.save(str(tmp_path / "saved"))
    with pytest.raises(WorkflowError, match=r"cat_stats\.text\.parquet, and the last fit overwrote"):
        compile_workflow(tmp_path / "saved", "user")


@pytest.mark.parametrize("operator", ["JoinGroupby", "TargetEncoding"])
def test_missing_and_unreadable_statistics(tmp_path, operator):
    workflow, file = _statistics(tmp_path, operator)
    part = next(file.glob("*.parquet"))
    part.write_bytes(part.read_bytes()[:50])
    with pytest.raises(WorkflowError, match=r"cat_stats\.text\.parquet: not readable statistics"):
        compile_workflow(workflow, "user")
    part.unlink()
    file.rmdir()
    with pytest.raises(WorkflowError, match=r"cat_stats\.text\.parquet: expected the statistics"):
        compile_workflow(workflow, "user")


@pytest.mark.parametrize(
    "operator",
    [
        lambda: ops.JoinGroupby(cont_cols=["x"]),
        lambda: ops.TargetEncoding("x", kfold=1),
    ],
)
def test_statistics_that_were_never_fitted(operator):
    workflow = nvt.Workflow(["text"] >> operator() >> ops.AddTags([Tags.USER]))
    workflow.fit_schema(nvt.Dataset(FIT).schema)
    with pytest.raises(UnsupportedOperator, match=r"never fitted|no fitted statistics"):
        compile_workflow(workflow, "user")


def test_a_table_that_is_gone_or_changed(tmp_path):
    file = tmp_path / "table.parquet"
    external(["text"])[["text", "share"]].to_parquet(file)

    def workflow() -> nvt.Workflow:
        table = nvt.Dataset(str(file), engine="parquet")
        join = ops.JoinExternal(table, on="text", columns_ext=["text", "share"])
        return fitted(["text"] >> join)

    one = workflow()
    both = exact(one)
    check(both, FIT[["text"]], strict=True)
    file.unlink()
    one.output_node.parents[0].op._ext_cache = None  # filled by the fit
    with pytest.raises(WorkflowError, match=r"JoinExternal on \['text'\]: its table can't be read"):
        compile_workflow(one, "user")


@pytest.mark.parametrize("name", ["JoinGroupby", "TargetEncoding", "JoinExternal"])
def test_saved_and_loaded(tmp_path, name):
    place, table = path(tmp_path), external(["text"]).drop(columns="huge")
    node = {
        "JoinGroupby": lambda: ["text"] >> ops.JoinGroupby(cont_cols=["x"], stats=STATS, out_path=place),
        "TargetEncoding": lambda: [["text", "int"]] >> ops.TargetEncoding("x", out_path=place),
        "JoinExternal": lambda: ["text"] >> ops.JoinExternal(table, on="text"),
    }[name]()
    workflow = fitted(node)
    workflow.save(str(tmp_path / "saved"))
    frame = request_frame(Drawn(40, 1, 0.2, 0.2), ["text", "int"])
    loaded = nvt.Workflow.load(str(tmp_path / "saved"))
    both = exact(loaded, target_encoding="no_fold")
    check(both, frame, strict=True)
    assert repr(run(both, frame)) == repr(run(exact(workflow, target_encoding="no_fold"), frame))
