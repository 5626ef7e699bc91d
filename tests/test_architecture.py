"""The laws of the architecture: the direction of imports, what packages may need, the size of their parts.

``tests/weight`` tests environments that have only an extra's packages.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {
    "client": "tiercel_client",
    "serving": "tiercel_serving",
    "export": "tiercel_export",
    "pipelines": "tiercel_pipelines",
}
#: Folder → our other packages that it may import. Nothing imports benchmarks or tests.
MAY_IMPORT = {
    "client": set(),
    "serving": {"tiercel_client"},
    "export": {"tiercel_serving"},
    "pipelines": {"tiercel_client", "tiercel_export", "tiercel_serving"},
    "model_repository": {"tiercel_serving"},
    "benchmarks": {*PACKAGES.values()},
}
OURS = {*PACKAGES.values(), "benchmarks", "tests"}
#: Folder → the extra that installs all imports of its package; the client has no extra.
EXTRAS = {"client": None, "serving": "commands", "export": "export", "pipelines": "pipelines"}
#: Module → the distribution that provides it, directly or as a dependency, if the name differs.
DISTRIBUTIONS = {
    "faiss": "faiss-cpu",
    "google": "protobuf",
    "grpc": "tritonclient",
    "dask": "nvtabular",
    "merlin": "nvtabular",
    "pandas": "nvtabular",
}
#: Imports of single kinds on use, which come with their own extra, or not from pip at all.
OPTIONAL = {"serving": {"cuda", "redis", "tensorrt", "torch"}, "export": {"modelopt"}}
#: Modules that Triton itself provides to a Python model.
TRITONS = {"triton_python_backend_utils"}
#: Modules that importing a stage, a command of a serving host or the client must not load.
HEAVY = {"torch", "pandas", "nvtabular", "merlin", "dask", "pyarrow", "numba", "onnx"}

LONG_MODULE, LONG_FUNCTION, LOOSE_AT_MOST = 400, 60, 12


@dataclass(frozen=True)
class Module:
    """One file of a package."""

    name: str
    path: Path
    tree: ast.Module
    lines: int

    @property
    def is_package(self) -> bool:
        return self.path.name == "__init__.py"

    @cached_property
    def imports(self) -> tuple[tuple[str, str], ...]:
        """Modules imported anywhere in the file, each without and with the imported name appended."""
        return tuple(self._imports())

    def _imports(self) -> Iterator[tuple[str, str]]:
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from ((alias.name, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                above = self.name.split(".")
                above = above[: len(above) - node.level + self.is_package] if node.level else []
                stem = ".".join([*above, *([node.module] if node.module else [])])
                yield from ((stem, f"{stem}.{alias.name}") for alias in node.names)


@cache
def modules_of(folder: str) -> tuple[Module, ...]:
    found = []
    for path in sorted((ROOT / folder).rglob("*.py")):
        inside = path.relative_to(ROOT / folder if folder in PACKAGES else ROOT)
        text = path.read_text(encoding="utf-8")
        name = ".".join(inside.with_suffix("").parts).removesuffix(".__init__")
        found.append(Module(name, path, ast.parse(text), len(text.splitlines())))
    assert found, folder
    return tuple(found)


def every_module() -> list[Module]:
    return [module for folder in PACKAGES for module in modules_of(folder)]


def imported_by(folder: str) -> dict[str, set[str]]:
    """Return top-level name → the files that import it."""
    found: dict[str, set[str]] = {}
    for module in modules_of(folder):
        for stem, _ in module.imports:
            found.setdefault(stem.split(".")[0], set()).add(str(module.path.relative_to(ROOT)))
    return found


# ------------------------------------------------------------------------------------- direction, weight


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_imports_run_one_way(folder: str) -> None:
    allowed = MAY_IMPORT[folder] | {PACKAGES.get(folder, folder)}
    wrong = {name: files for name, files in imported_by(folder).items() if name in OURS - allowed}
    assert not wrong


def declared(extra: str | None) -> set[str]:
    """Return the distributions that an install with an extra requires."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    lists = dict(re.findall(r"^([\w-]+) = \[(.*?)\]$", text, re.MULTILINE | re.DOTALL))
    found = set()
    for quoted in re.findall(r'"([^"]+)"', lists["dependencies"] + (lists[extra] if extra else "")):
        requirement = Requirement(quoted)
        found.add(requirement.name)
        if requirement.name == "tiercel":
            found |= {name for inner in requirement.extras for name in declared(inner)}
    return found


def test_extras_are_read_as_pip_reads_them() -> None:
    assert declared(None) == {"hpack", "numpy", "tritonclient", "protobuf"}
    assert declared("commands") >= {"faiss-cpu", "onnxruntime", "msgspec", "typer", "rich", "numpy"}
    assert declared("server") - declared("commands") == {"nvidia-pytriton"}
    assert declared("pipelines") >= {"nvidia-pytriton", "nvtabular", "torch", "safetensors"}
    assert "pytest" in declared("dev") - declared("pipelines")
    for light in ("serving", "commands", "server"):
        assert not declared(light) & {DISTRIBUTIONS.get(name, name) for name in HEAVY}, light


