"""Sessions: Groupby, and Filter and Dropna before it, against NVTabular on whole sessions."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import nvtabular as nvt
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nvtabular import ops
from own_operator_cases import OWN_CASES
from parity_helpers import compare, rows_of
from session_parity import Both, fitted
from test_feature_operators import FIT as OPERATORS_FIT

from drawing import examples
from tiercel_export.errors import UnsupportedOperator, WorkflowError
from tiercel_export.operators import DatePart, TimeDifference
from tiercel_export.workflow.cut import compile_workflow, cut_workflow
from tiercel_export.workflow.frames import columns_from_frame, oracle_frame
from tiercel_export.workflow.sessions import SessionOracle
from tiercel_serving.errors import InvalidRequest
from tiercel_serving.features.sessions import summed

EDGES = ["list", "count", "first", "last"]
NUMBERS = [*EDGES, "sum", "mean", "min", "max"]
KEY = "session"


def events_frame(rng: np.random.Generator, rows: int, sessions: int, nulls: float = 0.0) -> pd.DataFrame:
    """Return events of every type, unordered, with ties in time and numbers of very different sizes."""

    def holes(values: Any) -> pd.Series:
        series = pd.Series(values)
        return series.where(rng.random(rows) >= nulls, None) if nulls else series

    sizes = 10.0 ** rng.integers(-6, 7, rows)
    return pd.DataFrame(
        {
            KEY: rng.integers(0, sessions, rows),
            "item": holes(np.char.add("i", rng.integers(0, 30, rows).astype(str)).astype(object)),
            "rank": holes(rng.integers(-9, 9, rows)),
            "time": holes(rng.integers(0, 5, rows).astype(float)),
            "place": rng.integers(0, 3, rows),
            "word": holes(rng.choice(["a", "b", "é", ""], rows)),
            "price": holes(np.where(rng.random(rows) < 0.2, -0.0, rng.normal(size=rows) * sizes)),
            "weight": holes((rng.normal(size=rows) * sizes).astype(np.float32)),
            "small": rng.integers(-100, 100, rows).astype(np.int8),
            "flag": rng.random(rows) < 0.5,
        }
    )


FIT = events_frame(np.random.default_rng(0), 400, 50)
COLUMNS = [KEY, "rank", "time", "place", "word", "price", "weight", "small", "flag"]


def grouped(before: Any, **options: Any) -> Any:
    aggregations = {
        "item": EDGES,
        "word": EDGES,
        **dict.fromkeys(("rank", "time", "price", "weight", "small", "flag"), NUMBERS),
    }
    return before >> ops.Groupby(groupby_cols=[KEY], aggs=aggregations, **options)


def items(folder: Path) -> Any:
    return ["item"] >> ops.Categorify(out_path=str(folder / "item"))


def sliced(sessions: Any) -> Any:
    lists = sessions["item-list", "weight-list"]
    return (
        (lists >> ops.ListSlice(-2) >> ops.Rename(postfix="_latest"))
        + (lists >> ops.ListSlice(-4, pad=True, pad_value=-1) >> ops.Rename(postfix="_padded"))
        + (sessions["price-list"] >> ops.LogOp() >> ops.Rename(postfix="_log"))
        + (sessions["word-list"] >> ops.ListSlice(1, 3) >> ops.Rename(postfix="_middle"))
    )


def of_time(folder: Path) -> Any:
    sessions = grouped(COLUMNS + items(folder), sort_cols=["time"], name_sep="-")
    return sessions + sliced(sessions)


def backwards(folder: Path) -> Any:
    return grouped(COLUMNS + items(folder), sort_cols=["place", "word", "time"], ascending=False)


def as_they_come(folder: Path) -> Any:
    known = ["price"] >> ops.FillMissing(1.5)
    buckets = ["small"] >> ops.Bucketize([-50, 0, 50])
    others = [KEY, "time", "word", "weight", "flag"]
    return grouped(others + known + buckets + items(folder), name_sep=".")


def kept(frame: Any) -> Any:
    return (
        (frame["small"] > -40.5) & ~frame["word"].isin(["b", "x"]) & (frame["price"] <= frame["small"])
    ) | (frame["flag"] & frame.weight.notna() & (frame["place"] != 1))


def filtered(folder: Path) -> Any:
    events = (
        (COLUMNS + items(folder)) >> ops.Filter(kept) >> ops.Filter(lambda df: df[df["place"].between(0, 1)])
    )
    return grouped(events, sort_cols=["time"], name_sep="-")


def without_nulls(folder: Path) -> Any:
    events = [*COLUMNS, "item"] >> ops.Dropna()
    return grouped(events, sort_cols=["place"], ascending=[False])


GRAPHS = {g.__name__: g for g in (of_time, backwards, as_they_come, filtered, without_nulls)}


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Both]:
    return {name: Both(graph(tmp_path_factory.mktemp(name)), FIT) for name, graph in GRAPHS.items()}


def drawn_sessions(seed: int, rows: int, longest: int, nulls: float) -> pd.DataFrame:
    """Draw sessions of 0 to ``longest`` events, a fifth of them emptied, with distinct shuffled keys."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, longest + 1, rows)
    lengths[rng.random(rows) < 0.2] = 0
    events = events_frame(rng, int(lengths.sum()), 1, nulls)
    if events["item"].isna().all():
        events["item"] = "i1"  # NVTabular raises on a column that is all null
    ends = np.cumsum(lengths)
    out: dict[str, Any] = {KEY: rng.permutation(rows * 3)[:rows] - rows}
    for name in events.columns.drop(KEY):
        values = events[name].tolist()
        rows_of_name = np.empty(rows, object)
        rows_of_name[:] = [values[e - n : e] for e, n in zip(ends.tolist(), lengths.tolist(), strict=True)]
        out[name] = rows_of_name
    return pd.DataFrame(out)


