"""Loading of a recipe's module, with one-line messages for errors in its own code."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import sys
import traceback
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import msgspec

from tiercel_serving.errors import TiercelError
from tiercel_serving.machine_faults import fault_of
from tiercel_serving.problems import Problem, choose

from ..errors import RecipeError
from .names import find_name, names
from .old_names import NOW
from .recipe import Recipe

#: Recipes that come with Tiercel.
BUILT_IN: Mapping[str, str] = {
    "movielens": "tiercel_pipelines.recipes.movielens",
    "movielens_blend": "tiercel_pipelines.recipes.movielens_blend",
    "sequences": "tiercel_pipelines.recipes.sequences",
    "synthetic": "tiercel_pipelines.recipes.synthetic",
}

#: msgspec's messages for a call that does not fit a struct.
_UNEXPECTED = re.compile(r"Unexpected keyword argument '(\w+)'")
_MISSING = re.compile(r"Missing required argument '(\w+)'")
_REPLACED = re.compile(r"`(\w+)` has no field '(\w+)'")


def load_recipe(name_or_path: str | Path) -> Recipe:
    """Load a recipe and check its settings; :func:`.check.check_recipe` checks its graph and columns.

    ``name_or_path`` is a name in :data:`BUILT_IN`, the path of a ``.py`` file, or a module's dotted name.

    Raises
    ------
    RecipeError
        If there is no such recipe, the module cannot be run, it has no ``RECIPE``, or the settings
        have mistakes.
    MachineFault
        If the machine fails while the module runs, such as by a full disk.
    """
    text = str(name_or_path)
    is_file = text.endswith(".py") or "/" in text
    with warnings.catch_warnings():
        # NVTabular warns on import about TensorFlow and others that nothing here uses.
        warnings.simplefilter("ignore")
        module = _load_file(Path(text)) if is_file else _load_module(text)
    recipe = getattr(module, "RECIPE", None)
    if not isinstance(recipe, Recipe):
        problem = "there is no RECIPE" if recipe is None else f"RECIPE is a {type(recipe).__name__}"
        raise _failure(text, "RECIPE", problem, "end the module with RECIPE = Recipe(...)")
    origin = str(Path(text).resolve()) if is_file else BUILT_IN.get(text, text)
    recipe = msgspec.structs.replace(recipe, origin=origin)
    problems = recipe.problems()
    if problems:
        raise RecipeError(recipe.title, problems)
    return recipe


def _load_module(name: str) -> ModuleType:
    module = BUILT_IN.get(name, name)
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and (module == error.name or module.startswith(f"{error.name}.")):
            known = ", ".join(BUILT_IN)
            remedy = f"use one of {known}, the path of a .py file, or the name of a module on the Python path"
            raise _failure(name, "recipe", "there is no such recipe", remedy) from None
        raise _explained(name, error) from error
    except Exception as error:
        raise _explained(name, error) from error


def _load_file(path: Path) -> ModuleType:
    if not path.is_file():
        problem = "is a folder" if path.is_dir() else "does not exist"
        raise _failure(str(path), "file", f"{path.absolute()} {problem}", "give the path of a .py file")
    module_name = f"tiercel_recipe_{path.stem}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise _failure(str(path), "file", "it is no Python module", "give a file that ends in .py")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look up their module in sys.modules while they are defined. The name is removed afterwards,
    # so that the recipe's functions are pickled into the workflow by value, not by a name nobody can import.
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise _explained(str(path), error) from error
    finally:
        sys.modules.pop(module_name, None)
    return module


def _failure(recipe: str, where: str, problem: str, remedy: str) -> RecipeError:
    return RecipeError(recipe, [Problem(where, problem, remedy)])


def _explained(recipe: str, error: BaseException) -> TiercelError:
    """Return a one-line error that says where the recipe's own code failed, or the machine's fault."""
    if isinstance(error, RecipeError):
        return error
    fault = fault_of(error, doing=f"loading {recipe}")
    if fault is not None:
        return fault
    if isinstance(error, SyntaxError):
        where = f"line {error.lineno}"
        code = (error.text or "").strip()
        return _failure(recipe, where, f"not valid Python: {error.msg}: {code}", "correct that line")
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "importlib" not in frame.filename and frame.filename != __file__]
    mine = [frame for frame in own if Path(recipe).name in frame.filename] or own
    where = f"line {mine[-1].lineno}" if mine else "module"
    words = _in_words(error, mine[-1] if mine else None)
    return _failure(recipe, where, words, "correct that line (docs/recipes.md lists every field)")


def _in_words(error: BaseException, frame: traceback.FrameSummary | None) -> str:
    unexpected, missing, replaced = (
        pattern.search(str(error)) for pattern in (_UNEXPECTED, _MISSING, _REPLACED)
    )
    if isinstance(error, TypeError) and unexpected is not None:
        name = unexpected[1]
        maker = _maker(frame, name)
        return f"{maker or 'this'} has no field {name!r}{_hint(maker, name)}"
    if isinstance(error, TypeError) and replaced is not None:
        return f"{replaced[1]} has no field {replaced[2]!r}{_hint(replaced[1], replaced[2])}"
    if isinstance(error, TypeError) and missing is not None:
        return f"{_maker(frame) or 'this'} needs {missing[1]!r}"
    if isinstance(error, TypeError) and "dataclass instance" in str(error):
        return f"{error}; settings are not dataclasses: from tiercel_pipelines.recipe import replace"
    if isinstance(error, TiercelError | ImportError) and not isinstance(error, ModuleNotFoundError):
        return str(error)
    if isinstance(error, NameError) and error.name:
        return f"NameError: {error}{_unnamed(error.name)}"
    return f"{type(error).__name__}: {error}"


def _unnamed(name: str) -> str:
    """Return a hint for an undefined name if a recipe can import that name or a similar one."""
    if name in names():
        return f"; from tiercel_pipelines.recipe import {name}"
    remedy = choose(name, names())
    return f"; {remedy}" if remedy.startswith("did") else ""


def _maker(frame: traceback.FrameSummary | None, argument: str | None = None) -> str | None:
    """Return the class that a frame's line calls, with this keyword argument if one is given."""
    if frame is None or frame.lineno is None:
        return None
    tree = ast.parse(Path(frame.filename).read_text(encoding="utf-8"))
    calls = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.lineno <= frame.lineno <= (node.end_lineno or node.lineno)
        and (argument is None or any(keyword.arg == argument for keyword in node.keywords))
    ]
    # Without an argument, prefer a call that begins on the line.
    best = max(calls, key=lambda node: (node.lineno == frame.lineno, node.lineno), default=None)
    return best.func.id if best is not None and isinstance(best.func, ast.Name) else None


def _hint(maker: str | None, name: str) -> str:
    if maker is None or maker not in names():
        return ""
    fields = {field.name: field for field in msgspec.structs.fields(find_name(maker))}
    task = fields["task"].default if "task" in fields else None
    if name in getattr(task, "__struct_fields__", ()):
        return f": it belongs to the task: task={type(task).__name__}(…)"
    if name in NOW:
        return f": {NOW[name]}"
    remedy = choose(name, fields)
    return f" ({remedy})" if remedy.startswith("did") else f" (it has {', '.join(fields)})"
