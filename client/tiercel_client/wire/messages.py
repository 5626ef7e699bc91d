"""Conversion between named arrays and Triton's ``ModelInfer`` messages.

The descriptions of tensors rarely change between requests, so their serialised bytes are cached, for requests
and for answers. This relies on two rules of protobuf's encoding
(https://protobuf.dev/programming-guides/encoding/). Concatenated messages are parsed as one message, with the
repeated fields of all; and an embedded message is encoded like a ``bytes`` field.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
from tritonclient.grpc import service_pb2
from tritonclient.utils import (
    deserialize_bytes_tensor,
    np_to_triton_dtype,
    serialize_byte_tensor,
    triton_to_np_dtype,
)

from .transport import Array, InferRequest

#: The number of cached descriptions of each kind; the lists of requests lead to many different shapes.
_REMEMBERED = 256

#: Name, dtype (None is text), shape and number of bytes of an output.
_Output = tuple[str, np.dtype[Any] | None, tuple[int, ...], int]


def write_request(request: InferRequest) -> bytes:
    """Return a ``ModelInferRequest``, serialised."""
    pieces = [_asked(request.model, tuple(request.outputs))]
    contents: list[bytes] = []
    for name, array in request.inputs.items():
        pieces.append(_input(name, array.dtype, array.shape))
        # serialize_byte_tensor returns one element, or an empty array for an empty tensor.
        text = array.dtype.kind == "O"
        content = b"".join(serialize_byte_tensor(array).reshape(-1).tolist()) if text else array.tobytes()
        contents += _RAW_INPUT, _varint(len(content)), content
    name_of_it = request.request_id.encode()
    pieces += _ID, _varint(len(name_of_it)), name_of_it
    # The deadline limits how long the client waits. This limits how long the request waits in the server's
    # queue, if the model's queue policy has a default timeout and allows overriding it.
    pieces.append(_timeout(max(1, int(request.timeout_s * 1000))))
    pieces += contents
    return b"".join(pieces)


def read_answer(answer: bytes) -> dict[str, Array]:
    """Return the tensors of a serialised ``ModelInferResponse``; all but text share the answer's memory.

    Raises
    ------
    Exception
        It is not such a message, or its contents do not match its descriptions.
    """
    described, contents = [], []
    for tag, begin, end in _fields(answer):
        if tag == _RAW_OUTPUT:
            contents.append((begin, end - begin))
        elif tag == _OUTPUT:
            described.append(answer[begin:end])
    arrays = {}
    for (name, dtype, shape, size), (begin, came) in zip(_outputs(tuple(described)), contents, strict=True):
        if dtype is None:
            arrays[name] = deserialize_bytes_tensor(answer[begin : begin + came]).reshape(shape)
        elif came != size:
            raise ValueError(f"{name}: expected {size} bytes for {dtype} {shape}, got {came}")
        else:
            arrays[name] = np.ndarray(shape, dtype, answer, begin)
    return arrays


def _fields(message: bytes) -> list[tuple[int, int, int]]:
    """Return tag, begin and end of each field that is bytes, text or a message.

    This is written in Python because, after a wait, protobuf's code is no longer in the CPU caches and takes
    longer.
    """
    found, at, size = [], 0, len(message)
    while at < size:
        tag, at = message[at], at + 1
        if tag > 127:
            tag, at = _long_varint(message, at)
        kind = tag & 7
        if kind == 2:
            length, at = message[at], at + 1
            if length > 127:
                length, at = _long_varint(message, at)
            found.append((tag, at, at + length))
            at += length
        elif kind == 0:
            _, at = _long_varint(message, at + 1)
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        else:
            raise ValueError(f"it can't be parsed: a field of kind {kind}")
    if at > size:
        raise ValueError("it is truncated")
    return found


def _long_varint(message: bytes, at: int) -> tuple[int, int]:
    """Return the varint whose first byte is at ``at - 1``, and the position after its end."""
    number, bits = message[at - 1] & 127, 7
    more = message[at - 1] > 127
    while more:
        byte, at = message[at], at + 1
        number |= (byte & 127) << bits
        bits, more = bits + 7, byte > 127
    return number, at


def _varint(number: int) -> bytes:
    """Return a length as a protobuf varint: seven bits per byte, lowest first."""
    written = bytearray()
    while number > 127:
        written.append(number & 127 | 128)
        number >>= 7
    written.append(number)
    return bytes(written)


def _tag(message: Any, field: str) -> int:
    """Return the tag of a field of bytes, text or messages."""
    number: int = message.DESCRIPTOR.fields_by_name[field].number
    return number << 3 | 2


_ID = _varint(_tag(service_pb2.ModelInferRequest, "id"))
_RAW_INPUT = _varint(_tag(service_pb2.ModelInferRequest, "raw_input_contents"))
_OUTPUT = _tag(service_pb2.ModelInferResponse, "outputs")
_RAW_OUTPUT = _tag(service_pb2.ModelInferResponse, "raw_output_contents")


@lru_cache(_REMEMBERED)
def _timeout(milliseconds: int) -> bytes:
    message = service_pb2.ModelInferRequest()
    message.parameters["timeout"].int64_param = milliseconds * 1000
    return bytes(message.SerializeToString())


@lru_cache(_REMEMBERED)
def _asked(model: str, outputs: tuple[str, ...]) -> bytes:
    message = service_pb2.ModelInferRequest(model_name=model)
    for name in outputs:
        message.outputs.add(name=name)
    return bytes(message.SerializeToString())


@lru_cache(_REMEMBERED)
def _input(name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    message = service_pb2.ModelInferRequest()
    message.inputs.add(name=name, datatype=np_to_triton_dtype(dtype), shape=shape)
    return bytes(message.SerializeToString())


@lru_cache(_REMEMBERED)
def _outputs(described: tuple[bytes, ...]) -> list[_Output]:
    return [_output(one) for one in described]


def _output(described: bytes) -> _Output:
    """Return name, dtype (None is text), shape and number of bytes of one output."""
    tensor = service_pb2.ModelInferResponse.InferOutputTensor.FromString(described)
    name, shape = str(tensor.name), tuple(tensor.shape)
    if tensor.datatype == "BYTES":
        return name, None, shape, 0
    numpy_type = triton_to_np_dtype(tensor.datatype)
    if numpy_type is None:
        raise ValueError(f"{name} is of type {tensor.datatype}")
    dtype = np.dtype(numpy_type)
    return name, dtype, shape, math.prod(shape) * dtype.itemsize