DRAWN = st.builds(
    drawn_sessions,
    st.integers(0, 2**32 - 1),
    st.sampled_from([40, 7, 1]),
    st.sampled_from([30, 3, 1]),
    st.sampled_from([0.3, 0.0, 1.0]),
)


@pytest.mark.parametrize("graph", GRAPHS)
@examples(2)
@given(sessions=DRAWN)
def test_drawn_sessions(graph: str, sessions: pd.DataFrame, graphs: dict[str, Both]) -> None:
    graphs[graph].check(sessions)


@pytest.mark.slow
@pytest.mark.parametrize("graph", GRAPHS)
@settings(max_examples=60)
@given(sessions=DRAWN)
def test_many_drawn_sessions(graph: str, sessions: pd.DataFrame, graphs: dict[str, Both]) -> None:
    graphs[graph].check(sessions)


@pytest.mark.parametrize("rows", [0, 1, 7, 1000, pytest.param(20_000, marks=pytest.mark.slow)])
def test_frames_of_any_size(rows: int, graphs: dict[str, Both]) -> None:
    sessions = drawn_sessions(rows, rows, 12, 0.1)
    for name in ("of_time", "filtered"):
        assert graphs[name].check(sessions) == 0 or rows


def test_rows_alone_are_what_they_are_in_a_batch(graphs: dict[str, Both]) -> None:
    sessions = drawn_sessions(3, 20, 9, 0.2)
    for both in graphs.values():
        inputs = both.compiled.inputs
        many = both.compiled.program.run(columns_from_frame(oracle_frame(sessions, inputs), inputs), 20)
        for row in (0, 7, 19):
            frame = oracle_frame(sessions.iloc[row : row + 1], inputs)
            one = both.compiled.program.run(columns_from_frame(frame, inputs), 1)
            for name, column in one.items():
                own = rows_of(many[name], np.arange(20) == row)
                assert own.values.dtype == column.values.dtype
                real = np.ones(len(own.values), bool) if own.valid is None else own.valid
                assert (
                    own.values[real].tobytes() == column.values[real].tobytes() or own.values.dtype == object
                )
                assert (
                    own.values[real].tolist() == column.values[real].tolist() or own.values.dtype.kind == "f"
                )


def test_ties_stay_in_the_order_of_the_request(graphs: dict[str, Both]) -> None:
    times, count = np.repeat([1.0, 0.0], 100), 200
    sessions = pd.DataFrame({KEY: [5], "time": [times.tolist()], "place": [[1] * count]})
    sessions = sessions.assign(
        item=[["i1"] * count],
        rank=[[1] * count],
        word=[["a"] * count],
        price=[[float(n) for n in range(count)]],
        weight=[[0.0] * count],
        small=[[0] * count],
        flag=[[True] * count],
    )
    both = graphs["of_time"]
    frame = oracle_frame(sessions, both.compiled.inputs)
    got = both.compiled.program.run(columns_from_frame(frame, both.compiled.inputs), 1)
    assert got["price-list"].values.tolist() == [*range(100, 200), *range(100)]
    both.check(sessions)


