"""From Python values to tensors, with all checks of values and the messages about them.

Sequences are converted as a whole. Only a sequence that fails, or that mixes types, is converted value by
value, to find the invalid one.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import InvalidInput

Array = npt.NDArray[Any]

#: Position of a value → its name in messages, such as ``exclude[3][0]``.
Place = Callable[[int], str]

#: From this magnitude on, a float64 may represent several integers.
_EXACT = 2**53

_KINDS = {"bool": "True or False", "int64": "a whole number", "int32": "a whole number", "bytes": "a string"}


def shown(value: object) -> str:
    """Return a value as text for a message: its type and a shortened repr."""
    try:
        text = reprlib.repr(value)
    except Exception:  # for example, an integer with more digits than Python converts to text
        return type(value).__name__
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"


def sequence(values: object, what: str, *, unordered: bool = False) -> Sequence[Any] | Array:
    """Return the values as a list, a tuple or a one-dimensional array; sets are allowed if ``unordered``.

    Raises
    ------
    InvalidInput
        They are text, a mapping or not iterable, or an array of other than one dimension; the message calls
        them ``what``.
    """
    if isinstance(values, list | tuple):
        return values
    if hasattr(values, "to_pylist"):  # pyarrow, which can't convert text or integers with nulls to arrays
        values = values.to_pylist()
    elif not isinstance(values, np.ndarray) and hasattr(values, "to_numpy"):
        values = values.to_numpy()
    if isinstance(values, np.ndarray):
        if values.ndim != 1:
            raise InvalidInput(f"{what}: expected one dimension, got an array of shape {values.shape}")
        return values
    is_set = isinstance(values, set | frozenset)
    if (
        isinstance(values, str | bytes | bytearray | Mapping)
        or not isinstance(values, Iterable)
        or (is_set and not unordered)
    ):
        raise InvalidInput(f"{what}: expected a list, got {shown(values)}")
    return list(values)


def convert_ids(values: Sequence[Any] | Array, dtype: str, place: Place) -> Array:
    """Return raw ids ``[n]`` as int64, or as an object array of UTF-8 ``bytes``.

    Raises
    ------
    InvalidInput
        An id is of the wrong type, null, a bool, out of range, or text with a lone surrogate.
    """
    if dtype == "bytes":
        return _texts(values, place, nullable=False)[0]
    return _integers(values, dtype, place, nullable=False)[0]


def pack_ids(
    values: Sequence[Any] | Array, lengths: npt.NDArray[np.int32], place: Place
) -> npt.NDArray[np.object_] | None:
    """Return lists of text ids packed as one ``bytes`` each ``[B]``: int32 n, then n ids, each with a NUL.

    Parameters
    ----------
    values
        The ids of all lists, concatenated.
    lengths
        ``[B]`` the length of each list; -1 is a null list, which becomes empty ``bytes``.
    place
        Names a value in messages.

    Returns
    -------
    ``[B]`` objects, or None if an id contains a NUL, which can't be packed. The count is little-endian.

    Raises
    ------
    InvalidInput
        As :func:`convert_ids`.
    """
    lists = _split(_listed(values), lengths)
    try:
        texts = ["\0".join(own).encode() for own in lists]
    except (TypeError, UnicodeEncodeError):  # some are bytes, not text, or not encodable as UTF-8
        lists = _split(_texts(values, place, nullable=False)[0].tolist(), lengths)
        texts = [b"\0".join(own) for own in lists]
    packed = np.full(len(lengths), b"", np.object_)
    for row, (count, text) in enumerate(zip(lengths.tolist(), texts, strict=True)):
        # NumPy counts several times faster than bytes.count if there are many NULs.
        if count > 0 and len(text) - np.count_nonzero(np.frombuffer(text, np.uint8)) != count - 1:
            return None
        if count >= 0:
            packed[row] = b"".join((count.to_bytes(4, "little"), text, b"\0" * (count > 0)))
    return packed


def _split(values: Sequence[Any], lengths: npt.NDArray[np.int32]) -> list[Sequence[Any]]:
    """Return each of the concatenated lists; null ones (-1) are empty."""
    if len(lengths) == 1:
        return [values]  # a slice would copy it, and count a reference to each object
    ends = np.cumsum(lengths.clip(0)).tolist()
    return [values[begin:end] for begin, end in zip([0, *ends[:-1]], ends, strict=True)]


def convert_column(
    values: Sequence[Any] | Array, dtype: str, place: Place, *, nullable: bool
) -> tuple[Array, Array | None]:
    """Return a feature's values ``[n]`` and which are valid (bool ``[n]``; None if all are).

    None and NaN are null. In float columns, nulls are NaN and there is no mask.

    Raises
    ------
    InvalidInput
        A value is of another type, infinite or out of range, or null where ``nullable`` is False.
    """
    if dtype == "bytes":
        return _texts(values, place, nullable=nullable)
    if dtype in ("float32", "float64"):
        return _floats(values, dtype, place, nullable=nullable), None
    if dtype == "bool":
        real = np.zeros(len(values), np.bool_)
        return _one_by_one(_listed(values), real, _boolean, place, nullable)
    return _integers(values, dtype, place, nullable=nullable)


#: Type names of ``pandas.NA`` and ``pandas.NaT``; the client does not depend on pandas.
_NULLS = ("NAType", "NaTType")


def is_null(value: object) -> bool:
    """Whether a value is None, NaN, or one of pandas' own nulls."""
    if value is None or type(value).__name__ in _NULLS:
        return True
    return isinstance(value, float | np.floating) and bool(value != value)


