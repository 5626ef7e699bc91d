"""The contract of a rule, for every row of ``RULES``."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kind_contracts import check_rows, check_settings
from tiny_release import column, list_column, objects

from drawing import examples
from tiercel_serving.columns import Column, take_rows
from tiercel_serving.rules.compare import Compare
from tiercel_serving.rules.expression import Expression
from tiercel_serving.rules.kept import reason_table
from tiercel_serving.rules.table import RULES, RuleKind
from tiercel_serving.settings import EMPTY_SLOT, FIRST_RULE_REASON, KEPT
from tiercel_serving.verify.reference import plain_items

#: Raw column → its dtype, whether it is a list, and its possible values.
COLUMNS: dict[str, tuple[Any, bool, st.SearchStrategy[Any]]] = {
    "whole": (np.int64, False, st.integers(-2, 2)),
    "real": (np.float64, False, st.sampled_from([-1.5, 0.0, 2.0])),
    "text": (np.object_, False, st.sampled_from([b"", b"a", "ü".encode()])),
    "texts": (np.object_, True, st.sampled_from([b"", b"a", "ü".encode()])),
    "wholes": (np.int64, True, st.integers(-2, 2)),
}

#: Kind → examples of its settings, over the columns above.
EXAMPLES: dict[str, list[Any]] = {
    "compare": [
        *(Compare("r", "whole", operator, 1) for operator in ("==", "!=", "<", "<=", ">", ">=")),
        *(Compare("r", "text", operator, "a") for operator in ("==", "!=", "<", "<=", ">", ">=")),
        *(Compare("r", "real", operator, 0.5) for operator in ("!=", "<")),
        *(Compare("r", "texts", operator, ["ü", "x"]) for operator in ("in", "not in")),
        *(Compare("r", "wholes", operator, [2, 0]) for operator in ("in", "not in")),
        *(Compare("r", name, "not in", []) for name in COLUMNS),
    ],
    "expression": [
        Expression("r", "item.whole >= 1 and item.text != 'a'"),
        Expression("r", "not any(item.texts, ('ü', 'x')) or item.wholes is None"),
        Expression("r", "item.real / item.whole > 0.5"),
        # Conditions on more than the item are evaluated per request.
        Expression("r", "item.whole > request.least and item.real < 2 and item.text == user.text"),
        Expression("r", "item.whole > now"),
    ],
}


def test_every_kind_is_here() -> None:
    check_rows(RULES, EXAMPLES)


@st.composite
def tables(draw: st.DrawFn) -> dict[str, Column]:
    """Draw raw columns of up to nine items, including nulls."""
    items = draw(st.integers(0, 9))
    made = {}
    for name, (dtype, is_list, values) in COLUMNS.items():
        value = st.lists(values, max_size=3) if is_list else values
        drawn = draw(st.lists(st.none() | value, min_size=items, max_size=items))
        made[name] = (list_column if is_list else column)(drawn, dtype)
    return made


@pytest.mark.parametrize("name", EXAMPLES)
class TestRuleKind:
    def test_settings(self, name: str) -> None:
        for kind in EXAMPLES[name]:
            check_settings(RULES, name, kind, RuleKind)
            assert kind.reason.strip()
            assert set(kind.columns()) <= set(COLUMNS)

    @examples(17)
    @given(columns=tables())
    def test_it_passes_what_its_reference_passes(self, name: str, columns: dict[str, Column]) -> None:
        items, item_of = len(columns["whole"]), plain_items(columns)
        for kind in EXAMPLES[name]:
            passed = kind.passes(columns)
            assert (passed.shape, passed.dtype) == ((items,), np.bool_)
            assert passed.tolist() == [kind.reference(item_of(row)) for row in range(items)]
            assert kind.misfits(columns) == [] or not items
            if items:
                last = {column: take_rows(one, np.array([items - 1])) for column, one in columns.items()}
                assert kind.passes(last).tolist() == [passed[-1]]


@examples(17)
@given(columns=tables(), chosen=st.lists(st.sampled_from(EXAMPLES["compare"]), max_size=3))
def test_the_first_rule_that_fails_is_the_reason(columns: dict[str, Column], chosen: list[Compare]) -> None:
    items, item_of = len(columns["whole"]), plain_items(columns)
    expected = []
    for row in range(items):
        failed = [place for place, rule in enumerate(chosen) if not rule.reference(item_of(row))]
        expected.append(FIRST_RULE_REASON + failed[0] if failed else KEPT)
    assert reason_table(chosen, columns, items).tolist() == [*expected, EMPTY_SLOT]


# ``compare``

NUMBERS = Column(np.array([1, 2, 3]), np.array([True, True, False]))
TEXTS = Column(objects([b"a", b"b", b""]), np.array([True, True, False]))
LISTS = Column(objects([b"a", b"b"]), None, np.array([0, 2, 2, 2]), np.array([True, True, False]))
REALS = Column(np.array([1.0, np.nan]))


@pytest.mark.parametrize(
    ("column", "operator", "value", "holds"),
    [
        (NUMBERS, "==", 2, [False, True, False]),
        (NUMBERS, "!=", 2, [True, False, False]),
        (NUMBERS, "<", 2, [True, False, False]),
        (NUMBERS, "in", [1, 3], [True, False, False]),
        (NUMBERS, "not in", [1], [False, True, False]),
        (REALS, ">=", 0, [True, False]),
        (REALS, "not in", [5], [True, False]),
        (TEXTS, "==", "a", [True, False, False]),
        (TEXTS, ">", "a", [False, True, False]),
        (TEXTS, "not in", ["b", "c"], [True, False, False]),
        (LISTS, "in", ["b"], [True, False, False]),
        (LISTS, "not in", ["b"], [False, True, False]),
    ],
)
def test_comparisons(column: Column, operator: str, value: Any, holds: list[bool]) -> None:
    assert Compare("r", "c", operator, value).passes({"c": column}).tolist() == holds


@pytest.mark.parametrize(
    ("column", "operator", "value", "message"),
    [
        (NUMBERS, "==", "two", "'c', which holds numbers, with 'two'"),
        (TEXTS, "==", 2, "'c', which holds strings, with 2"),
        (LISTS, "==", "a", "use 'in' or 'not in'"),
        (LISTS, "in", ["a", 2], "holds lists of strings, with 2"),
    ],
)
def test_comparisons_that_do_not_fit(column: Column, operator: str, value: Any, message: str) -> None:
    [problem] = Compare("r", "c", operator, value).misfits({"c": column})
    assert message in str(problem)


@pytest.mark.parametrize(
    ("operator", "value", "message"),
    [
        ("~", 2, "no known operator: '~'"),
        ("in", "abc", "give a tuple of values"),
        ("==", [1], "several for in and not in"),
        ("==", None, "give a number or text"),
        ("in", [None], "give a number or text"),
    ],
)
def test_comparisons_that_cannot_be(operator: str, value: Any, message: str) -> None:
    [problem] = Compare("r", "c", operator, value).problems()
    assert message in str(problem)
