"""Random operator graphs and random frames: the compiled program equals NVTabular to the last bit."""

from __future__ import annotations

import itertools
import warnings
from pathlib import Path

import numpy as np
import nvtabular as nvt
import pandas as pd
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from merlin.schema import Tags
from nvtabular import ops
from parity_helpers import check, pair

TEXTS = ["", "a", "b", "aa", "é", "e\u0301", "日本", "a\0", "\0", " ", "None", "nan", "🦅" * 9]
INTS = [0, 1, 2, 3, 5, 7, -1, -2, 40, 99, 127, -128, 1000, 2**31, -(2**40), 2**52 + 1]
FLOATS = [0.0, -0.0, 0.5, 1.0, 1.5, 3.0, -0.5, -1.0, -2.5, 5.5, 1e-9, 7.25, 99.0, 1e6, 2.0**60, 1e30]

#: name → (values at fit, more values that only requests have, dtype, nulls at fit, list)
COLUMNS = {
    "int": (INTS, [12345, -(2**62), 2**62 + 1], "int64", False, False),
    "small": ([v for v in INTS if -100 < v < 100], [100, -128], "int8", False, False),
    "holes": ([float(v) for v in INTS], [5.5, np.inf, -np.inf, 1e300], "float64", True, False),
    "double": (FLOATS, [np.inf, -np.inf, 1e308, -1e308, 5e-324], "float64", True, False),
    "single": ([f for f in FLOATS if abs(f) < 1e20], [np.inf, -np.inf, 3e38], "float32", True, False),
    "flag": ([True, False], [], "bool", False, False),
    "text": (TEXTS, ["unseen", "A", "a\0\0"], "object", False, False),
    "maybe": (TEXTS[:8], ["unseen"], "object", True, False),
    "ints": (INTS[:9], [777], "int64", False, True),
    "texts": (TEXTS, ["unseen"], "object", False, True),
    "floats": (FLOATS[:12], [1e9], "float64", False, True),
    "singles": (FLOATS[:12], [1e9], "float32", False, True),
}
LISTS = [name for name, spec in COLUMNS.items() if spec[4]]
NUMBERS = [name for name, spec in COLUMNS.items() if spec[2] != "object" and not spec[4]]


def sample(name: str, rows: int, rng: np.random.Generator, *, request: bool, nulls: float) -> pd.Series:
    values, more, dtype, may_be_null, is_list = COLUMNS[name]
    pool = np.empty(len(values) + (len(more) if request else 0), object)
    pool[:] = [*values, *more] if request else values
    null = (may_be_null or request) and nulls > 0
    if is_list:
        data = [list(pool[rng.integers(0, len(pool), rng.choice([0, 1, 2, 3, 40]))]) for _ in range(rows)]
        if rows:
            data[0] = data[0] or [values[0]]
        if request and null:
            data = [[None if rng.random() < nulls / 2 else e for e in row] for row in data]
        if request and nulls > 0.25:
            data = [None if rng.random() < nulls / 2 else row for row in data]
        series = pd.Series(index=range(rows), dtype=object)
        if dtype == "float32":
            data = [None if row is None else np.array(row, np.float32) for row in data]
        for i, row in enumerate(data):
            series.iat[i] = row
        return series
    data = pool[rng.integers(0, len(pool), rows)]
    if null:
        data[rng.random(rows) < nulls] = None
    if dtype == "object" or request:
        return pd.Series(data, dtype=object)
    return pd.Series(data).astype(dtype)


