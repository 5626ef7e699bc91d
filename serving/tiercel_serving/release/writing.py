"""Write a release directory with its manifest atomically: under a temporary name, then renamed."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import os
import secrets
import shutil
from collections.abc import Iterator
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

import msgspec

from ..errors import DestinationTaken, MachineFault
from ..machine_faults import machine_faults
from .manifest import MANIFEST_NAME, File, Made, Manifest, encode
from .opened import file_sha256

#: Distributions whose versions the manifest records.
LIBRARIES = (
    "numpy",
    "pandas",
    "nvtabular",
    "merlin-core",
    "pyarrow",
    "torch",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "faiss-cpu",
    "tritonclient",
    "protobuf",
)


def new_build_id() -> str:
    """Return a unique build id: the time in UTC, for people, and 48 random bits."""
    return f"{datetime.now(timezone.utc):%Y%m%dT%H%M%SZ}-{secrets.token_hex(6)}"


def made_now() -> Made:
    """Return the present time and the installed versions, for a manifest."""
    return Made(
        datetime.now(timezone.utc).isoformat(timespec="seconds"),
        version("tiercel"),
        {library: version(library) for library in LIBRARIES},
    )


def version(distribution: str) -> str | None:
    """Return an installed distribution's version, or None."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write the manifest of the release at ``path``, with the size and SHA-256 of every file there."""
    file, files = path / MANIFEST_NAME, list_files(path, MANIFEST_NAME)
    file.write_bytes(encode(msgspec.structs.replace(manifest, files=files).sealed(str(file))))


def list_files(path: Path, without: str) -> dict[str, File]:
    """Return the size and SHA-256 of every file below a directory, except those named ``without``."""
    return {
        file.relative_to(path).as_posix(): File(file.stat().st_size, file_sha256(file))
        for file in sorted(path.rglob("*"))
        if file.is_file() and file.name != without
    }


@contextlib.contextmanager
def staging_directory(
    destination: Path, *, replace: bool, what: str = "release", mark: str = MANIFEST_NAME
) -> Iterator[Path]:
    """Provide a directory beside ``destination`` that is renamed to it only if the block succeeds.

    Parameters
    ----------
    destination
        The directory to create.
    replace
        Whether an existing directory of the same kind may be replaced.
    what, mark
        The kind's name in messages, and the file by which an existing one is recognised.

    Yields
    ------
    Path
        The directory to write into. It is on the same file system, so the rename is atomic. It is removed if
        the block raises, also on Ctrl-C. The next export to the same destination removes what a killed
        process left.

    Raises
    ------
    DestinationTaken
        The destination exists and ``replace`` is False, or it is something else.
    MachineFault
        The disk or memory is full, or the folder is not writable or vanishes.
    """
    destination = destination.resolve()
    folder, doing = destination.parent, f"writing the {what} {destination.name}"
    staging = folder / f".{destination.name}.partial-{secrets.token_hex(6)}"
    with machine_faults(folder, doing):
        folder.mkdir(parents=True, exist_ok=True)
        _clean_leftovers(destination)
        check_destination(destination, replace, what, mark)
        staging.mkdir()
    try:
        with machine_faults(folder, doing, staging), _locked(staging):
            with _kept(staging, doing):
                yield staging
                # Checked again: minutes may have passed since the work began.
                check_destination(destination, replace, what, mark)
                _as_the_umask_says(staging)
            _swap(staging, destination)
    finally:
        _remove(staging)


def check_destination(destination: Path, replace: bool, what: str, mark: str) -> None:
    """Raise DestinationTaken as :func:`staging_directory` would."""
    if not destination.exists():
        return
    if destination.is_dir() and not any(destination.iterdir()):
        return
    if not destination.is_dir() or not (destination / mark).is_file():
        raise DestinationTaken(
            f"{destination}: exists and is not a {what} (it has no {mark}); choose another destination"
        )
    if not replace:
        raise DestinationTaken(
            f"{destination}: a {what} is already here; choose another destination, or replace it "
            "(replace=True, --replace)"
        )


@contextlib.contextmanager
def _kept(staging: Path, doing: str) -> Iterator[None]:
    """Raise MachineFault for an error in the block if the directory is gone, as libraries' errors differ."""
    try:
        yield
    except Exception as error:
        if staging.exists() or isinstance(error, MachineFault):
            raise
        raise MachineFault(
            f"{staging.parent}: the folder {staging.name} vanished while {doing}; begin again, and see that "
            "nothing removes it before the work is done"
        ) from error


def _remove(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    # If the limit of open files is reached, rmtree fails; this needs one descriptor at a time.
    for path in sorted(directory.rglob("*"), reverse=True):
        with contextlib.suppress(OSError):
            path.rmdir() if path.is_dir() else path.unlink()
    with contextlib.suppress(OSError):
        directory.rmdir()


def _as_the_umask_says(staging: Path) -> None:
    """Give files the directory's permissions: safetensors makes its files readable by their owner only."""
    mode = staging.stat().st_mode & 0o666
    for file in staging.rglob("*"):
        if file.is_file() and file.stat().st_mode & mode != mode:
            file.chmod(mode)


def _swap(staging: Path, destination: Path) -> None:
    if not destination.exists():
        staging.rename(destination)
        return
    old = destination.parent / staging.name.replace(".partial-", ".old-")
    with _locked(destination):
        destination.rename(old)
        try:
            staging.rename(destination)
        except BaseException:
            old.rename(destination)
            raise
    shutil.rmtree(old, ignore_errors=True)


def _clean_leftovers(destination: Path) -> None:
    """Remove what killed exports to this destination left, and restore a release that one had moved away."""
    name = glob.escape(destination.name)
    for old in destination.parent.glob(f".{name}.old-*"):
        if _in_use(old):
            continue
        if destination.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.rename(destination)
    for partial in destination.parent.glob(f".{name}.partial-*"):
        if not _in_use(partial):
            shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Hold a lock on the directory itself, which is released when the process ends in any way."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _in_use(directory: Path) -> bool:
    """Return whether a running export holds the directory's lock."""
    try:
        with _locked(directory):
            return False
    except OSError:
        return True
