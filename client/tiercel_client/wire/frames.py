"""HTTP/2's frames, as bytes (RFC 9113, sections 4 and 6)."""

from __future__ import annotations

import struct

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
#: Flags.
ACK = END_STREAM = 1
END_HEADERS, PADDED, PRIORITY = 4, 8, 32
#: Settings.
HEADER_TABLE_SIZE, ENABLE_PUSH, INITIAL_WINDOW_SIZE = 1, 2, 4
#: Error codes.
REFUSED_STREAM, CANCEL = 7, 8

#: The longest payload of a frame, unless another is agreed on, and how much may be sent unasked at first.
FRAME_SIZE, WINDOW = 16_384, 65_535
#: The most that a window can hold; also the bits of a stream's number.
LARGEST = 2**31 - 1

#: Length (one byte and two), kind, flags, stream.
_HEAD = struct.Struct(">BHBBI")
_SETTING = struct.Struct(">HI")


#: Kind, flags, stream and content of a frame that came, and how long its payload was, padding included.
Frame = tuple[int, int, int, bytes, int]


def split(came: bytes) -> tuple[list[Frame], bytes]:
    """Return the whole frames at the beginning of what came, and the rest.

    Raises
    ------
    ValueError
        One is longer than a frame may be, perhaps since it is no HTTP/2 at all, or shorter than its padding.
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
    """Return the payload of DATA or HEADERS without what pads it, and without HEADERS' priority."""
    begin, end = 0, len(payload)
    if flags & PADDED:
        begin, end = 1, end - int.from_bytes(payload[:1], "big")
    if flags & PRIORITY and kind == HEADERS:
        begin += 5
    if begin > end:
        raise ValueError("a frame with more padding than content")
    return payload[begin:end]


def number(payload: bytes) -> int:
    """Return the number that the payload of a WINDOW_UPDATE, RST_STREAM or GOAWAY begins with."""
    return int.from_bytes(payload[:4], "big") & LARGEST


def settings(payload: bytes) -> list[tuple[int, int]]:
    """Return what a SETTINGS frame sets, in its order."""
    return list(_SETTING.iter_unpack(payload))


def written(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """Return a frame as it travels."""
    size = len(payload)
    return _HEAD.pack(size >> 16, size & 0xFFFF, kind, flags, stream) + payload


def written_settings(values: dict[int, int]) -> bytes:
    """Return a SETTINGS frame as it travels."""
    return written(SETTINGS, 0, 0, b"".join(_SETTING.pack(*setting) for setting in values.items()))
