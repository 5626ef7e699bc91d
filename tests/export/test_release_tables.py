"""Histories and null rows, compared with plain Python."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiercel_export.release import tables
from tiercel_export.release.tables import histories, user_arrays
from tiercel_serving.columns import Column, null_column, take_rows, with_null_row
from tiercel_serving.features.blocks import transform
from tiercel_serving.release.artefacts import Artefact
from tiercel_serving.stores.memory_mapped import UserTables

EVENTS = st.lists(st.tuples(st.integers(-1, 4), st.integers(0, 6)), max_size=40)


@given(EVENTS, st.integers(0, 5), st.sampled_from([1, 3, 1 << 20]))
def test_histories_keep_the_latest_of_repeated_items(
    events: list[tuple[int, int]], length: int, block: int
) -> None:
    users = np.array([user for user, _ in events], np.int64)
    items = np.array([item for _, item in events], np.int64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "_BLOCK", block)
        offsets, places = histories(users, items, 5, length)
    times = np.arange(len(users)) * 10.0
    rows = items[places]
    want: list[list[int]] = [[] for _ in range(6)]
    for user, item in events:
        if user >= 0:
            if item in want[user]:
                want[user].remove(item)
            want[user].append(item)
    assert offsets.dtype == np.int64
    assert offsets.tolist() == np.cumsum([0, *map(len, want)]).tolist()
    for user in range(6):
        old = len(want[user]) - min(length, len(want[user]))
        assert rows[offsets[user] : offsets[user + 1]].tolist() == sorted(want[user][:old]) + want[user][old:]
    arrays = user_arrays(np.arange(5), {}, {}, users, items, latest=length, times=times)
    assert arrays["history_rows"].dtype == np.int32
    latest = {(user, item): 10.0 * at for at, (user, item) in enumerate(events)}
    stored = UserTables(Artefact.in_memory("users", arrays)).at(np.arange(6))
    got, count = stored.history(length, 99)
    for user in range(6):
        mine = want[user][len(want[user]) - min(length, len(want[user])) :]
        assert got[user].tolist() == mine + [99] * (length - len(mine))
        assert count[user] == len(mine)
    flat, counts = stored.seen()
    assert [sorted(part.tolist()) for part in np.split(flat, np.cumsum(counts)[:-1])] == list(
        map(sorted, want)
    )
    owners = np.repeat(np.arange(6), counts).tolist()
    pairs = zip(owners, flat.tolist(), strict=True)
    assert stored.seen_s().tolist() == [latest[pair] for pair in pairs]


SCALARS = [
    Column(np.array([1, 2], np.int64)),
    Column(np.array([1, 2], np.int64), np.array([True, False])),
    Column(np.array([1.5, np.nan], np.float32)),
    Column(np.array([b"a", b""], object), np.array([True, False])),
    Column(np.array([True, False])),
]


def plain(column: Column) -> list:
    valid = np.ones(len(column.values), bool) if column.valid is None else column.valid
    if column.values.dtype.kind == "f":
        valid = valid & ~np.isnan(column.values)
    flat = [v if ok else None for v, ok in zip(column.values.tolist(), valid, strict=True)]
    if column.offsets is None:
        return flat
    rows = [True] * len(column) if column.row_valid is None else column.row_valid.tolist()
    ends = column.offsets.tolist()
    return [flat[ends[i] : ends[i + 1]] if ok else None for i, ok in enumerate(rows)]


LISTS = [
    Column(np.array([1, 2, 3]), None, np.array([0, 1, 3])),
    Column(np.array([b"x"], object), None, np.array([0, 0, 1]), np.array([False, True])),
]


@pytest.mark.parametrize("column", SCALARS + LISTS)
def test_null_row_comes_last_and_rows_can_be_taken(column: Column) -> None:
    longer = with_null_row(column)
    assert plain(longer) == [*plain(column), None]
    assert longer.values.dtype == column.values.dtype
    assert plain(take_rows(longer, np.array([2, 0, 0]))) == [None, *[plain(column)[0]] * 2]


@pytest.mark.parametrize("is_list", [False, True])
@pytest.mark.parametrize("dtype", ["int64", "float32", "float64", "bool", "bytes"])
def test_null_columns(dtype: str, is_list: bool) -> None:
    assert plain(null_column(dtype, is_list, 3)) == [None] * 3


def test_tables_are_transformed_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    class Lengths:
        calls = 0

        def packed(self, columns, n):
            self.calls += 1
            return {"item_num": columns["x"].values[:, None] * 2}

    monkeypatch.setattr("tiercel_serving.features.blocks._BLOCK", 4)
    program = Lengths()
    made = transform(program, {"x": Column(np.arange(10.0))}, 10)
    assert program.calls == 3
    assert made["item_num"][:, 0].tolist() == (np.arange(10) * 2).tolist()
