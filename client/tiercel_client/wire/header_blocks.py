"""The header blocks of gRPC over HTTP/2, written and read without state.

Every field is written as a literal that is not added to the dynamic table, so equal fields give equal bytes.
The server is told to keep its own table empty (:data:`~.http2.GREETING`), so the meaning of a received block
never changes, and decoded blocks are cached. The format is HPACK (RFC 7541); the fields are defined in
https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from functools import lru_cache

from hpack import Decoder

#: Prefixes of literals that are not indexed here, and of literals that no intermediary may index either.
_LITERAL, _NEVER_INDEXED = b"\x00", b"\x10"

#: The largest number in ``grpc-timeout``, which has at most eight digits.
_LONGEST = 10**8 - 1


@lru_cache(256)
def call_fields(path: str, authority: str) -> bytes:
    """Return the fields that every call of a method begins with."""
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": authority,
        "te": "trailers",
        "content-type": "application/grpc",
        "user-agent": "tiercel-client",
    }
    return b"".join(_field(_LITERAL, name, value.encode()) for name, value in fields.items())


def header_block(
    path: str, authority: str, timeout_s: float | None, metadata: Mapping[str, str | bytes]
) -> bytes:
    """Return the header block of a call; with ``timeout_s`` None, the server is not told the deadline."""
    block = call_fields(path, authority)
    if timeout_s is not None:
        block += timeout_field(timeout_s)
    return block + metadata_fields(metadata) if metadata else block


def timeout_field(timeout_s: float) -> bytes:
    """Return the field ``grpc-timeout``, the time that the server may take."""
    milliseconds = max(1, int(timeout_s * 1000))
    value = b"%dm" % milliseconds if milliseconds <= _LONGEST else b"%dS" % min(int(timeout_s), _LONGEST)
    return b"\x00\x0cgrpc-timeout%c%b" % (len(value), value)


def metadata_fields(metadata: Mapping[str, str | bytes]) -> bytes:
    """Return the fields of a caller's metadata, never indexed because it may be secret."""
    return b"".join(
        _field(_NEVER_INDEXED, name, value.encode() if isinstance(value, str) else _base64(value))
        for name, value in metadata.items()
    )


@lru_cache(256)
def read_fields(block: bytes) -> Mapping[str, str]:
    """Return the fields of a complete block.

    Raises
    ------
    hpack.HPACKError
        The block is invalid, or uses the dynamic table.
    """
    decoder = Decoder()
    decoder.max_allowed_table_size = 0
    decoder.header_table_size = 0
    return {
        name.decode("ascii", "replace"): value.decode("utf-8", "replace")
        for name, value in decoder.decode(block, raw=True)
    }


def _field(kind: bytes, name: str, value: bytes) -> bytes:
    named = name.encode()
    return kind + _length(len(named)) + named + _length(len(value)) + value


def _length(number: int) -> bytes:
    """Return the length of a string that is not Huffman-coded (RFC 7541, 5.1, prefix of seven bits)."""
    if number < 127:
        return bytes((number,))
    written, number = bytearray((127,)), number - 127
    while number > 127:
        written.append(number & 127 | 128)
        number >>= 7
    written.append(number)
    return bytes(written)


def _base64(value: bytes) -> bytes:
    return base64.b64encode(value).rstrip(b"=")
