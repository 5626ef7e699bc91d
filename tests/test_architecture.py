"""Imports run one way: pipelines → export → serving; client and serving import nothing of ours."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OURS = {"tiercel_client", "tiercel_export", "tiercel_pipelines", "tiercel_serving"}
MAY_IMPORT = {
    "client/tiercel_client": set(),
    "serving/tiercel_serving": set(),
    "export/tiercel_export": {"tiercel_serving"},
    "pipelines/tiercel_pipelines": {"tiercel_client", "tiercel_export", "tiercel_serving"},
    "model_repository": {"tiercel_serving"},
}
#: Third-party packages that may be imported at all, anywhere in the package.
THIRD_PARTY = {
    "client/tiercel_client": {"grpc", "numpy", "tritonclient", "google"},
    "serving/tiercel_serving": {"numpy", "faiss", "onnxruntime", "triton_python_backend_utils"},
}
#: What must not be imported just because a stage or a client was.
HEAVY = {"pandas", "nvtabular", "merlin", "dask", "torch", "pyarrow", "numba", "onnx"}


def _imported(package: Path) -> dict[str, set[str]]:
    """Top-level name → the files that import it."""
    found: dict[str, set[str]] = {}
    for file in sorted(package.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names = [node.module]
            for name in names:
                found.setdefault(name.split(".")[0], set()).add(str(file.relative_to(ROOT)))
    return found


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_run_one_way(package: str) -> None:
    own = package.rsplit("/", 1)[-1]
    wrong = {
        name: files
        for name, files in _imported(ROOT / package).items()
        if name in OURS and name != own and name not in MAY_IMPORT[package]
    }
    assert not wrong


@pytest.mark.parametrize("package", THIRD_PARTY)
def test_thin_packages_import_only_what_they_say(package: str) -> None:
    imported = _imported(ROOT / package)
    foreign = set(imported) - set(sys.stdlib_module_names) - OURS
    assert foreign <= THIRD_PARTY[package], {name: imported[name] for name in foreign - THIRD_PARTY[package]}


@pytest.mark.parametrize(
    "module",
    ["tiercel_client", "tiercel_serving.runtime.chain", "tiercel_serving.features", "tiercel_serving.stages"],
)
def test_importing_it_loads_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print(*[name for name in {sorted(HEAVY)!r} if name in sys.modules])"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert loaded == []


def test_nothing_is_pickled_on_the_serving_path() -> None:
    for package in ("client/tiercel_client", "serving/tiercel_serving"):
        imported = _imported(ROOT / package)
        assert not {"pickle", "cloudpickle", "dill", "joblib"} & set(imported)
