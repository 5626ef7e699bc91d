"""The contract of a user store, held by every row of ``STORES``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kind_contracts import check_rows, check_settings
from tiny_release import Tiny, ids_array, transform, user_arrays

from tiercel_serving.columns import Column
from tiercel_serving.release.artefacts import Artefact
from tiercel_serving.stores.memory_mapped import MemoryMapped
from tiercel_serving.stores.table import STORES, Store, StoreKind
from tiercel_serving.verify.reference import plain_items

#: Kind → its settings, while a context holds in which the users of a release are in the store.
EXAMPLES: dict[str, Callable[[Tiny], AbstractContextManager[Any]]] = {
    "memory_mapped": lambda tiny: nullcontext(MemoryMapped()),
}


def test_every_kind_is_here() -> None:
    check_rows(STORES, EXAMPLES)


@pytest.fixture(params=EXAMPLES)
def kind(request: pytest.FixtureRequest, tiny: Tiny) -> Iterator[StoreKind]:
    with EXAMPLES[request.param](tiny) as made:
        check_settings(STORES, request.param, made, StoreKind)
        yield made


@pytest.fixture(params=["written", "in memory"])
def store(request: pytest.FixtureRequest, kind: StoreKind, tiny: Tiny) -> Store:
    if request.param == "written":
        return kind.open(lambda: tiny.release.artefact("users", "users"))
    return kind.open(lambda: Artefact.in_memory("users", user_arrays(tiny)))


def values(column: Column) -> list[Any]:
    """A column as Python values: None is null, text is ``str``."""
    item_of = plain_items({"c": column})
    return [item_of(row)["c"] for row in range(len(column))]


several = pytest.mark.parametrize("variant", ["plain", "strings", "no users"], indirect=True)
quick = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@several
@quick
@given(data=st.data())
def test_it_reads_a_batch_at_once(tiny: Tiny, store: Store, data: st.DataObject) -> None:
    string = tiny.release.manifest.catalogue.user_id_dtype == "bytes"
    anybody = st.binary(max_size=3) if string else st.integers(-5, 60)
    if tiny.user_ids:
        anybody |= st.sampled_from(tiny.user_ids)
    asked = data.draw(st.lists(anybody, min_size=1, max_size=6))
    length, pad = data.draw(st.integers(0, 5)), len(tiny.item_ids)
    users = store.read(ids_array(asked)[:, None])
    rows = [tiny.user_ids.index(user) if user in tiny.user_ids else None for user in asked]
    assert store.size == len(tiny.user_ids)
    assert users.known.tolist() == [row is not None for row in rows]

    def stored(column: list[Any]) -> list[Any]:
        return [None if row is None else column[row] for row in rows]

    age, occupation, tags = users.raw("age"), users.raw("occupation"), users.raw("tags")
    assert age is not None
    assert values(age) == stored(tiny.age)
    assert occupation is not None
    assert values(occupation) == [None if o is None else o.decode() for o in stored(tiny.occupation)]
    assert tags is not None
    assert values(tags) == stored(tiny.tags)
    assert users.raw("hour") is None
    nulls = [None] * len(rows)
    packed = transform(stored(tiny.age), stored(tiny.occupation), stored(tiny.tags), nulls, nulls)
    for name, want in packed.items():
        got = users.packed(name)
        assert got.dtype == want.dtype
        np.testing.assert_array_equal(got, want)

    latest = [[] if row is None or not length else tiny.history[row][-length:] for row in rows]
    history, counts = users.history(length, pad)
    assert (history.dtype, counts.dtype) == (np.int64, np.int32)
    assert counts.tolist() == [len(mine) for mine in latest]
    assert history.tolist() == [mine + [pad] * (length - len(mine)) for mine in latest]
    flat, counts = users.seen()
    ends = np.cumsum(counts)
    for row, end, count in zip(rows, ends, counts, strict=True):
        mine = flat[end - count : end].tolist()
        assert len(mine) == len(set(mine))
        assert set(mine) == (set() if row is None else tiny.seen[row])
    assert len(flat) == ends[-1]


@pytest.mark.parametrize("variant", ["plain"], indirect=True)
def test_one_batch_gets_one_snapshot(tiny: Tiny, store: Store) -> None:
    """Stages of a chain hand the same array on; features and exclusions must not come of two moments."""
    asked = np.array([[tiny.user_ids[2]], [-1]])
    users = store.read(asked)
    assert store.read(asked) is users
    assert store.read(asked.copy()) is not users