@pytest.mark.slow
def test_every_operator_of_ours_before_groupby(tmp_path: Path) -> None:
    """Each operator sees all events of all sessions at once, and the batch has fewer sessions than events."""
    scalars = [name for name in OPERATORS_FIT if not isinstance(OPERATORS_FIT[name][0], (list, np.ndarray))]
    when = pd.Timestamp("2024-02-28") + pd.to_timedelta(OPERATORS_FIT["age"], "h")
    since = when - pd.Timedelta("5h")
    events = OPERATORS_FIT[scalars].assign(**{KEY: np.arange(24) % 5, "when": when, "since": since})
    made: Any = [KEY] + (["when"] >> DatePart("month", "hour")) + (["when"] >> TimeDifference("since", "h"))
    for number, maker in enumerate(maker for makers in OWN_CASES.values() for maker in makers):
        made = made + (maker(str(tmp_path / str(number))) >> ops.Rename(postfix=f"_{number}"))
    names = nvt.Workflow(made).fit_schema(nvt.Dataset(events, cpu=True).schema).output_schema.column_names
    aggregations = dict.fromkeys((name for name in names if name != KEY), "list")
    both = Both(made >> ops.Groupby([KEY], aggs=aggregations, name_sep="-"), events)
    lists = events.groupby(KEY).agg(list).reset_index()
    assert both.check(lists) == 5
    assert both.check(lists.iloc[1:2]) == 1


def test_sessions_in_the_order_of_dates(tmp_path: Path) -> None:
    """Dates sort events, and can be the first, last, earliest and latest value of a session."""
    rng = np.random.default_rng(2)
    moments = pd.Timestamp("2024-02-28") + pd.to_timedelta(rng.integers(0, 10**6, 60), "s")
    events = pd.DataFrame({KEY: rng.integers(0, 9, 60), "when": moments, "item": rng.integers(0, 9, 60)})
    events.loc[[3, 40], "when"] = pd.NaT
    events["seen"] = events["when"] - pd.Timedelta("90m")
    since = ["when"] >> TimeDifference("seen", "h") >> ops.Rename(name="since")
    edges = ["first", "last", "min", "max"]
    raw = [KEY, "when", "item"]
    sessions = raw + since >> ops.Groupby(
        [KEY],
        aggs={"item": ["list", "last"], "since": ["list", "max"], "when": ["count", *edges]},
        sort_cols=["when"],
    )
    parts = sessions[[f"when_{edge}" for edge in edges]] >> DatePart("month", "day", "hour")
    both = Both(sessions["item_list", "item_last", "since_list", "since_max", "when_count"] + parts, events)
    lists = events.groupby(KEY).agg(list).reset_index()
    assert both.check(lists) == len(lists)
    assert both.check(lists.iloc[4:5]) == 1
    with pytest.raises(UnsupportedOperator, match=r"a list of datetime64\[ns\].*DatePart"):
        Both([KEY, "when"] >> ops.Groupby([KEY], aggs={"when": "list"}), events)


def test_a_session_without_events(graphs: dict[str, Both]) -> None:
    """Sessions without events, with all events filtered out, or with only a key have a row, as documented."""
    names = [name for name in FIT.columns if name != KEY]
    lost = {name: [FIT[name].tolist()[0]] for name in names} | {"small": [-100], "flag": [False]}
    rows = [{name: [] for name in names}, lost, dict.fromkeys(names)]
    sessions = pd.DataFrame([{KEY: number, **row} for number, row in enumerate(rows)])
    both = graphs["filtered"]
    frame = oracle_frame(sessions, both.compiled.inputs)
    got = both.compiled.program.run(columns_from_frame(frame, both.compiled.inputs), 3)
    assert both.oracle.answers(frame)[0].tolist() == []
    assert got[KEY].values.tolist() == [0, 1, 2]
    for name, column in got.items():
        end = name.split("-")[-1]
        if end == "list":
            assert column.offsets.tolist() == [0] * 4
            assert column.row_valid is None
        elif end in ("count", "sum"):
            assert column.values.tolist() == [0] * 3
            assert column.valid is None
        elif end != KEY:
            null = np.isnan(column.values) if column.values.dtype.kind == "f" else ~column.valid
            assert null.all(), name


def test_columns_that_are_not_sent_are_null_at_each_event(graphs: dict[str, Both]) -> None:
    both = graphs["of_time"]
    sessions = drawn_sessions(4, 6, 5, 0.0)
    spelled = sessions.assign(price=sessions["price"].map(lambda row: [None] * len(row)))
    left_out = sessions.assign(price=None)
    inputs = both.compiled.inputs
    want, got = (
        both.compiled.program.run(columns_from_frame(oracle_frame(frame, inputs), inputs), 6)
        for frame in (spelled, left_out)
    )
    for name in want:
        assert np.array_equal(
            want[name].values, got[name].values, equal_nan=want[name].values.dtype.kind == "f"
        )
    ragged = sessions.assign(price=[[0.5] * (len(row) + 1) for row in sessions["price"]])
    columns = columns_from_frame(oracle_frame(ragged, inputs), inputs)
    with pytest.raises(InvalidRequest, match=r"row 0 is a session whose columns .* one value for each event"):
        both.compiled.program.run(columns, 6)


