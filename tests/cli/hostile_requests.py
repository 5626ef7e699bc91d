"""Drive ``tiercel_backend.c`` with synthetic requests, in its own process: ``… BACKEND STAND_IN ROUNDS``.

``triton_stand_in.c`` replaces Triton, and the model echoes its inputs. Prints how many requests were answered
and refused.
"""

from __future__ import annotations

import ctypes
import random
import struct
import sys
import sysconfig
import time
from collections import Counter
from collections.abc import Iterable
from itertools import chain, pairwise
from pathlib import Path
from threading import Event, Thread, get_ident
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from tiercel_serving.runtime.embedded import ARRAY_API

BYTES, INT64, GPU = 13, 9, 2
GOOD, INVALID_ARG, UNSUPPORTED, CANCELLED = -1, 3, 5, 7


class Input(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("type", ctypes.c_int),
        ("shape", ctypes.c_int64 * 4),
        ("dims", ctypes.c_uint32),
        ("buffers", ctypes.c_uint32),
        ("size", ctypes.c_uint64),
        ("parts", ctypes.c_void_p * 64),
        ("sizes", ctypes.c_uint64 * 64),
        ("memory", ctypes.c_int),
    )


class Output(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char * 64),
        ("type", ctypes.c_int),
        ("shape", ctypes.c_int64 * 4),
        ("dims", ctypes.c_uint32),
        ("size", ctypes.c_uint64),
        ("buffer", ctypes.c_void_p),
    )


class Request(ctypes.Structure):
    _fields_ = (
        ("inputs", ctypes.c_uint32),
        ("outputs", ctypes.c_uint32),
        ("input", Input * 4),
        ("output", Output * 4),
        ("code", ctypes.c_int),
        ("message", ctypes.c_char * 4096),
        ("released", ctypes.c_bool),
        ("counted", ctypes.c_bool),
        ("success", ctypes.c_bool),
        ("cancelled", ctypes.c_bool),
    )


#: Holds requests whose first tensor is named "wait"; counts batches by thread.
go_on, ran_in = Event(), Counter()  # type: ignore[var-annotated]
#: How often the model's functions were called. A batch of which no request can be read is settled alone.
calls: Counter[str] = Counter()
#: The devices on which instances were placed, in the order in which they were loaded.
placed: list[int] = []


def load(config: str, place: str, device: int) -> Any:
    """Return a model that echoes its inputs, and fails if the first tensor is named "break"."""

    def execute(raw: list[Any]) -> list[Any]:
        calls["execute"] += 1
        ran_in[get_ident()] += 1
        first = raw[0][0][0][0][0]
        if first == "break":
            raise ValueError("broken on purpose")
        if first == "wait":
            go_on.wait(60)
        if first == "slow":
            time.sleep(0.001)  # lets other threads take Python's lock
        kinds = [kind for kind, _ in raw]
        assert all(names == [tensor[0] for tensor in tensors] for tensors, names in kinds)
        for (tensors, _), bodies in raw:
            for (_, number, shape), body in zip(tensors, bodies, strict=True):
                # Arrays are views of the request's own memory, so they must be read-only.
                assert number == BYTES or (body.shape == shape and not body.flags.writeable)
        # A request of the same kind as the one before must have the very same kind object.
        assert all((one is other) == (one == other) for one, other in pairwise(kinds))
        if len(raw) > 1 and all(kind is kinds[0] and is_of_one(kind) for kind in kinds):
            return [(GOOD, "", together(raw))]
        return [
            (GOOD, "", [(*tensor, body) for tensor, body in zip(tensors, bodies, strict=True)])
            for (tensors, _), bodies in raw
        ]

    assert config.startswith('{"max_batch_size":4')
    assert place == "/nowhere"
    placed.append(device)
    return SimpleNamespace(execute=execute, settle=settle, finalize=lambda: None, inner=False)


