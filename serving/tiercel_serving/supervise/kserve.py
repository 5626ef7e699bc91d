"""Convert between KServe's JSON, as Triton uses it over HTTP, and Triton's gRPC messages.

Requests are validated here, before Triton gets them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from math import prod
from typing import Any

import numpy as np
from tritonclient.grpc import service_pb2
from tritonclient.utils import deserialize_bytes_tensor, serialize_byte_tensor

from ..errors import InvalidRequest
from ..spec import Array

#: Data type in requests → NumPy dtype, for the types that a release's tensors may have. BYTES is text.
DTYPES: Mapping[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
    "BYTES": np.dtype(np.object_),
}

#: Kind of a dtype → the types that its elements may have in JSON, and their description.
_ELEMENTS: Mapping[str, tuple[frozenset[type], str]] = {
    "b": (frozenset({bool}), "true or false"),
    "i": (frozenset({int}), "whole numbers"),
    "f": (frozenset({int, float}), "numbers"),
    "O": (frozenset({str}), "text"),
}

#: The largest dimension that is accepted.
_LARGEST = 2**31 - 1

#: Tells whether the output with this name is requested as bytes after the JSON.
Binary = Callable[[str], bool]


def read_request(model: str, version: str, body: bytes, json_size: int | None) -> tuple[Any, Binary]:
    """Read the body of an inference request.

    Parameters
    ----------
    model, version
        From the URL; the version may be empty.
    body
        The JSON, followed by the tensors that were sent as bytes.
    json_size
        Bytes of the JSON, from the header ``Inference-Header-Content-Length``; None is the whole body.

    Returns
    -------
    The gRPC request, and which outputs are requested as bytes.

    Raises
    ------
    InvalidRequest
        The body is not a valid request, or a tensor's data does not fit its shape or type.
    """
    size = len(body) if json_size is None else json_size
    document = _parse(body[:size])
    request = service_pb2.ModelInferRequest(model_name=model, model_version=version)
    request.id = _text(document, "id", "the request", "")
    parameters = _parameters(document, "the request")
    binary_output = parameters.pop("binary_data_output", False)
    _put(request.parameters, parameters)
    rest = memoryview(body)[size:]
    for entry in _objects(document, "inputs"):
        rest = rest[_add_input(request, entry, rest) :]
    if len(rest):
        raise InvalidRequest(f"{len(rest)} bytes behind the JSON belong to no input; see binary_data_size")
    binary = {}
    for entry in _objects(document, "outputs", required=False):
        name = _text(entry, "name", "an output")
        wanted = _parameters(entry, f"output {name}")
        binary[name] = wanted.pop("binary_data", binary_output) is True
        _put(request.outputs.add(name=name).parameters, wanted)
    return request, lambda name: binary.get(name, binary_output is True)


def write_answer(response: Any, binary: Binary) -> tuple[bytes, int | None]:
    """Return a response's body, and the size of its JSON if tensors follow as bytes (else None)."""
    outputs, behind = [], []
    for tensor, raw in zip(response.outputs, response.raw_output_contents, strict=True):
        entry: dict[str, Any] = {
            "name": tensor.name,
            "datatype": tensor.datatype,
            "shape": list(tensor.shape),
        }
        if binary(tensor.name):
            entry["parameters"] = {"binary_data_size": len(raw)}
            behind.append(raw)
        else:
            entry["data"] = _elements(tensor.datatype, raw)
        outputs.append(entry)
    document: dict[str, Any] = {"id": response.id} if response.id else {}
    document |= {"model_name": response.model_name, "model_version": response.model_version}
    text = json.dumps({**document, "outputs": outputs}, ensure_ascii=False).encode()
    return b"".join([text, *behind]), len(text) if behind else None


def plain(message: Any) -> dict[str, Any]:
    """Return a message as JSON, if its fields are text, integers, or lists of these or of such messages."""
    return {field.name: _value(getattr(message, field.name)) for field in message.DESCRIPTOR.fields}


def _value(value: Any) -> Any:
    if isinstance(value, str | int):
        return value
    return [plain(one) if hasattr(one, "DESCRIPTOR") else one for one in value]


def _parse(text: bytes) -> dict[str, Any]:
    try:
        document = json.loads(text)
    except RecursionError:
        raise InvalidRequest(
            "the body's JSON is nested too deeply; a tensor's data may be one flat list"
        ) from None
    except ValueError as error:
        raise InvalidRequest(f"the body is no JSON: {error}") from None
    if not isinstance(document, dict):
        raise InvalidRequest('expected a JSON object such as {"inputs": [...]}, got another value')
    return document


def _text(entry: Mapping[str, Any], key: str, where: str, default: str | None = None) -> str:
    value = entry.get(key, default)
    if not isinstance(value, str) or any("\ud800" <= letter <= "\udfff" for letter in value):
        raise InvalidRequest(f"{where}: expected text as {key!r}")
    return value


