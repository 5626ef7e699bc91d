"""How Triton is started: its command line, its backend directory, its environment, the models it reads."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import ServerError
from ..release.manifest import MANIFEST_NAME
from ..release.opened import Release
from .installation import BACKEND_FILES, Installation

#: What nobody needs to change on a server whose repository is read-only.
RESTRICTED = "shared-memory,model-repository,trace,logging"


@dataclass(frozen=True)
class Launch:
    """What a start of Triton depends on; ``workdir`` is its own, and removed when it has ended."""

    installation: Installation
    workdir: Path
    host: str
    ports: Mapping[str, int]
    shm_prefix: str

    def command(self, repository: Path) -> list[str]:
        """Return the command line; makes a backend directory where the wheel's is in parts."""
        key = secrets.token_hex(16)
        command = [
            str(self.installation.binary),
            f"--model-repository={repository}",
            f"--backend-directory={self._backend_directory()}",
            f"--grpc-address={self.host}",
            f"--metrics-address={self.host}",
            f"--grpc-port={self.ports['grpc']}",
            f"--metrics-port={self.ports['metrics']}",
            # One request to Triton's own HTTP can end it: see http_front.py, which stands in for it.
            "--allow-http=false",
            "--model-control-mode=none",
            "--exit-on-error=true",
            "--strict-readiness=true",
            "--disable-auto-complete-config",
            "--exit-timeout-secs=8",
            "--log-format=ISO8601",
            f"--backend-config=python,shm-region-prefix-name={self.shm_prefix}",
            # The key is drawn anew at each start and told to nobody, which turns these interfaces off.
            f"--grpc-restricted-protocol={RESTRICTED}:tiercel={key}",
        ]
        if self.installation.caches is not None:
            command.append(f"--cache-directory={self.installation.caches}")
        return command

    def _backend_directory(self) -> Path:
        """Return a complete backend directory; the wheel keeps its stubs apart from the backend."""
        found = self.installation
        if found.stub is None:
            return found.backends
        directory = self.workdir / "backends" / "python"
        directory.mkdir(parents=True)
        for name in BACKEND_FILES:
            (directory / name).symlink_to(found.backends / "python" / name)
        (directory / found.stub.name).symlink_to(found.stub)
        return directory.parent

    def environment(self, libpython: Path) -> dict[str, str]:
        """Return the environment variables; ``libpython`` is the shared library of the running Python."""
        # The stub is the Python whose `python3` comes first on PATH: this one, not resolved, since a
        # virtual environment is recognised by where its link lies.
        folder = Path(sys.executable).parent
        if not (folder / "python3").exists():
            folder = self.workdir / "bin"
            folder.mkdir()
            (folder / "python3").symlink_to(sys.executable)
        libraries = [*map(str, self.installation.libraries), str(libpython.parent)]
        before = os.environ.get("LD_LIBRARY_PATH")
        return {
            **os.environ,
            "PATH": os.pathsep.join([str(folder), os.environ.get("PATH", os.defpath)]),
            "LD_LIBRARY_PATH": os.pathsep.join(libraries + ([before] if before else [])),
        }


def model_repository(source: Release | Path, layout: str | None, workdir: Path, mirror: Path) -> Path:
    """Return the model repository that Triton shall read, of the layout or (None) the release's own.

    It is a mirror of links in a temporary directory: the stub writes ``__pycache__`` beside a ``model.py``
    and cannot be told not to (its interpreter ignores the environment), but a release is immutable.
    For another layout, or another store, one is written into ``workdir``.

    Raises
    ------
    ServerError
        A plain repository has no layouts.
    """
    if isinstance(source, Path):
        if layout is not None:
            raise ServerError(f"{source}: a plain model repository has no layouts; leave layout out")
        return _link(source, mirror)
    place = source.path.resolve()
    own = source.manifest.layout
    if source.other_store is not None or layout not in (None, own):
        from ..repository.graph import render_repository

        repository = workdir / "models"
        repository.mkdir()
        render_repository(source, repository, layout or own)
        return repository
    # Models find their release by a relative path, so its other parts are linked beside them.
    mirror.mkdir()
    for name in (MANIFEST_NAME, "artefacts"):
        (mirror / name).symlink_to(place / name)
    return _link(place / "triton", mirror / "triton")


def _link(source: Path, destination: Path) -> Path:
    """Make the directories of ``source`` in ``destination``, with a link for each file."""
    for folder, folders, files in os.walk(source):
        folders[:] = [name for name in folders if name != "__pycache__"]
        copy = destination / Path(folder).relative_to(source)
        copy.mkdir()
        for name in files:
            (copy / name).symlink_to(Path(folder, name))
    return destination