def settle() -> None:
    """Count calls, and fail in some of them, which is logged and harms no request."""
    calls["settle"] += 1
    if calls["settle"] % 5 == 0:
        raise ValueError("broken on purpose")


def is_of_one(kind: Any) -> bool:
    """Return whether requests of a kind have one row in each tensor."""
    return all(shape[0] == 1 for _, _, shape in kind[0])


def together(raw: list[Any]) -> list[Any]:
    """Return the concatenated tensors of requests of one kind."""
    tensors = []
    for (name, number, shape), *bodies in zip(raw[0][0][0], *(bodies for _, bodies in raw), strict=True):
        body = list(chain.from_iterable(bodies)) if number == BYTES else np.concatenate(bodies)
        tensors.append((name, number, (len(raw) * shape[0], *shape[1:]), body))
    return tensors


def fill(
    tensor: Input, name: bytes, kind: int, shape: list[int], data: bytes, draw: random.Random
) -> list[Any]:
    """Put data into a tensor in separately allocated parts; return what keeps them alive."""
    cuts = sorted(draw.randrange(len(data) + 1) for _ in range(draw.choice((0, 0, 1, 5))))
    parts = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    kept = [
        (ctypes.c_char * len(part)).from_buffer_copy(part) if part else (ctypes.c_char * 1)()
        for part in parts
    ]
    tensor.name, tensor.type, tensor.dims = name, kind, len(shape)
    tensor.shape[: len(shape)] = shape
    tensor.size, tensor.buffers = len(data), len(parts)
    for index, part in enumerate(kept):
        tensor.parts[index], tensor.sizes[index] = ctypes.addressof(part), len(parts[index])
    return kept


def strings(draw: random.Random) -> tuple[list[int], bytes, bool]:
    """Draw a BYTES tensor: its shape, its memory, and whether the two fit."""
    values = [draw.randbytes(draw.choice((0, 1, 9, 300))) for _ in range(draw.randrange(6))]
    data = b"".join(struct.pack("<I", len(value)) + value for value in values)
    how = draw.randrange(6)
    if how == 0 and data:
        return [1, len(values)], data[: draw.randrange(len(data))], False
    if how == 1:
        return [1, len(values) + draw.choice((1, 1 << 40))], data, False
    if how == 2:
        return [1, len(values)], data + b"\0", False
    if how == 3:
        return [1, 1], struct.pack("<I", draw.choice((1, 0xFFFFFFFF))), False
    return [1, len(values)], data, True


def main(library: str, stand_in: str, rounds: str) -> None:
    module = ModuleType("tiercel_serving.runtime.embedded")
    module.load, module.ARRAY_API = load, ARRAY_API  # type: ignore[attr-defined]
    sys.modules.update({name: ModuleType(name) for name in ("tiercel_serving", "tiercel_serving.runtime")})
    sys.modules[module.__name__] = module
    triton = ctypes.CDLL(stand_in, ctypes.RTLD_GLOBAL)
    backend = ctypes.CDLL(library)
    for name in ("Initialize", "ModelInstanceInitialize", "ModelInstanceExecute", "ModelInstanceFinalize"):
        getattr(backend, f"TRITONBACKEND_{name}").restype = ctypes.c_void_p
    libpython = Path(sysconfig.get_config_var("LIBDIR")) / sysconfig.get_config_var("INSTSONAME")
    handle = ctypes.c_void_p(1)
    refusals(backend, triton, libpython, stand_in)
    configure(triton, libpython)
    assert not backend.TRITONBACKEND_Initialize(handle)
    assert not backend.TRITONBACKEND_ModelInstanceInitialize(handle)
    draw, counts = random.Random(0), {"good": 0, "refused": 0, "users": 0}
    for _ in range(int(rounds)):
        batch(backend, handle, draw, counts)
    assert not backend.TRITONBACKEND_ModelInstanceFinalize(handle)
    at_once(backend, draw, counts)
    relieved(backend, counts)
    users, most = (ctypes.c_uint64.in_dll(triton, name).value for name in ("users", "most_users"))
    assert (users, most) == (counts.pop("users"), 4), (users, most)
    assert 0 < calls["execute"] <= calls["settle"], calls
    print(counts["good"], counts["refused"])


