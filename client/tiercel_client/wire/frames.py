"""HTTP/2 frames as bytes (RFC 9113, sections 4 and 6)."""

from __future__ import annotations

import struct

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
#: Flags.
ACK = END_STREAM = 1
END_HEADERS, PADDED, PRIORITY = 4, 8, 32
#: Settings.
HEADER_TABLE_SIZE, ENABLE_PUSH, MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE = 1, 2, 3, 4
#: Error codes.
REFUSED_STREAM, CANCEL = 7, 8

#: The default maximum payload of a frame, and the default initial size of flow-control windows, in bytes.
FRAME_SIZE, WINDOW = 16_384, 65_535
#: The maximum size of a window; also the bit mask of a stream id.
LARGEST = 2**31 - 1

#: Frame header: length (as one byte and two), kind, flags, stream.
_HEAD = struct.Struct(">BHBBI")
_SETTING = struct.Struct(">HI")


#: Kind, flags, stream and content of a received frame, and the length of its payload including padding.
Frame = tuple[int, int, int, bytes, int]


def split(came: bytes) -> tuple[list[Frame], bytes]:
    """Return the complete frames at the beginning of received bytes, and the remaining bytes.

    Raises
    ------
    ValueError
        A frame is longer than allowed, perhaps because this is not HTTP/2, or shorter than its padding.
    """
    found, at, size = [], 0, len(came)
    while size - at >= 9:
        high, low, kind, flags, stream = _HEAD.unpack_from(came, at)
        length = high << 16 | low
        if length > FRAME_SIZE:
            raise ValueError(f"a frame of {length} bytes, expected at most {FRAME_SIZE}")
        end = at + 9 + length
        if end > size:
            break
        payload = came[at + 9 : end]
        if kind <= HEADERS and flags & (PADDED | PRIORITY):
            payload = _content(kind, flags, payload)
        found.append((kind, flags, stream & LARGEST, payload, length))
        at = end
    return found, came[at:]


def _content(kind: int, flags: int, payload: bytes) -> bytes:
    """Return the payload of DATA or HEADERS without padding and priority."""
    begin, end = 0, len(payload)
    if flags & PADDED:
        begin, end = 1, end - int.from_bytes(payload[:1], "big")
    if flags & PRIORITY and kind == HEADERS:
        begin += 5
    if begin > end:
        raise ValueError("a frame with more padding than content")
    return payload[begin:end]


def number(payload: bytes) -> int:
    """Return the number at the beginning of the payload of a WINDOW_UPDATE, RST_STREAM or GOAWAY."""
    return int.from_bytes(payload[:4], "big") & LARGEST


def settings(payload: bytes) -> list[tuple[int, int]]:
    """Return the (setting, value) pairs of a SETTINGS frame, in order."""
    return list(_SETTING.iter_unpack(payload))


def written(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """Return the bytes of a frame."""
    size = len(payload)
    return _HEAD.pack(size >> 16, size & 0xFFFF, kind, flags, stream) + payload


def written_settings(values: dict[int, int]) -> bytes:
    """Return the bytes of a SETTINGS frame."""
    return written(SETTINGS, 0, 0, b"".join(_SETTING.pack(*setting) for setting in values.items()))
