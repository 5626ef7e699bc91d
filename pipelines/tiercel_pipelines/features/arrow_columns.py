"""Conversion between Arrow arrays and the columns of a feature program, without a Python loop over rows.

A column is computed in the dtype that it had when the workflow was fitted. A file may hold another one as
long as no value changes: integers of another width, integers that nulls turned into floats, integers or
float32 where floats are expected. A value that would change is refused, with its column, since NVTabular
would compute it in the file's own dtype, and the last bits would differ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tiercel_serving.columns import Column
from tiercel_serving.features import InputColumn, OutputColumn
from tiercel_serving.features.calendar import PER_SECOND
from tiercel_serving.spec import Array

from ..data.arrow import of_decimals
from ..errors import DataCorrupt, DataMissing

_types = pa.types

#: Types that an input column may have in a file, by the program's dtype. An all-null column may have Arrow's
#: null type.
_NUMBER = (_types.is_integer, _types.is_floating, _types.is_decimal, _types.is_boolean, _types.is_null)
ACCEPTED: Mapping[str, tuple[Any, ...]] = {
    "int64": _NUMBER,
    "bool": _NUMBER,
    "float32": _NUMBER,
    "float64": _NUMBER,
    "bytes": (
        *(_types.is_string, _types.is_large_string, _types.is_string_view),
        *(_types.is_binary, _types.is_large_binary, _types.is_binary_view),
        _types.is_null,
    ),
}
_MOST_ELEMENTS = 2**31 - 1
_LISTS = (_types.is_list, _types.is_large_list, _types.is_fixed_size_list)
#: Names of the dtypes in messages.
WORDS: Mapping[str, str] = {
    "int64": "integers",
    "bool": "booleans",
    "float32": "float32 numbers",
    "float64": "numbers",
    "bytes": "text",
}


def check_schema(schema: pa.Schema, inputs: Sequence[InputColumn], where: str) -> None:
    """Compare the columns of a file, which messages call ``where``, with what a program reads.

    Raises
    ------
    DataMissing
        Columns are missing.
    DataCorrupt
        A column occurs twice, has a type that cannot be converted to the program's, or is a list where the
        program has scalars, or the reverse.
    """
    missing = [column for column in inputs if column.name not in schema.names]
    if missing:
        wanted = ", ".join(f"{column.name!r} ({_wanted(column)})" for column in missing)
        raise DataMissing(
            f"{where}: column{'s' if len(missing) > 1 else ''} {wanted} missing; the file has "
            f"{', '.join(schema.names)}; add what is missing, null where it is not known"
        )
    for column in inputs:
        if schema.names.count(column.name) > 1:
            raise DataCorrupt(f"{where}: column {column.name!r} occurs twice; leave one out")
        _check_type(schema.field(column.name).type, column, where)


def _check_type(came: pa.DataType, column: InputColumn, where: str) -> None:
    element, is_list = _plain(came), any(test(_plain(came)) for test in _LISTS)
    if is_list:
        element = _plain(element.value_type)
    all_null = _types.is_null(element) and not is_list
    if column.unit is not None and not is_list and _is_time(element):
        return
    if all_null or (is_list == column.is_list and any(test(element) for test in ACCEPTED[column.dtype])):
        return
    raise DataCorrupt(
        f"{where}: column {column.name!r}: expected {_wanted(column)}, the file holds {came}; write it as "
        "the column was when the workflow was fitted"
    )


def _wanted(column: InputColumn) -> str:
    return f"lists of {WORDS[column.dtype]}" if column.is_list else WORDS[column.dtype]


def _plain(dtype: pa.DataType) -> pa.DataType:
    return dtype.value_type if _types.is_dictionary(dtype) else dtype


# ------------------------------------------------------------------------------------ Arrow → columns


def columns_from_batch(batch: pa.RecordBatch, inputs: Sequence[InputColumn], where: str) -> dict[str, Column]:
    """Convert a batch whose schema :func:`check_schema` has accepted.

    Text, and numbers that already have the program's dtype, share the batch's memory. Raises DataCorrupt if
    the program's dtype cannot hold a value; ``where`` names the file and rows in messages.
    """
    return {column.name: column_from_arrow(batch.column(column.name), column, where) for column in inputs}


def column_from_arrow(array: pa.Array, column: InputColumn, where: str) -> Column:
    """Convert one array; see :func:`columns_from_batch`. Text stays packed, as in Arrow."""
    array = _decoded(array)
    if column.unit is not None and _is_time(array.type):
        array = _ticks(array, column, where)
    if not column.is_list:
        values, valid, text_offsets = _elements(array, column, where)
        return Column(values, valid, text_offsets=text_offsets)
    if _types.is_null(array.type):
        n = len(array)
        values, _, text_offsets = _elements(array.slice(0, 0), column, where)
        return Column(values, None, np.zeros(n + 1, np.int64), np.zeros(n, np.bool_), text_offsets)
    if _types.is_fixed_size_list(array.type):
        size = array.type.list_size
        offsets = np.arange(array.offset, array.offset + len(array) + 1, dtype=np.int64) * size
    else:
        offsets = array.offsets.to_numpy().astype(np.int64)
    begin, end = int(offsets[0]), int(offsets[-1])
    elements = _decoded(array.values.slice(begin, end - begin))
    values, valid, text_offsets = _elements(elements, column, where)
    return Column(values, valid, offsets - begin, _valid(array), text_offsets)


def _is_time(dtype: pa.DataType) -> bool:
    return bool(_types.is_timestamp(dtype) or _types.is_date(dtype))


def _ticks(array: pa.Array, column: InputColumn, where: str) -> pa.Array:
    """Return dates and times as whole ticks of the column's unit, rounded down."""
    null = array.is_null().to_numpy(zero_copy_only=False)
    if _types.is_date32(array.type):
        own, array = 1, array.cast(pa.int32())
    else:
        own = PER_SECOND["ms" if _types.is_date64(array.type) else array.type.unit]
    ticks = array.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False)
    ticks = ticks * 86_400 if _types.is_int32(array.type) else ticks
    wanted = PER_SECOND[str(column.unit)]
    if wanted > own and (np.abs(ticks) > (2**63 - 1) // (wanted // own)).any():
        raise DataCorrupt(
            f"{where}: column {column.name!r}: expected times that 64 bits hold as {column.unit} since 1970, "
            f"found one {np.abs(ticks).max() // own} seconds away; fit the workflow on whole seconds"
        )
    return pa.array(ticks * (wanted // own) if wanted > own else ticks // (own // wanted), mask=null)


def _decoded(array: pa.Array) -> pa.Array:
    """Return a dictionary as plain values."""
    return array.dictionary_decode() if _types.is_dictionary(array.type) else array


def _valid(array: pa.Array) -> npt.NDArray[np.bool_] | None:
    if array.null_count == 0:
        return None
    valid: npt.NDArray[np.bool_] = array.is_valid().to_numpy(zero_copy_only=False)
    return valid


#: Values, validity, and the offsets of packed text.
_Elements = tuple[Array, Array | None, Array | None]


def _elements(array: pa.Array, column: InputColumn, where: str) -> _Elements:
    if column.dtype == "bytes":
        return _texts(array, column, where)
    if _types.is_null(array.type):
        return np.zeros(len(array), np.dtype(column.dtype)), np.zeros(len(array), np.bool_), None
    if _types.is_decimal(array.type):
        array = of_decimals(array, f"{where}: column {column.name!r}")
    return *_typed(_numbers(array), _valid(array), column, where), None


def _numbers(array: pa.Array) -> Array:
    """Return an array of numbers or booleans as NumPy's; values at nulls are arbitrary."""
    if _types.is_boolean(array.type):
        return np.asarray(array.fill_null(False).to_numpy(zero_copy_only=False))
    dtype = np.dtype(array.type.to_pandas_dtype())
    data = array.buffers()[1]
    if len(array) == 0 or data is None:
        return np.zeros(len(array), dtype)
    return np.frombuffer(data, dtype, len(array), array.offset * dtype.itemsize)


def _texts(array: pa.Array, column: InputColumn, where: str) -> _Elements:
    if _types.is_null(array.type):
        return np.zeros(0, np.uint8), np.zeros(len(array), np.bool_), np.zeros(len(array) + 1, np.int64)
    try:
        # Binary columns must hold UTF-8, as everywhere in a program; views become plain strings.
        text = array if _types.is_large_string(array.type) else array.cast(pa.string())
    except pa.ArrowInvalid as error:
        raise DataCorrupt(
            f"{where}: column {column.name!r}: expected UTF-8 text ({error}); decode it, or leave it out"
        ) from error
    _, ends, data = text.buffers()
    wide = np.dtype(np.int64 if _types.is_large_string(text.type) else np.int32)
    if len(text) == 0:
        offsets = np.zeros(1, np.int64)
    else:
        offsets = np.frombuffer(ends, wide, len(text) + 1, text.offset * wide.itemsize).astype(np.int64)
    blob = np.zeros(0, np.uint8) if data is None else np.frombuffer(data, np.uint8)
    return blob, _valid(text), offsets


def _typed(values: Array, valid: Array | None, column: InputColumn, where: str) -> tuple[Array, Array | None]:
    """Return the values in the program's dtype, or refuse those that would change."""
    dtype = np.dtype(column.dtype)
    if values.dtype == dtype or (dtype.kind == "i" and values.dtype.kind == "i"):
        return values, valid
    if values.dtype.kind == "f":
        null = np.isnan(values)
        if null.any():
            valid = ~null if valid is None else valid & ~null
    with np.errstate(all="ignore"):
        cast = values.astype(dtype)
        changed = ~_is_same(values, cast)
    if valid is not None:
        changed &= valid
    if changed.any():
        stray = values[changed][0].item()
        raise DataCorrupt(
            f"{where}: column {column.name!r}: a cast to {column.dtype} would change {stray!r}; write "
            "the column as it was when the workflow was fitted"
        )
    return cast, valid


def _is_same(values: Array, cast: Array) -> Array:
    """Return which values a cast leaves unchanged; NaN counts as unchanged."""
    same: Array
    floats = values if values.dtype.kind == "f" else cast
    if floats.dtype.kind != "f":
        same = (cast.astype(values.dtype) == values) & ((cast >= 0) | (values.dtype.kind == "i"))
    elif cast.dtype.kind == values.dtype.kind:
        same = (cast.astype(values.dtype) == values) | np.isnan(values)
    else:
        # Beyond these limits the integer that a float becomes depends on the machine.
        within = (floats >= -(2.0**63)) & (floats < 2.0**63)
        same = within & (np.where(within, cast, 0).astype(values.dtype) == values) | np.isnan(floats)
    return same


# ------------------------------------------------------------------------------------ columns → Arrow


def arrow_type(output: OutputColumn) -> pa.DataType:
    """Return the Arrow type in which a feature is written: NVTabular's dtype, lists as lists."""
    element = pa.string() if output.dtype == "bytes" else pa.from_numpy_dtype(np.dtype(output.dtype))
    return pa.list_(element) if output.is_list else element


def array_from_column(column: Column, output: OutputColumn) -> pa.Array:
    """Convert a feature; NaN becomes null, as in the files that NVTabular writes."""
    dtype = arrow_type(output)
    mask = None if column.valid is None else ~column.valid
    element = dtype.value_type if output.is_list else dtype
    try:
        elements = pa.array(column.values, element, mask=mask, from_pandas=True)
    except pa.ArrowInvalid as error:
        raise DataCorrupt(
            f"column {output.name!r}: expected UTF-8 text ({error}); mend the text of the files, or leave "
            "the feature out of the workflow"
        ) from error
    if column.offsets is None:
        return elements
    if column.offsets[-1] > _MOST_ELEMENTS:
        raise DataCorrupt(
            f"column {output.name!r}: {column.offsets[-1]:,} list elements in one batch, a Parquet writer "
            f"takes {_MOST_ELEMENTS:,}; use smaller batches"
        )
    offsets = pa.array(column.offsets.astype(np.int32))
    gone = None if column.row_valid is None else pa.array(~column.row_valid)
    return pa.ListArray.from_arrays(offsets, elements, dtype, mask=gone)


def array_from_tensor(tensor: Array) -> pa.Array:
    """Convert a packed ``[n, C]`` tensor to lists of the fixed size C; NaN stays NaN."""
    return pa.FixedSizeListArray.from_arrays(pa.array(tensor.reshape(-1)), tensor.shape[1])