def configure(triton: Any, libpython: object) -> None:
    triton.stand_in_config(f'{{"cmdline":{{"libpython":"{libpython}"}}}}'.encode())


def refusals(backend: Any, triton: Any, libpython: Path, other_library: str) -> None:
    """Where the backend cannot run, it says why and what to do, and can be initialised again."""

    def refused(*words: str) -> None:
        error = ctypes.c_void_p(backend.TRITONBACKEND_Initialize(ctypes.c_void_p(1)))
        assert error.value, words
        triton.TRITONSERVER_ErrorMessage.restype = ctypes.c_char_p
        said = triton.TRITONSERVER_ErrorMessage(error).decode()
        triton.TRITONSERVER_ErrorDelete(error)
        assert all(word in said for word in words), said

    major, minor = (ctypes.c_uint32.in_dll(triton, name) for name in ("api_major", "api_minor"))
    for version in ((1, 18), (2, 0)):
        major.value, minor.value = version
        refused("expected Triton's backend API 1.19", f"found {version[0]}.{version[1]}", "--runner python")
    major.value, minor.value = 1, 19
    triton.stand_in_config(b"{}")
    refused("which Python shall it load?", "--backend-config=tiercel,libpython=")
    configure(triton, "/nowhere/libpython3.99.so")
    refused("libpython=/nowhere/libpython3.99.so", "cannot open shared object file")
    configure(triton, other_library)
    refused("this Python has no Py_", "take 3.10 or later")
    configure(triton, libpython)
    name = "tiercel_serving.runtime.embedded"
    module, sys.modules[name] = sys.modules[name], None  # type: ignore[assignment]
    refused("the `python3` that comes first on PATH has no tiercel_serving")
    sys.modules[name] = module


