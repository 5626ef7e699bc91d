"""Lookups and stored columns are exact for every key, at every batch size, through a memory map."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tiercel_serving.artefacts import open_artefact, write_artefact
from tiercel_serving.column_store import open_column, store_column
from tiercel_serving.columns import Column
from tiercel_serving.lookup import BytesLookup, DirectLookup, IntLookup, build_lookup, open_lookup

INT64 = st.integers(-(2**63), 2**63 - 1)
KEYS = st.one_of(
    st.binary(max_size=12), st.text(max_size=8).map(lambda s: s.encode("utf-8", "surrogatepass"))
)
EXTREMES = [0, 1, -1, 2**63 - 1, -(2**63), 2**53 + 1, 2**31, -(2**31)]


def objects(items) -> np.ndarray:
    out = np.empty(len(items), np.object_)
    out[:] = items
    return out


def check(keys: np.ndarray, asked: np.ndarray, lookup) -> None:
    position = {key: i for i, key in enumerate(keys.tolist())}
    expected = [position.get(value, -1) for value in asked.tolist()]
    found = lookup.find(asked)
    assert found.dtype == np.int64
    assert found.tolist() == expected
    for value, answer in zip(asked[:3], expected[:3], strict=True):
        one = np.array([value], asked.dtype)
        assert lookup.find(one).tolist() == [answer]


@given(st.lists(INT64, unique=True, max_size=60), st.lists(INT64, max_size=60))
def test_any_integers(keys, asked):
    keys = np.array(keys, np.int64)
    check(keys, np.array([*asked, *keys.tolist(), *EXTREMES], np.int64), open_lookup(build_lookup(keys)))


@given(st.integers(-(2**63), 2**63 - 500), st.sets(st.integers(0, 400), min_size=1))
def test_dense_integers_anywhere_use_a_direct_table(lowest, steps):
    keys = np.array([lowest + step for step in steps], np.int64)
    lookup = open_lookup(build_lookup(keys))
    assert isinstance(lookup, DirectLookup)
    asked = [k + d for k in keys.tolist() for d in (-1, 0, 1) if -(2**63) <= k + d < 2**63]
    check(keys, np.array([*asked, *EXTREMES], np.int64), lookup)


@pytest.mark.parametrize("stride", [1, 2**40, -(2**44) + 1, 3**20])
def test_many_spread_integers(stride):
    keys = (np.arange(5000) * stride).astype(np.int64)
    lookup = open_lookup(build_lookup(keys))
    check(keys, np.concatenate([keys[::-1], keys + 1]), lookup)
    if abs(stride) > 1:
        assert isinstance(lookup, IntLookup)


@given(st.lists(KEYS, unique=True, max_size=60), st.lists(KEYS, max_size=60), st.booleans())
def test_any_bytes(keys, asked, mapped):
    keys = objects(keys)
    lookup = open_lookup(build_lookup(keys))
    if mapped:
        lookup._dict = None  # as in a table too large for a private copy
    edge = [b"", b"\0", b"\0\0", b"a", b"a\0", "né".encode(), "ne\u0301".encode()]
    check(keys, objects([*asked, *edge, *keys.tolist()]), lookup)


def test_crc_collisions_are_told_apart():
    # Both have CRC-32 0x4DDB0C25, as every pair of this well-known kind does.
    from zlib import crc32

    first, second = b"plumless", b"buckeroo"
    assert crc32(first) == crc32(second)
    lookup = open_lookup(build_lookup(objects([first])))
    lookup._dict = None
    assert lookup.find(objects([first, second])).tolist() == [0, -1]
    assert lookup.find(objects([first, second] * 40)).tolist() == [0, -1] * 40
    both = open_lookup(build_lookup(objects([second, first])))
    both._dict = None
    assert both.find(objects([first, second] * 40)).tolist() == [1, 0] * 40
    assert both.find(objects([first])).tolist() == [1]


def test_large_bytes_table_is_memory_mapped(tmp_path: Path):
    keys = objects([f"key-{i}-é".encode() for i in range(20_000)])
    write_artefact(tmp_path / "a", "users", "b", build_lookup(keys, "id"))
    lookup = open_lookup(open_artefact(tmp_path / "a", "users").arrays, "id")
    assert isinstance(lookup, BytesLookup)
    assert lookup._dict is None
    check(keys, objects([*keys[::-1].tolist(), b"key-", b"key-1-", b""]), lookup)


@pytest.mark.parametrize("keys", [np.array([], np.int64), objects([])])
def test_empty_table(keys, tmp_path: Path):
    write_artefact(tmp_path / "a", "users", "b", build_lookup(keys, "id"))
    lookup = open_lookup(open_artefact(tmp_path / "a", "users").arrays, "id")
    asked = np.array([0, 5], np.int64) if keys.dtype != object else objects([b"", b"x"])
    assert lookup.find(asked).tolist() == [-1, -1]
    assert lookup.find(asked[:0]).tolist() == []


def test_codes_and_missing():
    keys = np.array([10, 30, 10**15], np.int64)
    lookup = open_lookup(build_lookup(keys, codes=np.array([7, 8, 9]), missing=2))
    assert lookup.find(np.array([30, 10**15, 10, 11], np.int64)).tolist() == [8, 9, 7, 2]


@pytest.mark.parametrize("keys", [np.array([3, 3]), objects([b"x", b"x"])])
def test_repeated_key_is_named(keys):
    with pytest.raises(ValueError, match=r"(3|b'x') occurs more than once"):
        build_lookup(keys)


def test_text_keys_are_refused():
    with pytest.raises(TypeError, match="encode text as UTF-8"):
        build_lookup(objects(["text"]))


ELEMENTS = {
    "int": (st.integers(-(2**63), 2**63 - 1), np.int64),
    "float": (st.floats(width=64), np.float64),
    "bytes": (KEYS, np.object_),
    "bool": (st.booleans(), np.bool_),
}


@pytest.mark.parametrize("kind", ELEMENTS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(data=st.data())
def test_stored_column_gives_back_each_row(kind, data):
    element, dtype = ELEMENTS[kind]
    rows = data.draw(st.lists(st.none() | st.lists(st.none() | element, max_size=4), min_size=1, max_size=12))
    take = np.array(data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=20)), np.int64)
    fill = {"int": 0, "float": 0.0, "bytes": None, "bool": False}[kind]

    flat = [e for row in rows for e in (row or [])]
    values = np.empty(len(flat), dtype)
    values[:] = [fill if e is None else e for e in flat]
    offsets = np.cumsum([0] + [len(row or []) for row in rows])
    column = Column(
        values,
        np.array([e is not None for e in flat], bool),
        offsets,
        np.array([r is not None for r in rows]),
    )
    stored = open_column(store_column(column, "c"), "c")
    assert len(stored) == len(rows)
    got = stored.take(take)
    assert len(got) == len(take)
    for i, row in enumerate(take.tolist()):
        expected = rows[row]
        assert (expected is not None) == (got.row_valid is None or bool(got.row_valid[i]))
        lo, hi = got.offsets[i], got.offsets[i + 1]
        valid = np.ones(hi - lo, bool) if got.valid is None else got.valid[lo:hi]
        assert [repr(v) if ok else None for v, ok in zip(got.values[lo:hi].tolist(), valid, strict=True)] == [
            None if e is None else repr(e) for e in (expected or [])
        ]

    scalar = Column(column.values, column.valid)
    if len(flat):
        pick = np.arange(len(flat))[::-1].copy()
        got = open_column(store_column(scalar, "c"), "c").take(pick)
        assert got.offsets is None
        for i, j in enumerate(pick):
            if flat[j] is None:
                assert got.valid is not None
                assert not got.valid[i]
            else:
                assert repr(got.values[i : i + 1].tolist()[0]) == repr(flat[j])
