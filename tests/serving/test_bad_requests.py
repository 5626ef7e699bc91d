"""Unusual requests and recipes: long, odd and repeated candidate lists; pins that cannot be placed.

Other refusals are tested elsewhere: expressions in ``test_rule_expressions.py``; quotas and
settings in ``test_settings.py``; steps' settings, and pins of items that do not exist, in
``test_reorder_kinds.py``; numbers beyond a recipe's limits in ``test_per_request.py``; lists in
``test_refusals.py`` and ``test_sent_ids.py``; stores with another schema, and clock jumps, in
``test_live_users.py``; damaged files and full disks in ``test_embedded_store.py``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tiny_release import Tiny, make_tiny

from tiercel_serving.errors import InvalidRequest
from tiercel_serving.reorder.pin_items import PinItems
from tiercel_serving.rules.compare import Compare
from tiercel_serving.runtime.chain import Chain

MOST = 10_000


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    settings = {
        "max_excluded": MOST,
        "rules": (Compare("recent", "year", ">=", 1995),),
        "reorder": (PinItems("label", ("Film № 2", "Film № 21", "Film № 7")),),
    }
    return make_tiny(tmp_path_factory.mktemp("pins") / "r", most_seen=0, users=1, settings=settings)


@pytest.fixture(scope="module")
def chain(tiny: Tiny) -> Chain:
    return Chain.open(tiny.release)


def ask(chain: Chain, **lists: list[Any]) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {"user_id": np.array([[10]]), "k": np.array([[8]], np.int32)}
    for name, ids in lists.items():
        arrays[name] = np.array([ids], np.int64)
        arrays[f"{name}__length"] = np.array([[len(ids)]], np.int32)
    chain.check(arrays)
    return chain.run(arrays)[0]


def test_ten_thousand_candidates_most_of_them_unknown_or_repeated(tiny: Tiny, chain: Chain) -> None:
    known = tiny.item_ids[4:20]
    plain = ask(chain, candidate_item_ids=known)
    odd = [*known, *range(10**6, 10**6 + 5_000), *known * 311]
    full = ask(chain, candidate_item_ids=odd[:MOST])
    for name in ("item_id", "score", "count", "kept_row"):
        np.testing.assert_array_equal(full[name], plain[name], name)
    nothing = ask(chain, candidate_item_ids=[10**6] * MOST)
    assert nothing["count"].tolist() == [[0]]
    for name in ("candidate_item_ids", "include_item_ids", "explain_item_ids"):
        with pytest.raises(
            InvalidRequest, match=f"{name} may hold [0-9]+ ids at most, got 10001; send fewer"
        ):
            ask(chain, **{name: [1] * (MOST + 1)})


def test_a_pin_that_is_filtered_excluded_or_not_retrieved_leaves_its_place_to_the_next(
    tiny: Tiny, chain: Chain
) -> None:
    # Film 2 fails the rule.
    second, third = tiny.item_ids[21], tiny.item_ids[7]
    answer = ask(chain, include_item_ids=tiny.item_ids[:25])["item_id"][0].tolist()
    kept = ask(chain, candidate_item_ids=[*tiny.item_ids[:12], second])["item_id"][0].tolist()
    assert kept[:2] == [second, third]
    assert tiny.item_ids[2] not in [*answer, *kept]
    without = ask(chain, candidate_item_ids=[*tiny.item_ids[:12], second], exclude_item_ids=[second])
    assert without["item_id"][0, 0] == third
    alone = ask(chain, candidate_item_ids=tiny.item_ids[8:16])
    assert not {second, third} & set(alone["item_id"][0].tolist())
    assert alone["count"].item() > 0
