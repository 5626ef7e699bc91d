"""``native/texts.c`` and ``marks.c`` equal NumPy to the bit; without them NumPy is used."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from native_build import open_compiled, run_sanitized

from drawing import examples
from tiercel_serving import native
from tiercel_serving.lookups.build import Table, build_fused, build_lookup
from tiercel_serving.lookups.lookup import FEW, open_lookup
from tiercel_serving.lookups.strings import Strings
from tiercel_serving.native import marks
from tiercel_serving.native import texts as native_texts

TEXTS = st.one_of(st.binary(max_size=10), st.binary(max_size=26), st.sampled_from([b"", b"\0", b"a", b"a\0"]))


@pytest.fixture(scope="module")
def functions() -> Any:
    return open_compiled()


def objects(items: list[bytes]) -> np.ndarray:
    out = np.empty(len(items), np.object_)
    out[:] = items
    return out


def both(arrays: dict[str, np.ndarray], functions: Any, texts: Strings) -> tuple[np.ndarray, np.ndarray]:
    """Look up with the C functions and with NumPy."""
    lookup = open_lookup(arrays)
    parts = (arrays["records"], arrays["displacements"], arrays["columns"])
    lookup._native = native_texts.NativeTexts(functions, *parts)
    by_functions = lookup.find(texts)
    lookup._native = None
    return by_functions, lookup.find(texts)


@examples(20)
@given(st.lists(TEXTS, unique=True, max_size=40), st.lists(TEXTS, max_size=40), st.integers(0, 2))
def test_any_texts_and_gaps(functions, keys, asked, gap):
    near = [key + end for key in keys for end in (b"", b"\0", b"x")]
    asked = [*asked, *near, *([b"z"] * (FEW + 1))]
    packed = Strings.of(objects([text + b"\0" * gap for text in asked]))
    texts = Strings(packed.blob, packed.offsets, gap)
    found, expected = both(build_lookup(objects(keys)), functions, texts)
    assert found.tolist() == expected.tolist()
    position = {key: place for place, key in enumerate(keys)}
    assert found.tolist() == [position.get(text, -1) for text in asked]


@pytest.mark.parametrize("length", [5, 8, 20, 24, 50, 110, 120, 130])
def test_columns_of_every_width(functions, length):
    rng = np.random.default_rng(length)
    keys = [
        objects([(b"%d-%d" % (column, key)).ljust(length, b"x") for key in range(400)]) for column in (0, 1)
    ]
    tables = [Table(own, np.arange(400) * 3 + column, -7 - column) for column, own in enumerate(keys)]
    asked = [np.append(rng.permutation(own)[:300], [b"", b"x" * length]) for own in keys]
    part = Strings.of(objects([b"before", *np.concatenate(asked), b"after"])).part(1, 605)
    found, expected = both(build_fused(tables), functions, part)
    assert np.array_equal(found, expected)
    assert (found[:, :300] >= 0).all()
    assert found[:, 300:].tolist() == [[-7, -7], [-8, -8]]


@pytest.mark.parametrize("built", [False, True])
@examples(10)
@given(st.lists(st.text("aé\N{SNOWMAN}", max_size=12), max_size=30), st.integers(0, 9))
def test_texts_are_split_at_their_nuls(built, functions, texts, more):
    blob = np.frombuffer(b"".join(text.encode() + b"\0" for text in texts) + b"x" * more, np.uint8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native_texts, "library", lambda: functions if built else None)
        offsets = native_texts.split_at_nuls(blob, len(texts))
    lengths = [len(text.encode()) + 1 for text in texts]
    assert offsets.dtype == np.int64
    assert offsets.tolist() == np.cumsum([0, *lengths]).tolist()


def test_tables_that_point_beyond_themselves_are_refused():
    for part, value in ((1, 2**20), (2, 5), (2, -1), (3, 2**20), (3, 0), (4, 1)):
        arrays = build_lookup(objects([b"a", b"b"]))
        arrays["columns"][0, part] = value
        with pytest.raises(KeyError, match="names slots or buckets beyond those that it has"):
            open_lookup(arrays)


@pytest.mark.parametrize("built", [False, True])
def test_cells_are_marked(built, functions, monkeypatch):
    monkeypatch.setattr(marks, "library", lambda: functions if built else None)
    rng = np.random.default_rng(0)
    for shape in ((5,), (0,), (2000,), (3, 2000)):
        for width in (0, 1, 7, 1000, 1001):
            cells, at = np.zeros(1000, np.bool_), rng.integers(0, 1000, shape)
            marks.mark(cells, at, width)
            last = set(range(width - 1, 1000, width)) if width else set()
            assert cells.nonzero()[0].tolist() == sorted(last | set(at.ravel().tolist()))
    with pytest.raises(IndexError):
        marks.mark(np.zeros(1000, np.bool_), np.full(2000, 1000))


def test_what_cannot_be_loaded_is_done_without(monkeypatch, tmp_path):
    (tmp_path / "libtiercel_native.so").write_bytes(b"for another machine")
    monkeypatch.setattr(native, "__file__", str(tmp_path / "__init__.py"))
    assert native.library.__wrapped__() is None


SANITIZED = """
import sys, numpy as np
from pathlib import Path
from tiercel_serving import native
from tiercel_serving.lookups import build
from tiercel_serving.lookups.strings import Strings
from tiercel_serving.native.texts import NativeTexts
functions = native.open_library(Path(sys.argv[1]))
rng = np.random.default_rng(0)
for width in (6, 20, 40, 100):
    keys = np.empty(2000, object)
    keys[:] = [b"%d" % i + b"y" * int(rng.integers(0, width)) for i in range(2000)]
    arrays = build.build_lookup(keys)
    opened = NativeTexts(functions, arrays["records"], arrays["displacements"], arrays["columns"])
    for count in range(1, 400, 7):
        texts = Strings.of(rng.choice(keys, count))
        # In memory of their own, so that a byte too far is one too many.
        texts = Strings(np.array(texts.blob), np.array(texts.offsets))
        opened.find(0, texts, np.empty(count, np.int64))
        opened.find(0, Strings(texts.blob[:-1].copy(), texts.offsets), np.empty(count, np.int64))
    offsets = np.empty(9, np.int64)
    for size in range(40):
        blob = np.zeros(size, np.uint8)
        assert functions.split_texts(blob, size, 8, offsets) == min(size, 8)
"""


@pytest.mark.slow
def test_no_byte_beyond_what_was_given_is_read():
    run_sanitized(SANITIZED)