def _kinds(values: Sequence[Any] | Array) -> set[type]:
    return set(map(type, values))


def _listed(values: Sequence[Any] | Array) -> Sequence[Any]:
    """Return the values as Python objects; times stay NumPy's, so that they can be refused."""
    if isinstance(values, np.ndarray):
        return list(values) if values.dtype.kind in "mM" else values.tolist()
    return values


def _integers(
    values: Sequence[Any] | Array, dtype: str, place: Place, *, nullable: bool
) -> tuple[Array, Array | None]:
    whole, valid = _whole_numbers(values, place, nullable)
    if dtype == "int64":
        return whole, valid
    limits = np.iinfo(dtype)
    if whole.size and (whole.min() < limits.min or whole.max() > limits.max):
        worst = int(np.argmax((whole < limits.min) | (whole > limits.max)))
        raise _out_of_range(place(worst), int(whole[worst]), dtype)
    return whole.astype(dtype, copy=False), valid


def _whole_numbers(
    values: Sequence[Any] | Array, place: Place, nullable: bool
) -> tuple[npt.NDArray[np.int64], Array | None]:
    if isinstance(values, np.ndarray) and values.dtype.kind == "i":
        return values.astype(np.int64), None
    values = _listed(values)
    if _kinds(values) <= {int}:
        try:
            return np.array(values, np.int64), None
        except OverflowError:
            pass  # converted one by one below, to find the value
    whole, valid = _one_by_one(values, np.zeros(len(values), np.int64), _whole, place, nullable)
    return whole, valid


def _one_by_one(
    values: Sequence[Any], out: Array, convert: Callable[..., Any], place: Place, nullable: bool
) -> tuple[Array, Array | None]:
    """Fill ``out`` with the converted values, and return it with which are valid (None if all)."""
    valid = np.ones(len(values), np.bool_)
    for position, value in enumerate(values):
        if nullable and is_null(value):
            valid[position] = False
        else:
            out[position] = convert(value, place, position, nullable)
    return out, None if valid.all() else valid


def _whole(value: object, place: Place, position: int, feature: bool) -> int:
    """Return one value as an int; a feature may be a whole float, which pandas makes of integers."""
    # numpy.timedelta64 is a subclass of numpy.integer.
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool | np.timedelta64)
    if not whole and not (feature and isinstance(value, float | np.floating) and value.is_integer()):
        raise _wrong_type(place(position), "int64", value)
    number: int = int(value)  # type: ignore[call-overload]
    if not -(2**63) <= number < 2**63:
        raise _out_of_range(place(position), number, "int64")
    if isinstance(value, float | np.floating) and abs(number) >= _EXACT:
        raise InvalidInput(
            f"{place(position)}: expected a whole number, got {shown(value)}, a float so large that it "
            "stands for several; send an int"
        )
    return number


def _boolean(value: object, place: Place, position: int, nullable: bool) -> bool:
    if not isinstance(value, bool | np.bool_):
        raise _wrong_type(place(position), "bool", value)
    return bool(value)


def _floats(values: Sequence[Any] | Array, dtype: str, place: Place, *, nullable: bool) -> Array:
    wide = _wide_floats(values, place)
    if not nullable and (empty := np.isnan(wide)).any():
        raise InvalidInput(f"{place(int(np.argmax(empty)))}: expected a number, got NaN or None")
    with np.errstate(over="ignore"):
        narrow = wide.astype(dtype, copy=False)
    infinite = np.isinf(narrow)
    if infinite.any():
        worst = int(np.argmax(infinite))
        raise InvalidInput(
            f"{place(worst)}: expected a finite {dtype}, got {wide[worst]}; send None or NaN for "
            "a value that is not known"
        )
    return narrow


