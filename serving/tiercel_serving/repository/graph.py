"""Write the served graph as Triton model directories, from the list of stages.

Each Triton model is a list of stages behind one generic ``model.py``. The two public models are ensembles
over these, or contain all stages themselves if the runner makes a second copy cheap. Configs are built as
Triton's protobuf messages and never written by hand, which excludes misspelt fields.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec
from google.protobuf import text_format  # type: ignore[import-untyped]
from tritonclient.grpc import model_config_pb2

from ..release.opened import Release
from ..reorder.steps import reasons_of
from ..rules.table import asked
from ..settings import BEYOND_KEPT, EMPTY_SLOT, FIRST_RULE_REASON, KEPT, ServingSettings
from ..spec import StageSpec, TensorSpec, model_inputs
from ..stages.specs import BESIDE, NOW, TIME_PREFIX, time_spec
from ..stores.chosen import write_store
from .engine_models import engine_config, link_engine, own_backend
from .targets import Runner, find_runner, find_target, model_groups

#: Names of the two public models, which are usually ensembles.
RECOMMEND, EXPLAIN = "recommend", "recommend_explain"

#: The outputs of ``recommend``.
RECOMMEND_OUTPUTS = ("item_id", "score", "count", "status")

#: A further output if a reorder step explores.
PROPENSITY = "propensity"

#: The further outputs of ``recommend_explain``, before the times.
EXPLAIN_OUTPUTS = (
    "history_row",
    "history_length",
    "retrieved_row",
    "retrieval_score",
    "source",
    "kept_row",
    "kept_index",
    "filter_reason",
    "rank_score",
    "reorder_reason",
    "explain_reason",
    "explain_place",
    "explain_score",
    "explain_detail",
)

#: Triton's backend for the models that run our stages.
PYTHON = "python"

#: The file of a Triton model that runs its stages.
MODEL_FILE = "model.py"

CONFIG_FILE = "config.pbtxt"

#: Tensor dtype → Triton data type.
TRITON_DTYPES: Mapping[str, int] = {
    "bool": model_config_pb2.TYPE_BOOL,
    "int32": model_config_pb2.TYPE_INT32,
    "int64": model_config_pb2.TYPE_INT64,
    "float32": model_config_pb2.TYPE_FP32,
    "float64": model_config_pb2.TYPE_FP64,
    "bytes": model_config_pb2.TYPE_STRING,
}


def render_repository(
    release: Release, directory: Path, layout: str, *, suffix: str = "", runner: str | None = None
) -> list[str]:
    """Write the Triton models of a release into a model repository; return their names, public ones last.

    The release's artefacts need not exist yet. The repository may already contain the other layout, if
    ``suffix``, appended to the public names, distinguishes them; both then share the models beside the
    graph. ``runner`` is a row of :data:`~.targets.RUNNERS`; None is the release's own.
    """
    ran_by = find_runner(release.manifest.runner if runner is None else runner)
    specs = release.stages
    graph = {
        model: tuple(specs[stage] for stage in stages)
        for model, stages in model_groups(layout, graph_stages(release)).items()
    }
    direct = ran_by.in_process and len(graph) == 1
    groups = {} if direct else dict(graph)
    groups |= {name: (specs[name],) for name in BESIDE if name in specs and not (directory / name).exists()}
    place = _release_path(release, directory)
    configs = [_model(release, model, stages, place, ran_by) for model, stages in groups.items()]
    for name, public in (
        (RECOMMEND, (*RECOMMEND_OUTPUTS, PROPENSITY)),
        (EXPLAIN, _explain_outputs(graph.values())),
    ):
        if direct:
            [stages] = graph.values()
            config = _stage_model(release, name + suffix, stages, place, ran_by)
            _narrow(config, public)
            _set_parameters(config, client_parameters(release))
        else:
            config = _ensemble(release, name + suffix, graph, public)
        configs.append(config)
    code = resources.files(__package__).joinpath("model.py.txt").read_text(encoding="utf-8")
    for config in configs:
        _write_model(directory, config, code, release.build_id)
        link_engine(release, config, directory)
    return [config.name for config in configs]


def _write_model(directory: Path, config: Any, code: str, build_id: str) -> None:
    version = directory / config.name / "1"
    version.mkdir(parents=True, exist_ok=True)
    text = f"# Written by `tiercel export` for build {build_id}; change the recipe and export again.\n"
    text += text_format.MessageToString(config)
    (directory / config.name / CONFIG_FILE).write_text(text, encoding="utf-8")
    if config.backend == PYTHON:
        (version / MODEL_FILE).write_text(code, encoding="utf-8")


def _release_path(release: Release, directory: Path) -> str:
    """Return the release's path for models: relative to a model inside of the release, else absolute."""
    root, models = release.path.resolve(), directory.resolve()
    if models.is_relative_to(root):
        return os.path.relpath(root, models / "model")
    return str(root)


