"""The same workflow served by Tiercel and by Merlin Systems, in one Triton, on the same requests.

Six models have the same inputs, one tensor per column, in Merlin Systems' layout:

``identity``
    A Python model that does nothing, which measures the cost of a request alone.
``tiercel``
    A Python model that runs the compiled programs and returns packed tensors, as Tiercel's stages do. **The
    limit is on this one.**
``own``
    The same on Tiercel's own runner, in the server's process, if that is built. It has a limit too.
``columns``
    As ``tiercel``, but with one output tensor per feature, exactly as from Merlin Systems.
``workflow``
    Merlin Systems' ``TransformWorkflow`` model, with which ``tiercel`` is compared.
``executor``
    Merlin Systems' executor, which calls ``workflow``; its documentation has clients call this model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tritonclient.grpc as triton_grpc
from google.protobuf import text_format  # type: ignore[import-untyped]
from tritonclient.grpc import model_config_pb2

from benchmarks.features.cases import Case
from benchmarks.features.merlin_systems import EXECUTOR_MODEL, WORKFLOW_MODEL, MerlinSystems
from tiercel_serving import backend
from tiercel_serving.bench.machine import triton_version
from tiercel_serving.bench.measurement import Measurement, median_of
from tiercel_serving.bench.python_client import request_inputs
from tiercel_serving.bench.run import Load
from tiercel_serving.errors import BenchError
from tiercel_serving.spec import Array
from tiercel_serving.supervise import start_server

#: Served case → how many times faster than Merlin Systems' workflow model Tiercel must be (p50, one caller).
#: With small vocabularies NVTabular is so fast that even a request which computes nothing is hardly that much
#: faster, so that case has no limit.
SERVED: Mapping[str, float | None] = {"three": 25.0, "movielens": 25.0, "three-small": None}
#: The same limits for :data:`OWN`.
OWN_LIMITS: Mapping[str, float] = {"three": 50.0}
#: Name of the model on Tiercel's own runner.
OWN = "own"
#: Name in the report → Triton model.
MODELS: Mapping[str, str] = {
    "identity": "bench_identity",
    "tiercel": "bench_tiercel",
    OWN: "bench_own",
    "columns": "bench_columns",
    "workflow": WORKFLOW_MODEL,
    "executor": EXECUTOR_MODEL,
}
#: Number of different requests, and of those whose answers are compared first; this also warms up the models.
REQUESTS, COMPARED = 200, 20
TIMEOUT_S = 30.0

IDENTITY_MODEL = '''\
"""Inputs and outputs with nothing between them: what a Python model costs by itself."""

import json

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        outputs = json.loads(args["model_config"])["output"]
        self.outputs = [
            (output["name"], np.zeros(2, pb_utils.triton_string_to_numpy(output["data_type"])))
            for output in outputs
        ]

    def execute(self, requests):
        responses = []
        for request in requests:
            for tensor in request.inputs():
                tensor.as_numpy()
            tensors = [pb_utils.Tensor(name, values) for name, values in self.outputs]
            responses.append(pb_utils.InferenceResponse(tensors))
        return responses
'''

TIERCEL_MODEL = '''\
"""The compiled programs and nothing else: raw columns in, packed tensors or every feature by itself out."""

import json
from pathlib import Path

import triton_python_backend_utils as pb_utils

from tiercel_serving.release.artefacts import open_artefact
from tiercel_serving.columns import Column
from tiercel_serving.features import FeatureProgram

VALUES, OFFSETS = "__values", "__offsets"


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        programs = sorted(Path(config["parameters"]["programs"]["string_value"]).iterdir())
        self.programs = [FeatureProgram.open(open_artefact(path, "features")) for path in programs]
        self.dtypes = {
            output["name"]: pb_utils.triton_string_to_numpy(output["data_type"])
            for output in config["output"]
        }
        packed = config["parameters"]["gives"]["string_value"] == "packed"
        self.features = self.packed if packed else self.columns

    def execute(self, requests):
        responses = []
        for request in requests:
            sent = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
            tensors = []
            for program in self.programs:
                columns = {column.name: self.column(sent, column) for column in program.inputs}
                tensors += self.features(program, columns, len(columns[program.inputs[0].name]))
            responses.append(pb_utils.InferenceResponse(tensors))
        return responses

    def packed(self, program, columns, n):
        return [pb_utils.Tensor(name, values) for name, values in program.packed(columns, n).items()]

    def columns(self, program, columns, n):
        tensors = []
        for name, column in program.run(columns, n).items():
            if column.offsets is None:
                tensors.append(self.tensor(name, column.values))
            else:
                tensors.append(self.tensor(name + VALUES, column.values))
                tensors.append(self.tensor(name + OFFSETS, column.offsets))
        return tensors

    def column(self, sent, column):
        if column.is_list:
            return Column(sent[column.name + VALUES], None, sent[column.name + OFFSETS])
        return Column(sent[column.name])

    def tensor(self, name, values):
        return pb_utils.Tensor(name, values.astype(self.dtypes[name], copy=False))
'''


@dataclass(frozen=True)
class Served:
    """Measurements of one served case.

    Parameters
    ----------
    case
        The case's name.
    rounds
        Name in :data:`MODELS` → its rounds, in order, with one caller and one row per request.
    triton
        The server's version.
    limit, own_limit
        How many times faster than Merlin Systems Tiercel must be, on Triton's Python backend and on its own
        runner; None is no limit.
    """

    case: str
    rounds: Mapping[str, Sequence[Measurement]]
    triton: str
    limit: float | None = None
    own_limit: float | None = None

    def p50_us(self, name: str) -> float:
        """Return the median over rounds of one model's p50, in microseconds."""
        return median_of(self.rounds[name]).p50_us

    @property
    def ratio(self) -> float:
        """How many times faster Tiercel answers than Merlin Systems' workflow model."""
        return self.times("workflow", "tiercel")

    @property
    def ceiling(self) -> float:
        """The upper bound of ``ratio``, as if features took no time and only the request did."""
        return self.times("workflow", "identity")

    def times(self, slower: str, quicker: str) -> float:
        """Return how many times faster the model ``quicker`` answers than ``slower``."""
        return self.p50_us(slower) / self.p50_us(quicker)

    @property
    def ok(self) -> bool:
        """Whether both runners are within their limits."""
        return self.stock_ok and self.own_ok

    @property
    def stock_ok(self) -> bool:
        """Whether Triton's Python backend is within its limit."""
        return self.limit is None or self.ratio >= self.limit

    @property
    def own_ratio(self) -> float | None:
        """How many times faster Tiercel answers on its own runner; None if that is not built."""
        return self.times("workflow", OWN) if OWN in self.rounds else None

    @property
    def own_ok(self) -> bool:
        """Whether Tiercel's own runner is within its limit."""
        return self.own_ratio is None or self.own_limit is None or self.own_ratio >= self.own_limit

    def to_json(self) -> dict[str, Any]:
        """Return a JSON form."""
        pairs = zip(self.rounds["workflow"], self.rounds["tiercel"], strict=True)
        single = [theirs.p50_us / ours.p50_us for theirs, ours in pairs]
        return {
            "case": self.case,
            "triton": self.triton,
            "models": {
                name: {**median_of(rounds).to_json(), "rounds": [one.to_json() for one in rounds]}
                for name, rounds in self.rounds.items()
            },
            "ratio": round(self.ratio, 2),
            "ceiling": round(self.ceiling, 2),
            "ratio_columns": round(self.times("workflow", "columns"), 2),
            "ratio_executor": round(self.times("executor", "tiercel"), 2),
            "lowest": round(min(single), 2),
            "highest": round(max(single), 2),
            "limit": self.limit,
            "ratio_own": None if self.own_ratio is None else round(self.own_ratio, 2),
            "own_limit": self.own_limit,
            "ok": self.ok,
        }


