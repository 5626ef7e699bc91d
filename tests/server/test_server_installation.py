"""Where a Triton and a libpython are found, and what is missing where they are not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tiercel_serving.errors import LibPythonMissing, TritonMissing
from tiercel_serving.supervise.installation import PYTHON_VERSION, STUB, find_installation, find_libpython


def container_like(root: Path, *, stub: bool = True) -> Path:
    for name in ("bin/tritonserver", "backends/python/libtriton_python.so", "lib/libtritonserver.so"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    (root / "backends/python/triton_python_backend_utils.py").touch()
    if stub:
        (root / "backends/python" / STUB).touch()
    return root


def test_the_wheel_holds_a_server() -> None:
    found = find_installation()
    assert os.access(found.binary, os.X_OK)
    assert found.stub is not None
    assert found.stub.parent.name == PYTHON_VERSION
    assert found.libraries[0].name == "nvidia_pytriton.libs"


def test_the_wheel_named_by_path_is_the_same() -> None:
    found = find_installation()
    assert find_installation(found.binary) == find_installation(found.binary.parent.parent) == found


@pytest.mark.parametrize("named", ["", "bin/tritonserver"])
def test_a_container_brings_its_own_backends(tmp_path: Path, named: str) -> None:
    root = container_like(tmp_path / "opt")
    found = find_installation(root / named)
    assert found.binary == root / "bin/tritonserver"
    assert found.backends == root / "backends"
    assert found.stub is None
    assert found.libraries == (root / "lib",)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(TritonMissing, match="pip install"):
        find_installation(module="no_such_module")
    with pytest.raises(TritonMissing, match=r"--force-reinstall"):
        find_installation(module="tiercel_serving")
    with pytest.raises(TritonMissing, match="--triton takes"):
        find_installation(tmp_path)
    root = container_like(tmp_path / "a", stub=False)
    with pytest.raises(TritonMissing, match="no stub"):
        find_installation(root)
    (root / "python_backend_stubs" / "3.8").mkdir(parents=True)
    with pytest.raises(TritonMissing, match=rf"stubs for Python 3\.8, and you run {PYTHON_VERSION}"):
        find_installation(root)
    (root / "backends/python/libtriton_python.so").unlink()
    with pytest.raises(TritonMissing, match="no Python backend"):
        find_installation(root)


def test_other_systems_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    with pytest.raises(TritonMissing, match="darwin"):
        find_installation()


def test_other_machines_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    with pytest.raises(TritonMissing, match="riscv64"):
        find_installation()


def test_libpython_of_this_python() -> None:
    assert find_libpython().name == f"libpython{PYTHON_VERSION}.so.1.0"


def test_libpython_in_the_multiarch_folder(tmp_path: Path) -> None:
    file = tmp_path / "x86_64-linux-gnu" / f"libpython{PYTHON_VERSION}.so.1.0"
    file.parent.mkdir()
    file.touch()
    assert find_libpython({"LIBDIR": str(tmp_path), "MULTIARCH": "x86_64-linux-gnu"}) == file


def test_a_python_without_shared_library_is_told_what_to_install(tmp_path: Path) -> None:
    config = {"LIBDIR": str(tmp_path), "INSTSONAME": "libpython3.a", "Py_ENABLE_SHARED": 0}
    with pytest.raises(LibPythonMissing) as caught:
        find_libpython(config)
    for words in (str(tmp_path), "INSTSONAME='libpython3.a'", "Py_ENABLE_SHARED=0", "--enable-shared"):
        assert words in str(caught.value)