def _explain_outputs(groups: Iterable[Sequence[StageSpec]]) -> tuple[str, ...]:
    times = tuple(TIME_PREFIX + spec.name for stages in groups for spec in stages)
    return (*RECOMMEND_OUTPUTS, PROPENSITY, *EXPLAIN_OUTPUTS, *times)


def model_outputs(release: Release, stages: Sequence[StageSpec]) -> tuple[TensorSpec, ...]:
    """Return the outputs of a model: all of a single stage, or those of a chain that are public.

    Every stage's time comes last, except for an engine in its own backend, which does not report it.
    """
    outputs = {tensor.name: tensor for spec in stages for tensor in spec.outputs}
    if len(stages) > 1:
        public = (*RECOMMEND_OUTPUTS, PROPENSITY, *EXPLAIN_OUTPUTS)
        outputs = {name: outputs[name] for name in public if name in outputs}
    if own_backend(release, stages) is not None:
        return tuple(outputs.values())
    return (*outputs.values(), *(time_spec(spec.name) for spec in stages))


def _model(
    release: Release, name: str, stages: Sequence[StageSpec], release_path: str, runner: Runner
) -> Any:
    """Return a model's config; a model of one engine may use the engine's own Triton backend."""
    kind = own_backend(release, stages)
    if kind is None:
        return _stage_model(release, name, stages, release_path, runner)
    config = engine_config(stages[0], kind, release.settings, TRITON_DTYPES)
    _set_batching(config, release.settings)
    return config


def _stage_model(
    release: Release, name: str, stages: Sequence[StageSpec], release_path: str, runner: Runner
) -> Any:
    settings, target = release.settings, find_target(release.manifest.target)
    config = model_config_pb2.ModelConfig(
        name=name, backend=runner.backend, max_batch_size=settings.max_batch_size
    )
    inputs = model_inputs(stages)
    public = {tensor.name for tensor in model_inputs(tuple(release.stages.values()))}
    for tensor in inputs:
        # Without allow_ragged_batch, requests with different lengths would not share a batch.
        optional = tensor.optional or tensor.name in public
        _add_tensor(config.input, tensor, optional=optional, allow_ragged_batch=-1 in tensor.dims)
    for tensor in model_outputs(release, stages):
        _add_tensor(config.output, tensor)
    config.instance_group.add(kind=target.instance_kind, count=settings.instances)
    inner = any(not tensor.optional and tensor.name not in public for tensor in inputs)
    if not runner.in_process or (not inner and _waits_in_triton(settings)):
        _set_batching(config, settings)
    _set_parameters(
        config,
        {
            "stages": _json([spec.name for spec in stages]),
            "release": release_path,
            "build_id": release.build_id,
            **({} if release.other_store is None else {"store": write_store(release.other_store)}),
        },
    )
    _add_warmup(config, inputs)
    return config


def _waits_in_triton(settings: ServingSettings) -> bool:
    """Return whether callers' requests must wait in Triton's queue, even if the runner has one of its own.

    Triton's queue has limits, and gives several instances larger batches. In the runner's own, one caller is
    answered in two thirds of the time: a thread fewer is woken, and the runner awaits the next request.
    """
    return settings.queue_delay_us > 0 or settings.max_queue_size > 0 or settings.instances > 1


def _narrow(config: Any, public: Sequence[str]) -> None:
    """Keep only the public outputs, in their order: a request that names no outputs gets all of them."""
    outputs = {tensor.name: tensor for tensor in config.output}
    del config.output[:]
    config.output.extend(outputs[name] for name in public if name in outputs)


def _add_tensor(tensors: Any, tensor: TensorSpec, **flags: bool) -> None:
    """Add a tensor to a config.

    Every public input is optional for Triton, because an ensemble answers "unexpected deadlock" if a required
    one is missing, while the first stage names the missing input.
    """
    tensors.add(name=tensor.name, data_type=TRITON_DTYPES[tensor.dtype], dims=tensor.dims, **flags)


def _set_batching(config: Any, settings: ServingSettings) -> None:
    batching = config.dynamic_batching
    batching.SetInParent()
    if settings.queue_delay_us:
        batching.max_queue_delay_microseconds = settings.queue_delay_us
    if settings.max_queue_size:
        # Set a queue policy only if a size limit is configured. Any limit (a size, a timeout, an override)
        # turns off Triton's prefetching. A request that arrives while an instance finishes its last batch
        # then waits until the batcher's idle wait of 500 ms is over. On 2.51 this hit one request in a
        # hundred from a single caller.
        policy = batching.default_queue_policy
        policy.timeout_action = model_config_pb2.ModelQueuePolicy.REJECT
        policy.max_queue_size = settings.max_queue_size


def _set_parameters(config: Any, values: Mapping[str, str]) -> None:
    for key, value in values.items():
        config.parameters[key].string_value = value