def fit_frame(seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame({name: sample(name, 60, rng, request=False, nulls=0.1) for name in COLUMNS})


# A graph is drawn as data: for each branch the raw columns, and a list of operators with parameters.

scalars = st.sampled_from([0, 1, -3, 50, 0.5, 2.25, -1.0])
fill = st.tuples(st.just("fill"), scalars, st.booleans())
clip = st.tuples(st.just("clip"), scalars | st.none(), scalars | st.none()).filter(
    lambda c: c[1:] != (None, None)
)
log = st.just(("log",))
normalize = st.tuples(st.just("normalize"), st.sampled_from([None, np.float32]))
bucketize = st.tuples(
    st.just("bucketize"),
    st.sampled_from([[0, 1, 5], [-1.5, 0.5, 0.5, 40.0], [3], [9.5, 2.0, -4.0], [10, 0, -10]]),
)
categorify = st.tuples(
    st.just("categorify"),
    st.sampled_from([{}, {"freq_threshold": 3}, {"max_size": 7}, {"dtype": np.int32}]),
)
rename = st.tuples(st.just("rename"), st.sampled_from(["_x", "_renamed"]))
number_ops = st.lists(st.one_of(fill, clip, log, normalize, bucketize, rename), max_size=4)
text_ops = st.lists(
    st.tuples(st.just("fill"), st.sampled_from(["", "a", "né"]), st.booleans()) | rename, max_size=2
)
list_ops = st.lists(st.one_of(log, normalize, rename), max_size=2)


@st.composite
def graphs(draw):
    branches = []
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(["numbers", "numbers", "texts", "lists"]))
        if kind == "numbers":
            names = draw(st.lists(st.sampled_from(NUMBERS), min_size=1, max_size=4, unique=True))
            chain = draw(number_ops) + draw(st.lists(categorify, max_size=1))
        elif kind == "texts":
            names = draw(st.lists(st.sampled_from(["text", "maybe"]), min_size=1, max_size=2, unique=True))
            chain = [*draw(text_ops), draw(categorify)]
        else:
            names = draw(
                st.lists(
                    st.sampled_from(["ints", "texts", "floats", "singles"]),
                    min_size=1,
                    max_size=2,
                    unique=True,
                )
            )
            chain = draw(list_ops) if "texts" not in names else []
            chain = chain + draw(st.lists(categorify, min_size=int(not chain), max_size=1))
        branches.append((names, chain))
    return branches


OPERATORS = {
    "fill": lambda value, flag: ops.FillMissing(fill_val=value, add_binary_cols=flag),
    "clip": lambda low, high: ops.Clip(min_value=low, max_value=high),
    "log": ops.LogOp,
    "normalize": ops.Normalize,
    "bucketize": ops.Bucketize,
    "rename": lambda postfix: ops.Rename(postfix=postfix),
}


def build(branches, folder: Path) -> nvt.Workflow:
    """Make the graph; each branch renames its columns first, so that no output bears another's name."""
    total = None
    for number, (names, chain) in enumerate(branches):
        node = names >> ops.Rename(postfix=f"_{number}")
        for step, (name, *parameters) in enumerate(chain):
            if name == "categorify":
                path = folder / f"{number}-{step}"
                path.mkdir()
                node = node >> ops.Categorify(out_path=str(path), **parameters[0])
            else:
                node = node >> OPERATORS[name](*parameters)
        total = node if total is None else total + node
    return nvt.Workflow(total >> ops.AddTags([Tags.USER]))


COUNTER = itertools.count()


def run_graph(branches, frames, folder: Path, seed: int) -> list[str]:
    from tiercel_export.errors import UnsupportedOperator

    place = folder / str(next(COUNTER))
    place.mkdir()
    workflow = build(branches, place)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fitted = fit_frame(seed)
        try:
            workflow.fit(nvt.Dataset(fitted))
        except Exception:  # NVTabular can't fit an empty vocabulary, such as one of rare values only
            return ["unfit"]
        try:
            both = pair(workflow, anchor=fitted)
        except UnsupportedOperator:
            return ["refused"]
        both.wide = frozenset(both.oracle.outputs)  # chains may widen integers by content
        results = []
        for rows, frame_seed, nulls in frames:
            rng = np.random.default_rng(frame_seed)
            inputs = [column.name for column in both.program.inputs]
            frame = pd.DataFrame(
                {name: sample(name, rows, rng, request=True, nulls=nulls) for name in inputs}
            )
            results.append(check(both, frame))
    return results


frame_lists = st.lists(
    st.tuples(
        st.sampled_from([0, 1, 1, 2, 7, 40, 1000]),
        st.integers(0, 2**32),
        st.sampled_from([0.0, 0.2, 0.5, 1.0]),
    ),
    min_size=20,
    max_size=20,
)


@settings(
    max_examples=20,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    derandomize=True,
)
@given(graphs(), frame_lists, st.integers(0, 1000))
def test_random_graphs(tmp_path, branches, frames, seed):
    run_graph(branches, frames, tmp_path, seed)


@pytest.mark.slow
@settings(
    max_examples=1000,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(graphs(), st.lists(frame_lists, min_size=2, max_size=2), st.integers(0, 2**32))
def test_many_random_graphs(tmp_path, branches, frames, seed):
    run_graph(branches, [frame for group in frames for frame in group], tmp_path, seed)
