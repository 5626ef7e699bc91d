"""A release on disk: the manifest, and how its artefacts are found and checked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ArtefactCorrupt, ArtefactMissing, BuildMismatch, NewerFormat, ReleaseMissing
from ..settings import ServingSettings
from ..spec import StageSpec
from .artefacts import Artefact, open_artefact

MANIFEST_FORMAT = 1
MANIFEST_NAME = "manifest.json"


@dataclass(frozen=True)
class Release:
    """An opened release.

    Parameters
    ----------
    path
        The release's directory, with ``triton/``, ``artefacts/`` and ``manifest.json``.
    manifest
        The parsed manifest. Its keys are listed in ``docs/release.md``.
    """

    path: Path
    manifest: Mapping[str, Any]

    @property
    def build_id(self) -> str:
        """The build that every artefact must carry."""
        return str(self.manifest["build_id"])

    @property
    def settings(self) -> ServingSettings:
        """Limits and rules of serving."""
        return ServingSettings.from_json(self.manifest["settings"])

    @property
    def stages(self) -> dict[str, StageSpec]:
        """Specs of all stages by name, in the order of the served graph."""
        return {data["name"]: StageSpec.from_json(data) for data in self.manifest["stages"]}

    def artefact(self, name: str, kind: str) -> Artefact:
        """Open ``artefacts/<name>`` and check that it belongs to this build."""
        return open_artefact(self.path / "artefacts" / name, kind, self.build_id)


def open_release(path: str | Path, *, build_id: str | None = None) -> Release:
    """Open a release by its manifest. Artefacts are checked when opened, checksums by :func:`check_files`.

    Parameters
    ----------
    path
        The release's directory.
    build_id
        The build that the caller (a Triton model's config) expects; None accepts any.
    """
    root = Path(path)
    file = root / MANIFEST_NAME
    if not file.is_file():
        raise ReleaseMissing(f"{file}: no release here; make one with `tiercel export`")
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        version = manifest["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise ArtefactCorrupt(f"{file}: not a readable manifest ({error}); export again") from error
    if version > MANIFEST_FORMAT:
        raise NewerFormat(
            f"{file}: manifest format {version}, but this Tiercel reads up to {MANIFEST_FORMAT}; "
            "upgrade Tiercel or export again"
        )
    release = Release(root, manifest)
    if build_id is not None and release.build_id != build_id:
        raise BuildMismatch(
            f"{file}: build {release.build_id}, but the model repository was made for build {build_id}; "
            "files of two builds were mixed: export again"
        )
    return release


def check_files(release: Release, progress: Callable[[str, int], None] | None = None) -> None:
    """Compare every file of the release with the manifest's sizes and SHA-256 checksums.

    Parameters
    ----------
    release
        The release to check.
    progress
        Called with a file's name and its bytes after each file.
    """
    for name, entry in release.manifest["files"].items():
        file = release.path / name
        if not file.is_file():
            raise ArtefactMissing(f"{file}: listed in {MANIFEST_NAME}, but missing; export again")
        size = file.stat().st_size
        if size != entry["bytes"]:
            raise ArtefactCorrupt(f"{file}: expected {entry['bytes']} bytes, found {size}; export again")
        digest = file_sha256(file)
        if digest != entry["sha256"]:
            raise ArtefactCorrupt(
                f"{file}: expected SHA-256 {entry['sha256'][:16]}…, found {digest[:16]}…; "
                "the file was changed after the export: export again"
            )
        if progress is not None:
            progress(name, size)


def file_sha256(file: Path) -> str:
    """Return the SHA-256 of a file as lower-case hex, read in bounded memory."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
