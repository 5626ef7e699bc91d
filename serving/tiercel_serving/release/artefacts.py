"""Artefacts: directories with a ``header.json`` and plain files, memory-mapped and never pickled.

The header contains the kind, the format version, the build id, each array's dtype and shape, and each file's
size, so that a wrong or truncated artefact is refused without reading it whole.
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

#: Linux's MADV_POPULATE_READ (5.14 and later), for which Python has no constant.
_POPULATE_READ = 22


class _Stored(msgspec.Struct, frozen=True):
    """An array of an artefact: its file, and the dtype and shape that the file must have."""

    file: str
    dtype: str
    shape: list[int]


class _Header(msgspec.Struct, frozen=True):
    """The contents of ``header.json``; ``bytes`` maps every other file to its size."""

    artefact_format: int
    kind: str
    build_id: str
    meta: dict[str, Any]
    arrays: dict[str, _Stored]
    bytes: dict[str, int]


@dataclass(frozen=True)
class Artefact:
    """An opened artefact, or one in memory.

    Parameters
    ----------
    path
        Its directory; None in memory.
    kind
        ``features``, ``users``, ``items``, ``source``, ``engine`` or ``golden``.
    build_id
        The build it belongs to.
    meta
        Small JSON data of its kind.
    arrays
        Name → memory-mapped read-only array.
    room
        Number of rows for new items, which come after the artefact's rows and before the pad row.
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
        """Return an artefact that is not written, for training and offline figures."""
        return cls(None, kind, "in memory", meta or {}, arrays)

    def file(self, name: str) -> Path:
        """Return the path of another file, such as an index or engine; ArtefactMissing if there is none."""
        path = None if self.path is None else self.path / name
        if path is None or not path.is_file():
            raise ArtefactMissing(
                f"{path or self.kind}: the {self.kind} artefact has no file {name!r}; export again"
            )
        return path

    def array(self, name: str, rows: int | None = None) -> Array:
        """Return an array; ArtefactCorrupt if it is missing or does not have ``rows`` rows."""
        array = self.arrays.get(name)
        if array is None:
            raise ArtefactCorrupt(f"{self.path or self.kind}: expected an array {name!r}; export again")
        if rows is not None and len(array) != rows:
            raise ArtefactCorrupt(
                f"{self.path or self.kind}: expected {rows} rows of {name}, found {len(array)}; export again"
            )
        return array

    def lookup(self, prefix: str) -> Lookup:
        """Open the lookup whose arrays begin with ``prefix``; ArtefactCorrupt if one is missing."""
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
    """Write an artefact directory; other files must be in it already, and TypeError refuses object arrays.

    The header lists every regular file in ``path`` with its size. The files of arrays are numbered, because
    arrays may be named after columns, and not every name is a valid file name.
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

    Parameters
    ----------
    path
        The artefact's directory.
    kind
        The kind that it must have.
    build_id
        The build that it must belong to; None accepts any.

    Raises
    ------
    ArtefactMissing, ArtefactCorrupt
        A file is missing, or is not as the header says.
    BuildMismatch
        It belongs to another build.
    NewerFormat, OlderFormat
        It has another format.
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
    """Raise NewerFormat or OlderFormat if a file's format is not the one that this Tiercel reads."""
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
    # A plain ndarray view, because indexing np.memmap itself costs a microsecond each time.
    return array.view(np.ndarray)


def _map_pages(array: Array) -> None:
    """Map a file's pages at once, if the system can, so that requests do not pay for the page faults.

    This takes about 50 microseconds per MB. Processes that map the file share the pages' memory.
    """
    mapped: Any = array.base
    if isinstance(mapped, mmap.mmap):
        with contextlib.suppress(OSError, AttributeError):
            mapped.madvise(_POPULATE_READ)
