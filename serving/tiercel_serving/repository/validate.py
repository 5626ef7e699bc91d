"""Validate a model repository offline, by Triton's own rules.

Triton logs only the first broken rule of a model, and answers NOT_FOUND afterwards. This reports all of them,
with the model and tensor, before a server is started.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from google.protobuf import text_format  # type: ignore[import-untyped]
from tritonclient.grpc import model_config_pb2

from ..errors import InvalidConfig
from .graph import CONFIG_FILE, MODEL_FILE, PYTHON

#: Model name → its parsed config.
Configs = Mapping[str, Any]

#: Tensor of an ensemble → its config, and the step that makes it.
Made = dict[str, tuple[Any, str]]


def validate_repository(directory: Path) -> None:
    """Check every model of a Triton model repository.

    Raises
    ------
    InvalidConfig
        Something would make a server refuse the repository, or would break serving at run time. The message
        has one line per finding.
    """
    problems: list[str] = []
    configs = read_repository(directory, problems)
    if not configs and not problems:
        problems.append(f"{directory}: no models; expected one directory each")
    for config in configs.values():
        found = list(_common_problems(config, directory))
        if config.platform == "ensemble":
            found += _ensemble_problems(config, configs)
        else:
            found += _model_problems(config, directory)
        problems += [f"{config.name}: {text}" for text in found]
    if problems:
        raise InvalidConfig(
            f"{directory}: Triton would not serve this repository:\n" + "\n".join(f"  {p}" for p in problems)
        )


def read_repository(directory: Path, problems: list[str]) -> dict[str, Any]:
    """Parse all configs; append the problem of each unreadable or missing one to ``problems``."""
    configs: dict[str, Any] = {}
    for path in sorted(directory.iterdir()) if directory.is_dir() else []:
        # Loose files are harmless, but a directory without a config stops the server.
        if not path.is_dir():
            continue
        file = path / CONFIG_FILE
        if not file.is_file():
            problems.append(f"{path.name}: a directory without {CONFIG_FILE} stops the server")
            continue
        try:
            config = text_format.Parse(file.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())
        except (text_format.ParseError, UnicodeDecodeError) as error:
            problems.append(f"{path.name}: {CONFIG_FILE} cannot be read: {error}")
            continue
        if config.name != path.name:
            problems.append(f"{path.name}: its config is named {config.name!r}")
            continue
        configs[config.name] = config
    return configs


def _common_problems(config: Any, directory: Path) -> Iterator[str]:
    if not (directory / config.name / "1").is_dir():
        yield "no version directory 1/ (an ensemble needs one too, empty)"
    for kind, tensors in (("input", config.input), ("output", config.output)):
        if not tensors:
            yield f"no {kind}s"
        names = [tensor.name for tensor in tensors]
        for name in sorted({name for name in names if names.count(name) > 1}):
            yield f"{kind} {name!r} is there twice"
        for tensor in tensors:
            if tensor.data_type == model_config_pb2.TYPE_INVALID:
                yield f"{kind} {tensor.name!r} has no data type"
            if not tensor.dims or any(dim == 0 or dim < -1 for dim in tensor.dims):
                yield f"{kind} {tensor.name!r}: dims {list(tensor.dims)} must be positive, or -1"
    if config.max_batch_size < 0:
        yield f"max_batch_size {config.max_batch_size} is negative"


def _model_problems(config: Any, directory: Path) -> Iterator[str]:
    if config.backend == PYTHON and not (directory / config.name / "1" / MODEL_FILE).is_file():
        yield f"no 1/{MODEL_FILE}"
    if not config.backend and not config.platform:
        yield "neither backend nor platform"
    batching = config.HasField("dynamic_batching")
    if batching and config.max_batch_size == 0:
        yield "dynamic_batching needs max_batch_size of at least 1"
    inputs = {tensor.name: tensor for tensor in config.input}
    for name, tensor in inputs.items():
        if tensor.allow_ragged_batch and config.max_batch_size == 0:
            yield f"input {name!r}: allow_ragged_batch needs max_batch_size of at least 1"
        if batching and -1 in tensor.dims and not tensor.allow_ragged_batch:
            yield f"input {name!r}: a variable length without allow_ragged_batch stops batching"
    for sample in config.model_warmup:
        where = f"warmup {sample.name!r}"
        if not 1 <= sample.batch_size <= max(config.max_batch_size, 1):
            yield f"{where}: batch_size {sample.batch_size} of {config.max_batch_size}"
        for name, entry in sample.inputs.items():
            if name not in inputs:
                yield f"{where}: no input {name!r}"
            elif entry.data_type != inputs[name].data_type or not _dims_match(entry.dims, inputs[name].dims):
                yield f"{where}: {name!r} is not of the input's dtype and dims"
        for name, tensor in inputs.items():
            if not tensor.optional and name not in sample.inputs:
                yield f"{where}: input {name!r} is missing"


def _ensemble_problems(config: Any, configs: Configs) -> Iterator[str]:
    """Yield an ensemble's problems: each tensor must be made once, before it is used, and be used."""
    if config.instance_group:
        yield "an ensemble must not have an instance_group"
    if config.HasField("dynamic_batching") or config.HasField("sequence_batching"):
        yield "an ensemble must not have its own batching"
    if not config.ensemble_scheduling.step:
        yield "an ensemble needs at least one step"
    made: Made = {tensor.name: (tensor, "the request") for tensor in config.input}
    public = {tensor.name: tensor for tensor in config.output}
    used = set(public)
    for step in config.ensemble_scheduling.step:
        where, model = f"step {step.model_name!r}", configs.get(step.model_name)
        if model is None:
            yield f"{where}: no such model in the repository"
            continue
        if model is config:
            yield f"{where}: an ensemble cannot call itself"
        if 0 < model.max_batch_size < config.max_batch_size:
            ours = f"the ensemble's {config.max_batch_size}"
            yield f"{where}: its max_batch_size {model.max_batch_size} is below {ours}"
        yield from _input_problems(where, step.input_map, model, made, config)
        yield from _output_problems(where, step.output_map, model, made, config)
        used.update(step.input_map.values())
    for name in public:
        if name not in made or made[name][1] == "the request":
            yield f"output {name!r}: no step makes it"
    for tensor in sorted(set(made) - used):
        yield f"tensor {tensor!r} of {made[tensor][1]} is used by nothing, which Triton refuses"


