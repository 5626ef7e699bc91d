"""Artefacts: a directory with a ``header.json`` and plain files, memory-mapped, never pickled.

The header carries the kind, the format version and the build id, and each array's dtype, shape and
size, so that a stage can refuse a wrong or truncated artefact without reading it whole.
"""

from __future__ import annotations

import contextlib
import json
import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from ..errors import ArtefactCorrupt, ArtefactMissing, BuildMismatch, NewerFormat, OlderFormat
from ..lookups.lookup import Lookup, open_lookup
from ..machine_faults import fault_of
from ..spec import Array

ARTEFACT_FORMAT = 2
HEADER_NAME = "header.json"

#: Linux's MADV_POPULATE_READ (5.14 and later), which Python has no name for.
_POPULATE_READ = 22


class _Stored(msgspec.Struct, frozen=True):
    """An array of an artefact: its file, and what that must hold."""

    file: str
    dtype: str
    shape: list[int]


class _Header(msgspec.Struct, frozen=True):
    """What ``header.json`` says; ``bytes`` is the size of every file beside it."""

    artefact_format: int
    kind: str
    build_id: str
    meta: dict[str, Any]
    arrays: dict[str, _Stored]
    bytes: dict[str, int]


@dataclass(frozen=True)
class Artefact:
    """An opened artefact, or one that was just made and lies in memory.

    Parameters
    ----------
    path
        Its directory; None in memory.
    kind
        ``features``, ``users``, ``items``, ``source``, ``engine`` or ``golden``.
    build_id
        The build it belongs to.
    meta
        Whatever small JSON its kind needs.
    arrays
        Name → memory-mapped read-only array.
    room
        How many rows for new items whoever opens it counts before the pad row, beside those that it has.
    """

    path: Path | None
    kind: str
    build_id: str
    meta: Mapping[str, Any]
    arrays: Mapping[str, Array]
    room: int = 0

    @classmethod
    def in_memory(
        cls, kind: str, arrays: Mapping[str, Array], meta: Mapping[str, Any] | None = None
    ) -> Artefact:
        """Return an artefact that was never written: for training and offline figures."""
        return cls(None, kind, "in memory", meta or {}, arrays)

    def file(self, name: str) -> Path:
        """Return the path of one of the artefact's other files (an index, an engine)."""
        path = None if self.path is None else self.path / name
        if path is None or not path.is_file():
            raise ArtefactMissing(
                f"{path or self.kind}: the {self.kind} artefact has no file {name!r}; export again"
            )
        return path

    def array(self, name: str, rows: int | None = None) -> Array:
        """Return an array, after checking that it is there and has so many rows."""
        array = self.arrays.get(name)
        if array is None:
            raise ArtefactCorrupt(f"{self.path or self.kind}: expected an array {name!r}; export again")
        if rows is not None and len(array) != rows:
            raise ArtefactCorrupt(
                f"{self.path or self.kind}: expected {rows} rows of {name}, found {len(array)}; export again"
            )
        return array

    def lookup(self, prefix: str) -> Lookup:
        """Open the lookup whose arrays begin with ``prefix``."""
        try:
            return open_lookup(self.arrays, prefix)
        except KeyError as error:
            raise ArtefactCorrupt(f"{self.path or self.kind}: {error.args[0]}; export again") from None


