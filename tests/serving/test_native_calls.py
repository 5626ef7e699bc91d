"""``native/calls.c``: how Python calls the functions in C."""

import threading

import numpy as np
import pytest
from native_build import compile_native, open_compiled, run_sanitized

from tiercel_serving import native


def refused_calls(functions):
    """Pass non-contiguous arrays, wrong types and wrong counts: each is refused, and no buffer stays held."""
    cells, places = bytearray(8), np.array([1, 5])
    assert functions.mark(cells, 8, places, 2, 0) == 0
    assert bytes(cells) == b"\0\1\0\0\0\1\0\0"
    for given in ((cells, 8, places, 2), (cells, 8, places, 2, 0, 3)):
        with pytest.raises(TypeError, match=f"expected pnpnn, got {len(given)} arguments"):
            functions.mark(*given)
    for given in ((cells, 8, 3, 2, 0), (cells, "8", places, 2, 0), (cells, 8.5, places, 2, 0)):
        with pytest.raises(TypeError):
            functions.mark(*given)
    with pytest.raises((ValueError, BufferError), match="contiguous"):
        functions.mark(cells, 8, np.arange(8)[::2], 4, 0)
    with pytest.raises(SystemError):
        functions.run_loops(1, 0, 1, None, [cells], None)
    with pytest.raises(TypeError):
        functions.run_loops(1, 0, 2, None, (cells, 7), None)
    cells.append(0)  # raises BufferError while anything holds its memory


def test_what_does_not_fit_is_refused():
    refused_calls(open_compiled())


def test_a_signature_of_two_tuples_is_refused(tmp_path, monkeypatch):
    """A call has room for the arrays of one."""
    monkeypatch.setattr(native, "ARGUMENTS", {"mark": "tnpt"})
    with pytest.raises(TypeError, match="at most one tuple of arrays, got tnpt"):
        native.open_library(compile_native(tmp_path, "-O1"))


def test_other_threads_run_during_long_calls_but_not_after_many_short_ones():
    functions, size = open_compiled(), 1024
    vectors, query = np.ones((10, size), np.float32), np.ones((1, size), np.float32)
    ticks, stop = [], threading.Event()

    def ticks_during(products):
        positions, found = np.zeros((1, products), np.int64), np.empty((1, products), np.float32)
        before = len(ticks)
        functions.inner_products(1, len(vectors), products, size, vectors, query, positions, found)
        assert (found == size).all()
        return len(ticks) - before

    def tick():
        while not stop.wait(0.001):
            ticks.append(None)

    thread = threading.Thread(target=tick)
    thread.start()
    try:
        took_long = 500_000  # about 0.1 s
        assert ticks_during(took_long) > 5
        kept = []
        for _ in range(5):  # a short call that the system interrupts counts as long
            for _ in range(40):
                ticks_during(1)
            kept.append(ticks_during(took_long))
            assert ticks_during(took_long) > 5, "the call before was long"
        assert min(kept) <= 2
    finally:
        stop.set()
        thread.join()


SANITIZED = """
import sys
from pathlib import Path
from serving.test_native_calls import refused_calls
from tiercel_serving import native

refused_calls(native.open_library(Path(sys.argv[1])))
"""


@pytest.mark.slow
def test_nothing_is_touched_that_was_not_given():
    run_sanitized(SANITIZED)