def _wide_floats(values: Sequence[Any] | Array, place: Place) -> npt.NDArray[np.float64]:
    if isinstance(values, np.ndarray) and values.dtype.kind == "f":
        return values.astype(np.float64)
    values = _listed(values)
    if _kinds(values) <= {float, int, type(None)}:
        try:
            floats = np.array(values, np.float64)  # None becomes NaN
        except OverflowError:
            pass
        else:
            if not (np.abs(floats) >= _EXACT).any():
                return floats
    return np.array([_number(value, place(n)) for n, value in enumerate(values)], np.float64)


def _number(value: object, where: str) -> float:
    if is_null(value):
        return np.nan
    if isinstance(value, bool | np.bool_ | np.timedelta64) or not isinstance(
        value, int | float | np.integer | np.floating
    ):
        raise InvalidInput(f"{where}: expected a number, got {shown(value)}")
    try:
        number = float(value)
    except OverflowError:
        raise InvalidInput(f"{where}: expected a number that fits a float64, got {shown(value)}") from None
    if isinstance(value, int | np.integer) and int(number) != value:
        raise InvalidInput(
            f"{where}: expected a number that a float64 holds, got {shown(value)}, which would become "
            f"{int(number)}; send a float if its last digits do not matter"
        )
    return number


def _texts(values: Sequence[Any] | Array, place: Place, *, nullable: bool) -> tuple[Array, Array | None]:
    values = _listed(values)
    out = np.full(len(values), b"", np.object_)
    if _kinds(values) <= {str}:
        try:
            out[:] = [value.encode() for value in values]
        except UnicodeEncodeError:
            pass  # converted one by one below, to find the value
        else:
            return out, None
    return _one_by_one(values, out, _text, place, nullable)


def _text(value: object, place: Place, position: int, nullable: bool) -> bytes:
    if isinstance(value, bytes):
        return bytes(value)
    if not isinstance(value, str):
        raise _wrong_type(place(position), "bytes", value)
    try:
        return value.encode()
    except UnicodeEncodeError as error:
        raise InvalidInput(
            f"{place(position)}: expected text that UTF-8 can write, got {shown(value)} with a lone "
            f"surrogate at position {error.start}; decode its source with the encoding it was written in"
        ) from None


def _wrong_type(where: str, dtype: str, value: object) -> InvalidInput:
    hint = ""
    if dtype == "bytes" and isinstance(value, int | np.integer) and not isinstance(value, bool):
        hint = f"; if it is the string {str(value)!r}, send that"
    elif dtype == "int64" and isinstance(value, str) and value.lstrip("-").isdecimal():
        hint = "; if it is a number, send int(...) of it"
    elif is_null(value):
        anonymous = "send tiercel_client.ANONYMOUS for a user without an id"
        hint = f"; {anonymous if where.startswith('user_id') else 'leave it out'}"
    return InvalidInput(f"{where}: expected {_KINDS[dtype]}, got {shown(value)}{hint}")


def _out_of_range(where: str, number: int, dtype: str) -> InvalidInput:
    limits = np.iinfo(dtype)
    return InvalidInput(
        f"{where}: expected a number that fits {dtype} ({limits.min} to {limits.max}), got {shown(number)}"
    )


def flatten(
    rows: Sequence[Any] | Array, what: Place, *, unordered: bool = False
) -> tuple[Sequence[Any] | Array, npt.NDArray[np.int32]]:
    """Return the concatenated values of all rows, and the length of each row (-1 is a null row).

    ``what`` names a row in messages; sets are allowed as rows if ``unordered``.
    """
    lists: list[Sequence[Any] | Array] = []
    lengths = np.empty(len(rows), np.int32)
    for position, row in enumerate(rows):
        if is_null(row):
            lengths[position] = -1
            continue
        found = sequence(row, what(position), unordered=unordered)
        lengths[position] = len(found)
        lists.append(found)
    if len(lists) == 1:
        return lists[0], lengths
    dtypes = {row.dtype if isinstance(row, np.ndarray) else None for row in lists}
    if len(dtypes) == 1 and None not in dtypes:
        return np.concatenate(lists), lengths
    return list(chain.from_iterable(map(_listed, lists))), lengths
