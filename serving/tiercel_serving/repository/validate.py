"""An offline validator: Triton's own rules for a model repository, applied before a server sees it.

Triton reports the first broken rule of a model in its log and answers NOT_FOUND afterwards; this
reports all of them, with the model and tensor, where nothing has been started yet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from google.protobuf import text_format  # type: ignore[import-untyped]
from tritonclient.grpc import model_config_pb2

from ..errors import InvalidConfig
from .graph import CONFIG_FILE, MODEL_FILE

#: Model name → its parsed config.
Configs = Mapping[str, Any]


def validate_repository(directory: Path) -> None:
    """Check every model of a Triton model repository.

    Raises
    ------
    InvalidConfig
        If anything is found that a server would refuse, or that would break ours at run time. The
        message has one line per finding.
    """
    problems: list[str] = []
    configs = read_repository(directory, problems)
    if not configs and not problems:
        problems.append(f"{directory}: no models; expected one directory each")
    for config in configs.values():
        rules = _ENSEMBLE_RULES if config.platform == "ensemble" else _MODEL_RULES
        for rule in (*_COMMON_RULES, *rules):
            problems.extend(f"{config.name}: {text}" for text in rule(config, configs, directory))
    if problems:
        raise InvalidConfig(
            f"{directory}: Triton would not serve this repository:\n" + "\n".join(f"  {p}" for p in problems)
        )


def read_repository(directory: Path, problems: list[str]) -> dict[str, Any]:
    """Parse all configs. Unreadable or missing ones are added to ``problems``."""
    configs: dict[str, Any] = {}
    for path in sorted(directory.iterdir()) if directory.is_dir() else []:
        # Loose files do no harm; a directory without a config stops the server.
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


def _has_version(config: Any, configs: Configs, directory: Path) -> Iterator[str]:
    if not (directory / config.name / "1").is_dir():
        yield "no version directory 1/ (an ensemble needs one too, empty)"


def _has_tensors(config: Any, configs: Configs, directory: Path) -> Iterator[str]:
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


def _batch_size(config: Any, configs: Configs, directory: Path) -> Iterator[str]:
    if config.max_batch_size < 0:
        yield f"max_batch_size {config.max_batch_size} is negative"


def _model_file(config: Any, configs: Configs, directory: Path) -> Iterator[str]:
    if config.backend == "python" and not (directory / config.name / "1" / MODEL_FILE).is_file():
        yield f"no 1/{MODEL_FILE}"
    if not config.backend and not config.platform:
        yield "neither backend nor platform"


def _batches_ragged(config: Any, configs: Configs, directory: Path) -> Iterator[str]:
    batching = config.HasField("dynamic_batching")
    if batching and config.max_batch_size == 0:
        yield "dynamic_batching needs max_batch_size of at least 1"
    for tensor in config.input:
        if tensor.allow_ragged_batch and config.max_batch_size == 0:
            yield f"input {tensor.name!r}: allow_ragged_batch needs max_batch_size of at least 1"
        if batching and -1 in tensor.dims and not tensor.allow_ragged_batch:
            yield f"input {tensor.name!r}: a variable length without allow_ragged_batch stops batching"


def _warmup_fits(config: Any, configs: Configs, directory: Path) -> Iterator[str]:
    inputs = {tensor.name: tensor for tensor in config.input}
    for sample in config.model_warmup:
        if not 1 <= sample.batch_size <= max(config.max_batch_size, 1):
            yield f"warmup {sample.name!r}: batch_size {sample.batch_size} of {config.max_batch_size}"
        for name, entry in sample.inputs.items():
            if name not in inputs:
                yield f"warmup {sample.name!r}: no input {name!r}"
            elif entry.data_type != inputs[name].data_type or not _dims_match(entry.dims, inputs[name].dims):
                yield f"warmup {sample.name!r}: {name!r} is not of the input's dtype and dims"
        for name, tensor in inputs.items():
            if not tensor.optional and name not in sample.inputs:
                yield f"warmup {sample.name!r}: input {name!r} is missing"


def _ensemble_alone(config: Any, configs: Configs, directory: Path) -> Iterator[str]:
    if config.instance_group:
        yield "an ensemble must not have an instance_group"
    if config.HasField("dynamic_batching") or config.HasField("sequence_batching"):
        yield "an ensemble must not have its own batching"
    if not config.ensemble_scheduling.step:
        yield "an ensemble needs at least one step"


def _steps_exist(config: Any, configs: Configs, directory: Path) -> Iterator[str]:
    for step in config.ensemble_scheduling.step:
        if step.model_name not in configs:
            yield f"step {step.model_name!r}: no such model in the repository"
        elif step.model_name == config.name:
            yield f"step {step.model_name!r}: an ensemble cannot call itself"


def _steps_batch(config: Any, configs: Configs, directory: Path) -> Iterator[str]:
    for step, model in _known_steps(config, configs):
        if 0 < model.max_batch_size < config.max_batch_size:
            yield (
                f"step {step.model_name!r}: its max_batch_size {model.max_batch_size} is below the "
                f"ensemble's {config.max_batch_size}"
            )


def _steps_mapped(config: Any, configs: Configs, directory: Path) -> Iterator[str]:
    for step, model in _known_steps(config, configs):
        inputs = {tensor.name: tensor for tensor in model.input}
        outputs = {tensor.name for tensor in model.output}
        for name, tensor in inputs.items():
            if not tensor.optional and name not in step.input_map:
                yield f"step {step.model_name!r}: its input {name!r} is not mapped"
        for name in step.input_map:
            if name not in inputs:
                yield f"step {step.model_name!r}: maps an input {name!r} that the model does not have"
        for name in step.output_map:
            if name not in outputs:
                yield f"step {step.model_name!r}: maps an output {name!r} that the model does not have"
        if not step.output_map:
            yield f"step {step.model_name!r}: maps no output"


def _tensors_flow(config: Any, configs: Configs, directory: Path) -> Iterator[str]:
    """Each ensemble tensor is made once, before it is used, and used by somebody."""
    made: dict[str, Any] = {tensor.name: tensor for tensor in config.input}
    makers = dict.fromkeys(made, "the request")
    public = {tensor.name: tensor for tensor in config.output}
    used = set(public)
    for step, model in _known_steps(config, configs):
        inputs = {tensor.name: tensor for tensor in model.input}
        outputs = {tensor.name: tensor for tensor in model.output}
        for name, tensor in step.input_map.items():
            used.add(tensor)
            where = f"step {step.model_name!r}: input {name!r}"
            if tensor not in made:
                yield f"{where} is mapped to {tensor!r}, which no earlier step makes"
            elif name in inputs:
                yield from _consistent(where, made[tensor], inputs[name], model.max_batch_size, config)
                if getattr(made[tensor], "optional", False) and not inputs[name].optional:
                    yield f"{where} is required, but {tensor!r} is an optional input of the ensemble"
        for name, tensor in step.output_map.items():
            if tensor in made:
                yield f"step {step.model_name!r}: makes {tensor!r}, which {makers[tensor]} already made"
            elif name in outputs:
                made[tensor], makers[tensor] = outputs[name], f"step {step.model_name!r}"
                if tensor in public:
                    where, batch = f"output {tensor!r}", model.max_batch_size
                    yield from _consistent(where, outputs[name], public[tensor], batch, config)
    for name in public:
        if makers.get(name, "the request") == "the request":
            yield f"output {name!r}: no step makes it"
    for tensor in sorted(set(made) - used):
        yield f"tensor {tensor!r} of {makers[tensor]} is used by nothing, which Triton refuses"


def _consistent(where: str, made: Any, wanted: Any, batch: int, config: Any) -> Iterator[str]:
    if made.data_type != wanted.data_type:
        yield f"{where}: dtype {_dtype(wanted)} is wanted, {_dtype(made)} comes"
    # A model that does not batch writes the batch axis into its dims.
    wanted_dims = list(wanted.dims)
    if batch == 0 and config.max_batch_size > 0 and wanted_dims[:1] == [-1]:
        wanted_dims = wanted_dims[1:]
    if not _dims_match(made.dims, wanted_dims):
        yield f"{where}: dims {wanted_dims} are wanted, {list(made.dims)} come"


def _dims_match(one: Any, other: Any) -> bool:
    """Equal, with -1 as wildcard on either side."""
    return len(one) == len(other) and all(
        a == b or a == -1 or b == -1 for a, b in zip(one, other, strict=True)
    )


def _dtype(tensor: Any) -> str:
    return str(model_config_pb2.DataType.Name(tensor.data_type))


def _known_steps(config: Any, configs: Configs) -> Iterator[tuple[Any, Any]]:
    for step in config.ensemble_scheduling.step:
        if step.model_name in configs:
            yield step, configs[step.model_name]


_Rule = Callable[[Any, Configs, Path], Iterator[str]]

_COMMON_RULES: tuple[_Rule, ...] = (_has_version, _has_tensors, _batch_size)
_MODEL_RULES: tuple[_Rule, ...] = (_model_file, _batches_ragged, _warmup_fits)
_ENSEMBLE_RULES: tuple[_Rule, ...] = (
    _ensemble_alone,
    _steps_exist,
    _steps_batch,
    _steps_mapped,
    _tensors_flow,
)
