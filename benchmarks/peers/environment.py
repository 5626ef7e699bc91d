"""The hand-written service's own environment, since Tiercel does not need its packages."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tiercel_serving.errors import BenchError

PACKAGES = (
    *("fastapi==0.163.2", "uvicorn==0.54.0", "pandas==1.5.3", "numpy==1.26.4"),
    *("torch==2.13.0", "faiss-cpu==1.15.1"),
)
#: File that is written last, so that an interrupted build starts again.
STAMP = ".ready"


def find_python(given: Path | None, cache: Path) -> Path:
    """Return the environment's Python: ``given``, or else the one in ``cache``, which is built once.

    Raises
    ------
    BenchError
        It can't be built; the message ends with the output of venv or pip.
    """
    if given is not None:
        return given
    python, stamp = cache / "bin" / "python", cache / STAMP
    if not stamp.is_file():
        _run([sys.executable, "-m", "venv", str(cache)])
        _run([str(python), "-m", "pip", "install", "--quiet", *PACKAGES])
        stamp.touch()
    return python


def _run(command: list[str]) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        raise BenchError(
            f"the environment of the hand-written service can't be built; name a Python that has "
            f"{', '.join(PACKAGES)} with --python. {' '.join(command[:4])}: {done.stdout[-1500:]}"
        )
