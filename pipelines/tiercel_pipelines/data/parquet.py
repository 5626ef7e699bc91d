"""Your own three tables, as Parquet files with a schema."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import DataCorrupt, DataError, DataMissing
from .dataset import Dataset
from .specs import Parquet

Columns = tuple[tuple[str, str], ...]

#: Types a schema may name, and what to ask of an Arrow type.
COLUMN_TYPES = ("int", "float", "bool", "string", "time", "list[int]", "list[float]", "list[string]")


def load_parquet(spec: Parquet, *, data_dir: str | Path | None = None) -> Dataset:
    """Read three Parquet tables and check them against their schema; relative paths start at ``data_dir``."""
    root = Path(data_dir) if data_dir is not None else Path()
    ids = [spec.user_id, spec.item_id]
    time = [spec.timestamp] if spec.timestamp is not None else []
    users = _read(root / spec.users, "users", [spec.user_id], spec.user_columns)
    items = _read(root / spec.items, "items", [spec.item_id], spec.item_columns)
    interactions = _read(root / spec.interactions, "interactions", ids + time, spec.context_columns)
    source = ", ".join(str(root / path) for path in (spec.users, spec.items, spec.interactions))
    dataset = Dataset(
        spec.name, users, items, interactions, spec.user_id, spec.item_id, spec.timestamp, source
    )
    return dataset.check()


def read_table(path: Path, table: str) -> pd.DataFrame:
    """Read a Parquet file that exists, or a folder of them, as it is; messages call it ``table``."""
    try:
        return pq.read_table(path).to_pandas(ignore_metadata=True)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(path, table, error) from error


def _read(path: Path, table: str, roles: list[str], columns: Columns | None) -> pd.DataFrame:
    if not path.exists():
        raise DataMissing(
            f"parquet: {table}: {path.absolute()} does not exist; correct `{table}` in the recipe's data set"
        )
    try:
        schema = pq.read_schema(path) if path.is_file() else pq.ParquetDataset(path).schema
        wanted = [*roles, *(name for name, _ in columns)] if columns is not None else list(schema.names)
        _check_columns(path, table, schema, [*roles, *wanted], columns or ())
        frame = pq.read_table(path, columns=list(dict.fromkeys(wanted))).to_pandas(ignore_metadata=True)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(path, table, error) from error
    return frame


def _unreadable(path: Path, table: str, error: Exception) -> DataCorrupt:
    return DataCorrupt(f"{path}: {table} is not a readable Parquet file ({error}); write it again")


def _check_columns(path: Path, table: str, schema: pa.Schema, wanted: list[str], columns: Columns) -> None:
    missing = [name for name in dict.fromkeys(wanted) if name not in schema.names]
    if missing:
        raise DataMissing(
            f"{path}: {table} has no column {', '.join(map(repr, missing))}; it has "
            f"{', '.join(schema.names)}; correct the recipe's data set or the file"
        )
    for name, expected in columns:
        if expected not in COLUMN_TYPES:
            raise DataError(
                f"parquet: {table}.{name}: {expected!r} is no column type; use one of "
                f"{', '.join(COLUMN_TYPES)}"
            )
        came = schema.field(name).type
        if _type_name(came) != expected:
            raise DataCorrupt(
                f"{path}: {table}.{name}: the recipe says {expected}, the file holds {came}; "
                "correct the recipe's data set or write the file again"
            )


def _type_name(dtype: pa.DataType) -> str:
    types = pa.types
    if types.is_dictionary(dtype):
        return _type_name(dtype.value_type)
    if types.is_list(dtype) or types.is_large_list(dtype) or types.is_fixed_size_list(dtype):
        return f"list[{_type_name(dtype.value_type)}]"
    tests = {
        "int": types.is_integer,
        "float": types.is_floating,
        "bool": types.is_boolean,
        "time": lambda dtype: types.is_timestamp(dtype) or types.is_date(dtype),
        "string": lambda dtype: types.is_string(dtype) or types.is_large_string(dtype),
    }
    return next((name for name, test in tests.items() if test(dtype)), str(dtype))
