"""The few values of a store that are not users' records, each under a key of its own, with a checksum.

Format: magic of the key, CRC-32 of the value (little-endian), the value.
"""

from __future__ import annotations

from collections.abc import Mapping
from zlib import crc32

#: Keys of the schema of users, of the journal of items, and of the journal's version; keys of users begin
#: differently (``records.py``). Tiercel writes no other keys.
SCHEMA_KEY, ITEMS_KEY, VERSION_KEY = b"schema", b"items", b"items version"

#: Key → magic of its value.
MAGIC: Mapping[bytes, bytes] = {SCHEMA_KEY: b"TIS1", ITEMS_KEY: b"TIJ1", VERSION_KEY: b"TIV1"}

#: Key → first bytes of values written before there were checksums, which a long-lived store may still hold.
_BARE: Mapping[bytes, bytes] = {SCHEMA_KEY: b"{", VERSION_KEY: b"0123456789"}

_HEAD = 8


def seal(key: bytes, value: bytes) -> bytes:
    """Return a value with magic and checksum, as stored under a key."""
    return MAGIC[key] + crc32(value).to_bytes(4, "little") + value


def unseal(key: bytes, data: bytes) -> bytes | None:
    """Return the value that was written under a key; None if the data is damaged."""
    if data and data[:1] in _BARE.get(key, b""):
        return data
    value = data[_HEAD:]
    whole = data[:4] == MAGIC.get(key) and int.from_bytes(data[4:_HEAD], "little") == crc32(value)
    return value if whole else None
