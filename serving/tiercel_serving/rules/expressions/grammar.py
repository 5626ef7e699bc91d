"""Text → tree: Python's own parser, and a whitelist of the syntax that a rule may use. Nothing is evaluated.

::

    condition  = comparison | condition "and" condition | condition "or" condition | "not" condition
               | flag | "any(" list "," list ")"
    comparison = value ("==" | "!=" | "<" | "<=" | ">" | ">=") value …
               | value ["not"] "in" list | column "is" ["not"] "None"
    value      = number | text | "True" | "False" | column | "now" | value ("+" | "-" | "*" | "/") value
               | "-" value | "len(" column ")" | "days(" number ")" | "hours(" number ")"
    list       = column | "(" constant "," … ")" | "[" constant "," … "]"
    column     = ("item" | "user" | "request") ( "." name | "[" text "]" )
"""

from __future__ import annotations

import ast
import re
from keyword import iskeyword
from math import isfinite

from ...problems import Problem
from .tree import (
    Arithmetic,
    Both,
    Common,
    Compare,
    Constant,
    Either,
    Field,
    Flag,
    IsNull,
    Length,
    Node,
    Now,
    Value,
    Values,
    Within,
    opposite,
)

#: Largest length of an expression, in characters, and largest nesting depth.
MOST_CHARACTERS, MOST_DEPTH = 4_000, 40

OWNERS = ("item", "user", "request")
UNITS_S = {"days": 86_400.0, "hours": 3_600.0}

#: The smallest int64, and the AST of its opposite, which is not an int64.
_LEAST, _BEYOND = -(2**63), ast.dump(ast.Constant(2**63))

_DOTTED = re.compile(r"\b(item|user|request)\s*\.\s*(\w+)")

_COMPARE = {ast.Eq: "==", ast.NotEq: "!=", ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">="}
_ARITHMETIC = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}

_CAN = (
    "a rule may compare (==, <, in, is None, …), combine (and, or, not), calculate (+ - * /), and call "
    "any(), len(), days() and hours()"
)


class Unparsed(Exception):
    """An expression that is not valid: what is wrong with it, and what to do."""

    def __init__(self, problem: str, remedy: str = _CAN) -> None:
        self.problem, self.remedy = problem, remedy
        super().__init__(problem)


def parse(text: str) -> Node | Problem:
    """Return the tree of an expression, or what is wrong with it."""
    try:
        # Lines are joined into one without moving any character.
        line = text.strip().replace("\r", " ").replace("\n", " ")
        tree = _parsed(line)
        _check_lines(tree, text.strip())
        return _condition(tree, line)
    except Unparsed as error:
        return Problem("expression", error.problem, error.remedy)


def _parsed(text: str) -> ast.expr:
    if not text:
        raise Unparsed("it is empty", "write a condition such as item.stock > 0")
    if len(text) > MOST_CHARACTERS:
        problem = f"expected at most {MOST_CHARACTERS} characters, got {len(text)}"
        raise Unparsed(problem, "make several rules of it: all of them must hold")
    too_deep = Unparsed(
        f"it nests deeper than {MOST_DEPTH} levels", "make several rules of it, or flatten it"
    )
    try:
        tree = ast.parse(text, mode="eval").body
    except SyntaxError as error:
        if "too many nested" in str(error):
            raise too_deep from None
        raise Unparsed(f"it is not an expression ({error.msg})", _keyword(text) or _CAN) from None
    except (RecursionError, MemoryError):
        raise too_deep from None
    except ValueError as error:  # a NUL, an integer of thousands of digits, a lone surrogate
        raise Unparsed(f"it is not an expression ({error})", _CAN) from None
    if _depth(tree) > MOST_DEPTH:
        raise too_deep
    return tree


def _keyword(text: str) -> str:
    """Return a remedy for a column whose name is a Python keyword, or an empty string."""
    found = (match for match in _DOTTED.finditer(text) if iskeyword(match[2]))
    return next((f"write {match[1]}[{match[2]!r}] for the column {match[2]!r}" for match in found), "")


def _check_lines(tree: ast.expr, text: str) -> None:
    """Reject what changes its meaning when lines are joined: comments, and line breaks within a text."""
    data = text.encode()
    if b"#" in data[tree.end_col_offset :]:
        raise Unparsed("it has a comment", "leave that out: the rule's name says what it is for")
    texts = (
        node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )
    if any({*b"\r\n"} & {*data[node.col_offset : node.end_col_offset]} for node in texts):
        raise Unparsed("a text goes on in the next line", "write \\n where a line ends within a text")


def _depth(tree: ast.AST) -> int:
    level, depth = [tree], 0
    while level:
        level = [child for node in level for child in ast.iter_child_nodes(node)]
        depth += 1
    return depth


def _said(node: ast.AST, text: str) -> str:
    found = ast.get_source_segment(text, node) or type(node).__name__
    return repr(found if len(found) <= 60 else found[:57] + "…")


def _condition(node: ast.expr, text: str) -> Node:
    if isinstance(node, ast.BoolOp):
        parts = tuple(_condition(one, text) for one in node.values)
        return _joined(parts) if isinstance(node.op, ast.And) else Either(parts)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return opposite(_condition(node.operand, text))
    if isinstance(node, ast.Compare):
        lefts = [node.left, *node.comparators[:-1]]
        pairs = zip(lefts, node.ops, node.comparators, strict=True)
        return _joined(tuple(_comparison(*pair, text) for pair in pairs))
    if isinstance(node, ast.Call) and _called(node) == "any":
        left, right = _arguments(node, 2, text)
        return Common(_list(left, text), _list(right, text), negated=False)
    if isinstance(node, ast.Attribute | ast.Subscript):
        return Flag(_field(node, text), negated=False)
    raise Unparsed(f"expected a condition, got {_said(node, text)}")


