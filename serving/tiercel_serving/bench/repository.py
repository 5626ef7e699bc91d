"""The benchmark's model repository: both layouts of one release, and models without computation.

One server per runner serves them all, so that they share its process, its threads and the machine's state.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from google.protobuf import text_format  # type: ignore[import-untyped]
from tritonclient.grpc import model_config_pb2

from ..errors import BenchError
from ..lookups.lookup import read_keys
from ..release.opened import Release
from ..repository.graph import render_repository
from ..repository.targets import find_runner
from ..spec import Array
from ..stores.memory_mapped import USER_LOOKUP

IDENTITY, HOLLOW = "bench_identity", "bench_hollow"
STAGED_SUFFIX = "_staged"
#: What is measured → its Triton model.
MODELS = {
    "identity": IDENTITY,
    "hollow": HOLLOW,
    "fused": "recommend",
    "staged": f"recommend{STAGED_SUFFIX}",
}

# The cheapest possible Python model: it reads every input, and returns outputs of the right names, dtypes
# and shapes.
EMPTY_MODEL = '''\
"""Inputs and outputs with nothing between them: what a Python model costs by itself."""

import json

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        shapes = json.loads(config["parameters"]["shapes"]["string_value"])
        users = int(config["max_batch_size"])
        self.outputs = []
        for output in config["output"]:
            dtype = np.dtype(pb_utils.triton_string_to_numpy(output["data_type"]))
            nothing = np.full((users, *shapes[output["name"]]), b"" if dtype == object else 0, dtype)
            self.outputs.append((output["name"], nothing))

    def execute(self, requests):
        responses = []
        for request in requests:
            inputs = [tensor.as_numpy() for tensor in request.inputs()]
            tensors = [pb_utils.Tensor(name, rows[: len(inputs[0])]) for name, rows in self.outputs]
            responses.append(pb_utils.InferenceResponse(tensors))
        return responses
'''


def write_bench_repository(
    release: Release, directory: Path, runner: str = "python", instances: int | None = None
) -> None:
    """Write the models of :data:`MODELS` and those they consist of; the release's files are not copied.

    ``instances`` is the number of instances of each model; None keeps the release's setting.
    """
    if instances is not None:
        settings = msgspec.structs.replace(release.settings, instances=instances)
        manifest = msgspec.structs.replace(release.manifest, settings=settings)
        release = Release(release.path, manifest, release.other_store)
    directory.mkdir(parents=True, exist_ok=True)
    render_repository(release, directory, "fused", runner=runner)
    render_repository(release, directory, "staged", suffix=STAGED_SUFFIX, runner=runner)
    write_identity(directory, MODELS["fused"], runner, instances or 1)
    write_hollow(directory, MODELS["staged"])


def write_identity(directory: Path, face: str, runner: str = "python", instances: int = 1) -> None:
    """Write the identity model with the inputs and outputs of the public model ``face``."""
    ensemble, row = _read_config(directory, face), find_runner(runner)
    config = model_config_pb2.ModelConfig(
        name=IDENTITY,
        backend=row.backend,
        max_batch_size=ensemble.max_batch_size,
        input=ensemble.input,
        output=ensemble.output,
    )
    config.instance_group.add(count=instances, kind=model_config_pb2.ModelInstanceGroup.KIND_CPU)
    if not row.in_process or instances > 1:
        config.dynamic_batching.SetInParent()  # as in a release's models
    for tensor in config.input:
        # Likewise, so that requests with different lengths share a batch.
        tensor.allow_ragged_batch = -1 in tensor.dims
    _write_empty(directory, config, output_shapes(config.output, ensemble))


def write_hollow(directory: Path, staged: str) -> None:
    """Write a copy of the staged ensemble without computation, to measure the cost of its hops alone.

    Each model takes its stage's inputs, and returns zeros in the dtypes and shapes of those outputs of its
    stage that the ensemble uses. The rest of each config is the stage's.
    """
    ensemble = _read_config(directory, staged)
    ensemble.name = HOLLOW
    for step in ensemble.ensemble_scheduling.step:
        config = _read_config(directory, step.model_name)
        config.name = step.model_name = f"{HOLLOW}_{step.model_name}"
        given = [tensor for tensor in config.output if tensor.name in step.output_map]
        del config.output[:]
        config.output.extend(given)
        config.parameters.clear()
        _write_empty(directory, config, output_shapes(given, ensemble))
    _write_config(directory, ensemble)


def output_shapes(outputs: Iterable[Any], ensemble: Any) -> dict[str, list[int]]:
    """Return the shape of each output for a request of the benchmark, without the user axis.

    A variable length is the default k in a public output. In an inner tensor it belongs to the request's
    exclusions, and is 1: no exclusions are one pad.
    """
    k_default = int(ensemble.parameters["k_default"].string_value or 10)
    public = {tensor.name for tensor in ensemble.output}
    return {
        tensor.name: [dim if dim > 0 else k_default if tensor.name in public else 1 for dim in tensor.dims]
        for tensor in outputs
    }


def _write_empty(directory: Path, config: Any, shapes: Mapping[str, Collection[int]]) -> None:
    config.parameters["shapes"].string_value = json.dumps(shapes)
    _write_config(directory, config)
    (directory / config.name / "1" / "model.py").write_text(EMPTY_MODEL, encoding="utf-8")


def _read_config(directory: Path, model: str) -> Any:
    text = (directory / model / "config.pbtxt").read_text(encoding="utf-8")
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def _write_config(directory: Path, config: Any) -> None:
    """Write a model's config and its version directory, which an ensemble needs too, though empty."""
    (directory / config.name / "1").mkdir(parents=True, exist_ok=True)
    file = directory / config.name / "config.pbtxt"
    file.write_text(text_format.MessageToString(config), encoding="utf-8")


def known_user_ids(release: Release, count: int) -> Array:
    """Sample at most ``count`` distinct ids of known users, ``[n]`` int64 or ``bytes``."""
    ids = read_keys(release.artefact("users", "users").arrays, USER_LOOKUP)
    if not len(ids):
        raise BenchError(f"{release.path}: the release knows no users, so there is nobody to ask about")
    drawn: Array = ids[np.random.default_rng(0).permutation(len(ids))[:count]]
    return drawn


def write_requests(user_ids: Array, file: Path) -> None:
    """Write perf_analyzer's input data, one request for each user.

    ``user_ids`` are ``[n]`` int64, or ``bytes`` that are valid UTF-8: JSON can carry no others.
    """
    values = [user.decode("utf-8") if isinstance(user, bytes) else int(user) for user in user_ids.tolist()]
    data = {"data": [{"user_id": [value]} for value in values]}
    file.write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
