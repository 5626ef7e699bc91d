"""Shared parts of sequential families: windows, prefixes, losses, and errors raised before training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from retrieval_contract import BOTH, INPUTS, ITEMS, USERS, drawn, world

from drawing import examples
from tiercel_export.release.given import check_events
from tiercel_export.release.parts import TableColumns
from tiercel_export.release.tables import histories
from tiercel_pipelines.arrays.packed import Packed
from tiercel_pipelines.arrays.packing import build_pairs
from tiercel_pipelines.arrays.pairs import Pairs
from tiercel_pipelines.data import Dataset, load_dataset, split_dataset
from tiercel_pipelines.families.sequences import Windows, generalised_bce, sampled_cross_entropy
from tiercel_pipelines.offline.in_memory import KnownUsers
from tiercel_pipelines.recipe import GRU4Rec, Parquet, SASRec, replace

EACH: list[Any] = [SASRec(dimension=8, heads=2), GRU4Rec(dimension=8, hidden_dimension=6)]


@pytest.mark.parametrize("lengths", [[1], [0, 4, 1, 9, 2, 3, 7, 10, 0], [5], [13]])
@pytest.mark.parametrize("length", [1, 3, 4, 50])
def test_windows_find_each_item_once_and_show_what_is_right_before_it(
    lengths: list[int], length: int
) -> None:
    users = np.repeat(np.arange(len(lengths)), lengths)
    items = np.arange(len(users)) * 7 % 1000
    pairs = Pairs.build(users, items, users, np.ones(len(users)), len(lengths))
    windows = Windows.cut(pairs, length)
    found: list[int] = []
    for chosen in windows.batches(2, np.random.default_rng(0)):
        rows, wanted = windows.take(chosen, items, 1000)
        assert rows.shape[1] <= length + 1
        for window, right in zip(rows, wanted, strict=True):
            real = window[window < 1000]
            at = np.flatnonzero(items == real[0])[0]
            np.testing.assert_array_equal(real, items[at : at + len(real)])
            assert len({*users[at : at + len(real)]}) == 1
            # A window's first item is predicted from nothing only if it is the user's first.
            assert right[0] == (at == pairs.offsets[users[at]])
            found += window[right].tolist()
    assert sorted(found) == sorted(items.tolist())


@pytest.mark.parametrize("settings", EACH)
def test_a_state_of_training_is_the_query_of_that_prefix(settings: Any) -> None:
    """No state depends on later items, so training does not see the item that it predicts."""
    fitted = settings.fresh(BOTH)
    network = fitted.user_tower.eval()
    history = torch.from_numpy(np.random.default_rng(0).integers(3, 7, (3, 6, 2)))
    with torch.inference_mode():
        states = network.states(history)
        for length in range(7):
            count = torch.full((3, 1), length, dtype=torch.int32)
            alone = network(history_cat=history, history_length=count)
            torch.testing.assert_close(alone, states[:, length], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("settings", EACH)
def test_of_a_long_history_the_latest_items_are_seen(settings: Any) -> None:
    tensors = {name: torch.from_numpy(array) for name, array in drawn(8).items() if "history" in name}
    network = replace(settings, sequence_length=2).fresh(INPUTS).user_tower.eval()
    with torch.inference_mode():
        all_of_it = network(**tensors)
        for user, length in enumerate(tensors["history_length"][:, 0].tolist()):
            last = tensors["history_cat"][user, max(0, length - 2) : length]
            short = torch.nn.functional.pad(last, (0, 0, 0, 2 - len(last)), value=5)
            count = torch.tensor([[len(last)]], dtype=torch.int32)
            alone = network(history_cat=short[None], history_length=count)
            torch.testing.assert_close(alone[0], all_of_it[user], rtol=1e-5, atol=1e-5)


def test_losses_are_their_formulas() -> None:
    rng = torch.Generator().manual_seed(0)
    positive, others = torch.randn(5, generator=rng), torch.randn(5, 4, generator=rng)
    whole = torch.cat([positive[:, None], others], 1)
    expected = torch.nn.functional.cross_entropy(whole, torch.zeros(5, dtype=torch.int64))
    torch.testing.assert_close(sampled_cross_entropy(positive, others, 4), expected)
    # Each of 4 drawn out of 8 counts twice.
    twice = torch.cat([whole, others], 1)
    expected = torch.nn.functional.cross_entropy(twice, torch.zeros(5, dtype=torch.int64))
    torch.testing.assert_close(sampled_cross_entropy(positive, others, 8), expected)
    plain = torch.nn.functional.binary_cross_entropy_with_logits(
        whole, torch.tensor([1.0, 0, 0, 0, 0]).expand(5, 5)
    )
    torch.testing.assert_close(generalised_bce(positive, others, 9, 0.0), plain)
    # alpha = 4 / 8, t = 0.5: beta = 0.5 (0.5 (1 - 2) + 2) = 0.75.
    loss = (-0.75 * positive.sigmoid().log() - (1 - others.sigmoid()).log().sum(1)).mean() / 5
    torch.testing.assert_close(generalised_bce(positive, others, 9, 0.5), loss)


@pytest.mark.parametrize("settings", EACH)
def test_histories_without_an_order_are_told_before_anything_is_trained(settings: Any) -> None:
    assert settings.misfits({"user_id": "category"}, {"item_id": "category"}, True) == []
    [problem] = settings.misfits({"user_id": "category"}, {"item_id": "category"}, False)
    assert "the interactions have no timestamp" in str(problem)
    assert [p.field for p in replace(settings, negatives=0).problems()] == ["negatives"]
    assert [p.field for p in replace(EACH[0], heads=3).problems()] == ["heads"]


def test_histories_know_nothing_of_what_came_later(tmp_path: Path) -> None:
    """For any row order, equal times and another zone, the last event is the test and the rest is known."""
    rng = np.random.default_rng(2)
    owner = np.repeat(np.arange(USERS), 6)
    items = np.concatenate([rng.choice(ITEMS, 6, replace=False) for _ in range(USERS)])
    seconds = 1_000_000_000 + rng.integers(0, 4, len(owner)) * 3_600  # many at once, ordered by row
    rows = rng.permutation(len(owner))
    zone = pd.to_datetime(seconds, unit="s", utc=True).tz_convert("Pacific/Auckland")
    for name, ids in {"user": np.arange(USERS), "item": np.arange(ITEMS)}.items():
        pd.DataFrame({f"{name}_id": ids}).to_parquet(tmp_path / f"{name}s.parquet")
    packed, found = world()[0], []
    for times in (seconds, zone):
        frame = pd.DataFrame({"user_id": owner, "item_id": items, "timestamp": times}).iloc[rows]
        frame.to_parquet(tmp_path / "all.parquet")
        spec = Parquet("users.parquet", "items.parquet", "all.parquet")
        dataset = load_dataset(spec, data_dir=tmp_path)
        split = split_dataset(dataset, by="leave_one_out")
        train, valid, test = (
            build_pairs(dataset, part, None, packed)[0] for part in (split.train, split.valid, split.test)
        )
        assert (valid.lengths == 1).all()
        assert (test.lengths == 1).all()
        whole = np.column_stack([train.items.reshape(USERS, -1), valid.items, test.items])
        for user, history in enumerate(whole):
            mine = rows[owner[rows] == user]
            assert list(history) == list(items[mine[np.argsort(seconds[mine], kind="stable")]])
        windows = Windows.cut(train, 3)
        shown = [np.arange(*ends) for ends in zip(windows.starts, windows.ends, strict=True)]
        assert set(np.concatenate(shown)) == set(range(len(train)))
        found.append(whole)
    np.testing.assert_array_equal(*found)


@examples(14)
@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.integers(1, 5), st.integers(1, 8))
def test_a_release_keeps_the_histories_that_were_trained_on(
    seed: int, count: int, moments: int, latest: int
) -> None:
    """With rows in any order, many at one time, and items that users came back to."""
    rng = np.random.default_rng(seed)
    users, items = rng.permutation(6), rng.permutation(5)
    names = {"user_id": users, "item_id": items, "timestamp": np.arange(moments)}
    events = pd.DataFrame({name: rng.choice(values, count) for name, values in names.items()})
    tables = (pd.DataFrame({"user_id": users}), pd.DataFrame({"item_id": items}), events)
    everybody = np.arange(len(users))
    packed = Packed(
        {"user_cat": everybody[:, None]},
        {"item_cat": np.arange(len(items) + 1)[:, None]},
        (),
        latest,
        len(users),
    )
    pairs, _ = build_pairs(Dataset("drawn", *tables), events, None, packed)
    trained = KnownUsers(packed, pairs).history(everybody)
    given_out = check_events(events, items, users, TableColumns(), [])
    offsets, places = histories(given_out.users, given_out.items, len(users), latest)
    for user, history in enumerate(trained):
        served = given_out.items[places[offsets[user] : offsets[user + 1]]][-latest:]
        assert served.tolist() == history[history < len(items)].tolist()
