"""Compile ``tiercel_serving/native`` from source, so that tests run the current code."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from tiercel_serving import native

SOURCES = sorted(Path(native.__file__).parent.glob("*.c"))
FLAGS = ("-std=c11", "-fno-math-errno", "-fPIC", "-shared", "-Wall", "-Wextra", "-Werror")


def find_compiler() -> str:
    """Return the C compiler; skip where these functions cannot be built."""
    compiler = shutil.which("cc")
    if compiler is None or sys.byteorder != "little":
        pytest.skip("no C compiler, or a machine that NumPy serves alone")
    return compiler


def compile_native(folder: Path, *flags: str) -> Path:
    """Compile the functions into a folder; skip where that is not possible."""
    compiler = find_compiler()
    built = folder / "libtiercel_native.so"
    command = [compiler, *FLAGS, *flags, *map(str, SOURCES), "-o", str(built), "-lm"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return built


@cache
def open_compiled() -> Any:
    """Compile and load the functions, once per process."""
    with TemporaryDirectory() as folder:
        return native.open_library(compile_native(Path(folder), "-O1"))


#: Holds the sanitised build until the test process ends.
_FOLDER = TemporaryDirectory()


@cache
def _sanitized() -> tuple[Path, str]:
    """Compile with sanitisers; return the library and the value of LD_PRELOAD."""
    compiler = find_compiler()
    names = ("libasan.so", "libubsan.so")
    commands = [[compiler, f"-print-file-name={name}"] for name in names]
    sanitizers = [subprocess.run(one, capture_output=True, text=True).stdout.strip() for one in commands]
    if not all(Path(path).is_absolute() for path in sanitizers):
        pytest.skip("this compiler has no sanitizers")
    flags = ("-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    return compile_native(Path(_FOLDER.name), *flags), " ".join(sanitizers)


def run_sanitized(script: str, *arguments: str) -> None:
    """Run a script, given the compiled library's path, under sanitisers that stop it at any overrun."""
    built, sanitizers = _sanitized()
    done = subprocess.run(
        [sys.executable, "-c", script, str(built), *arguments],
        env={
            **os.environ,
            # This folder's modules, and those that all tests share.
            "PYTHONPATH": os.pathsep.join(map(str, Path(__file__).resolve().parents[:2])),
            "LD_PRELOAD": sanitizers,
            # Python itself leaks memory, and its own allocator would hide out-of-bounds accesses.
            "ASAN_OPTIONS": "detect_leaks=0",
            "PYTHONMALLOC": "malloc",
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
