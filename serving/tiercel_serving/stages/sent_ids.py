"""Lists of raw item ids in a request: a tensor of ids or, for text ids, packed lists.

In a BYTES tensor every id is a Python object, in client and server: 5,000 ids cost milliseconds. *Packed*,
each user's list is one element::

    int32 n, little-endian | UTF-8 of id 1 | NUL | … | UTF-8 of id n | NUL

An element of no bytes is a null list, one of four zero bytes an empty list. Ids that contain a NUL must be
sent as a tensor.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..errors import InvalidRequest
from ..lookups.strings import Strings
from ..native.texts import split_at_nuls
from ..ranked.order import Rows
from ..spec import Array, Arrays
from ..tables.items import ItemTable
from .sent_columns import check_list
from .specs import LENGTHS, PACKED, USER_FEATURES

#: Size of n in bytes.
_COUNT = 4


class SentIds:
    """One of the lists of raw ids.

    Parameters
    ----------
    name
        A key of :data:`~.specs.LENGTHS`.
    items
        The items that the ids belong to.
    limit
        Largest length of a list.
    text
        Whether ids are text. If not, a tensor with the packed list's name is a column.
    stage
        The stage's name in messages.
    """

    def __init__(
        self, name: str, items: ItemTable, limit: int, text: bool, stage: str = USER_FEATURES
    ) -> None:
        self._name, self._length, self._stage = name, LENGTHS[name], stage
        self._packed = PACKED[name] if text else None
        self._items, self._limit = items, limit

    def tensor_names(self) -> tuple[str, ...]:
        """Return the names of the tensors that carry the lists."""
        return (self._name, self._length, *([self._packed] if self._packed else ()))

    def check(self, arrays: Arrays) -> None:
        """Reject lists that are too long, do not fit their lengths, or are sent in both forms."""
        check_list(arrays, self._name, self._length, self._stage, limit=self._limit)
        packed = self._sent(arrays)
        if packed is None:
            return
        twice = [name for name in (self._name, self._length) if name in arrays]
        if twice:
            raise InvalidRequest(
                f"stage {self._stage}: got {self._packed}, and {' and '.join(twice)} too; send the lists "
                "packed, or as a tensor of ids with its lengths"
            )
        for row, element in enumerate(packed[:, 0].tolist()):
            if element and (wrong := self._problem(element)):
                raise InvalidRequest(f"stage {self._stage}: {self._packed}, row {row}: {wrong}")

    def _sent(self, arrays: Arrays) -> Array | None:
        return None if self._packed is None else arrays.get(self._packed)

    def _problem(self, element: bytes) -> str:
        """Return what is wrong with a packed list, or an empty string."""
        layout = "send int32 n, then n ids with a NUL behind each; ids that hold a NUL go as a tensor"
        if len(element) < _COUNT:
            return f"expected at least {_COUNT} bytes, or none for null, got {len(element)}; {layout}"
        count = int.from_bytes(element[:_COUNT], "little", signed=True)
        if count > self._limit:
            return f"a list may hold {self._limit} ids at most, got {count}; send fewer"
        ids = len(element) - _COUNT - np.count_nonzero(np.frombuffer(element, np.uint8, offset=_COUNT))
        if count != ids:
            return f"it says {count} ids, and has {ids}; {layout}"
        if len(element) > _COUNT and element[-1]:
            return f"expected a NUL at its end, got {element[-1:]!r}; {layout}"
        return ""

    def sent(self, arrays: Arrays) -> bool:
        """Return whether any user sends a list that is not null."""
        lengths = arrays[self._length]
        longest = lengths.item() if lengths.size == 1 else lengths.max()
        if self._packed is None:
            return bool(longest >= 0)
        packed = self._sent(arrays)
        return bool(longest >= 0 or (packed is not None and packed.astype(np.bool_).any()))

    def given(self, arrays: Arrays) -> npt.NDArray[np.bool_]:
        """Return ``[B]``: which users send a list that is not null."""
        given: npt.NDArray[np.bool_] = arrays[self._length][:, 0] >= 0
        packed = self._sent(arrays)
        return given if packed is None else given | packed[:, 0].astype(np.bool_)

    def rows(self, arrays: Arrays) -> Rows:
        """Return the lists' catalogue rows ``[B, W]`` in order; I for unknown ids and as padding."""
        ids, packed = arrays[self._name], self._sent(arrays)
        parts = []
        if ids.shape[1]:
            real = np.arange(ids.shape[1]) < arrays[self._length][:, :1]
            parts.append(np.where(real, self._items.rows(ids), self._items.size))
        if packed is not None and packed.astype(np.bool_).any():
            parts.append(self._packed_rows(packed[:, 0]))
        if not parts:
            return np.empty((len(ids), 0), np.int64)
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)

    def _packed_rows(self, packed: Array) -> Rows:
        ids, counts = unpack(packed)
        found = self._items.rows(ids)
        if len(counts) == 1:
            return found[None]
        rows = np.full((len(counts), int(counts.max())), self._items.size)
        rows[np.arange(rows.shape[1]) < counts[:, None]] = found
        return rows


def unpack(packed: Array) -> tuple[Strings, Rows]:
    """Return the ids of all packed lists ``[B]`` end to end, and how many each has; they must be checked.

    This creates a Python object per list, but none per id.
    """
    elements: list[bytes] = packed.tolist()
    counts = np.array([int.from_bytes(element[:_COUNT], "little") for element in elements], np.int64)
    if len(elements) == 1:
        text = np.frombuffer(elements[0], np.uint8)[_COUNT:]  # frombuffer rejects an offset at the end
    else:
        text = np.frombuffer(b"".join([element[_COUNT:] for element in elements]), np.uint8)
    return Strings(text, split_at_nuls(text, int(counts.sum())), gap=1), counts
