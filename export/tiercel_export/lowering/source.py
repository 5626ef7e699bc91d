"""The source code of a function; for a lambda, only its own body, not the rest of its line."""

from __future__ import annotations

import ast
import copy
import inspect
from collections.abc import Iterator
from types import CodeType
from typing import Any


def source_of(function: Any) -> str:
    """Return the source of a function's body, or an empty string if it can't be read."""
    try:
        lines, _ = inspect.findsource(function)
        if function.__name__ != "<lambda>":
            return inspect.getsource(function).partition(":")[2]
        text = "".join(lines)
        return next(_bodies(text, function.__code__), "")
    except (OSError, TypeError, AttributeError, SyntaxError):
        return ""


def _bodies(text: str, code: CodeType) -> Iterator[str]:
    """Yield the source of each lambda on the code's first line that compiles to the same code."""
    lambdas = (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Lambda))
    for node in lambdas:
        if node.lineno == code.co_firstlineno and _same(_compiled(node, code.co_freevars), code):
            yield ast.get_source_segment(text, node.body) or ""


def _compiled(node: ast.Lambda, free: tuple[str, ...]) -> CodeType:
    """Compile a lambda inside another that binds its free variables; its defaults do not affect its code."""
    args = copy.copy(node.args)
    args.defaults = [ast.Constant(None) for _ in args.defaults]
    args.kw_defaults = [default and ast.Constant(None) for default in args.kw_defaults]
    own = ast.copy_location(ast.Lambda(args, node.body), node)
    around = ast.parse(f"lambda {', '.join(free)}: 0", mode="eval")
    assert isinstance(around.body, ast.Lambda)
    around.body.body = own
    return _inside(_inside(compile(ast.fix_missing_locations(around), "", "eval")))


def _inside(code: CodeType) -> CodeType:
    return next(part for part in code.co_consts if isinstance(part, CodeType))


def _same(one: CodeType, other: CodeType) -> bool:
    """Whether two code objects are equivalent, apart from their positions in the source."""
    names = (one.co_names, one.co_varnames, one.co_freevars, len(one.co_consts))
    return (
        one.co_code == other.co_code
        and names == (other.co_names, other.co_varnames, other.co_freevars, len(other.co_consts))
        and all(map(_same_constant, one.co_consts, other.co_consts))
    )


def _same_constant(one: Any, other: Any) -> bool:
    if isinstance(one, CodeType) and isinstance(other, CodeType):
        return _same(one, other)
    if isinstance(one, str) and isinstance(other, str) and "<lambda>" in one and "<lambda>" in other:
        return True  # qualified names of nested lambdas, which depend on where they are
    return type(one) is type(other) and bool(one == other)
