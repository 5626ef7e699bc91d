"""Frames with keys of every kind, for the operators that look rows up in fitted tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from hypothesis import HealthCheck, Phase
from hypothesis import strategies as st

from drawing import examples

TEXTS = ["", "a", "b", "é", "e\u0301", "東京", " ", "None", "nan", "🦅" * 9]
INTS = [0, 1, 2, 3, -1, 7, 255, 2**31, -(2**40), 2**53, 2**53 + 1, 2**62 + 1]
FLOATS = [0.0, -0.0, 1.0, 1.5, -2.5, 0.1, 7.0, 1e-9, 2.0**60, 1e300, np.inf, -np.inf]

#: Column → dtype at fit, values of the fit, further values of requests alone, whether the fit has nulls.
POOLS: dict[str, tuple[str, list[Any], list[Any], bool]] = {
    "int": ("int64", INTS, [5, -7, 2**62, 2**62 + 2], False),
    "small": ("int8", [0, 1, 2, -3, 100], [4, -128], False),
    "unsigned": ("uint32", [0, 1, 7, 2**32 - 1], [2], False),
    "holes": ("float64", [float(v) for v in INTS[:9]], [0.5, 8.0, np.inf], True),
    "double": ("float64", FLOATS, [2.0, 5e-324, -1e300], True),
    "single": ("float32", [0.0, 1.0, 1.5, float(np.float32(0.1)), -np.inf], [np.inf, 3.0], True),
    "flag": ("bool", [True, False], [], False),
    "text": ("object", TEXTS, ["unseen", "A", "a\0", "\0"], False),
    "maybe": ("object", TEXTS[:6], ["unseen"], True),
}
KEYS = list(POOLS)


@dataclass(frozen=True)
class Drawn:
    """A frame to draw: number of rows, seed, share of null cells, share of unseen values."""

    rows: int
    seed: int
    nulls: float = 0.0
    unseen: float = 0.0


def fit_frame(rows: int, seed: int) -> pd.DataFrame:
    """Return a frame to fit on, with targets and numeric values in addition to the keys."""
    rng = np.random.default_rng(seed)
    frame = {}
    for name, (dtype, values, _, may_be_null) in POOLS.items():
        data = _objects(values)[rng.integers(0, len(values), rows)]
        if may_be_null:
            data[rng.random(rows) < 0.15] = None
        frame[name] = pd.Series(data, dtype=object) if dtype == "object" else _typed(data, dtype)
    frame["x"] = pd.Series(np.where(rng.random(rows) < 0.1, np.nan, rng.normal(size=rows) * 10**6))
    frame["y"] = pd.Series(rng.normal(size=rows).astype(np.float32))
    frame["n"] = pd.Series(rng.integers(-1000, 1000, rows).astype(np.int32))
    frame["hit"] = pd.Series(rng.integers(0, 2, rows))
    return pd.DataFrame(frame)


def request_frame(drawn: Drawn, names: list[str]) -> pd.DataFrame:
    """Return a request's frame of these columns, all of them ``object``."""
    rng = np.random.default_rng(drawn.seed)
    frame = {}
    for name in names:
        _, values, more, _ = POOLS[name]
        data = _objects(values)[rng.integers(0, len(values), drawn.rows)]
        if more:
            unseen = rng.random(drawn.rows) < drawn.unseen
            data[unseen] = _objects(more)[rng.integers(0, len(more), int(unseen.sum()))]
        data[rng.random(drawn.rows) < drawn.nulls] = None
        frame[name] = pd.Series(data, dtype=object)
    return pd.DataFrame(frame)


def known_keys(fit: pd.DataFrame, frame: pd.DataFrame, names: list[str]) -> np.ndarray:
    """Return a mask of the rows whose keys the fit has seen. A null is a key like any other."""
    seen = set(_tuples(fit, names))
    return np.array([row in seen for row in _tuples(frame, names)], bool)


def _tuples(frame: pd.DataFrame, names: list[str]) -> list[tuple[Any, ...]]:
    columns = [[None if v is None or v != v else v for v in frame[name].tolist()] for name in names]
    return list(zip(*columns, strict=True))


def _typed(data: np.ndarray, dtype: str) -> pd.Series:
    if dtype.startswith("float"):
        return pd.Series([np.nan if value is None else value for value in data], dtype=dtype)
    return pd.Series(data.astype(dtype))


def _objects(values: list[Any]) -> np.ndarray:
    out = np.empty(len(values), object)
    out[:] = values
    return out


#: Requests that together cover all cases: no rows, one, many; nulls, unseen values, both.
REQUESTS = [
    Drawn(0, 1),
    Drawn(1, 2),
    Drawn(1, 3, 0.5, 0.5),
    Drawn(40, 4, 0.4, 0.0),
    Drawn(40, 5, 0.0, 0.6),
    Drawn(1000, 6, 0.3, 0.4),
]

shares = st.sampled_from([0.0, 0.0, 0.2, 0.5, 1.0])
requests = st.builds(
    Drawn, st.sampled_from([0, 1, 1, 2, 7, 40, 1000]), st.integers(0, 2**32 - 1), shares, shares
)
groups = st.lists(st.sampled_from(KEYS), min_size=1, max_size=4, unique=True)

#: Few examples, since each one fits a workflow.
SOME = examples(4, phases=[Phase.explicit, Phase.generate], suppress_health_check=list(HealthCheck))
