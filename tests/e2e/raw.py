"""Raw requests that bypass our client and its checks, as any other client could send them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tritonclient.grpc as grpcclient
from tritonclient.utils import np_to_triton_dtype

ANSWER = ("item_id", "score", "count", "status")


def raw_infer(
    client: grpcclient.InferenceServerClient,
    inputs: Mapping[str, Any],
    *,
    model: str = "recommend",
    outputs: tuple[str, ...] = ANSWER,
    timeout_s: float = 30.0,
) -> dict[str, np.ndarray]:
    """Send arrays unchanged; strings are object arrays."""
    tensors, wanted = raw_request(inputs, outputs)
    result = client.infer(model, tensors, outputs=wanted, client_timeout=timeout_s)
    return {name: result.as_numpy(name) for name in outputs}


def raw_request(
    inputs: Mapping[str, Any], outputs: tuple[str, ...] = ANSWER
) -> tuple[list[grpcclient.InferInput], list[grpcclient.InferRequestedOutput]]:
    """Return tritonclient's inputs and outputs of a request."""
    tensors = []
    for name, value in inputs.items():
        array = np.asarray(value)
        tensor = grpcclient.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
        tensor.set_data_from_numpy(array)
        tensors.append(tensor)
    return tensors, [grpcclient.InferRequestedOutput(name) for name in outputs]
