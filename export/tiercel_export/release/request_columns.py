"""Names for a request's tensors of raw columns; no two tensors of the graph share a name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from itertools import count

import msgspec

from tiercel_serving.features import InputColumn
from tiercel_serving.release.manifest import Manifest, RequestColumn
from tiercel_serving.spec import LENGTH_OF, VALID_OF
from tiercel_serving.stages.column_tensors import rule_tensor_names
from tiercel_serving.stages.specs import BESIDE, stage_specs, time_spec


def graph_names(manifest: Manifest) -> set[str]:
    """Return the names of all tensors of the served graph, which must be unique in a Triton ensemble."""
    stages = [spec for spec in stage_specs(manifest) if spec.name not in BESIDE]
    times = [time_spec(spec.name) for spec in stages]
    names = {t.name for spec in stages for t in (*spec.inputs, *spec.outputs)} | {t.name for t in times}
    return names | rule_tensor_names(manifest.settings)


def request_columns(
    columns: Sequence[InputColumn], id_column: str, taken: Iterable[str]
) -> tuple[RequestColumn, ...]:
    """Name the tensors of the raw columns that a request may carry.

    A column is sent under its own name. Its companion's name adds ``__length`` or ``__valid``. If a name is
    taken, a number is added. Columns that keep their name choose first, then the other columns, and
    companions last.

    Parameters
    ----------
    columns
        The columns that the user program and rules read.
    id_column
        Name of the user id in the tables; it is sent as ``user_id`` and left out here.
    taken
        Names of the graph's own tensors.
    """
    carried = [column for column in columns if column.name != id_column]
    used = set(taken)
    tensors = {column.name: column.name for column in carried if column.name and column.name not in used}
    used.update(tensors)
    for column in carried:
        if column.name not in tensors:
            tensors[column.name] = _free(column.name or "column", used)
    return tuple(_named(column, tensors[column.name], used) for column in carried)


def _named(column: InputColumn, tensor: str, used: set[str]) -> RequestColumn:
    says = LENGTH_OF if column.is_list else VALID_OF
    nan_is_null = not column.is_list and column.dtype.startswith("float")
    companion = None if nan_is_null else _free(f"{tensor}__{says}", used)
    # Converted, because RequestColumn has literal types for the dtypes and parts that InputColumn has as str.
    raw = {key: value for key, value in asdict(column).items() if key != "is_date"}
    return msgspec.convert({**raw, "tensor": tensor, "companion": companion}, RequestColumn)


def _free(name: str, used: set[str]) -> str:
    """Return the name, with a number if it is in use, and add it to ``used``."""
    numbered = (name if number == 1 else f"{name}_{number}" for number in count(1))
    free = next(candidate for candidate in numbered if candidate not in used)
    used.add(free)
    return free
