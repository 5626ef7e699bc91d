"""Artefacts: a directory with a ``header.json`` and plain files, memory-mapped, never pickled.

The header carries the kind, the format version and the build id, and each array's dtype, shape and
size, so that a stage can refuse a wrong or truncated artefact without reading it whole.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ArtefactCorrupt, ArtefactMissing, BuildMismatch, NewerFormat, OlderFormat
from ..lookups.lookup import Lookup, open_lookup
from ..spec import Array

ARTEFACT_FORMAT = 2
HEADER_NAME = "header.json"

#: Names of arrays that may name their files as they are; others get a number.
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


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
    """

    path: Path | None
    kind: str
    build_id: str
    meta: Mapping[str, Any]
    arrays: Mapping[str, Array]

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
    have ASCII names, whatever the arrays are called.
    """
    path.mkdir(parents=True, exist_ok=True)
    listed: dict[str, Any] = {}
    for number, (name, array) in enumerate(arrays.items()):
        if array.dtype.hasobject:
            raise TypeError(
                f"artefact {path.name}: array {name!r} holds Python objects; store bytes and offsets"
            )
        file = f"{name}.npy" if _PLAIN_NAME.fullmatch(name) else f"array-{number}.npy"
        np.save(path / file, np.ascontiguousarray(array), allow_pickle=False)
        listed[name] = {"file": file, "dtype": array.dtype.str, "shape": list(array.shape)}
    sizes = {
        str(file.relative_to(path)): file.stat().st_size
        for file in sorted(path.rglob("*"))
        if file.is_file() and file.name != HEADER_NAME
    }
    header = {
        "artefact_format": ARTEFACT_FORMAT,
        "kind": kind,
        "build_id": build_id,
        "meta": dict(meta or {}),
        "arrays": listed,
        "bytes": sizes,
    }
    (path / HEADER_NAME).write_text(json.dumps(header, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def open_artefact(path: Path, kind: str, build_id: str | None = None) -> Artefact:
    """Open an artefact, memory-mapped, after checking header, sizes and build id (not checksums).

    Parameters
    ----------
    path
        The artefact's directory.
    kind
        The kind it must have.
    build_id
        The build it must belong to; None accepts any.
    """
    header_path = path / HEADER_NAME
    if not header_path.is_file():
        raise ArtefactMissing(f"{header_path}: expected the header of the {kind} artefact; export again")
    try:
        header = json.loads(header_path.read_text(encoding="utf-8"))
        version = header["artefact_format"]
    except (ValueError, KeyError, TypeError) as error:
        raise ArtefactCorrupt(f"{header_path}: not a readable header ({error}); export again") from error
    if version != ARTEFACT_FORMAT:
        newer = version > ARTEFACT_FORMAT
        raise (NewerFormat if newer else OlderFormat)(
            f"{header_path}: artefact format {version}, but this Tiercel reads format {ARTEFACT_FORMAT}; "
            f"{'upgrade Tiercel or export again' if newer else 'export again'}"
        )
    if header["kind"] != kind:
        raise ArtefactCorrupt(f"{path}: expected an artefact of kind {kind!r}, found {header['kind']!r}")
    if build_id is not None and header["build_id"] != build_id:
        raise BuildMismatch(
            f"{path}: belongs to build {header['build_id']}, but the release is build {build_id}; "
            "files of two builds were mixed: export again"
        )
    for name, size in header["bytes"].items():
        file = path / name
        if not file.is_file():
            raise ArtefactMissing(f"{file}: listed in {header_path.name}, but missing; export again")
        if file.stat().st_size != size:
            raise ArtefactCorrupt(f"{file}: expected {size} bytes, found {file.stat().st_size}; export again")
    arrays = {name: _open_array(path / entry["file"], entry) for name, entry in header["arrays"].items()}
    return Artefact(path, kind, header["build_id"], header["meta"], arrays)


def _open_array(file: Path, entry: Mapping[str, Any]) -> Array:
    try:
        # An empty array cannot be memory-mapped.
        mode = "r" if 0 not in entry["shape"] else None
        array: Array = np.load(file, mmap_mode=mode, allow_pickle=False)  # type: ignore[arg-type]
    except (ValueError, OSError) as error:
        raise ArtefactCorrupt(f"{file}: not a readable array ({error}); export again") from error
    if array.dtype.str != entry["dtype"] or list(array.shape) != entry["shape"]:
        raise ArtefactCorrupt(
            f"{file}: expected {entry['dtype']} {entry['shape']}, found "
            f"{array.dtype.str} {list(array.shape)}; export again"
        )
    # A plain ndarray view over the map: indexing np.memmap itself costs a microsecond a time.
    return array.view(np.ndarray)
