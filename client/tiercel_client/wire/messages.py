"""Triton's ``ModelInfer`` messages ↔ named arrays.

What describes tensors is the same in request after request, so its bytes are remembered, both ways. That
rests on two rules of protobuf's encoding (https://protobuf.dev/programming-guides/encoding/): messages that
are written one after another are read as one, with the repeated fields of all; and an embedded message lies
on the wire as ``bytes`` do.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory  # type: ignore[import-untyped]
from tritonclient.grpc import service_pb2
from tritonclient.utils import (
    deserialize_bytes_tensor,
    np_to_triton_dtype,
    serialize_byte_tensor,
    triton_to_np_dtype,
)

from .transport import Array, InferRequest

#: Descriptions that are remembered; the lists of a request make shapes many.
_REMEMBERED = 256

#: Name, dtype (None is text), shape and bytes of an output.
_Output = tuple[str, np.dtype[Any] | None, tuple[int, ...], int]


def write_request(request: InferRequest) -> bytes:
    """Return a ``ModelInferRequest``, serialised."""
    pieces = [_asked(request.model, tuple(request.outputs))]
    contents: list[bytes] = []
    for name, array in request.inputs.items():
        pieces.append(_input(name, array.dtype, array.shape))
        # What serialises text gives an empty array where there is none, and else one element.
        text = array.dtype.kind == "O"
        content = b"".join(serialize_byte_tensor(array).reshape(-1).tolist()) if text else array.tobytes()
        contents += _RAW_INPUT, _varint(len(content)), content
    name_of_it = request.request_id.encode()
    pieces += _ID, _varint(len(name_of_it)), name_of_it
    # The deadline ends our waiting; this ends the request's waiting in a queue of the server, if the
    # model's queue policy has a default timeout and allows to override it.
    pieces.append(_timeout(max(1, int(request.timeout_s * 1000))))
    pieces += contents
    return b"".join(pieces)


def read_answer(answer: bytes) -> dict[str, Array]:
    """Return the tensors of a serialised ``ModelInferResponse``; their memory is the answer's.

    Raises
    ------
    Exception
        It is no such message, or its contents do not fit its descriptions.
    """
    message = _Answer.FromString(answer)
    arrays = {}
    outputs = _outputs(tuple(message.outputs))
    for (name, dtype, shape, size), content in zip(outputs, message.raw_output_contents, strict=True):
        if dtype is None:
            arrays[name] = deserialize_bytes_tensor(content).reshape(shape)
        elif len(content) != size:
            raise ValueError(f"{name}: expected {size} bytes for {dtype} {shape}, came {len(content)}")
        else:
            arrays[name] = np.ndarray(shape, dtype, content)
    return arrays


def _varint(number: int) -> bytes:
    """Return a length as protobuf writes it: seven bits a byte, the lowest first."""
    written = bytearray()
    while number > 127:
        written.append(number & 127 | 128)
        number >>= 7
    written.append(number)
    return bytes(written)


def _tag(field: str) -> bytes:
    """Return what stands before the length of a field of bytes, text or messages."""
    return _varint(service_pb2.ModelInferRequest.DESCRIPTOR.fields_by_name[field].number << 3 | 2)


_ID, _RAW_INPUT = _tag("id"), _tag("raw_input_contents")


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
    """Return name, dtype (None is text), shape and bytes of one output."""
    tensor = service_pb2.ModelInferResponse.InferOutputTensor.FromString(described)
    name, shape = str(tensor.name), tuple(tensor.shape)
    if tensor.datatype == "BYTES":
        return name, None, shape, 0
    numpy_type = triton_to_np_dtype(tensor.datatype)
    if numpy_type is None:
        raise ValueError(f"{name} is of type {tensor.datatype}")
    dtype = np.dtype(numpy_type)
    return name, dtype, shape, math.prod(shape) * dtype.itemsize


def _answer_in_pieces() -> Any:
    """Return the class of a ``ModelInferResponse`` whose outputs are still bytes."""
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="tiercel_client.proto", syntax="proto3")
    message = file.message_type.add(name="AnswerInPieces")
    for one in service_pb2.ModelInferResponse.DESCRIPTOR.fields:
        if one.name in ("outputs", "raw_output_contents"):
            message.field.add(
                name=one.name, number=one.number, type=field.TYPE_BYTES, label=field.LABEL_REPEATED
            )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(message.name))


_Answer = _answer_in_pieces()
