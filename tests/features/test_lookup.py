"""Lookups and stored columns are exact for every key, at every batch size, also memory-mapped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from drawing import every_pair, examples
from tiercel_serving.columns import Column
from tiercel_serving.lookups import perfect_hash
from tiercel_serving.lookups.build import Table, build_fused, build_lookup
from tiercel_serving.lookups.lookup import FEW, DirectLookup, IntLookup, open_lookup, read_keys
from tiercel_serving.lookups.strings import Strings
from tiercel_serving.release.artefacts import open_artefact, write_artefact
from tiercel_serving.tables.column_store import open_column, store_column

INT64 = st.integers(-(2**63), 2**63 - 1)
KEYS = st.one_of(
    st.binary(max_size=12),
    st.binary(max_size=150),
    st.text(max_size=8).map(lambda s: s.encode("utf-8", "surrogatepass")),
)
EXTREMES = [0, 1, -1, 2**63 - 1, -(2**63), 2**53 + 1, 2**31, -(2**31)]


def objects(items) -> np.ndarray:
    out = np.empty(len(items), np.object_)
    out[:] = items
    return out


def check(keys: np.ndarray, asked: np.ndarray, lookup) -> None:
    """Look up in one large batch, key by key, in small batches and packed; each answers like a ``dict``."""
    position = {key: i for i, key in enumerate(keys.tolist())}
    expected = [position.get(value, -1) for value in asked.tolist()]
    many = np.concatenate([asked] * (FEW // max(len(asked), 1) + 1))
    found = lookup.find(many)
    assert found.dtype == np.int64
    assert found.tolist() == [position.get(value, -1) for value in many.tolist()]
    assert [lookup.find_one(value) for value in asked.tolist()] == expected
    few = [lookup.find(asked[begin : begin + FEW]) for begin in range(0, len(asked), FEW)]
    assert [code for codes in few for code in codes.tolist()] == expected
    if asked.dtype == np.object_:
        assert lookup.find(Strings.of(many)).tolist() == found.tolist()
        assert lookup.find(Strings.of(asked[:FEW])).tolist() == expected[:FEW]


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


@pytest.mark.parametrize("stride", [1, 2**40, -(2**44) + 1, 3**20, 2**52])
def test_many_spread_integers(stride):
    keys = np.unique((np.arange(5000) * stride).astype(np.int64))
    lookup = open_lookup(build_lookup(keys))
    check(keys, np.concatenate([keys[::-1], keys + 1]), lookup)
    if abs(stride) > 1:
        assert isinstance(lookup, IntLookup)


@examples(100)
@given(st.lists(KEYS, unique=True, max_size=60), st.lists(KEYS, max_size=60))
def test_any_bytes(keys, asked):
    keys = objects(keys)
    edge = [b"", b"\0", b"\0\0", b"a", b"a\0", "né".encode(), "ne\u0301".encode()]
    near = [key + end for key in keys for end in (b"", b"\0", b"x")] + [key[:-1] for key in keys]
    check(keys, objects([*asked, *edge, *near]), open_lookup(build_lookup(keys)))


@pytest.mark.parametrize(
    ("length", "outliers"),
    every_pair([7, 8, 9, 23, 24, 25, 55, 56, 57, 119, 120, 121, 500], [0, 1, 50]),
)
def test_strings_of_any_length_beside_longer_ones(length, outliers):
    keys = [(b"%06d" % i).ljust(length, b"x") for i in range(3000)]
    keys += [key + b"-and-more" * (1 + i % 30) for i, key in enumerate(keys[:outliers])]
    asked = [
        end for key in keys[:100] for end in (key, key[:-1], key + b"y", key + b"\0", key + b"-and-more")
    ]
    check(objects(keys), objects([*asked, b"", *keys]), open_lookup(build_lookup(objects(keys))))


def test_equal_checksums_of_odd_strings_are_told_apart():
    # CRC-32 is affine: strings with equal checksums keep them when a common suffix is appended.
    from zlib import crc32

    first, second = b"plumless\0", b"buckeroo\0"
    assert crc32(first) == crc32(second)
    check(objects([first]), objects([first, second]), open_lookup(build_lookup(objects([first]))))
    check(
        objects([second, first]),
        objects([first, second]),
        open_lookup(build_lookup(objects([second, first]))),
    )


@examples(35)
@given(
    st.lists(st.lists(INT64, unique=True, max_size=30), min_size=1, max_size=4),
    st.lists(INT64, min_size=1, max_size=20),
    st.data(),
)
def test_fused_integers_stay_apart(tables, asked, data):
    which = data.draw(st.lists(st.integers(0, len(tables) - 1), min_size=1, max_size=5))
    built = [
        Table(np.array(keys, np.int64), np.arange(len(keys)) + 10 * number, -1 - number)
        for number, keys in enumerate(tables)
    ]
    lookup = open_lookup(build_fused(built, which=which))
    asked = np.array([*asked, *(key for keys in tables for key in keys)], np.int64)
    check_fused(lookup, built, which, asked)


@examples(35)
@given(
    st.lists(st.lists(KEYS, unique=True, max_size=30), min_size=1, max_size=4),
    st.lists(KEYS, min_size=1, max_size=20),
    st.data(),
)
def test_fused_strings_stay_apart(tables, asked, data):
    which = data.draw(st.lists(st.integers(0, len(tables) - 1), min_size=1, max_size=5))
    built = [
        Table(objects(keys), np.arange(len(keys)) + 10 * number, -1 - number)
        for number, keys in enumerate(tables)
    ]
    lookup = open_lookup(build_fused(built, which=which))
    check_fused(lookup, built, which, objects([*asked, *(key for keys in tables for key in keys)]))


def check_fused(lookup, tables: list[Table], which: list[int], asked: np.ndarray) -> None:
    codes = [dict(zip(t.keys.tolist(), t.codes.tolist(), strict=True)) for t in tables]
    for n in (1, 2, len(asked)):
        expected = [[codes[t].get(key, tables[t].missing) for key in asked[:n].tolist()] for t in which]
        stacked = np.stack([asked[:n]] * len(which))
        assert lookup.find(stacked).tolist() == expected
        if asked.dtype == np.object_:
            packed = lookup.find(Strings.of(stacked.ravel()))
            assert packed.reshape(stacked.shape).tolist() == expected


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("shape", [(3, 10_000), (2, 40_000), (40, 1000)])
def test_long_batches_are_looked_up_in_blocks(text, shape):
    columns, n = shape
    rng = np.random.default_rng(0)
    tables = []
    for number in range(columns):
        keys = rng.choice(10**15, 500, replace=False)
        own = objects([b"%d" % key for key in keys.tolist()]) if text else keys
        tables.append(Table(own, np.arange(500) + number, -number))
    lookup = open_lookup(build_fused(tables))
    picked = rng.integers(0, 500, shape)
    asked = np.stack([table.keys[row] for table, row in zip(tables, picked, strict=True)])
    assert np.array_equal(lookup.find(asked), picked + np.arange(columns)[:, None])
    # A key of one column is unknown in the next.
    missing = np.tile(-np.arange(columns)[:, None], n)
    assert np.array_equal(lookup.find(np.roll(asked, 1, axis=0)), missing)
    if text:
        assert np.array_equal(lookup.find(Strings.of(asked.ravel())), picked + np.arange(columns)[:, None])


def test_another_seed_is_tried_where_hashes_meet(monkeypatch):
    real, seeds = perfect_hash.hash_words, []

    def bad_at_first(words, seed):
        seeds.append(int(seed))
        return real(words, seed) if len(seeds) > 1 else np.zeros_like(words[0])

    monkeypatch.setattr(perfect_hash, "hash_words", bad_at_first)
    keys = np.arange(1000) * 10**12
    arrays = build_lookup(keys)
    assert len(set(seeds)) == 2
    check(keys, keys, open_lookup(arrays))


@pytest.mark.parametrize("text", [False, True])
def test_tables_are_memory_mapped_and_give_back_their_keys(text, tmp_path: Path):
    keys = np.arange(20_000)[::-1] * 10**10
    keys = objects([f"key-{i}-é".encode() for i in keys.tolist()] + [b"nul\0", b"x" * 400]) if text else keys
    write_artefact(tmp_path / "a", "users", "b", build_lookup(keys, "id"))
    arrays = open_artefact(tmp_path / "a", "users").arrays
    assert not arrays["id.records"].flags.owndata
    check(keys, keys[::-1], open_lookup(arrays, "id"))
    assert read_keys(arrays, "id").tolist() == keys.tolist()


def test_dense_table_gives_back_its_keys():
    keys = np.array([7, 3, -2, 5])
    assert read_keys(build_lookup(keys)).tolist() == keys.tolist()


@pytest.mark.parametrize("keys", [np.array([], np.int64), objects([])])
def test_empty_table(keys, tmp_path: Path):
    write_artefact(tmp_path / "a", "users", "b", build_lookup(keys, "id"))
    lookup = open_lookup(open_artefact(tmp_path / "a", "users").arrays, "id")
    asked = np.array([0, 5], np.int64) if keys.dtype != object else objects([b"", b"x"])
    assert lookup.find(asked).tolist() == [-1, -1]
    assert lookup.find(np.concatenate([asked] * FEW)).tolist() == [-1] * 2 * FEW
    assert lookup.find(asked[:0]).tolist() == []


def test_codes_and_missing():
    keys = np.array([10, 30, 10**15], np.int64)
    lookup = open_lookup(build_lookup(keys, codes=np.array([7, 8, 9]), missing=2))
    assert lookup.find(np.array([30, 10**15, 10, 11], np.int64)).tolist() == [8, 9, 7, 2]


@pytest.mark.parametrize(
    "keys",
    [
        *(np.array([3, 3]), np.array([3, 10**15, 3])),
        *(objects([b"x", b"x"]), objects([b"x\0", b"y", b"x\0"]), objects([b"", b"q" * 9, b""])),
    ],
)
def test_repeated_key_is_named(keys):
    with pytest.raises(ValueError, match=r"(3|b'x'|b'x\\x00'|b'') occurs more than once"):
        build_lookup(keys)


def test_missing_or_unknown_layout_is_named():
    arrays = build_lookup(np.array([1, 10**9]), "id")
    del arrays["id.records"]
    with pytest.raises(KeyError, match="no lookup table 'id' of a layout that this Tiercel reads"):
        open_lookup(arrays, "id")


def test_text_keys_are_refused():
    with pytest.raises(TypeError, match="encode text as UTF-8"):
        build_lookup(objects(["text"]))


@given(st.lists(KEYS, max_size=20), st.data())
def test_packed_strings(items, data):
    packed = Strings.of(objects(items))
    assert packed.objects().tolist() == items
    begin = data.draw(st.integers(0, len(items)))
    end = data.draw(st.integers(begin, len(items)))
    assert packed.part(begin, end).objects().tolist() == items[begin:end]
    rows = data.draw(st.lists(st.integers(0, len(items) - 1), max_size=9)) if items else []
    assert packed.take(np.array(rows, np.int64)).objects().tolist() == [items[row] for row in rows]
    both = Strings.join([packed.part(begin, end), packed, packed.part(end, end)])
    assert both.objects().tolist() == [*items[begin:end], *items]


ELEMENTS = {
    "int": (st.integers(-(2**63), 2**63 - 1), np.int64),
    "float": (st.floats(width=64), np.float64),
    "bytes": (KEYS, np.object_),
    "bool": (st.booleans(), np.bool_),
}


@pytest.mark.parametrize("kind", ELEMENTS)
@examples(14, suppress_health_check=[HealthCheck.function_scoped_fixture])
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
