"""Building of lookup tables: distinct keys → the plain arrays that ``lookup.py`` describes and opens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from zlib import crc32

import numpy as np
import numpy.typing as npt

from ..spec import Array
from .perfect_hash import Placement, RepeatedKey, place
from .strings import Strings, packed_strings, words_of_strings

#: A direct table may have this many slots per key; with more, integers are hashed.
DIRECT_SLOTS_PER_KEY = 8
#: A direct table of up to this many slots is always used.
DIRECT_SLOTS_FREE = 1024
#: Possible numbers of words of a string key; with the code, a record has a power of two.
WORDS = (1, 3, 7, 15)
#: The smallest width is chosen at which at most one key in this many is odd, which is slower.
KEYS_FOR_ONE_ODD = 1000
#: Fields of each column in a hash layout: the locations of its displacements, records and odd strings.
COLUMN_PARTS = (
    "seed",
    "buckets",
    "first_bucket",
    "slots",
    "first_slot",
    "first_odd",
    "end_odd",
    "missing",
)


@dataclass(frozen=True)
class Table:
    """The contents of one table of a fused lookup.

    Parameters
    ----------
    keys
        ``[n]`` distinct keys: any integer dtype, ``bytes`` objects, or ``Strings``.
    codes
        ``[n]`` int64, the code that :meth:`~.lookup.Lookup.find` returns for each key.
    missing
        The code for any other value.
    """

    keys: Array | Strings
    codes: npt.NDArray[np.int64]
    missing: int


def build_lookup(
    values: Array | Strings,
    prefix: str | None = None,
    *,
    codes: npt.NDArray[np.int64] | None = None,
    missing: int = -1,
) -> dict[str, Array]:
    """Build the lookup table of distinct keys.

    Parameters
    ----------
    values
        ``[n]`` distinct keys: any integer dtype, ``bytes`` objects, or ``Strings``.
    prefix
        Prefix of the arrays' names, as in ``<prefix>.<part>``; None uses the bare part names.
    codes
        ``[n]`` codes that :meth:`~.lookup.Lookup.find` returns for the keys; None uses the keys' positions.
    missing
        The code for any other value.

    Returns
    -------
    Arrays to store in an artefact, for :func:`~.lookup.open_lookup`.

    Raises
    ------
    ValueError
        A key occurs twice.
    TypeError
        The keys are neither integers nor bytes.
    """
    answers = np.arange(len(values), dtype=np.int64) if codes is None else np.asarray(codes, np.int64)
    if isinstance(values, Strings) or values.dtype == np.object_:
        return build_fused([Table(values, answers, missing)], prefix)
    if values.dtype.kind not in "iub":
        raise TypeError(f"lookup keys must be integers or bytes, not {values.dtype}")
    keys = values.astype(np.int64)
    if not is_dense(keys):
        return build_fused([Table(keys, answers, missing)], prefix)
    _check_distinct(keys)
    lowest = int(keys.min()) if len(keys) else 0
    span = int(keys.max()) - lowest + 1 if len(keys) else 0
    table = np.full(span + 1, missing, np.int64)
    table[keys - lowest] = answers
    return _named({"table": table, "lowest": np.array([lowest], np.int64)}, prefix)


def build_fused(
    tables: Sequence[Table], prefix: str | None = None, *, which: Sequence[int] | None = None
) -> dict[str, Array]:
    """Build hash tables so that one call looks up a column in each.

    Parameters
    ----------
    tables
        At least one; either all of integers, or all of strings.
    prefix
        As for :func:`build_lookup`.
    which
        The index of each column's table; None is one column per table. Columns may share a table.

    Returns
    -------
    Arrays for :func:`~.lookup.open_lookup`: ``records [slots, words + 1]`` int64, ``displacements
    [buckets]`` uint16, ``columns [C, 8]`` int64 (:data:`COLUMN_PARTS`), and for strings ``odd_tags``
    (CRC-32, sorted within a table), ``odd_offsets``, ``odd_blob``, ``odd_codes``.

    Raises
    ------
    ValueError, TypeError
        As for :func:`build_lookup`.
    """
    layouts = _int_layout(tables) if _is_int(tables[0].keys) else _text_layout(tables)
    columns, buckets, slots, odd = [], 0, 0, 0
    for table, (placement, _, odds) in zip(tables, layouts, strict=True):
        seed = placement.seed - (placement.seed >> 63 << 64)  # as int64
        sizes = len(placement.displacement), placement.slots
        columns.append([seed, sizes[0], buckets, sizes[1], slots, odd, odd + len(odds), table.missing])
        buckets, slots, odd = buckets + sizes[0], slots + sizes[1], odd + len(odds)
    taken = range(len(tables)) if which is None else which
    arrays = {
        "records": _end_to_end([records for _, records, _ in layouts]),
        "displacements": _end_to_end([placement.displacement for placement, _, _ in layouts]),
        "columns": np.array([columns[number] for number in taken], np.int64),
    }
    if not _is_int(tables[0].keys):
        arrays |= _odd_arrays([odds for _, _, odds in layouts])
    return _named(arrays, prefix)


def word_count(keys: Strings) -> int:
    """Return the number of words per key for a table of strings, one of :data:`WORDS`."""
    lengths = np.diff(keys.offsets)
    fitting = (c for c in WORDS if int((lengths > 8 * c).sum()) * KEYS_FOR_ONE_ODD <= len(lengths))
    return next(fitting, WORDS[-1])


def is_dense(values: npt.NDArray[np.int64]) -> bool:
    """Whether distinct int64 keys are dense enough for a direct table."""
    if len(values) == 0:
        return True
    span = int(values.max()) - int(values.min()) + 1
    return span <= max(DIRECT_SLOTS_FREE, DIRECT_SLOTS_PER_KEY * len(values))


#: Odd strings of a table and their codes, sorted by CRC-32.
_Odds = list[tuple[int, bytes, int]]
_Layout = tuple[Placement, Array, _Odds]


def _int_layout(tables: Sequence[Table]) -> list[_Layout]:
    layouts: list[_Layout] = []
    for table in tables:
        assert not isinstance(table.keys, Strings)
        keys = np.asarray(table.keys, np.int64)
        _check_distinct(keys)
        placement = place([keys.view(np.uint64)])
        layouts.append((placement, _records(placement, keys[:, None], table.codes, table.missing), []))
    return layouts


def _text_layout(tables: Sequence[Table]) -> list[_Layout]:
    texts = [packed_strings(table.keys) for table in tables]
    count = max(map(word_count, texts))
    layouts: list[_Layout] = []
    for text, table in zip(texts, tables, strict=True):
        words, odd = words_of_strings(text, count)
        codes, odds = table.codes, []
        if odd is not None:
            odds = _odds(text.take(np.flatnonzero(odd)), codes[odd])
            text, words, codes = text.take(np.flatnonzero(~odd)), words[~odd], codes[~odd]
        try:
            placement = place([words[:, number] for number in range(count)])
        except RepeatedKey as error:
            raise _repeated(text.part(error.position, error.position + 1).objects()[0]) from None
        keys = words[:, :count].view(np.int64)
        layouts.append((placement, _records(placement, keys, codes, table.missing), odds))
    return layouts


def _records(placement: Placement, keys: Array, codes: Array, missing: int) -> Array:
    """Return ``[slots, words + 1]``; empty slots have the missing code, so their key 0 does no harm."""
    records = np.zeros((placement.slots, keys.shape[1] + 1), np.int64)
    records[:, -1] = missing
    records[placement.slot, :-1] = keys
    records[placement.slot, -1] = codes
    return records


def _odds(text: Strings, codes: Array) -> _Odds:
    items: list[bytes] = text.objects().tolist()
    key, times = Counter(items).most_common(1)[0]
    if times > 1:
        raise _repeated(key)
    return sorted((crc32(item), item, code) for item, code in zip(items, codes.tolist(), strict=True))


def _odd_arrays(odds: Sequence[_Odds]) -> dict[str, Array]:
    flat = [odd for own in odds for odd in own]
    keys = np.empty(len(flat), np.object_)
    keys[:] = [key for _, key, _ in flat]
    packed = Strings.of(keys)
    return {
        "odd_tags": np.array([tag for tag, _, _ in flat], np.uint32),
        "odd_offsets": packed.offsets,
        "odd_blob": packed.blob,
        "odd_codes": np.array([code for _, _, code in flat], np.int64),
    }


def _is_int(keys: Array | Strings) -> bool:
    return not isinstance(keys, Strings) and keys.dtype.kind in "iub"


def _check_distinct(keys: npt.NDArray[np.int64]) -> None:
    ordered = np.sort(keys)
    repeated = ordered[1:][ordered[1:] == ordered[:-1]]
    if len(repeated):
        raise _repeated(int(repeated[0]))


def _repeated(key: int | bytes) -> ValueError:
    return ValueError(f"lookup key {key!r} occurs more than once")


def _end_to_end(parts: Sequence[Array]) -> Array:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _named(parts: dict[str, Array], prefix: str | None) -> dict[str, Array]:
    return parts if prefix is None else {f"{prefix}.{name}": array for name, array in parts.items()}