@pytest.mark.parametrize("folder", EXTRAS)
def test_a_package_imports_only_what_its_extra_installs(folder: str) -> None:
    imported = imported_by(folder)
    foreign = set(imported) - set(sys.stdlib_module_names) - OURS - TRITONS - OPTIONAL.get(folder, set())
    installed = declared(EXTRAS[folder])
    wrong = {name: imported[name] for name in foreign if DISTRIBUTIONS.get(name, name) not in installed}
    assert not wrong


def loaded_by(*names: str) -> set[str]:
    """Return the top-level modules loaded after an import of these in a fresh process."""
    code = f"import sys, {', '.join(names)}; print(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_the_client_loads_nothing_else_of_ours() -> None:
    assert not loaded_by("tiercel_client") & (HEAVY | OURS - {"tiercel_client"} | {"typer", "faiss"})


def test_importing_all_of_serving_loads_nothing_heavy() -> None:
    """No module of a serving host, the model stub and every command included, imports anything heavy."""
    modules = [module for module in modules_of("serving") if not uses_tritons_own(module)]
    # Modules that compute on torch tensors are named in tables, and imported only if a release says so.
    names = [module.name for module in modules if not module.name.endswith("_torch")]
    assert "tiercel_serving.commands.serve" in names
    assert not loaded_by(*names) & (HEAVY | OURS - {"tiercel_client", "tiercel_serving"})


def uses_tritons_own(module: Module) -> bool:
    return any(stem in TRITONS for stem, _ in module.imports)


def test_nothing_is_pickled_on_the_serving_path() -> None:
    for folder in ("client", "serving"):
        assert not {"pickle", "cloudpickle", "dill", "joblib"} & set(imported_by(folder))


# ------------------------------------------------------------------------------------------------- shape


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Return strongly connected components of more than one module (Tarjan, 1972), without recursion."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    path: list[str] = []
    found: list[list[str]] = []
    for start in graph:
        work = [] if start in index else [(start, iter(sorted(graph[start])))]
        while work:
            name, rest = work[-1]
            if name not in index:
                index[name] = low[name] = len(index)
                path.append(name)
            for other in rest:
                if other not in index:
                    work.append((other, iter(sorted(graph[other]))))
                    break
                if other in path:
                    low[name] = min(low[name], low[other])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[name])
                if low[name] == index[name]:
                    part = path[path.index(name) :]
                    del path[path.index(name) :]
                    found += [sorted(part)] if len(part) > 1 else []
    return found


def test_circles_are_found() -> None:
    graph = {"a": {"b"}, "b": {"c", "d"}, "c": {"b"}, "d": {"e"}, "e": set(), "f": {"a", "g"}, "g": {"f"}}
    assert circles(graph) == [["b", "c"], ["f", "g"]]


def test_no_circle_of_imports() -> None:
    modules = {module.name: module for module in every_module()}
    graph = {
        # `from package import module` is an import of the module, not of the package.
        name: {full if full in modules else stem for stem, full in module.imports} & set(modules) - {name}
        for name, module in modules.items()
    }
    assert circles(graph) == []


def test_no_module_is_long() -> None:
    long = {
        str(module.path.relative_to(ROOT)): module.lines
        for module in every_module()
        if module.lines > LONG_MODULE
    }
    assert long == {}


def own_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return a function's number of lines, without its signature and docstring."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return (function.end_lineno or 0) - body[0].lineno + 1 if body else 0


def test_no_function_is_long() -> None:
    long = {
        f"{module.path.relative_to(ROOT)}:{node.name}": own_lines(node)
        for module in every_module()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and own_lines(node) > LONG_FUNCTION
    }
    assert not long


@pytest.mark.parametrize("folder", PACKAGES)
def test_a_package_is_no_heap_of_modules(folder: str) -> None:
    loose = sorted(path.name for path in (ROOT / folder / PACKAGES[folder]).glob("*.py"))
    assert len(loose) <= LOOSE_AT_MOST, loose


def test_no_two_modules_of_the_tests_are_mistaken_for_each_other() -> None:
    """Folders of tests go to ``sys.path`` as pytest meets them, so a name must be one module in any order."""
    files = [file for file in (ROOT / "tests").rglob("*.py") if file.name != "conftest.py"]
    counts = Counter(file.stem for file in files)
    assert [name for name, count in counts.items() if count > 1] == []
    trees = {file: ast.parse(file.read_text(encoding="utf-8")) for file in files}
    imported = {
        (file.name, name)
        for file, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom | ast.Import)
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names])
    }
    assert [one for one in imported if str(one[1]).rpartition(".")[2] == "conftest"] == []
