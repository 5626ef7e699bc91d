"""A gRPC server in this process that speaks Triton's protocol: the fake recommender behind a real connection.

``script`` holds the outcomes of the next inferences, in place of answers.
"""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc
from tritonclient.utils import deserialize_bytes_tensor, serialize_byte_tensor

from tiercel_client import InferRequest, NotFound
from tiercel_client.testing import FakeTransport

DTYPES = {
    "BOOL": np.bool_,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP32": np.float32,
    "FP64": np.float64,
}
WIRE = {np.dtype(dtype): name for name, dtype in DTYPES.items()}
CONFIG = {
    "bool": model_config_pb2.TYPE_BOOL,
    "int32": model_config_pb2.TYPE_INT32,
    "int64": model_config_pb2.TYPE_INT64,
    "float32": model_config_pb2.TYPE_FP32,
    "float64": model_config_pb2.TYPE_FP64,
    "bytes": model_config_pb2.TYPE_STRING,
}


#: An inference that is not answered until ``go_on``; that it has come ``entered`` says.
HELD = "held"


class WireServer(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Answers as ``fake`` does, or as ``script`` says."""

    def __init__(
        self, fake: FakeTransport, *, port: int = 0, credentials: grpc.ServerCredentials | None = None
    ) -> None:
        self.fake = fake
        #: What the next inferences end with: a status and its message, or :data:`HELD`.
        self.script: deque[tuple[grpc.StatusCode, str] | str] = deque()
        self.version = "9.9"
        self.requests: list[Any] = []
        self.metadata: list[dict[str, Any]] = []
        #: Seconds that were left at each call; more than a year without a deadline.
        self.time_remaining: list[float] = []
        self.entered, self.go_on = threading.Event(), threading.Event()
        self.server = grpc.server(ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 0)])
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self, self.server)
        address = f"127.0.0.1:{port}"
        if credentials is None:
            self.port = self.server.add_insecure_port(address)
        else:
            self.port = self.server.add_secure_port(address, credentials)
        self.url = f"localhost:{self.port}" if credentials else f"127.0.0.1:{self.port}"
        self.server.start()

    def stop(self) -> None:
        """Abort all calls in progress."""
        stopped = self.server.stop(None)
        self.go_on.set()
        stopped.wait()

    def asked(self, model: str) -> list[Any]:
        return [request for request in self.requests if request.model_name == model]

    def ServerMetadata(self, request: Any, context: Any) -> Any:
        return service_pb2.ServerMetadataResponse(name="wire", version=self.version)

    def ModelConfig(self, request: Any, context: Any) -> Any:
        try:
            config = self.fake.model_config(request.name, timeout_s=1, headers={})
        except NotFound:
            context.abort(
                grpc.StatusCode.NOT_FOUND, f"Request for unknown model: '{request.name}' is not found"
            )
        message = model_config_pb2.ModelConfig(name=config.name, max_batch_size=config.max_batch_size)
        for tensor in config.inputs:
            message.input.add(
                name=tensor.name, data_type=CONFIG[tensor.dtype], dims=tensor.dims, optional=tensor.optional
            )
        for tensor in config.outputs:
            message.output.add(name=tensor.name, data_type=CONFIG[tensor.dtype], dims=tensor.dims)
        for key, value in config.parameters.items():
            message.parameters[key].string_value = value
        return service_pb2.ModelConfigResponse(config=message)

    def ModelInfer(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        self.metadata.append(dict(context.invocation_metadata()))
        left_s = context.time_remaining()
        self.time_remaining.append(float("inf") if left_s is None else left_s)
        if self.script:
            step = self.script.popleft()
            if isinstance(step, tuple):
                context.abort(*step)
            self.entered.set()
            self.go_on.wait(20)
        inputs = {
            tensor.name: _decode(tensor, raw)
            for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True)
        }
        outputs = [output.name for output in request.outputs]
        answer = self.fake.infer(InferRequest(request.model_name, inputs, outputs, 1.0, request.id, {}))
        return _encode(request, answer)


def _decode(tensor: Any, raw: bytes) -> Any:
    if tensor.datatype == "BYTES":
        return deserialize_bytes_tensor(raw).reshape(tensor.shape)
    return np.frombuffer(raw, DTYPES[tensor.datatype]).reshape(tensor.shape)


def _encode(request: Any, arrays: Any) -> Any:
    response = service_pb2.ModelInferResponse(model_name=request.model_name, id=request.id)
    for name, array in arrays.items():
        text = array.dtype == np.object_
        response.outputs.add(name=name, datatype="BYTES" if text else WIRE[array.dtype], shape=array.shape)
        serialized = serialize_byte_tensor(array) if text else array
        raw = (serialized.item() if serialized.size else b"") if text else array.tobytes()
        response.raw_output_contents.append(raw)
    return response