# -------------------------------------------------------------------------------------------------- refusals

BARE = FIT[[KEY, "time", "place", "word", "price"]].assign(tags=[[1]] * len(FIT))

REFUSALS = {
    "two keys": (
        lambda: [KEY, "place", "price"] >> ops.Groupby([KEY, "place"], aggs={"price": "list"}),
        "2 keys",
    ),
    "std": (lambda: [KEY, "price"] >> ops.Groupby([KEY], aggs={"price": "std"}), "'std' is not compiled"),
    "var": (lambda: [KEY, "price"] >> ops.Groupby([KEY], aggs={"price": ["sum", "var"]}), "'var'"),
    "again": (
        lambda: (
            [KEY, "place", "price"]
            >> ops.Groupby([KEY], aggs={"price": "sum", "place": "max"})
            >> ops.Groupby([KEY], aggs={"price_sum": "max"})
        ),
        "sessions already",
    ),
    "a sum of text": (lambda: [KEY, "word"] >> ops.Groupby([KEY], aggs={"word": "max"}), "no max of text"),
    "the name": (
        lambda: [KEY, "price"] >> ops.Groupby([KEY], aggs={"price": "sum"}, name_sep="|"),
        "by the name alone",
    ),
    "lists of lists": (lambda: [KEY, "tags"] >> ops.Groupby([KEY], aggs={"tags": "list"}), "lists of lists"),
    "the next row": (
        lambda: (
            [KEY] + (["price"] >> ops.DifferenceLag(KEY, 1))
            >> ops.Groupby([KEY], aggs={"price_difference_lag_1": "list"})
        ),
        "subtracts another row",
    ),
    "a whole column": (
        lambda: (
            [KEY, "price"] >> ops.Filter(lambda df: df["price"] > df["price"].mean()) >> ops.Groupby([KEY])
        ),
        r"can't be read as comparisons of columns: it uses \.mean of a column",
    ),
    "a branch": (
        lambda: (
            [KEY, "price"] >> ops.Filter(lambda df: df[df.price > 0] if len(df) else df) >> ops.Groupby([KEY])
        ),
        "can't be read as comparisons",
    ),
    "filters that differ": (
        lambda: (
            ([KEY, "price"] >> ops.Filter(lambda df: df["price"] < 1e30)) + (["place"])
            >> ops.Groupby([KEY], aggs={"price": "list", "place": "list"})
        ),
        "other filters",
    ),
    "the key among its events": (
        lambda: (
            [KEY, "price"] + ([[KEY, "place"]] >> ops.Categorify(encode_type="combo")) >> ops.Groupby([KEY])
        ),
        "together with its key|also a column of their events",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals_that_stay(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    node, said = REFUSALS[case]
    with pytest.raises((UnsupportedOperator, WorkflowError), match=said):
        compile_workflow(fitted(node(), BARE), "user")


def test_an_event_alone_is_refused() -> None:
    sessions = [KEY, "price"] >> ops.Groupby([KEY], aggs={"price": "list"})
    node = sessions + (["price"] >> ops.FillMissing() >> ops.Rename(postfix="_each"))
    parts = {"price_each": "context"}
    with pytest.raises(WorkflowError, match="'price_each' has a value for each event of a session"):
        compile_workflow(fitted(node, BARE), "user", parts=parts)


# ------------------------------------------------------------------------------------------------- rows kept


@pytest.mark.parametrize("drop", ["Filter", "Dropna"])
def test_rows_are_kept_by_choice_alone(drop: str, tmp_path: Path) -> None:
    """With ``rows="keep"``, a row that NVTabular would drop passes through the following operators."""
    operator = ops.Dropna() if drop == "Dropna" else ops.Filter(lambda df: df["price"] > 0)
    node = ["price", "word"] >> operator
    after = (node["price"] >> ops.FillMissing(7.0) >> ops.LogOp()) + (
        node["word"] >> ops.Categorify(out_path=str(tmp_path))
    )
    fit = pd.DataFrame({"price": [1.0, 2.0, 3.0], "word": ["a", "b", "a"]})
    workflow = fitted(after, fit)
    parts = {"price": "user", "word": "user"}
    with pytest.raises(UnsupportedOperator, match=r"drops rows.*rows='keep'"):
        compile_workflow(workflow, "user", parts=parts)
    with pytest.raises(WorkflowError, match="rows must be None or 'keep', got 'all'"):
        cut_workflow(workflow, parts=parts, rows="all")
    compiled = compile_workflow(workflow, "user", parts=parts, rows="keep")
    frame = pd.DataFrame({"price": [3.0, np.nan, -0.5, 1.0], "word": ["a", "b", None, "x"]})
    got = compiled.program.run(columns_from_frame(frame, compiled.inputs), 4)
    # NVTabular's answer to the rows that it keeps, and to all rows without the operator.
    plain = (["price"] >> ops.FillMissing(7.0) >> ops.LogOp()) + (
        ["word"] >> ops.Categorify(out_path=str(tmp_path / "plain"))
    )
    expected = fitted(plain, fit).transform(frame)
    for name in ("price", "word"):
        compare(name, expected[name], got[name], np.zeros(4, bool), flexible=False)
    passing = frame["price"] > 0 if drop == "Filter" else frame.notna().all(axis=1)
    left = workflow.transform(frame)
    for name in ("price", "word"):
        compare(
            name,
            left[name],
            rows_of(got[name], passing.to_numpy()),
            np.zeros(len(left), bool),
            flexible=False,
        )


def test_rows_kept_after_groupby(tmp_path: Path) -> None:
    """``count >= 2`` at the end, as in public examples: a served session of one event still gets a row."""
    sessions = (items(tmp_path) + KEY) >> ops.Groupby([KEY], aggs={"item": ["list", "count"]}, name_sep="-")
    node = sessions >> ops.Filter(lambda df: df["item-count"] >= 2)
    workflow = fitted(node, FIT)
    with pytest.raises(UnsupportedOperator, match="drops rows"):
        compile_workflow(workflow, "user")
    compiled = compile_workflow(workflow, "user", rows="keep")
    inputs = compiled.inputs
    frame = oracle_frame(pd.DataFrame({KEY: [1, 2], "item": [["i3"], ["i4", "i5"]]}), inputs)
    got = compiled.program.run(columns_from_frame(frame, inputs), 2)
    assert got["item-count"].values.tolist() == [1, 2]
    oracle = SessionOracle(cut_workflow(workflow, rows="keep"), "user")
    answered, expected = oracle.answers(frame)
    assert answered.tolist() == [0, 1]
    for name, column in got.items():
        compare(name, expected[name], column, np.zeros(2, bool), flexible=False)


def test_sums_are_those_of_pandas() -> None:
    """Kahan summation with the same rounding, infinities included."""
    rng = np.random.default_rng(5)
    for dtype in (np.float32, np.float64, np.int64):
        values = (rng.normal(size=300) * 10.0 ** rng.integers(-9, 10, 300)).astype(dtype)
        if dtype is not np.int64:
            values[[17, 90, 91]] = np.inf, np.inf, -np.inf
        rows = np.sort(rng.integers(0, 40, 300))
        offsets = np.searchsorted(rows, np.arange(41))
        want = pd.Series(values).groupby(rows).sum().reindex(range(40), fill_value=0).to_numpy()
        with np.errstate(invalid="ignore"):
            got = summed(values, offsets)
            alone = [summed(values[a:b], np.array([0, b - a]))[0] for a, b in pairwise(offsets.tolist())]
        assert got.dtype == dtype
        assert np.array_equal(got, want, equal_nan=dtype is not np.int64)
        assert np.array_equal(alone, want, equal_nan=dtype is not np.int64)


def test_the_guides_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    guide = Path(__file__).parents[2].joinpath("docs", "features.md").read_text(encoding="utf-8")
    graph, request = re.findall(
        r"```python\n(.*?)```", guide.split("<!-- sessions: a test runs this -->")[1], re.S
    )[:2]
    known: dict[str, Any] = {
        "compile_workflow": compile_workflow,
        "columns_from_frame": columns_from_frame,
        "pd": pd,
    }
    exec(graph, known)
    fit = pd.DataFrame(
        {
            "session_id": [1, 1, 2, 2],
            "item_id": [3, 7, 7, 7],
            "timestamp": [1, 2, 3, 4],
            "price": [1.0, 2.0, 3.0, 4.0],
        }
    )
    known["workflow"] = fitted(known["long_enough"], fit)
    exec(request, known)
    packed = known["packed"]
    # 7 is the most frequent item, and so the first of the vocabulary.
    assert packed["user_list_item_id__x2d_list"].tolist() == [[4, 3, 3]]
    assert packed["user_cat"].tolist() == [[3]]
    assert packed["user_num"].tolist() == [[3.0]]