def _joined(parts: tuple[Node, ...]) -> Node:
    """Return the conjunction of the conditions, with nested conjunctions flattened."""
    flat = [one for part in parts for one in (part.all if isinstance(part, Both) else (part,))]
    return flat[0] if len(flat) == 1 else Both(tuple(flat))


def _comparison(left: ast.expr, operator: ast.cmpop, right: ast.expr, text: str) -> Node:
    if isinstance(operator, ast.In | ast.NotIn):
        value = _value(left, text)
        if not isinstance(value, Field | Value):
            raise Unparsed(f"expected a column or a constant before 'in', got {_said(left, text)}")
        return Within(value, _list(right, text), negated=isinstance(operator, ast.NotIn))
    if isinstance(operator, ast.Is | ast.IsNot):
        if not (isinstance(right, ast.Constant) and right.value is None):
            raise Unparsed(f"'is' with {_said(right, text)}", "write == for values; is asks for None alone")
        return IsNull(_field(left, text), negated=isinstance(operator, ast.IsNot))
    return Compare(_COMPARE[type(operator)], _value(left, text), _value(right, text))


def _value(node: ast.expr, text: str) -> Node:
    if isinstance(node, ast.Constant):
        return Value(_constant(node, text))
    if isinstance(node, ast.Name) and node.id == "now":
        return Now()
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        if ast.dump(node.operand) == _BEYOND:
            return Value(_LEAST)
        return _negative(_value(node.operand, text))
    if isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
        left, right = _value(node.left, text), _value(node.right, text)
        operator = _ARITHMETIC[type(node.op)]
        if operator == "/" and _known(right) == 0:
            raise Unparsed(f"{_said(node, text)} divides by zero", "divide by another number")
        return Arithmetic(operator, left, right)
    if isinstance(node, ast.Call):
        return _call(node, text)
    return _field(node, text)


def _known(value: Node) -> float | None:
    """Return the number that a constant value evaluates to; None if it is not a constant number."""
    if isinstance(value, Value) and not isinstance(value.value, bool | str):
        return float(value.value)
    if not isinstance(value, Arithmetic):
        return None
    left, right = _known(value.left), _known(value.right)
    if left is None or right is None:
        return None
    by_sign = {"+": left + right, "-": left - right, "*": left * right}
    return by_sign[value.operator] if value.operator in by_sign else left / right


def _negative(value: Node) -> Node:
    if isinstance(value, Value) and not isinstance(value.value, bool | str) and value.value != _LEAST:
        return Value(-value.value)
    return Arithmetic("-", Value(0), value)


def _called(node: ast.Call) -> str:
    return node.func.id if isinstance(node.func, ast.Name) else ""


def _call(node: ast.Call, text: str) -> Node:
    name = _called(node)
    if name == "len":
        [of] = _arguments(node, 1, text)
        return Length(_field(of, text))
    if name in UNITS_S:
        [count] = _arguments(node, 1, text)
        value = _value(count, text)
        if not isinstance(value, Value) or isinstance(value.value, bool | str):
            raise Unparsed(f"{name}() of {_said(count, text)}", f"give {name}() a number")
        if not isfinite(seconds := value.value * UNITS_S[name]):
            raise Unparsed(f"{_said(node, text)} is not a value", f"give {name}() a smaller number")
        return Value(seconds)
    raise Unparsed(f"{_said(node, text)} calls something else than any(), len(), days() and hours()")


def _arguments(node: ast.Call, count: int, text: str) -> list[ast.expr]:
    odd = any(isinstance(one, ast.Starred) for one in node.args)
    if node.keywords or odd or len(node.args) != count:
        problem = f"{_called(node)}() takes {count} argument{'s' * (count > 1)}, got {_said(node, text)}"
        raise Unparsed(problem, "give it a column, or two lists for any()")
    return node.args


def _list(node: ast.expr, text: str) -> Node:
    if not isinstance(node, ast.Tuple | ast.List | ast.Set):
        return _field(node, text)
    values = [_value(one, text) for one in node.elts]
    if any(not isinstance(one, Value) for one in values):
        raise Unparsed(f"expected constants in {_said(node, text)}", "list numbers or text alone")
    return Values(tuple(one.value for one in values if isinstance(one, Value)))


def _constant(node: ast.Constant, text: str) -> Constant:
    value = node.value
    if isinstance(value, bool | str) or (isinstance(value, int) and -(2**63) <= value < 2**63):
        return value
    if isinstance(value, float) and isfinite(value):
        return value
    raise Unparsed(
        f"{_said(node, text)} is not a value", "write finite numbers that 64 bits hold, text, True, False"
    )


def _field(node: ast.expr, text: str) -> Field:
    owner = node.value if isinstance(node, ast.Attribute | ast.Subscript) else None
    if isinstance(owner, ast.Name) and owner.id in OWNERS:
        if isinstance(node, ast.Attribute):
            own = (ast.get_source_segment(text, node) or "").rpartition(".")[2].strip()
            if own != node.attr:  # Python normalises names to Unicode's NFKC form
                problem = f"{_said(node, text)} would be read as the column {node.attr!r}"
                raise Unparsed(problem, f"write {owner.id}[{own!r}] or {owner.id}.{node.attr}")
            return Field(owner.id, node.attr)  # type: ignore[arg-type]
        assert isinstance(node, ast.Subscript)
        if isinstance(node.slice, ast.Constant) and isinstance(node.slice.value, str):
            return Field(owner.id, node.slice.value)  # type: ignore[arg-type]
    raise Unparsed(
        f"expected a column, got {_said(node, text)}",
        "write item.<column>, user.<column>, request.<column>, or item['<column>'] for other names",
    )
