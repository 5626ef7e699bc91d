"""Arrow columns with plain dtypes (see :class:`~.dataset.Dataset`), of one file or of several.

They do not pass through pandas, which turns integers beside a null into floats, and whose dates end in 2262.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..errors import DataCorrupt
from .plain import LARGEST, Array, check_exact, not_plain, too_wide, whole_numbers

_types = pa.types

#: Number of decimal digits that a float64 always tells apart.
_EXACT_DIGITS = 15
_DAY = 86_400
_A_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}


def kind_of(dtype: pa.DataType) -> str:
    """Return the kind of an Arrow type: ``int``, ``time``, ``list[string]``, …; else the type's own name.

    ``null`` is a column without any value.
    """
    if _types.is_dictionary(dtype):
        return kind_of(dtype.value_type)
    if _is_list(dtype):
        return f"list[{kind_of(dtype.value_type)}]"
    if _types.is_decimal(dtype):
        return "float" if dtype.scale > 0 else "int"
    tests = {
        "int": _types.is_integer,
        "float": _types.is_floating,
        "bool": _types.is_boolean,
        "time": lambda dtype: _types.is_timestamp(dtype) or _types.is_date(dtype),
        "string": lambda dtype: (
            _types.is_string(dtype) or _types.is_large_string(dtype) or _types.is_string_view(dtype)
        ),
        "null": _types.is_null,
    }
    return next((name for name, test in tests.items() if test(dtype)), str(dtype))


def _is_list(dtype: pa.DataType) -> bool:
    return bool(_types.is_list(dtype) or _types.is_large_list(dtype) or _types.is_fixed_size_list(dtype))


#: Kinds that the elements of a list may have.
_ELEMENTS = ("int", "float", "bool", "string", "null")


def canonical(column: pa.ChunkedArray, where: str) -> pa.Array:
    """Return a column as one array of int64, float32 or float64, booleans, text, null, or lists of these.

    Times become whole seconds since 1970, rounded down; :func:`of_decimals` converts decimals.

    Raises
    ------
    DataCorrupt
        If its type has no plain dtype, an integer does not fit int64, or two decimals would become one float.
    """
    array = pa.concat_arrays(column.chunks) if column.chunks else pa.array([], column.type)
    if _types.is_dictionary(array.type):
        array = array.dictionary_decode()
    kind = kind_of(array.type)
    if kind == "time":
        return _seconds(array)
    if kind not in _ELEMENTS and kind not in {f"list[{element}]" for element in _ELEMENTS}:
        remedy = "convert the column, or name in the recipe's data set the columns to read (`user_columns=…`)"
        raise not_plain(where, str(column.type), remedy)
    if not _is_list(array.type):
        return _plain_elements(array, where)
    if _types.is_fixed_size_list(array.type):
        array = array.cast(pa.large_list(array.type.value_type))
    elements = array.flatten()
    if _types.is_dictionary(elements.type):
        elements = elements.dictionary_decode()
    elements = _plain_elements(elements, where)
    # Null lists may have hidden elements, which `flatten` leaves out; null lists become empty ones here.
    lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)
    ends = pa.array(np.append(0, np.cumsum(lengths, dtype=np.int64)))
    return pa.LargeListArray.from_arrays(ends, elements)


def _plain_elements(array: pa.Array, where: str) -> pa.Array:
    if _types.is_decimal(array.type):
        return of_decimals(array, where)
    _check_width(array, where)
    return array.cast(_plain_type(array.type))


def of_decimals(array: pa.Array, where: str) -> pa.Array:
    """Return decimals as int64 if their type has no decimal places, else as the nearest float64.

    Raises
    ------
    DataCorrupt
        If one does not fit int64, or two would become the same float64.
    """
    if array.type.scale <= 0:
        try:
            return array.cast(pa.int64())
        except pa.ArrowInvalid:
            stray = next(
                int(one) for one in array.drop_null().to_pylist() if not -LARGEST - 1 <= one <= LARGEST
            )
            raise too_wide(stray, where) from None
    texts = array.cast(pa.string())
    floats = texts.cast(pa.float64())  # Arrow's direct cast from decimals to floats rounds twice
    if array.type.precision > _EXACT_DIGITS:
        different = texts.drop_null().unique()
        made = different.cast(pa.float64())
        if len(made.unique()) < len(different):
            raise _merged(different.to_pylist(), made.to_pylist(), where)
    return floats


def _merged(decimals: Sequence[str], floats: Sequence[float], where: str) -> DataCorrupt:
    first: dict[float, str] = {}
    for one, other in zip(decimals, floats, strict=True):
        if first.setdefault(other, one) != one:
            break
    return DataCorrupt(
        f"{where}: its decimals become float64, and {first[other]} and {one} would both become {other}; "
        "write the column with fewer places, or as strings"
    )


def _plain_type(dtype: pa.DataType) -> pa.DataType:
    if _types.is_integer(dtype):
        return pa.int64()
    if _types.is_floating(dtype):
        return pa.float64() if _types.is_float64(dtype) else pa.float32()
    return pa.large_string() if kind_of(dtype) == "string" else dtype


def _check_width(array: pa.Array, where: str) -> None:
    if _types.is_uint64(array.type):
        most = pc.max(array).as_py()
        if most is not None and most > LARGEST:
            raise too_wide(most, where)


def _seconds(array: pa.Array) -> pa.Array:
    null = array.is_null().to_numpy(zero_copy_only=False)
    if _types.is_date32(array.type):
        days = array.cast(pa.int32()).fill_null(0).to_numpy(zero_copy_only=False)
        return pa.array(days.astype(np.int64) * _DAY, mask=null)
    parts = _A_SECOND["ms" if _types.is_date64(array.type) else array.type.unit]
    return pa.array(array.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False) // parts, mask=null)


def joined(arrays: Sequence[pa.Array]) -> pa.Array:
    """Concatenate canonical arrays of one kind."""
    types = list(dict.fromkeys(array.type for array in arrays))
    # Float64 also holds float32, and any type holds columns without values.
    widest = max(types, key=_rank)
    # A cast of lists of nulls to their own type would make Arrow cut off elements.
    return pa.concat_arrays([array if array.type == widest else array.cast(widest) for array in arrays])


#: Types of the kinds for columns without any value, from which a type could be seen.
_TYPES = {"string": pa.large_string(), "float": pa.float64(), "bool": pa.bool_()}


def of_kind(array: pa.Array, kind: str | None) -> pa.Array:
    """Return a canonical array; one without any value gets the type of the ``kind`` that a schema names."""
    if kind is None or kind_of(array.type) not in ("null", "list[null]"):
        return array
    if not kind.startswith("list["):
        return array.cast(_TYPES.get(kind, pa.int64()))
    element = kind.removeprefix("list[").removesuffix("]")
    return array.cast(pa.large_list(_TYPES.get(element, pa.int64())))


def _rank(dtype: pa.DataType) -> int:
    if _is_list(dtype):
        return 3 + _rank(dtype.value_type)
    return 0 if _types.is_null(dtype) else 2 if _types.is_float64(dtype) else 1


def plain_values(array: pa.Array, where: str) -> Array:
    """Return the values of a canonical array in a plain dtype.

    Raises
    ------
    DataCorrupt
        If nulls would change an integer, or text is not UTF-8.
    """
    null = array.is_null().to_numpy(zero_copy_only=False)
    if _types.is_integer(array.type):
        return whole_numbers(array.fill_null(0).to_numpy(zero_copy_only=False), null, where)
    if _types.is_boolean(array.type):
        values = array.fill_null(False).to_numpy(zero_copy_only=False)
        return np.where(null, np.nan, values.astype(np.float64)) if null.any() else values
    try:
        if _types.is_large_string(array.type):
            return _texts(array)
        return _lists(array, where) if _is_list(array.type) else array.to_numpy(zero_copy_only=False)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        # Arrow does not check that a file's text is UTF-8.
        raise DataCorrupt(
            f"{where}: expected text in UTF-8, found other bytes ({error}); decode the column as it was "
            "written, and write it again"
        ) from error


def _texts(array: pa.LargeStringArray) -> Array:
    """Return text as objects; rows of equal text share one object, so that a row costs a pointer."""
    coded = array.dictionary_encode()
    nothing = np.array([None], dtype=object)
    texts = np.append(coded.dictionary.to_numpy(zero_copy_only=False), nothing)
    return np.asarray(texts[coded.indices.fill_null(len(texts) - 1).to_numpy()])


def _lists(array: pa.LargeListArray, where: str) -> Array:
    """Return lists of Python values."""
    elements = array.flatten()
    if _types.is_integer(elements.type) and elements.null_count:
        flat = elements.to_pylist()
        check_exact((value for value in flat if value is not None), where, "its lists have null elements")
    elif _types.is_integer(elements.type) or _types.is_floating(elements.type):
        flat = elements.to_numpy(zero_copy_only=False).tolist()
    else:
        flat = elements.to_pylist()
    ends = array.offsets.to_numpy().tolist()
    first = ends[0] if ends else 0
    rows = np.empty(len(array), dtype=object)
    for position, (begin, end) in enumerate(pairwise(ends)):
        rows[position] = flat[begin - first : end - first]
    return rows
