"""Inferences as bytes: equal to protobuf's own, and malformed answers are refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tritonclient.grpc import service_pb2
from tritonclient.utils import deserialize_bytes_tensor, serialize_byte_tensor

from tiercel_client import InferRequest
from tiercel_client.wire.messages import read_answer, write_request

TEXTS = np.array([[b"", "é\x00".encode(), b"x" * 300]], object)
INPUTS: dict[str, Any] = {
    "user_id": np.array([[-(2**63)]]),
    "exclude_item_ids": TEXTS,
    "include_item_ids": np.empty((1, 0), object),
    "income": np.array([[np.nan, 2.5]], np.float32),
    "flag": np.array([[True]]),
}


def answer(**arrays: Any) -> Any:
    """Return a Triton message with these outputs."""
    message = service_pb2.ModelInferResponse(model_name="recommend", model_version="1", id="r")
    for name, array in arrays.items():
        kind = {"O": "BYTES", "i": "INT64", "f": "FP32", "b": "BOOL"}[array.dtype.kind]
        message.outputs.add(name=name, datatype=kind, shape=array.shape)
        text = serialize_byte_tensor(array).item() if kind == "BYTES" else array.tobytes()
        message.raw_output_contents.append(text)
    return message


def test_a_request_is_the_message_that_protobuf_reads() -> None:
    for number in range(2):  # the second one uses the cache
        request = InferRequest("recommend", INPUTS, ["item_id", "score"], 1.5, f"r-{number}", {})
        message = service_pb2.ModelInferRequest.FromString(write_request(request))
        assert (message.model_name, message.id) == ("recommend", f"r-{number}")
        assert [output.name for output in message.outputs] == ["item_id", "score"]
        assert message.parameters["timeout"].int64_param == 1_500_000
        found = {tensor.name: (tensor.datatype, tuple(tensor.shape)) for tensor in message.inputs}
        kinds = ("INT64", "BYTES", "BYTES", "FP32", "BOOL")
        assert found == {
            name: (kind, array.shape) for (name, array), kind in zip(INPUTS.items(), kinds, strict=True)
        }
        contents = dict(zip(INPUTS, message.raw_input_contents, strict=True))
        assert deserialize_bytes_tensor(contents["exclude_item_ids"]).tolist() == TEXTS.reshape(-1).tolist()
        assert contents["include_item_ids"] == b""
        for name in ("user_id", "income", "flag"):
            assert contents[name] == INPUTS[name].tobytes()


def test_an_answer_is_what_protobuf_wrote() -> None:
    outputs = {
        "item_id": TEXTS,
        "score": np.array([[0.5, 1.5]], np.float32),
        "none": np.empty((1, 0), np.int64),
        "found": np.array([[False]]),
    }
    for _ in range(2):
        found = read_answer(answer(**outputs).SerializeToString())
        assert list(found) == list(outputs)
        for name, array in outputs.items():
            assert found[name].dtype == array.dtype
            np.testing.assert_array_equal(found[name], array)
    # A later Triton may send more fields.
    assert read_answer(answer().SerializeToString() + b"\xa2\x06\x03new\xa8\x06\x07") == {}


@pytest.mark.parametrize("content", [b"", b"\0" * 7, b"\0" * 9, b"\0" * 16])
def test_contents_that_do_not_fit_are_told(content: bytes) -> None:
    message = answer(count=np.array([[3]]))
    message.raw_output_contents[0] = content
    with pytest.raises(ValueError, match=rf"count: expected 8 bytes for int64 \(1, 1\), got {len(content)}"):
        read_answer(message.SerializeToString())


def test_what_is_no_answer_is_told() -> None:
    message = answer(count=np.array([[3]]))
    cut = message.SerializeToString()[:-3]
    message.outputs[0].datatype = "FP8"
    unknown = message.SerializeToString()
    del message.raw_output_contents[:]
    fewer = message.SerializeToString()
    for wire in (cut, unknown, fewer, b"not protobuf"):
        with pytest.raises(Exception, match=r"(?i)pars|FP8|shorter|decod|truncat"):
            read_answer(wire)