def _input_problems(
    step: str, mapped: Mapping[str, str], model: Any, made: Made, config: Any
) -> Iterator[str]:
    inputs = {tensor.name: tensor for tensor in model.input}
    for name, tensor in inputs.items():
        if not tensor.optional and name not in mapped:
            yield f"{step}: its input {name!r} is not mapped"
    for name, tensor in mapped.items():
        where = f"{step}: input {name!r}"
        if name not in inputs:
            yield f"{step}: maps an input {name!r} that the model does not have"
        if tensor not in made:
            yield f"{where} is mapped to {tensor!r}, which no earlier step makes"
        elif name in inputs:
            came = made[tensor][0]
            yield from _consistent(where, came, inputs[name], model.max_batch_size, config)
            if getattr(came, "optional", False) and not inputs[name].optional:
                yield f"{where} is required, but {tensor!r} is an optional input of the ensemble"


def _output_problems(
    step: str, mapped: Mapping[str, str], model: Any, made: Made, config: Any
) -> Iterator[str]:
    """Yield the problems of a step's outputs, and add the outputs to ``made``."""
    outputs = {tensor.name: tensor for tensor in model.output}
    public = {tensor.name: tensor for tensor in config.output}
    if not mapped:
        yield f"{step}: maps no output"
    for name, tensor in mapped.items():
        if name not in outputs:
            yield f"{step}: maps an output {name!r} that the model does not have"
        if tensor in made:
            yield f"{step}: makes {tensor!r}, which {made[tensor][1]} already made"
        elif name in outputs:
            made[tensor] = outputs[name], step
            if tensor in public:
                where, batch = f"output {tensor!r}", model.max_batch_size
                yield from _consistent(where, outputs[name], public[tensor], batch, config)


def _consistent(where: str, made: Any, wanted: Any, batch: int, config: Any) -> Iterator[str]:
    if made.data_type != wanted.data_type:
        yield f"{where}: dtype {_dtype(wanted)} is wanted, {_dtype(made)} comes"
    # A model without batching includes the batch axis in its dims.
    wanted_dims = list(wanted.dims)
    if batch == 0 and config.max_batch_size > 0 and wanted_dims[:1] == [-1]:
        wanted_dims = wanted_dims[1:]
    if not _dims_match(made.dims, wanted_dims):
        yield f"{where}: dims {wanted_dims} are wanted, {list(made.dims)} come"


def _dims_match(one: Any, other: Any) -> bool:
    """Return whether dims are equal, with -1 as a wildcard on either side."""
    return len(one) == len(other) and all(
        a == b or a == -1 or b == -1 for a, b in zip(one, other, strict=True)
    )


def _dtype(tensor: Any) -> str:
    return str(model_config_pb2.DataType.Name(tensor.data_type))
