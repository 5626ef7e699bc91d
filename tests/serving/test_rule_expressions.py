"""Rules by expression: masks against the plain reference and pandas, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tiny_release import column, list_column

from drawing import examples
from tiercel_serving.columns import Column, take_rows
from tiercel_serving.problems import Problem
from tiercel_serving.rules.expression import Expression
from tiercel_serving.rules.expressions.given import Given
from tiercel_serving.rules.expressions.grammar import MOST_CHARACTERS, parse
from tiercel_serving.rules.expressions.masks import Masks, conjuncts
from tiercel_serving.rules.expressions.types import Schema, Type, type_of
from tiercel_serving.verify.reference import plain_items

#: Column → dtype, whether it is a list, values. Items, users and requests have all of them.
COLUMNS: dict[str, tuple[Any, bool, st.SearchStrategy[Any]]] = {
    "whole": (np.int64, False, st.integers(-2, 3)),
    "real": (np.float64, False, st.sampled_from([-1.5, 0.0, 2.0, 3.0])),
    "flag": (np.bool_, False, st.booleans()),
    "text": (np.object_, False, st.sampled_from([b"", b"a", b"b", "ü".encode()])),
    "texts": (np.object_, True, st.sampled_from([b"", b"a", "ü".encode(), b"zz"])),
    "wholes": (np.int64, True, st.integers(-2, 3)),
}
OWNERS = ("item", "user", "request")


@st.composite
def conditions(draw: st.DrawFn, depth: int = 2) -> str:
    kind = draw(st.sampled_from(["leaf"] if depth == 0 else ["leaf", "and", "or", "not"]))
    if kind in ("and", "or"):
        parts = draw(st.lists(conditions(depth - 1), min_size=2, max_size=3))
        return f" {kind} ".join(f"({part})" for part in parts)
    if kind == "not":
        return f"not ({draw(conditions(depth - 1))})"
    return draw(leaves())


@st.composite
def leaves(draw: st.DrawFn) -> str:
    def of(*names: str) -> str:
        return f"{draw(st.sampled_from(OWNERS))}.{draw(st.sampled_from(names))}"

    def number(depth: int = 1) -> str:
        if depth and draw(st.booleans()):
            sign = draw(st.sampled_from("+-*/"))
            divisors = ["2", f"({of('real')})"] if sign == "/" else [number(0)]
            return f"({number(0)} {sign} {draw(st.sampled_from(divisors))})"
        constants = ["0", "1", "-1.5", "now", f"len({of('texts', 'wholes')})"]
        return draw(st.sampled_from([of("whole", "real"), of("whole", "real"), *constants]))

    sign = draw(st.sampled_from(["==", "!=", "<", "<=", ">", ">="]))
    within = draw(st.sampled_from(["in", "not in"]))
    texts, some = draw(st.sampled_from([of("texts"), "('a', 'ü')", "()"])), "['a', 'q']"
    forms = [
        f"{number()} {sign} {number()}",
        f"{of('text')} {sign} {draw(st.sampled_from([of('text'), repr('a'), repr('é')]))}",
        f"{of('text')} {within} {texts}",
        f"{of('whole')} {within} {draw(st.sampled_from([of('wholes'), '(1, -2)']))}",
        f"any({of('texts')}, {draw(st.sampled_from([of('texts'), some]))})",
        f"any({of('wholes')}, {of('wholes')})",
        f"{of(*COLUMNS)} is {draw(st.sampled_from(['', 'not ']))}None",
        of("flag"),
    ]
    return draw(st.sampled_from(forms))


def drawn_columns(draw: st.DrawFn, rows: int) -> dict[str, Column]:
    made = {}
    for name, (dtype, is_list, values) in COLUMNS.items():
        value = st.lists(values, max_size=3) if is_list else values
        drawn = draw(st.lists(st.none() | value, min_size=rows, max_size=rows))
        made[name] = (list_column if is_list else column)(drawn, dtype)
    return made


@st.composite
def worlds(draw: st.DrawFn) -> tuple[dict[str, Column], Given]:
    """Draw items, users and requests with nulls everywhere; a null in a request was not sent."""
    users = draw(st.integers(1, 3))
    items, known, sent = (drawn_columns(draw, n) for n in (draw(st.integers(1, 6)), users, users))
    plain = plain_items(sent)
    told = {name: np.array([plain(row)[name] is not None for row in range(users)]) for name in sent}
    now = np.array([float(draw(st.integers(-1, 3))) for _ in range(users)])
    return items, Given(known, sent, told, now)


def compiled(tree: Any, items: Mapping[str, Column]) -> Masks:
    return Masks(conjuncts(tree), items, len(items["whole"]))


@examples(10)
@given(text=conditions(), world=worlds(), seed=st.integers(0, 9))
def test_masks_are_what_the_plain_reference_says(
    text: str, world: tuple[dict[str, Column], Given], seed: int
) -> None:
    items, told = world
    tree = parse(text)
    assert not isinstance(tree, Problem), (text, tree)
    types = {name: type_of(one) for name, one in items.items()}
    assert Schema(types, types, types).problems(tree) == [], text
    count, users = len(items["whole"]), len(told.now)
    masks = compiled(tree, items)
    passed = np.broadcast_to(masks.allows(told), (users, count))
    item_of, user_of, sent_of = plain_items(items), plain_items(told.users), plain_items(told.requests)
    rule = Expression("r", text)
    for user, now in enumerate(told.now.tolist()):
        sent = {name: value for name, value in sent_of(user).items() if value is not None}
        want = [rule.reference_of(item_of(row), user_of(user), sent, now) for row in range(count)]
        assert passed[user].tolist() == want, text
    rows = np.random.default_rng(seed).integers(0, count, (users, 4))
    some = np.broadcast_to(masks.allows(told, rows), rows.shape)
    assert some.tolist() == np.take_along_axis(passed, rows, axis=1).tolist(), text
    # A row alone gets the same result as in a batch.
    only = Given(
        *({name: take_rows(one, np.array([0])) for name, one in part.items()} for part in told[:2]),
        {name: one[:1] for name, one in told.sent.items()},
        told.now[:1],
    )
    assert np.broadcast_to(masks.allows(only), (1, count))[0].tolist() == passed[0].tolist()


# ----------------------------------------------------------------------------------------------- pandas


@st.composite
def pandas_conditions(draw: st.DrawFn, depth: int = 2) -> str:
    """Draw expressions that pandas evaluates too: with nulls it supports numeric comparisons and logic."""
    kind = draw(st.sampled_from(["leaf"] if depth == 0 else ["leaf", "and", "or", "not"]))
    if kind in ("and", "or"):
        return f"({draw(pandas_conditions(depth - 1))}) {kind} ({draw(pandas_conditions(depth - 1))})"
    if kind == "not":
        return f"not ({draw(pandas_conditions(depth - 1))})"
    sign = draw(st.sampled_from(["==", "!=", "<", "<=", ">", ">="]))
    names = ["item.whole", "item.real", "user.whole", "request.whole"]
    one, other = draw(st.sampled_from(names)), draw(st.sampled_from([*names, "1", "-1.5"]))
    calculated = draw(st.sampled_from(["item.full * 2 - 1", "(item.full + user.full) / 2", "-item.full"]))
    word = draw(st.sampled_from(["'a'", "'b'", "user.word"]))
    return draw(
        st.sampled_from(
            [
                f"{one} {sign} {other}",
                f"{calculated} {sign} {draw(st.sampled_from(['0', 'item.full', 'request.full']))}",
                f"item.word {sign} {word}",
                f"item.word {draw(st.sampled_from(['in', 'not in']))} ('a', 'c')",
                f"-1 < {one} <= 2",
            ]
        )
    )


@examples(4)
@given(text=pandas_conditions(), seed=st.integers(0, 10**6))
@example(text="not (item.whole > 1) or item.real == 2", seed=1)
def test_masks_are_what_pandas_says(text: str, seed: int) -> None:
    pd = pytest.importorskip("pandas")
    random = np.random.default_rng(seed)
    items, frame = {}, {}

    def some(low: int, high: int, rows: int, nulls: bool = True) -> list[Any]:
        values = random.integers(low, high, rows).tolist()
        return [None if nulls and random.random() < 0.3 else value for value in values]

    rows = 8
    whole, real, full = some(-2, 3, rows), some(-2, 3, rows), some(-2, 3, rows, nulls=False)
    words = random.choice(["a", "b", "c"], rows).tolist()
    items = {
        "whole": column(whole, np.int64),
        "real": column(real, np.float64),
        "full": column(full, np.int64),
        "word": column([word.encode() for word in words], np.object_),
    }
    frame = {"item_whole": pd.array(whole, "Int64"), "item_real": pd.array(real, "Float64")}
    frame |= {"item_full": np.array(full), "item_word": np.array(words, object)}
    users, requests = {}, {}
    for owner, columns in (("user", users), ("request", requests)):
        # pandas has no notion of a column that a request leaves out, so requests have no nulls here.
        [value] = some(-2, 3, 1, nulls=owner == "user")
        columns["whole"] = column([value], np.int64)
        frame[f"{owner}_whole"] = pd.array([value] * rows, "Int64")
        [value] = some(-2, 3, 1, nulls=False)
        columns["full"], frame[f"{owner}_full"] = column([value], np.int64), np.full(rows, value)
    users["word"] = column([b"b"], np.object_)
    frame["user_word"] = np.full(rows, "b", object)
    want = pd.DataFrame(frame).eval(
        text.replace("item.", "item_").replace("user.", "user_").replace("request.", "request_"),
        engine="python",
    )
    want = pd.array(np.broadcast_to(want, rows) if np.ndim(want) == 0 else want, "boolean")
    sent = {name: np.ones(1, np.bool_) for name in requests}
    masks = Masks(conjuncts(parse(text)), items, rows)
    got = np.broadcast_to(masks.allows(Given(users, requests, sent, np.zeros(1))), (1, rows))[0]
    assert got.tolist() == want.fillna(False).tolist(), text


# ------------------------------------------------------------------------------------------------ refused


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "it is empty"),
        ("item.a > 1 and " * 1000, f"at most {MOST_CHARACTERS} characters, got 14999"),
        ("x" * 10_000, "got 10000"),
        ("(" * 500 + "1" + ")" * 500, "nests deeper than 40 levels"),
        ("not " * 900 + "item.a", "nests deeper than 40 levels"),
        ("-" * 3000 + "1 < item.a", "nests deeper than 40 levels"),
        ("item.a.b > 1", "expected a column, got 'item.a.b'"),
        ("item.a.__class__ > 1", "expected a column, got 'item.a.__class__'"),
        ("().__class__.__bases__[0].__subclasses__()", "expected a condition"),
        ("__import__('os').system('x')", "expected a condition"),
        ("eval('1') > item.a", "calls something else than any"),
        ("item.a() > 1", "calls something else"),
        ("open('x') in item.a", "calls something else"),
        ("item.a / 0 > 1", "'item.a / 0' divides by zero"),
        ("item.a > 1 if item.b else 2", "expected a condition"),
        ("[x for x in item.a]", "expected a condition"),
        ("lambda: 1", "expected a condition"),
        ("item.a > 'x", "not an expression (unterminated string"),
        ("1) or (item.a", "not an expression"),
        ("item.a := 3", "not an expression"),
        ("item.a > 1e999", "'1e999' is not a value"),
        ("item.a > 99999999999999999999", "is not a value"),
        ("item.a > " + "9" * 3000, "no"),
        ("item.a ** 9 > 1", "expected a column, got 'item.a ** 9'"),
        ("item.a is 3", "'is' with '3'"),
        ("item.a > None", "'None' is not a value"),
        ("any(item.a)", "any() takes 2 arguments"),
        ("any(*item.a)", "any() takes 2 arguments"),
        ("days(item.a) > 1", "days() of 'item.a'"),
        ("f'{item.a}' == 'x'", "expected a column"),
        ("item[0] > 1", "expected a column, got 'item[0]'"),
        ("globals.a > 1", "expected a column"),
        ("item.a + 1 in (1, 2)", "expected a column or a constant before 'in'"),
        ("item.a in (item.b, 2)", "expected constants"),
        ("item.a in (1, 'x')", "holds numbers and text"),
        ("user.age > 3", "reads no column of the item"),
        ("item.a > \x00", "not an expression"),
        ("item.a > '\ud800'", "not an expression"),
        ("item.a / (2 - 1 * 2) > 1", "'item.a / (2 - 1 * 2)' divides by zero"),
        ("1 / (0 / 3) < item.a", "divides by zero"),
        ("item.a > days(1e308)", "'days(1e308)' is not a value"),
        ("item.a > -9223372036854775809", "is not a value"),
        ("item.a > 1  # always\nand item.b > 2", "it has a comment"),
        ("(item.a > 1)  # always", "it has a comment"),
        ("item.a == 'x\ny'", "a text goes on in the next line"),
        ("item.b > 1 and\nitem.a == 'x\r\ny'", "a text goes on in the next line"),
        ("item.ﬁ > 1", "'item.ﬁ' would be read as the column 'fi'"),
    ],
)
def test_what_is_no_rule(text: str, said: str) -> None:
    [problem] = Expression("r", text).problems()
    assert problem.field == "expression"
    assert said in problem.problem
    assert problem.remedy


def test_columns_whose_names_are_words_of_python_are_written_in_brackets() -> None:
    [problem] = Expression("r", "item.a > 1 and user.class == 3").problems()
    assert problem.remedy == "write user['class'] for the column 'class'"
    assert Expression("r", "item.a > 1 and user['class'] == 3").problems() == []


def test_lines_and_the_least_integer_are_read_as_they_are_written() -> None:
    number = Expression(
        "r", "item.a >= -9223372036854775808 and\r\n (item['ﬁ'] == 'é\\n' or item['ﬁ'] == '#')"
    )
    assert number.problems() == []
    columns = {
        "a": Column(np.array([-(2**63), 0])),
        "ﬁ": Column(np.array(["é\n".encode(), b"x"], np.object_)),
    }
    assert number.passes(columns).tolist() == [True, False]


ITEMS = {
    **{"stock": Type("int64"), "year": Type("int64"), "price": Type("float64"), "kind": Type("bytes")},
    **{"genres": Type("bytes", True), "adult": Type("bool")},
}
USERS = {"user_id": Type("int64"), "age": Type("int64"), "likes": Type("bytes", True)}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("item.kind > 3", "item.kind holds text, and 3 numbers"),
        ("item.genres == 'x'", "== needs one value where item.genres holds lists of text"),
        ("any(item.kind, ('a',))", "any needs a list where item.kind holds text"),
        ("not item.kind", "item.kind holds text, and can't be a condition"),
        ("item.kind + 1 > 2", "item.kind holds text, and can't be calculated with"),
        ("item.adult < True", "< between booleans"),
        (
            "item.price in (1, 2) and item.price in ('x',)",
            "item.price holds numbers, and ('x',) lists of text",
        ),
        ("item.age > 3", "item.age: the items have no column 'age'"),
        ("item.year > user.zip", "user.zip: the users have no column 'zip'"),
        ("item.year > request.age", "'age' is a column of the users"),
        ("item.adult and request.x == request.y", "nothing says what request.x holds"),
        ("item.adult and request.x is None", "nothing says what request.x holds"),
        ("item.year > request.x and item.kind == request.x", "item.kind holds text, and request.x numbers"),
        ("len(item.kind) > 1", "len() of item.kind, which holds text"),
    ],
)
def test_what_does_not_fit_the_columns(text: str, said: str) -> None:
    problems = Expression("r", text).unfit(Schema(ITEMS, USERS))
    assert said in str(problems[0])


def test_types_of_what_requests_bring_are_inferred() -> None:
    text = (
        "item.stock > 0 and item.year >= request.min_year and any(item.genres, request.genres) "
        "and item.price * request.rate < 9 and item.kind in request.kinds and request.grown_up"
    )
    schema = Schema(ITEMS, USERS)
    rule = Expression("r", text)
    assert rule.problems() == rule.unfit(schema) == []
    assert schema.requests == {
        "min_year": Type("int64"),
        "genres": Type("bytes", True),
        "rate": Type("float64"),
        "kinds": Type("bytes", True),
        "grown_up": Type("bool"),
    }
    assert rule.asks().requests == ("min_year", "genres", "rate", "kinds", "grown_up")
    assert rule.columns() == ("stock", "year", "genres", "price", "kind")
    assert Expression("r", "item['a b'] > now").asks().now
