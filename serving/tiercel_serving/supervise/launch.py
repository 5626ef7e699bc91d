"""How Triton is started: its command line, backend directory, environment and model repository."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .. import backend
from ..errors import ServerError, TritonMissing
from ..release.manifest import MANIFEST_NAME
from ..release.opened import Release
from ..repository.targets import find_runner
from .installation import BACKEND_FILES, Installation

#: Protocols that are switched off, because a server with a read-only repository does not need them.
RESTRICTED = "shared-memory,model-repository,trace,logging"

#: Flags that Tiercel depends on and sets itself, and what sets them through ``tiercel serve``.
OURS: Mapping[str, str] = {
    "--model-repository": "the release",
    "--backend-directory": "--triton",
    "--grpc-address": "--host",
    "--metrics-address": "--host",
    "--grpc-port": "--grpc-port before the --",
    "--metrics-port": "--metrics-port before the --",
    "--model-control-mode": "nothing: models of a running server never change",
    "--exit-on-error": "nothing: a server that lacks a model does not run",
    "--log-file": "--log",
}


def wrong_flag(flags: Sequence[str]) -> str | None:
    """Return the problem with a user's flags for Triton, or None."""
    for flag in flags:
        name = flag.partition("=")[0]
        if not name.startswith("--"):
            return f"{flag!r} is not a flag of tritonserver; write flags with values, as --log-verbose=1"
        if name in OURS:
            return f"{flag!r}: `tiercel serve` says this to Triton itself, by {OURS[name]}"
    return None


@dataclass(frozen=True)
class Launch:
    """Everything that a start of Triton depends on; ``workdir`` is removed after Triton's end.

    The user's ``flags`` come after Tiercel's, because Triton uses the last of two.
    """

    installation: Installation
    workdir: Path
    host: str
    ports: Mapping[str, int]
    shm_prefix: str
    flags: Sequence[str] = ()

    def command(self, repository: Path, libpython: Path) -> list[str]:
        """Return the command line; creates a backend directory if the backends are in several places."""
        key = secrets.token_hex(16)
        command = [
            str(self.installation.binary),
            f"--model-repository={repository}",
            f"--backend-directory={self._backend_directory()}",
            f"--grpc-address={self.host}",
            f"--metrics-address={self.host}",
            f"--grpc-port={self.ports['grpc']}",
            f"--metrics-port={self.ports['metrics']}",
            # One request to Triton's own HTTP can crash it; http_front.py replaces it and explains this.
            "--allow-http=false",
            "--model-control-mode=none",
            "--exit-on-error=true",
            "--strict-readiness=true",
            "--disable-auto-complete-config",
            "--exit-timeout-secs=8",
            "--log-format=ISO8601",
            f"--backend-config=python,shm-region-prefix-name={self.shm_prefix}",
            f"--backend-config=tiercel,libpython={libpython}",
            # A random key that is never disclosed switches these protocols off.
            f"--grpc-restricted-protocol={RESTRICTED}:tiercel={key}",
        ]
        if self.installation.caches is not None:
            command.append(f"--cache-directory={self.installation.caches}")
        return [*command, *self.flags]

    def _backend_directory(self) -> Path:
        """Return a complete backend directory, made of links if need be.

        The wheel keeps the stubs outside of the backend, and Tiercel's backend is in Tiercel's package.
        """
        found, own = self.installation, backend.library()
        if found.stub is None and own is None:
            return found.backends
        directory = self.workdir / "backends"
        directory.mkdir()
        for path in found.backends.iterdir():
            if found.stub is None or path.name != "python":
                (directory / path.name).symlink_to(path)
        if found.stub is not None:
            (directory / "python").mkdir()
            for name in BACKEND_FILES:
                (directory / "python" / name).symlink_to(found.backends / "python" / name)
            (directory / "python" / found.stub.name).symlink_to(found.stub)
        if own is not None:
            (directory / "tiercel").mkdir()
            (directory / "tiercel" / backend.NAME).symlink_to(own)
        return directory

    def environment(self, libpython: Path) -> dict[str, str]:
        """Return the environment variables; ``libpython`` is the shared library of the running Python."""
        # The stub runs the first `python3` on PATH, which must be the running Python. Its path is not
        # resolved, because Python recognises a virtual environment by the link's place.
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


def model_repository(
    source: Release | Path, layout: str | None, runner: str | None, workdir: Path, mirror: Path
) -> Path:
    """Return the model repository for Triton, with this layout and runner or (None) the release's own.

    It is a tree of links in a temporary directory, because a release is immutable, but the stub writes
    ``__pycache__`` beside a ``model.py``, and its interpreter ignores the environment variable against that.
    For a layout, store or runner other than the release's, a repository is rendered into ``workdir``.

    Raises
    ------
    ServerError
        A layout or runner was given for a plain repository, which names its own backends.
    """
    if isinstance(source, Path):
        if layout is not None or runner is not None:
            raise ServerError(
                f"{source}: a plain model repository has one layout; leave layout and runner out"
            )
        return _link(source, mirror)
    place = source.path.resolve()
    own = source.manifest
    if source.other_store is not None or layout not in (None, own.layout) or runner not in (None, own.runner):
        from ..repository.graph import render_repository

        repository = workdir / "models"
        repository.mkdir()
        render_repository(source, repository, layout or own.layout, runner=runner)
        return repository
    # Models refer to their release by a relative path, so its other parts are linked beside them.
    mirror.mkdir()
    for name in (MANIFEST_NAME, "artefacts"):
        (mirror / name).symlink_to(place / name)
    return _link(place / "triton", mirror / "triton")


def check_runner(runner: str) -> None:
    """Refuse a runner that does not exist or is not available here.

    Raises
    ------
    InvalidSettings
        There is no such runner.
    TritonMissing
        The runner needs Tiercel's own backend, which was not built.
    """
    if find_runner(runner).in_process and backend.library() is None:
        raise TritonMissing(
            f"runner {runner}: its backend was not built when Tiercel was installed, most often for want of "
            "a C compiler; install one, and then Tiercel again (`pip install --force-reinstall --no-deps "
            "tiercel`), or serve with `--runner python`"
        )


def _link(source: Path, destination: Path) -> Path:
    """Create the directories of ``source`` in ``destination``, with a link for each file."""
    for folder, folders, files in os.walk(source):
        folders[:] = [name for name in folders if name != "__pycache__"]
        copy = destination / Path(folder).relative_to(source)
        copy.mkdir()
        for name in files:
            (copy / name).symlink_to(Path(folder, name))
    return destination
