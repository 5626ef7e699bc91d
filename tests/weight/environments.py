"""The Pythons of this machine, and fresh virtual environments with just what an extra installs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

#: Lowest and highest Python for the embedded Triton's wheel, and for everything else that serves.
WITH_TRITON, ALL = ((3, 10), (3, 12)), ((3, 10), (3, 13))

#: Prints a Python's properties; one that cannot start or has no venv prints nothing.
ASK = """
import json, sys, sysconfig, venv
folders = [sysconfig.get_config_var("LIBDIR") or "", sysconfig.get_config_var("LIBPL") or ""]
folders.append(folders[0] + "/" + (sysconfig.get_config_var("MULTIARCH") or ""))
print(json.dumps([sys.version_info[:2], sys.base_prefix, folders]))
"""


@dataclass(frozen=True)
class Python:
    """An interpreter, and whether it has the shared library that Triton's Python backend loads."""

    executable: Path
    version: tuple[int, int]
    has_library: bool


@cache
def pythons() -> tuple[Python, ...]:
    """Return every Python from 3.10 on, newest first: on PATH, of pyenv, and beside this one."""
    on_path = (shutil.which(f"python3.{minor}") for minor in range(10, 30))
    candidates = [Path(sys.executable), *(Path(found) for found in on_path if found)]
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    for folder in (pyenv / "versions", Path(sys.base_prefix).parent):
        candidates += sorted(folder.glob("*3.*/bin/python3"))
    asked = {python.executable: python for path in candidates if (python := _ask(path)) is not None}
    return tuple(sorted(asked.values(), key=lambda python: python.version, reverse=True))


def _ask(path: Path) -> Python | None:
    done = subprocess.run([path, "-I", "-c", ASK], capture_output=True, text=True, cwd="/")
    if done.returncode != 0:
        return None
    version, prefix, folders = json.loads(done.stdout)
    name = f"python{version[0]}.{version[1]}"
    executable = Path(prefix, "bin", name)
    if version < [3, 10] or not executable.is_file():
        return None
    library = any(Path(folder, f"lib{name}.so.1.0").is_file() for folder in folders)
    return Python(executable, tuple(version), library)


def newest(versions: tuple[tuple[int, int], tuple[int, int]], *, library: bool = False) -> Python | None:
    """Return the newest Python within a range of versions, or None."""
    lowest, highest = versions
    fitting = (python for python in pythons() if lowest <= python.version <= highest)
    return next((python for python in fitting if python.has_library or not library), None)


@dataclass
class Environment:
    """A fresh virtual environment without pip, isolated from the one that runs the tests."""

    folder: Path
    python: Python
    variables: dict[str, str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        foreign = {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "LD_LIBRARY_PATH"}
        # pip compiles nothing here, so the first program that imports a module does it for all later ones.
        foreign.add("PYTHONDONTWRITEBYTECODE")
        self.variables = {name: value for name, value in os.environ.items() if name not in foreign}
        self._run([self.python.executable, "-m", "venv", "--without-pip", self.folder])

    def install(self, requirement: str) -> None:
        """Install with the pip of the tests' environment, in its configuration."""
        options = ["--quiet", "--no-compile", "--disable-pip-version-check"]
        pip = [sys.executable, "-m", "pip", "--python", self.folder / "bin" / "python"]
        self._run([*pip, "install", *options, requirement])

    def install_quickly(self, requirement: str) -> None:
        """Install with uv, ten times as fast; with pip if uv, which ignores pip.conf, finds no index."""
        uv = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--python", self.folder, requirement]
        if subprocess.run(uv, capture_output=True, env=self.variables, cwd="/").returncode:
            self.install(requirement)

    def _run(self, command: list[str | Path]) -> None:
        done = subprocess.run(command, capture_output=True, text=True, env=self.variables, cwd="/")
        assert done.returncode == 0, done.stderr

    def tiercel(self, *arguments: object, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Run this environment's own command until it ends."""
        return self._ask([self.command, *map(str, arguments)], timeout_s)

    @property
    def command(self) -> str:
        return str(self.folder / "bin" / "tiercel")

    def says(self, code: str) -> str:
        """Return the output of a program run by this environment's Python."""
        done = self._ask([str(self.folder / "bin" / "python"), "-c", code], 60.0)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def _ask(self, command: list[str], timeout_s: float) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=timeout_s, env=self.variables, cwd=self.folder
        )

    def distributions(self) -> dict[str, str]:
        """Return name → version of the installed distributions."""
        code = (
            "import json, importlib.metadata as m\n"
            "print(json.dumps({d.name.lower().replace('_', '-'): d.version for d in m.distributions()}))"
        )
        found: dict[str, str] = json.loads(self.says(code))
        return found

    def size_mb(self) -> float:
        """Return the size in MB (2**20 bytes) of its files, plus that of the byte code that pip would write.

        Byte code takes 1.2 times its source: 38 besides 32 MB in the environment of ``tiercel[server]``.
        """
        files = (file for file in self.folder.rglob("*") if file.is_file() and not file.is_symlink())
        total = 0.0
        for file in files:
            if file.suffix != ".pyc":
                total += file.stat().st_size * (2.2 if file.suffix == ".py" else 1.0)
        return total / 2**20


@dataclass
class Bare:
    """An environment's state before anything but the client was installed."""

    environment: Environment
    distributions: dict[str, str]
    #: Command line → the result of ``tiercel`` with it.
    answers: dict[str, subprocess.CompletedProcess[str]]
    client: str
