"""The request's tensors of raw columns: whatever a column is called, no two tensors share a name."""

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
    """Return the names of all tensors of the served graph: Triton has one place for each."""
    stages = [spec for spec in stage_specs(manifest) if spec.name not in BESIDE]
    times = [time_spec(spec.name) for spec in stages]
    names = {t.name for spec in stages for t in (*spec.inputs, *spec.outputs)} | {t.name for t in times}
    return names | rule_tensor_names(manifest.settings)


def request_columns(
    columns: Sequence[InputColumn], id_column: str, taken: Iterable[str]
) -> tuple[RequestColumn, ...]:
    """Name the tensors of the raw columns that a request may carry.

    A column travels under its own name, its companion under that and ``__length`` or ``__valid``. Where
    such a name is taken, a number is added: columns choose first, those that keep their name before those
    that can't, and companions last.

    Parameters
    ----------
    columns
        What the user program reads.
    id_column
        What the tables call the user id, which travels as ``user_id``.
    taken
        Names that the graph's own tensors have.
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
    # Converted, since a program knows the few dtypes and parts only as text.
    raw = {key: value for key, value in asdict(column).items() if key != "is_date"}
    return msgspec.convert({**raw, "tensor": tensor, "companion": companion}, RequestColumn)


def _free(name: str, used: set[str]) -> str:
    """Return the name, or with the first number that makes it a new one; it is used from now on."""
    numbered = (name if number == 1 else f"{name}_{number}" for number in count(1))
    free = next(candidate for candidate in numbered if candidate not in used)
    used.add(free)
    return free
