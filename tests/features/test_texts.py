"""Steps on text that a request sends as bytes, which need not be valid UTF-8."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tiercel_serving.features.texts import TextCase, TextLength, TextSlice, TextStrip

TEXTS = st.lists(st.binary(max_size=6) | st.text(max_size=4).map(str.encode), min_size=1, max_size=5)


def column(values: list[bytes]) -> np.ndarray:
    out = np.empty(len(values), np.object_)
    out[:] = values
    return out


@given(texts=TEXTS)
def test_bytes_that_are_not_text_are_kept(texts: list[bytes]) -> None:
    whole = TextSlice({"in": 0, "start": None, "stop": None, "step": None}, {})

    assert whole.apply(column(texts), None)[0].tolist() == texts


@given(texts=TEXTS)
def test_two_halves_make_the_whole(texts: list[bytes]) -> None:
    head = TextSlice({"in": 0, "start": None, "stop": 2, "step": None}, {}).apply(column(texts), None)[0]
    tail = TextSlice({"in": 0, "start": 2, "stop": None, "step": None}, {}).apply(column(texts), None)[0]

    assert (head + tail).tolist() == texts
    assert (TextLength({"in": 0}, {}).apply(head, None)[0] <= 2).all()


def test_an_invalid_byte_is_a_character_among_others() -> None:
    texts = column([b" A\xff\xc3 ", "Ä\udcff".encode("utf-8", "surrogatepass"), b"\xff"])
    valid = np.array([True, True, False])

    assert TextLength({"in": 0}, {}).apply(texts, valid)[0].tolist() == [5, 2, 0]
    assert TextCase({"in": 0, "case": "lower"}, {}).apply(texts, valid)[0].tolist() == [
        b" a\xff\xc3 ",
        "ä\udcff".encode("utf-8", "surrogatepass"),
        b"",
    ]
    assert TextStrip({"in": 0, "characters": None}, {}).apply(texts, valid)[0].tolist()[0] == b"A\xff\xc3"
