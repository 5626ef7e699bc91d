"""The steps on text: slices, lengths, counts, and conversion to and from numbers.

Text is decoded, passed to Python's string methods, and encoded, all with ``map``, so the loops over rows run
in C. A request may send bytes that are not valid UTF-8; each invalid byte then counts as a character and
stays as it is.
"""

from __future__ import annotations

import codecs
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from itertools import repeat
from operator import itemgetter
from typing import Any

import numpy as np
import numpy.typing as npt

from ..spec import Array
from .registers import Elementwise, where_all_valid

#: The string method of each case that :class:`TextCase` offers.
CHANGES: Mapping[str, Callable[[str], str]] = {
    "lower": str.lower,
    "upper": str.upper,
    "title": str.title,
    "capitalize": str.capitalize,
    "casefold": str.casefold,
}

#: How text is coded: halves of surrogate pairs, which Python's text may hold, are like other characters.
SURROGATES = "surrogatepass"


def decoded(x: Array, valid: Array | None) -> tuple[list[str], Iterable[str]]:
    """Return an object array of ``bytes`` as text, "" for a null, and how the codec treats errors in each."""
    items: list[bytes] = (x if valid is None else np.where(valid, x, b"")).ravel().tolist()
    try:
        return list(map(codecs.decode, items, repeat("utf-8"), repeat(SURROGATES))), repeat(SURROGATES)
    except UnicodeDecodeError:
        errors = list(map(_errors_of, items))
        return list(map(codecs.decode, items, repeat("utf-8"), errors)), errors


def _errors_of(item: bytes) -> str:
    try:
        item.decode("utf-8", SURROGATES)
    except UnicodeDecodeError:
        return "surrogateescape"  # each invalid byte is a character, and becomes the same byte again
    return SURROGATES


def encoded(texts: Iterable[str], shape: tuple[int, ...], errors: Iterable[str]) -> Array:
    """Return text as an object array of ``bytes``."""
    out = np.empty(shape, np.object_)
    out.ravel()[:] = list(map(codecs.encode, texts, repeat("utf-8"), errors))
    return out


def sliced(texts: Iterable[str], start: int | None, stop: int | None, step: int | None) -> Iterable[str]:
    """Return ``text[start:stop:step]`` of each."""
    return map(itemgetter(slice(start, stop, step)), texts)


def changed(texts: Iterable[str], how: str) -> Iterable[str]:
    """Return each text in another case; ``how`` is a key of :data:`CHANGES`."""
    return map(CHANGES[how], texts)


def stripped(texts: Iterable[str], characters: str | None) -> Iterable[str]:
    """Return each text without these characters at its ends; None strips white space."""
    return map(str.strip, texts, repeat(characters))


def split_counts(texts: list[str], separator: str) -> npt.NDArray[np.int64]:
    """Return the number of parts into which a separator splits each text."""
    return np.fromiter(map(str.count, texts, repeat(separator)), np.int64, len(texts)) + 1


def written(x: Array) -> list[str]:
    """Return numbers as ``str`` formats them, but whole ones without a fraction, as in 3 for 3.0.

    So the text does not depend on whether a null in the batch turned integers into floats.
    """
    flat = x.ravel()
    if flat.dtype.kind != "f":
        return list(map(str, flat.tolist()))
    is_whole = (flat == np.floor(flat)) & (np.abs(flat) < 2.0**53)
    out = np.empty(len(flat), np.object_)
    out[:] = list(map(str, flat if flat.dtype == np.float32 else flat.tolist()))
    out[is_whole] = list(map(str, flat[is_whole].astype(np.int64).tolist()))
    texts: list[str] = out.tolist()
    return texts


def read(texts: list[str]) -> npt.NDArray[np.float64]:
    """Parse each text as Python's ``float`` does; a text that is not a number gives NaN."""
    try:
        return np.fromiter(map(float, texts), np.float64, len(texts))
    except ValueError:
        return np.fromiter(map(_number, texts), np.float64, len(texts))


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return np.nan


class _OfText(Elementwise, ABC):
    """Base of the steps that read text; a null's text is ignored."""

    def apply(self, x: Array, valid: Array | None) -> tuple[Array, Array | None]:
        """Decode and compute."""
        return self.compute(decoded(x, valid)[0], x.shape), valid

    @abstractmethod
    def compute(self, texts: list[str], shape: tuple[int, ...]) -> Array:
        """Return the step's values for the texts, in the given shape."""


class TextLength(_OfText):
    """The number of characters (Unicode code points) of a text."""

    def compute(self, texts: list[str], shape: tuple[int, ...]) -> Array:
        """Count."""
        return np.fromiter(map(len, texts), np.int64, len(texts)).reshape(shape)


class TextParts(_OfText):
    """The number of parts into which a separator splits a text."""

    def __init__(self, step: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
        super().__init__(step, arrays)
        self._separator: str = step["separator"]

    def compute(self, texts: list[str], shape: tuple[int, ...]) -> Array:
        """Count."""
        return split_counts(texts, self._separator).reshape(shape)


class _TextOfText(Elementwise, ABC):
    """Base of the steps that turn text into text; a null stays null."""

    def apply(self, x: Array, valid: Array | None) -> tuple[Array, Array | None]:
        """Decode, change and encode; bytes that are not valid UTF-8 stay as they are."""
        texts, errors = decoded(x, valid)
        return encoded(self.change(texts), x.shape, errors), valid

    @abstractmethod
    def change(self, texts: list[str]) -> Iterable[str]:
        """Return each text changed."""


class TextSlice(_TextOfText):
    """``text[start:stop:step]``, by characters."""

    def __init__(self, step: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
        super().__init__(step, arrays)
        self._bounds: tuple[int | None, int | None, int | None] = (step["start"], step["stop"], step["step"])

    def change(self, texts: list[str]) -> Iterable[str]:
        """Slice."""
        return sliced(texts, *self._bounds)


class TextCase(_TextOfText):
    """Text in another case; see :data:`CHANGES`."""

    def __init__(self, step: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
        super().__init__(step, arrays)
        self._case: str = step["case"]

    def change(self, texts: list[str]) -> Iterable[str]:
        """Change the case."""
        return changed(texts, self._case)


class TextStrip(_TextOfText):
    """Text without white space, or given characters, at its ends."""

    def __init__(self, step: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
        super().__init__(step, arrays)
        self._characters: str | None = step["characters"]

    def change(self, texts: list[str]) -> Iterable[str]:
        """Strip."""
        return stripped(texts, self._characters)


class TextToNumber(_OfText):
    """Text parsed as float64; a null, and a text that is not a number, give NaN."""

    def compute(self, texts: list[str], shape: tuple[int, ...]) -> Array:
        """Parse."""
        return read(texts).reshape(shape)

    def apply(self, x: Array, valid: Array | None) -> tuple[Array, Array | None]:
        """Parse, with NaN for a null."""
        numbers, valid = super().apply(x, valid)
        return (numbers if valid is None else np.where(valid, numbers, np.nan)), None


class NumberToText(Elementwise):
    """A number as text; a null stays null."""

    def apply(self, x: Array, valid: Array | None) -> tuple[Array, Array | None]:
        """Format."""
        real = ~np.isnan(x) if x.dtype.kind == "f" else None
        return encoded(written(x), x.shape, repeat(SURROGATES)), where_all_valid(valid, real)