def _parameters(entry: Mapping[str, Any], where: str) -> dict[str, Any]:
    value = entry.get("parameters", {})
    if not isinstance(value, dict):
        raise InvalidRequest(f"{where}: expected an object as 'parameters'")
    return dict(value)


def _objects(document: Mapping[str, Any], key: str, *, required: bool = True) -> list[dict[str, Any]]:
    entries = document.get(key, None if required else [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise InvalidRequest(f"expected a list of objects as {key!r}")
    return entries


def _put(parameters: Any, values: Mapping[str, Any]) -> None:
    """Set a message's parameters."""
    for name, value in values.items():
        kind = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}.get(
            type(value)
        )
        try:
            if kind is None:
                raise ValueError("expected text, a number, true or false")
            setattr(parameters[name], kind, value)
        except ValueError as error:
            raise InvalidRequest(f"parameter {name!r}: {error}") from None


def _add_input(request: Any, entry: Mapping[str, Any], rest: memoryview) -> int:
    """Add an input to a request; return how many of the bytes after the JSON belong to it."""
    name = _text(entry, "name", "an input")
    datatype, shape = entry.get("datatype"), entry.get("shape")
    dtype = DTYPES.get(datatype) if isinstance(datatype, str) else None
    if dtype is None:
        raise InvalidRequest(f"input {name}: expected one of {', '.join(DTYPES)} as 'datatype'")
    if not isinstance(shape, list) or not all(type(dim) is int and 0 <= dim <= _LARGEST for dim in shape):
        raise InvalidRequest(f"input {name}: expected a list of sizes as 'shape', such as [1, 1]")
    parameters = _parameters(entry, f"input {name}")
    size = parameters.pop("binary_data_size", None)
    if size is None:
        raw, used = _raw(name, dtype, entry.get("data"), prod(shape)), 0
    elif type(size) is int and 0 <= size <= len(rest) and "data" not in entry:
        raw, used = bytes(rest[:size]), size
    else:
        raise InvalidRequest(
            f"input {name}: expected 'data', or as binary_data_size at most the {len(rest)} bytes that follow"
        )
    tensor = request.inputs.add(name=name, datatype=datatype, shape=shape)
    _put(tensor.parameters, parameters)
    request.raw_input_contents.append(raw)
    return used


def _raw(name: str, dtype: np.dtype[Any], data: Any, count: int) -> bytes:
    """Return a tensor's bytes from its JSON data, a flat or nested list."""
    if not isinstance(data, list):
        raise InvalidRequest(f"input {name}: expected a list as 'data'")
    flat: Sequence[Any] = data
    while flat and isinstance(flat[0], list):
        if not all(isinstance(one, list) for one in flat):
            raise InvalidRequest(f"input {name}: 'data' mixes lists and values")
        flat = list(chain.from_iterable(flat))
    if len(flat) != count:
        raise InvalidRequest(f"input {name}: its shape has {count} elements, but its data {len(flat)}")
    expected, words = _ELEMENTS[dtype.kind]
    if not expected.issuperset(map(type, flat)):
        raise InvalidRequest(f"input {name}: expected {words} in 'data'")
    try:
        if dtype.kind == "O":
            return _bytes([text.encode() for text in flat])
        return _numbers(flat, dtype).tobytes()
    except (OverflowError, UnicodeEncodeError) as error:
        raise InvalidRequest(f"input {name}: a value cannot travel ({error})") from None


def _numbers(flat: Sequence[Any], dtype: np.dtype[Any]) -> Array:
    if dtype.kind == "i" and flat:
        limits = np.iinfo(dtype)
        if min(flat) < limits.min or max(flat) > limits.max:
            raise OverflowError(f"expected {limits.min} to {limits.max}")
    with np.errstate(over="ignore"):
        return np.array(flat, dtype)


def _bytes(texts: Sequence[bytes]) -> bytes:
    array = np.empty(len(texts), np.object_)
    array[:] = texts
    return serialize_byte_tensor(array).item() if texts else b""


def _elements(datatype: str, raw: bytes) -> list[Any]:
    """Return a tensor's elements for JSON, as one flat list."""
    dtype = DTYPES.get(datatype)
    if dtype is None:
        raise InvalidRequest(f"an output of {datatype} cannot be JSON; ask for it with binary_data")
    if dtype.kind == "O":
        return list(_texts(raw))
    values: list[Any] = np.frombuffer(raw, dtype).tolist()
    return values


def _texts(raw: bytes) -> Iterator[str]:
    if raw:
        for value in deserialize_bytes_tensor(raw).tolist():
            yield value.decode(errors="replace")