def batch(backend: Any, handle: Any, draw: random.Random, counts: dict[str, int]) -> None:
    """Send some requests at once and check the outcome of each."""
    requests, kept, expected = [], [], []
    broken = draw.randrange(40) == 0
    for _ in range(draw.randrange(1, 5)):
        request = Request(inputs=2, code=-2)
        shape, data, fits = strings(draw)
        numbers = draw.randbytes(8 * draw.randrange(4))
        first = b"break" if broken else "zählung".encode()
        counts["users"] += len(numbers) // 8
        kept.append(fill(request.input[0], first, INT64, [len(numbers) // 8, 1], numbers, draw))
        kept.append(fill(request.input[1], b"texts", BYTES, shape, data, draw))
        gpu = draw.randrange(20) == 0
        request.input[1].memory = GPU if gpu else 0
        request.cancelled = draw.randrange(12) == 0
        requests.append(request)
        code = UNSUPPORTED if gpu else GOOD if fits else INVALID_ARG
        expected.append((CANCELLED if request.cancelled else code, numbers, data))
    array = (ctypes.POINTER(Request) * len(requests))(*map(ctypes.pointer, requests))
    assert not backend.TRITONBACKEND_ModelInstanceExecute(handle, array, len(requests))
    for request, (code, numbers, data) in zip(requests, expected, strict=True):
        assert request.released
        assert request.counted
        if broken and code == GOOD:
            assert b"the model broke: broken on purpose" in request.message, request.message
            continue
        assert request.code == code, (request.code, code, request.message)
        assert request.success == (code == GOOD)
        counts["good" if code == GOOD else "refused"] += 1
        if code == GOOD:
            for output, sent in zip(request.output, (numbers, data), strict=False):
                assert ctypes.string_at(output.buffer, output.size) == sent
        for output in request.output[: request.outputs]:
            ctypes.CDLL(None).free(ctypes.c_void_p(output.buffer))


def wait_for(requests: Iterable[Request]) -> None:
    """Wait until all requests are answered and released."""
    end = time.monotonic() + 60
    for request in requests:
        while not request.released:
            assert time.monotonic() < end
            time.sleep(0.001)


def at_once(backend: Any, draw: random.Random, counts: dict[str, int]) -> None:
    """Send requests to four models, two of them inner, from a thread each: every request is answered.

    Any thread may run a batch: threads of the backend may still run some when all calls have returned.
    """
    handles = [ctypes.c_void_p(number) for number in (2, 3, 4, 5)]
    for handle in handles:
        assert not backend.TRITONBACKEND_ModelInstanceInitialize(handle)
    assert placed == [1, 2, 3, 4, 5]  # the stand-in's instances lie each on a device of its own number
    sent: list[tuple[Request, bytes, list[Any]]] = []
    asked: list[list[Any]] = []
    for _ in handles:
        asked.append([])
        for _ in range(20):
            several = []
            for _ in range(draw.randrange(1, 6)):
                request, numbers = Request(inputs=1, code=-2), draw.randbytes(8)
                kept = fill(request.input[0], b"numbers", INT64, [1, 1], numbers, draw)
                sent.append((request, numbers, kept))
                several.append(request)
            counts["users"] += len(several)
            asked[-1].append((ctypes.POINTER(Request) * len(several))(*map(ctypes.pointer, several)))

    def ask(handle: Any, batches: list[Any]) -> None:
        for array in batches:
            assert not backend.TRITONBACKEND_ModelInstanceExecute(handle, array, len(array))

    threads = [Thread(target=ask, args=one) for one in zip(handles, asked, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wait_for(request for request, _, _ in sent)
    for request, numbers, _ in sent:
        assert request.counted
        assert request.code == GOOD
        assert ctypes.string_at(request.output[0].buffer, request.output[0].size) == numbers
        ctypes.CDLL(None).free(ctypes.c_void_p(request.output[0].buffer))
    for handle in handles:
        assert not backend.TRITONBACKEND_ModelInstanceFinalize(handle)


def relieved(backend: Any, counts: dict[str, int]) -> None:
    """Queue hundreds of requests of another model behind one thread: another thread soon takes over.

    The thread of an inner model is relieved at once, and returns before its request is answered.
    """
    mine, other, inner = map(ctypes.c_void_p, (2, 3, 4))
    draw, kept = random.Random(1), []

    def put(handle: Any, count: int, name: bytes = b"slow") -> None:
        requests = [Request(inputs=1, code=-2) for _ in range(count)]
        parts = [fill(one.input[0], name, INT64, [1, 1], bytes(8), draw) for one in requests]
        array = (ctypes.POINTER(Request) * count)(*map(ctypes.pointer, requests))
        kept.append((requests, parts, array))
        counts["users"] += count
        assert not backend.TRITONBACKEND_ModelInstanceExecute(handle, array, count)

    for handle in (mine, other, inner):
        assert not backend.TRITONBACKEND_ModelInstanceInitialize(handle)
    put(inner, 1, b"wait")
    [handed] = kept[0][0]
    assert not handed.released
    go_on.set()
    wait_for([handed])
    go_on.clear()
    ran_in.clear()
    held = Thread(target=put, args=(mine, 1, b"wait"))
    held.start()
    while not ran_in:
        time.sleep(0.001)
    put(other, 1000)  # 250 batches, left to the held thread at first
    go_on.set()
    held.join(20)
    assert not held.is_alive()
    wait_for(request for requests, _, _ in kept for request in requests)
    assert sum(ran_in.values()) >= 250, ran_in
    assert ran_in[held.ident] < 100, ran_in
    for requests, _, _ in kept:
        for request in requests:
            assert request.code == GOOD
            ctypes.CDLL(None).free(ctypes.c_void_p(request.output[0].buffer))
    for handle in (mine, other, inner):
        assert not backend.TRITONBACKEND_ModelInstanceFinalize(handle)


if __name__ == "__main__":
    main(*sys.argv[1:])
