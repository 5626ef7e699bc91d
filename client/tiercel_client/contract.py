"""The contract of a served ensemble, read from its configuration: limits, id types, columns, tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from .errors import ProtocolMismatch
from .results import RequestColumn, ServerInfo

#: The list inputs of an ensemble, the inputs with the lengths of their rows, and, if item ids are text, the
#: inputs that carry them packed. Older releases have no packed inputs.
EXCLUDE, HISTORY = "exclude_item_ids", "history_item_ids"
INCLUDE, CANDIDATES = "include_item_ids", "candidate_item_ids"
LISTS = (EXCLUDE, HISTORY, INCLUDE, CANDIDATES)
LENGTHS: Mapping[str, str] = {name: f"{name}__length" for name in LISTS}
PACKED: Mapping[str, str] = {name: f"{name}__packed" for name in LISTS}

#: The input of ``recommend_explain`` with the items whose outcome is requested.
EXPLAINED = "explain_item_ids"

#: The input of ``related`` with the given items.
RELATED_TO = "related_item_ids"

#: The input that says whether seen items may be recommended.
ALLOW_SEEN = "allow_seen"

#: The output with each item's propensity, in ensembles that explore.
PROPENSITY = "propensity"

#: Prefix of the outputs of ``recommend_explain`` that hold a stage's microseconds.
TIME_PREFIX = "time_us_"

ID_DTYPES = ("int64", "bytes")
COLUMN_DTYPES = ("bool", "int64", "int32", "float32", "float64", "bytes")


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One input or output of a model; ``dims`` exclude the batch axis, and -1 is any length."""

    name: str
    dtype: str
    dims: tuple[int, ...]
    optional: bool = False


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The configuration of a served model, independent of protobuf.

    Parameters
    ----------
    name
        The model's name.
    max_batch_size
        Maximum number of rows in one request; 0 for a model without a batch axis.
    inputs, outputs
        Its tensors; dtypes have NumPy's names, and text is ``bytes``.
    parameters
        The string parameters of its configuration.
    """

    name: str
    max_batch_size: int
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    parameters: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Contract(ServerInfo):
    """The requirements of one ensemble on requests, without the server's name and version.

    ``columns`` are the request columns by name; ``inputs`` and ``outputs`` are the ensemble's tensor names.
    """

    columns: Mapping[str, RequestColumn]
    inputs: frozenset[str]
    outputs: frozenset[str] = frozenset()

    def info(self, server: str, version: str) -> ServerInfo:
        """Return the public form of the contract, with the server's name and version."""
        said = {field.name: getattr(self, field.name) for field in fields(ServerInfo)}
        return ServerInfo(**{**said, "server": server, "server_version": version})


def read_contract(config: ModelConfig) -> Contract:
    """Read the contract from an ensemble's configuration.

    Raises
    ------
    ProtocolMismatch
        The model is not a Tiercel ensemble, or of a version that this client does not know.
    """
    reader = _Reader(config)
    columns = reader.columns()
    return Contract(
        server="",
        server_version="",
        model=config.name,
        name=reader.text("name"),
        build_id=reader.text("build_id"),
        max_batch_size=reader.positive("max_batch_size", config.max_batch_size),
        k_default=reader.positive("k_default"),
        k_max=reader.positive("k_max"),
        max_excluded=reader.positive("max_excluded", least=0),
        # Older releases have neither the parameter nor the input.
        allow_seen=ALLOW_SEEN in config.parameters and reader.json(ALLOW_SEEN, bool),
        user_id_dtype=reader.choice("user_id_dtype", ID_DTYPES),
        item_id_dtype=reader.choice("item_id_dtype", ID_DTYPES),
        sources=tuple(str(name) for name in reader.json("sources", list)),
        stages=tuple(str(name) for name in reader.json("stages", list)),
        filter_reasons=reader.reasons(),
        reorder_reasons=tuple(str(text) for text in reader.json("reorder_reasons", list)),
        request_columns=tuple(columns),
        task_names=reader.names("task_names"),
        columns={column.name: column for column in columns},
        inputs=frozenset(tensor.name for tensor in config.inputs),
        outputs=frozenset(tensor.name for tensor in config.outputs),
    )


class _Reader:
    """Reads the parameters of one configuration; errors name the model and the parameter."""

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        self.inputs = {tensor.name: tensor for tensor in config.inputs}

    def wrong(self, what: str) -> ProtocolMismatch:
        return ProtocolMismatch(
            f"model {self.config.name!r}: {what}. Is it an ensemble of a Tiercel release? If it is, "
            "install the tiercel version that exported it."
        )

    def text(self, key: str) -> str:
        if key not in self.config.parameters:
            raise self.wrong(f"expected the parameter {key!r} in its configuration, got none")
        return self.config.parameters[key]

    def positive(self, key: str, value: int | None = None, least: int = 1) -> int:
        try:
            number = int(self.text(key)) if value is None else value
        except ValueError:
            raise self.wrong(f"{key}: expected a number, got {self.text(key)!r}") from None
        if number < least:
            raise self.wrong(f"{key}: expected at least {least}, got {number}")
        return number

    def choice(self, key: str, known: tuple[str, ...]) -> str:
        value = self.text(key)
        if value not in known:
            raise self.wrong(f"{key}: expected one of {', '.join(known)}, got {value!r}")
        return value

    def json(self, key: str, kind: type | tuple[type, ...]) -> Any:
        try:
            value = json.loads(self.text(key))
        except ValueError:
            raise self.wrong(f"{key}: expected JSON, got {self.text(key)!r}") from None
        if not isinstance(value, kind):
            raise self.wrong(f"{key}: got {type(value).__name__} {self.text(key)[:80]!r}")
        return value

    def names(self, key: str) -> tuple[str, ...]:
        """Return a list of names, which is empty if the server does not send the parameter."""
        return tuple(str(name) for name in self.json(key, list)) if key in self.config.parameters else ()

    def reasons(self) -> dict[int, str]:
        value = self.json("filter_reasons", (dict, list))
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        try:
            return {int(code): str(text) for code, text in pairs}
        except ValueError:
            raise self.wrong("filter_reasons: expected numbers as codes") from None

    def columns(self) -> list[RequestColumn]:
        return [self._column(entry) for entry in self.json("request_columns", list)]

    def _column(self, entry: Any) -> RequestColumn:
        try:
            name, dtype, part, tensor = (str(entry[key]) for key in ("name", "dtype", "part", "tensor"))
            companion = None if entry["companion"] is None else str(entry["companion"])
            unit = entry.get("unit")  # missing in older releases
            column = RequestColumn(name, dtype, bool(entry["is_list"]), part, tensor, companion, unit)
        except (KeyError, TypeError):
            expected = "expected name, dtype, is_list, part, tensor and companion"
            raise self.wrong(f"request_columns: {expected}, got {entry!r}") from None
        self._check_input(column, column.tensor, column.dtype, column.dtype in COLUMN_DTYPES)
        if column.is_list:
            self._check_input(column, column.companion, "int32")
        elif not column.dtype.startswith("float"):
            self._check_input(column, column.companion, "bool")
        return column

    def _check_input(self, column: RequestColumn, name: str | None, dtype: str, known: bool = True) -> None:
        tensor = None if name is None else self.inputs.get(name)
        if tensor is None or tensor.dtype != dtype or not known:
            came = "no such input" if tensor is None else f"an input of {tensor.dtype}"
            raise self.wrong(f"request column {column.name!r}: expected {name!r} of {dtype}, got {came}")
