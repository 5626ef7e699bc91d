"""A run's directory appears whole, or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import TrainingError
from .record import RUN_NAME


@contextmanager
def whole_directory(destination: Path, replace_existing: bool) -> Iterator[Path]:
    """Give a directory to fill, which becomes ``destination`` only if the block ends well.

    It lies beside ``destination``, under a name that no command takes for a run, and is removed
    whatever ends the block, Ctrl-C included.

    Raises
    ------
    TrainingError
        If ``destination`` exists and may not be replaced, or is no run.
    """
    check_destination(destination, replace_existing)
    destination.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{destination.name}.partial-", dir=destination.parent))
    try:
        yield partial
        partial.chmod(0o755)
        check_destination(destination, replace_existing)
        if destination.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{destination.name}.old-", dir=destination.parent))
            os.rename(destination, old / "run")
            try:
                os.rename(partial, destination)
            except BaseException:
                os.rename(old / "run", destination)
                raise
            finally:
                shutil.rmtree(old, ignore_errors=True)
        else:
            os.rename(partial, destination)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_destination(destination: Path, replace_existing: bool) -> None:
    """Raise TrainingError if a run may not be written here."""
    if not destination.exists():
        return
    empty = destination.is_dir() and not any(destination.iterdir())
    if not replace_existing and not empty:
        raise TrainingError(
            f"{destination}: something is there already; replace it or name another directory"
        )
    if not empty and not (destination / RUN_NAME).is_file():
        raise TrainingError(
            f"{destination}: expected a run to replace, found something else; name another directory"
        )