def write_artefact(
    path: Path,
    kind: str,
    build_id: str,
    arrays: Mapping[str, Array],
    meta: Mapping[str, Any] | None = None,
) -> None:
    """Write an artefact directory. Arrays must have plain dtypes; other files are put beside them first.

    Every regular file that already lies in ``path`` is listed in the header with its size. Files of arrays
    are numbered, since arrays may be called after columns: no file system takes every name.
    """
    path.mkdir(parents=True, exist_ok=True)
    listed: dict[str, _Stored] = {}
    for number, (name, array) in enumerate(arrays.items()):
        if array.dtype.hasobject:
            raise TypeError(
                f"artefact {path.name}: array {name!r} holds Python objects; store bytes and offsets"
            )
        file = f"{number}.npy"
        np.save(path / file, np.ascontiguousarray(array), allow_pickle=False)
        listed[name] = _Stored(file, array.dtype.str, list(array.shape))
    sizes = {
        str(file.relative_to(path)): file.stat().st_size
        for file in sorted(path.rglob("*"))
        if file.is_file() and file.name != HEADER_NAME
    }
    header = msgspec.to_builtins(_Header(ARTEFACT_FORMAT, kind, build_id, dict(meta or {}), listed, sizes))
    (path / HEADER_NAME).write_text(json.dumps(header, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def open_artefact(path: Path, kind: str, build_id: str | None = None) -> Artefact:
    """Open an artefact, memory-mapped, after checking header, sizes, kind and build id (not checksums).

    It must have the kind, and belong to the build unless that is None.
    """
    header = _read_header(path / HEADER_NAME, kind)
    if header.kind != kind:
        raise ArtefactCorrupt(f"{path}: expected an artefact of kind {kind!r}, found {header.kind!r}")
    if build_id is not None and header.build_id != build_id:
        raise BuildMismatch(
            f"{path}: belongs to build {header.build_id}, but the release is build {build_id}; "
            "files of two builds were mixed: export again"
        )
    called = {s.file: f"{path / s.file} (the array {name!r})" for name, s in header.arrays.items()}
    for name, size in header.bytes.items():
        file, what = path / name, called.get(name, str(path / name))
        if not file.is_file():
            raise ArtefactMissing(f"{what}: listed in {HEADER_NAME}, but missing; export again")
        if file.stat().st_size != size:
            raise ArtefactCorrupt(f"{what}: expected {size} bytes, found {file.stat().st_size}; export again")
    arrays = {name: _open_array(path / s.file, called[s.file], s) for name, s in header.arrays.items()}
    return Artefact(path, kind, header.build_id, header.meta, arrays)


def _read_header(file: Path, kind: str) -> _Header:
    if not file.is_file():
        raise ArtefactMissing(f"{file}: expected the header of the {kind} artefact; export again")
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        check_format(file, "artefact", int(data["artefact_format"]), ARTEFACT_FORMAT)
        return msgspec.convert(data, _Header)
    except (ValueError, KeyError, TypeError) as error:
        raise ArtefactCorrupt(f"{file}: not a readable header ({error}); export again") from error


def check_format(
    file: Path | str, what: str, found: int, read: int, older_remedy: str = "export again"
) -> None:
    """Raise NewerFormat or OlderFormat if a file is of another format than this Tiercel reads."""
    if found != read:
        newer = found > read
        raise (NewerFormat if newer else OlderFormat)(
            f"{file}: {what} format {found}, but this Tiercel reads format {read}; "
            f"{'upgrade Tiercel, or export again with this one' if newer else older_remedy}"
        )


def _open_array(file: Path, what: str, stored: _Stored) -> Array:
    try:
        # An empty array cannot be memory-mapped.
        mode = "r" if 0 not in stored.shape else None
        array: Array = np.load(file, mmap_mode=mode, allow_pickle=False)  # type: ignore[arg-type]
    except (ValueError, OSError) as error:
        raise fault_of(error, file) or ArtefactCorrupt(
            f"{what}: not a readable array ({error}); export again"
        ) from error
    if array.dtype.str != stored.dtype or list(array.shape) != stored.shape:
        raise ArtefactCorrupt(
            f"{what}: expected {stored.dtype} {stored.shape}, found "
            f"{array.dtype.str} {list(array.shape)}; export again"
        )
    _map_pages(array)
    # A plain ndarray view over the map: indexing np.memmap itself costs a microsecond a time.
    return array.view(np.ndarray)


def _map_pages(array: Array) -> None:
    """Map a file's pages at once, where the system can: else thousands of requests pay for them, bit by bit.

    It takes some 50 microseconds for each MB. What memory the pages take is shared by all who map the file.
    """
    mapped: Any = array.base
    if isinstance(mapped, mmap.mmap):
        with contextlib.suppress(OSError, AttributeError):
            mapped.madvise(_POPULATE_READ)