def measure_served(
    case: Case,
    peer: MerlinSystems,
    load: Load,
    scratch: Path,
    *,
    rounds: int,
    seconds: float,
    triton: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Served:
    """Serve a case by all models on one server, compare answers, and measure in interleaved rounds.

    Parameters
    ----------
    case
        The case.
    peer
        Merlin Systems' environment.
    load
        The load generator.
    scratch
        A directory for the model repository.
    rounds, seconds
        Number of rounds, and duration of each single measurement.
    triton
        As for :func:`~tiercel_serving.supervise.start_server`.
    progress
        Called as ``progress(done, total)``.

    Raises
    ------
    BenchError
        The export, a request or a measurement failed, or the answers differ.
    ServerError
        The server can't be started.
    """
    repository, data = scratch / "models", scratch / "requests.json"
    write_repository(case, peer, repository, scratch)
    requests = requests_of(case.rows)
    data.write_text(json.dumps({"data": requests}, ensure_ascii=False), encoding="utf-8")
    models = {name: model for name, model in MODELS.items() if (repository / model).is_dir()}
    measured: dict[str, list[Measurement]] = {name: [] for name in models}
    with start_server(repository, triton=triton, canary=lambda url, timeout_s: None) as server:
        compare_answers(server.grpc_url, case.name, models, requests[:COMPARED])
        version = triton_version(server.grpc_url)
        for done in range(rounds):
            if progress is not None:
                progress(done, rounds)
            for name, model in models.items():
                measured[name].append(
                    load.run(model, server.grpc_url, concurrency=1, seconds=seconds, data=data)
                )
    if progress is not None:
        progress(rounds, rounds)
    return Served(case.name, measured, version, SERVED[case.name], OWN_LIMITS.get(case.name))


def write_repository(case: Case, peer: MerlinSystems, repository: Path, scratch: Path) -> None:
    """Write the models of :data:`MODELS`; ours copy the inputs and outputs of Merlin Systems' model."""
    saved = scratch / "workflow"
    case.workflow.save(str(saved))
    peer.export(saved, repository)
    programs = scratch / "programs"
    for compiled in case.compiled:
        compiled.write(programs / compiled.part, "bench")
    text = (repository / WORKFLOW_MODEL / "config.pbtxt").read_text(encoding="utf-8")
    theirs = text_format.Parse(text, model_config_pb2.ModelConfig())
    ours = model_config_pb2.ModelConfig(input=theirs.input, output=_packed_outputs(case))
    _write_model(repository, MODELS["identity"], theirs, IDENTITY_MODEL)
    written = [("columns", theirs, "columns"), ("tiercel", ours, "packed")]
    if backend.library() is not None:
        written.append((OWN, ours, "packed"))
    for name, face, gives in written:
        _write_model(repository, MODELS[name], face, TIERCEL_MODEL, programs=str(programs), gives=gives)


def _write_model(repository: Path, name: str, face: Any, code: str, **parameters: str) -> None:
    """Write a Python model with the inputs and outputs of a config."""
    config = model_config_pb2.ModelConfig(
        name=name,
        backend="tiercel" if name == MODELS[OWN] else "python",
        input=face.input,
        output=face.output,
        instance_group=[
            model_config_pb2.ModelInstanceGroup(count=1, kind=model_config_pb2.ModelInstanceGroup.KIND_CPU)
        ],
    )
    for key, value in parameters.items():
        config.parameters[key].string_value = value
    folder = repository / name / "1"
    folder.mkdir(parents=True)
    (folder / "model.py").write_text(code, encoding="utf-8")
    (folder.parent / "config.pbtxt").write_text(text_format.MessageToString(config), encoding="utf-8")


def _packed_outputs(case: Case) -> list[Any]:
    """Return the packed tensors of a case's programs as outputs of a model config."""
    kinds: dict[str, str] = {}
    for compiled in case.compiled:
        for output in compiled.outputs:
            which = f"list_{output.name}" if output.is_list else output.kind
            kinds[f"{compiled.part}_{which}"] = output.kind
    types = {"cat": model_config_pb2.TYPE_INT64, "num": model_config_pb2.TYPE_FP32}
    return [
        model_config_pb2.ModelOutput(name=name, data_type=types[kind], dims=[-1, -1])
        for name, kind in kinds.items()
    ]


def requests_of(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Return perf_analyzer's input data: one row per request, no nulls, which Merlin Systems can't take."""
    return [_request(row) for row in rows.dropna().head(REQUESTS).to_dict("records")]


def _request(row: Mapping[Any, Any]) -> dict[str, Any]:
    tensors: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, (list, np.ndarray)):
            tensors[f"{name}__values"] = {"content": list(value), "shape": [len(value)]}
            tensors[f"{name}__offsets"] = {"content": [0, len(value)], "shape": [2]}
        else:
            tensors[str(name)] = {"content": [value], "shape": [1]}
    return tensors


def compare_answers(
    url: str, case: str, models: Mapping[str, str], requests: Sequence[Mapping[str, Any]]
) -> None:
    """Send all models the same rows; compare those with one output tensor per feature, and both runners.

    Raises
    ------
    BenchError
        A request failed, or the answers differ.
    """
    pairs = [("workflow", "executor"), ("workflow", "columns"), ("tiercel", OWN)]
    with triton_grpc.InferenceServerClient(url) as client:
        for request in requests:
            answers = {name: _ask(client, model, request) for name, model in models.items()}
            for one, other in pairs if OWN in models else pairs[:2]:
                for name, values in answers[one].items():
                    got = answers[other][name]
                    if not np.array_equal(got, values, equal_nan=values.dtype.kind == "f"):
                        raise BenchError(
                            f"case {case}: {other!r} answers {name} = {got.tolist()}, but {one!r} "
                            f"{values.tolist()}; their times must not be compared"
                        )


def _ask(client: Any, model: str, request: Mapping[str, Any]) -> dict[str, Array]:
    try:
        metadata = client.get_model_metadata(model)
        dtypes = {tensor.name: tensor.datatype for tensor in metadata.inputs}
        answer = client.infer(model, request_inputs(dict(request), dtypes), client_timeout=TIMEOUT_S)
    except Exception as error:
        raise BenchError(f"model {model!r}: a request failed: {error}") from error
    return {tensor.name: answer.as_numpy(tensor.name) for tensor in metadata.outputs}
