"""Bloom filters: no false negatives, false positives at the stated rate, and sizes by the formula."""

from __future__ import annotations

from math import log, log2

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drawing import examples
from tiercel_serving.stores.bloom import (
    FIRST,
    ItemProbes,
    SeenFilter,
    build_filters,
    check_series,
    holds,
    item_keys,
    put,
    read_series,
)

ids = st.lists(st.integers(-(2**63), 2**63 - 1), max_size=30) | st.lists(st.binary(max_size=9), max_size=30)


def array(values: list[int] | list[bytes]) -> np.ndarray:
    if not values or isinstance(values[0], int):
        return np.array(values, np.int64)
    out = np.empty(len(values), np.object_)
    out[:] = values
    return out


@examples(4)
@given(put_in=ids, asked=ids, rate=st.sampled_from([0.5, 0.1, 0.001]))
def test_all_items_at_once_are_as_one_by_one(put_in: list, asked: list, rate: float) -> None:
    kept = SeenFilter(1, rate)
    if put_in and asked and type(put_in[0]) is not type(asked[0]):
        asked = []
    every = [*put_in, *asked]
    probes, keys = ItemProbes(array(every)), item_keys(array(every)).tolist()
    series = put(b"", put_in, kept)
    want = [
        place
        for place, key in enumerate(keys)
        if any(holds(bits, k, key) for k, _, bits in read_series(series))
    ]
    assert probes.members_of_series(series).tolist() == want
    assert set(range(len(put_in))) <= set(want)
    assert check_series(series) == series == put(series, put_in, kept), "what is there changes nothing"
    owners = np.zeros(len(put_in), np.int64) + 1
    offsets, data = build_filters(owners, item_keys(array(put_in)), 3, kept.of_release)
    assert offsets[1] == 0
    assert offsets[2] == offsets[3]
    if put_in:
        want = [place for place, key in enumerate(keys) if holds(data.tobytes(), kept.of_release, key)]
        assert probes.members(data, kept.of_release).tolist() == want
        assert set(range(len(put_in))) <= set(want)


@pytest.mark.parametrize("rate", [0.05, 0.002])
def test_rates_and_sizes_are_what_is_said(rate: float) -> None:
    kept, n, strangers = SeenFilter(1, rate), 3 * FIRST + 100, 60_000
    probes = ItemProbes(np.arange(n + strangers) * 7)
    keys = item_keys(np.arange(n) * 7)
    _, data = build_filters(np.zeros(n, np.int64), keys, 1, kept.of_release)
    series = put(b"", (np.arange(n) * 7).tolist(), kept)
    bits = n * log2(2 / rate) / log(2)
    assert bits <= len(data) * 8 <= bits * (1 + 1 / log2(2 / rate)) + 64
    stages = list(read_series(series))
    assert [count for _, count, _ in stages] == pytest.approx([FIRST, 2 * FIRST, 100], abs=30)
    assert [k - stages[0][0] for k, _, _ in stages] == [0, 1, 2]
    for found in (probes.members(data, kept.of_release), probes.members_of_series(series)):
        wrong = np.count_nonzero(found >= n)
        assert np.count_nonzero(found < n) == n
        # Half of the rate is expected; the margin is four standard errors.
        assert wrong <= strangers * rate / 2 + 4 * (strangers * rate / 2) ** 0.5


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (SeenFilter(0), "beyond: expected a whole number of at least 1, got 0"),
        (SeenFilter(5, 0.0), "false_positives: expected a number of at least 1e-09 and at most 0.5, got 0.0"),
        (SeenFilter(5, 0.7), "false_positives: expected a number of at least 1e-09"),
    ],
)
def test_what_makes_no_sense_is_said(settings: SeenFilter, said: str) -> None:
    assert said in "\n".join(map(str, settings.problems()))


@pytest.mark.parametrize("data", [b"x", bytes(12), b"\1\0\0\0" * 3, put(b"", [1], SeenFilter())[:-1]])
def test_other_bytes_are_no_filters(data: bytes) -> None:
    with pytest.raises(ValueError, match="not Bloom filters"):
        check_series(data)
