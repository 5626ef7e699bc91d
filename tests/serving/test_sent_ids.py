"""Packed lists of text ids mean exactly what the same ids mean as a tensor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from stage_oracles import pack, packed, tensors
from test_graph_stages import asks_of
from tiny_release import Tiny, objects

from drawing import examples
from tiercel_client.contract import read_contract
from tiercel_client.request import Question, build_requests
from tiercel_client.testing import FakeTransport
from tiercel_serving.errors import InvalidRequest
from tiercel_serving.lookups.build import build_lookup
from tiercel_serving.release.artefacts import Artefact
from tiercel_serving.runtime import batching
from tiercel_serving.runtime.chain import Chain
from tiercel_serving.spec import Array, TensorSpec
from tiercel_serving.stages.sent_ids import SentIds
from tiercel_serving.stages.specs import EXCLUDED, HISTORY, LENGTHS, PACKED
from tiercel_serving.tables.items import ITEM_LOOKUP, ItemTable, store_ids

#: Ids that differ only in NULs, are empty or long, or use several scripts.
ODD = [
    "",
    "\0",
    "a",
    "a\0",
    "a\0\0",
    "\0a",
    "a\0b",
    "é",
    "e\u0301",
    "誰も",
    "🦅",
    "x" * 8,
    "x" * 24,
    "x" * 130,
]
ITEMS = [*ODD, *(f"item {number}" for number in range(300))]

ids = st.sampled_from(ITEMS) | st.text(st.characters(codec="utf-8"), max_size=40) | st.just("y" * 500)
lists = st.none() | st.lists(ids, max_size=20) | st.lists(st.sampled_from(ODD), min_size=20, max_size=40)
quick = examples(10, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def items() -> ItemTable:
    raw = objects([one.encode() for one in ITEMS])
    return ItemTable(
        Artefact.in_memory("items", {**build_lookup(raw, ITEM_LOOKUP), **store_ids(raw)}), len(ITEMS)
    )


@pytest.fixture
def specs(tiny_of: Callable[[str], Tiny]) -> tuple[TensorSpec, ...]:
    return tiny_of("strings").release.stages["user_features"].inputs


def batch(specs: Sequence[TensorSpec], question: Question, *, as_packed: bool) -> dict[str, Array]:
    """Return the stage's input for a question: the client's requests of up to four users, as one batch."""
    fake = FakeTransport(items={"x": None}, users={"u": []}, max_batch_size=4)
    contract = read_contract(fake.model_config("recommend", timeout_s=1, headers={}))
    with patch("tiercel_client.request.PACK_FROM", 0 if as_packed else 10**9):
        parts = [part.inputs for part in build_requests(contract, question)]
    assert any(set(PACKED.values()) & set(part) for part in parts) <= as_packed
    whole = batching.concatenate(specs, parts)
    return batching.complete(specs, whole, batching.absent(specs, batching.count_rows(whole)))


@quick
@given(data=st.data())
def test_both_ways_carry_the_same_ids(
    items: ItemTable, specs: tuple[TensorSpec, ...], data: st.DataObject
) -> None:
    users = data.draw(st.integers(1, 9))
    asked = {
        name: data.draw(st.lists(lists, min_size=users, max_size=users)) for name in ("exclude", "history")
    }
    question = Question(["u"] * users, **asked)
    plain, dense = (batch(specs, question, as_packed=way) for way in (False, True))
    row_of = {one: row for row, one in enumerate(ITEMS)}
    for name, rows in ((EXCLUDED, asked["exclude"]), (HISTORY, asked["history"])):
        sent = SentIds(name, items, 50, text=True)
        # An empty exclusion list counts as not sent.
        given_ = [row is not None and (name == HISTORY or bool(row)) for row in rows]
        want = [[row_of.get(one, len(ITEMS)) for one in row or ()] for row in rows]
        for arrays in (plain, dense):
            assert sent.given(arrays).tolist() == given_
            found = sent.rows(arrays).tolist()
            for row, right in zip(found, want, strict=True):
                assert row == [*right, *[len(ITEMS)] * (len(row) - len(right))]


@quick
@given(data=st.data())
def test_requests_of_both_ways_are_answered_alike_in_one_batch(
    tiny_of: Callable[[str], Tiny], chain_of: Callable[[str], Chain], data: st.DataObject
) -> None:
    tiny, chain = tiny_of("strings"), chain_of("strings")
    groups = data.draw(st.lists(asks_of(tiny, most=3), min_size=1, max_size=4))
    plain = [tensors(group) for group in groups]
    mixed = [packed(request) if data.draw(st.booleans()) else request for request in plain]
    for request in mixed:
        batching.count_users(chain.external_inputs, request)
        chain.check(request)
    one, other = (
        chain.run(batching.concatenate(chain.external_inputs, requests))[0] for requests in (plain, mixed)
    )
    for name, array in one.items():
        if name != "excluded_row":
            np.testing.assert_array_equal(array, other[name], err_msg=name)
    # The padding of a row depends on the rest of the batch.
    pad = {len(tiny.item_ids)}
    assert [{*row} - pad for row in one["excluded_row"]] == [{*row} - pad for row in other["excluded_row"]]


@pytest.mark.parametrize(
    ("element", "message"),
    [
        (b"\1", "expected at least 4 bytes, or none for null, got 1"),
        (b"\1\0\0", "got 3"),
        (pack([b"a"])[:4], "it says 1 ids, and has 0"),
        (b"\xff\xff\xff\xff" + bytes(8), "it says -1 ids, and has 8"),
        (pack([b"a", b"bc"])[:-1], "it says 2 ids, and has 1"),
        (pack([b"a", b"bc"]) + b"d", "expected a NUL at its end, got b'd'"),
        (pack([]) + b"d", "expected a NUL at its end"),
        (pack([b"a", b"b\0c"]), "it says 2 ids, and has 3; .*ids that hold a NUL go as a tensor"),
        (pack([b"a"] * 201), "may hold 200 ids at most, got 201; send fewer"),
    ],
)
@pytest.mark.parametrize("name", [EXCLUDED, HISTORY])
def test_a_bad_list_is_refused(
    chain_of: Callable[[str], Chain], name: str, element: bytes, message: str
) -> None:
    with pytest.raises(InvalidRequest, match=f"stage user_features: {PACKED[name]}, row 1: .*{message}"):
        chain_of("strings").check({PACKED[name]: objects([pack([b"a"] * 200), element])[:, None]})


@pytest.mark.parametrize("other", [EXCLUDED, LENGTHS[EXCLUDED]])
def test_lists_that_come_twice_are_refused(chain_of: Callable[[str], Chain], other: str) -> None:
    both: dict[str, Any] = {
        EXCLUDED: objects([b"a"])[:, None],
        LENGTHS[EXCLUDED]: np.array([[0]], np.int32),
    }
    with pytest.raises(InvalidRequest, match=f"got {PACKED[EXCLUDED]}, and {other} too"):
        chain_of("strings").check({PACKED[EXCLUDED]: objects([b""])[:, None], other: both[other]})


def test_numbers_are_not_packed(plain: Tiny) -> None:
    assert not {tensor.name for tensor in plain.release.stages["user_features"].inputs} & set(PACKED.values())