def _add_warmup(config: Any, inputs: Sequence[TensorSpec]) -> None:
    """Configure a warm-up request that runs before READY, so that the first caller finds warm caches."""
    wanted = [tensor for tensor in inputs if not tensor.optional]
    # A model with only optional inputs still needs one; int64 inputs such as rows are cheap.
    wanted = wanted or [tensor for tensor in inputs if tensor.dtype == "int64"][-1:]
    if not wanted:
        return
    warmup = config.model_warmup.add(name="zeros", batch_size=1, count=1)
    for tensor in wanted:
        entry = warmup.inputs[tensor.name]
        entry.data_type = TRITON_DTYPES[tensor.dtype]
        entry.dims.extend(1 if dim == -1 else dim for dim in tensor.dims)
        entry.zero_data = True


def _ensemble(
    release: Release, name: str, groups: Mapping[str, Sequence[StageSpec]], public: Sequence[str]
) -> Any:
    config = model_config_pb2.ModelConfig(
        name=name, platform="ensemble", max_batch_size=release.settings.max_batch_size
    )
    made_by = {model: model_outputs(release, groups[model]) for model in groups}
    steps = needed_steps(groups, made_by, public)
    outputs = {tensor.name: tensor for tensors in made_by.values() for tensor in tensors}
    made = {tensor for _, tensors in steps for tensor in tensors}
    for tensor in model_inputs([spec for model, _ in steps for spec in groups[model]]):
        _add_tensor(config.input, tensor, optional=True)
    for output in public:
        if output in made:
            _add_tensor(config.output, outputs[output])
    for model, tensors in steps:
        config.ensemble_scheduling.step.add(
            model_name=model,
            model_version=-1,
            input_map={tensor.name: tensor.name for tensor in model_inputs(groups[model])},
            output_map={output: output for output in tensors},
        )
    _set_parameters(config, client_parameters(release))
    return config


def needed_steps(
    groups: Mapping[str, Sequence[StageSpec]],
    made_by: Mapping[str, Sequence[TensorSpec]],
    public: Sequence[str],
) -> list[tuple[str, list[str]]]:
    """Return (model, outputs to map) of each step, found by walking back from the ensemble's outputs.

    Triton computes every mapped output, and refuses one that is not used. So each step maps the outputs that
    a later step or the caller needs, and a step without any is left out.
    """
    wanted = set(public)
    steps: list[tuple[str, list[str]]] = []
    for model in reversed(list(groups)):
        tensors = [tensor.name for tensor in made_by[model] if tensor.name in wanted]
        if not tensors:
            continue
        steps.append((model, tensors))
        wanted.update(tensor.name for tensor in model_inputs(groups[model]))
    return steps[::-1]


def graph_stages(release: Release) -> list[str]:
    """Return the names of the stages of the served graph, in its order."""
    return [name for name in release.stages if name not in BESIDE]


def client_parameters(release: Release) -> dict[str, str]:
    """Return the string parameters by which the public models describe the release to clients."""
    manifest, settings = release.manifest, release.settings
    catalogue = manifest.catalogue
    names = () if manifest.ranking is None else manifest.ranking.task_names
    return {
        "build_id": release.build_id,
        "name": manifest.name,
        "k_default": str(settings.k_default),
        "k_max": str(settings.k_max),
        "max_excluded": str(settings.max_excluded),
        "allow_seen": _json(settings.allow_seen),
        "item_id_dtype": catalogue.item_id_dtype,
        "user_id_dtype": catalogue.user_id_dtype,
        "sources": _json([source.name for source in settings.sources]),
        "filter_reasons": _json(filter_reasons(settings)),
        "reorder_reasons": _json(reasons_of(settings.reorder)),
        "stages": _json(graph_stages(release)),
        "request_columns": _json(_request_columns(release)),
    } | ({"task_names": _json(names)} if names else {})


def _request_columns(release: Release) -> list[Any]:
    """Return the columns, the reorder steps' numbers and the clock that a request may send."""
    numbers: list[dict[str, Any]] = [
        {"name": one.name, "dtype": "float64", "is_list": False, "part": "ordering"}
        | {"tensor": one.tensor.name, "companion": None}
        for one in release.settings.numbers()
    ]
    clock_counts = asked(release.settings.rules).now or release.settings.seen_again_days is not None
    if clock_counts and NOW not in {one["name"] for one in numbers}:
        clock = {"name": NOW, "dtype": "float64", "is_list": False, "part": "context", "unit": "s"}
        numbers.append({**clock, "tensor": NOW, "companion": None})
    columns = msgspec.to_builtins(release.manifest.request_columns)
    return [*({key: one[key] for key in one if key != "of_rules"} for one in columns), *numbers]


def filter_reasons(settings: ServingSettings) -> dict[str, str]:
    """Return reason code → readable text; :mod:`tiercel_serving.settings` defines the codes."""
    reasons = {
        KEPT: "kept",
        EMPTY_SLOT: "empty slot",
        BEYOND_KEPT: f"passed, but after the first {settings.kept}",
    }
    for number, rule in enumerate(settings.rules):
        reasons[FIRST_RULE_REASON + number] = f"{rule.name}: {rule.reason}"
    return {str(code): text for code, text in reasons.items()}


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
