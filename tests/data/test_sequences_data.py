"""Sequence files and leave-one-out: what is read, what is split off, and what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tiercel_pipelines.data import Sequences, load_dataset, split_dataset
from tiercel_pipelines.errors import DataCorrupt, DataError, DataMissing, RecipeError
from tiercel_pipelines.recipe import SplitSettings, load_recipe, replace
from tiercel_pipelines.recipe.check import check_recipe


def load(tmp_path: Path, text: str):
    (tmp_path / "s.txt").write_text(text, encoding="utf-8")
    return load_dataset(Sequences("s.txt"), data_dir=tmp_path)


def test_a_line_is_a_user_and_his_items_in_order(tmp_path: Path) -> None:
    dataset = load(tmp_path, "7 3 1 2\n\n8 1\n 9\t2 3\n")
    assert dataset.users.user_id.tolist() == [7, 8, 9]
    assert dataset.items.item_id.tolist() == [3, 1, 2]
    assert dataset.interactions.to_numpy().tolist() == [
        [7, 3, 0], [7, 1, 1], [7, 2, 2], [8, 1, 0], [9, 2, 0], [9, 3, 1]
    ]  # fmt: skip
    assert (dataset.timestamp, dataset.context_columns) == ("place", ())
    texts = load(tmp_path, "ann 01 2\n")
    assert texts.items.item_id.tolist() == ["01", "2"]


def test_pairs_in_the_order_of_time_are_the_same_sequences(tmp_path: Path) -> None:
    lines, pairs = load(tmp_path, "7 3 1 2\n8 1\n9 2 2\n"), load(tmp_path, "7 3\n8 1\n7 1\n9 2\n9 2\n\n7 2\n")
    for table in ("users", "items", "interactions"):
        pd.testing.assert_frame_equal(getattr(pairs, table), getattr(lines, table))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "s.txt: expected a line for each user, found none"),
        ("1 2\n5\n", "s.txt, line 2: expected a user and items in the order of time, found '5'"),
        ("1 2\n2 4 5\n1 3\n", r"s.txt, line 3: user 1 has a line already \(1\); join them"),
    ],
)
def test_what_is_no_sequence_is_told_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataCorrupt, match=message):
        load(tmp_path, text)
    with pytest.raises(DataMissing, match=r"none\.txt: expected a file, found none"):
        load_dataset(Sequences("none.txt"), data_dir=tmp_path)
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataCorrupt, match="not readable as UTF-8"):
        load_dataset(Sequences("b.txt"), data_dir=tmp_path)


def test_a_relative_path_starts_where_data_sets_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("told", "variable", "here", "here/data"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("TIERCEL_DATA_DIR", str(tmp_path / "variable"))
    for user, folder in enumerate((".", "data", "../variable", "../told")):
        (Path(folder) / "s.txt").write_text(f"{user} 5\n", encoding="utf-8")
        told = tmp_path / "told" if folder == "../told" else None
        assert load_dataset(Sequences("s.txt"), data_dir=told).users.user_id.tolist() == [user]
    whole = load_dataset(Sequences(str(tmp_path / "here" / "s.txt")))
    assert whole.users.user_id.tolist() == [0]
    # With an explicit folder, no other place is searched.
    with pytest.raises(DataMissing, match=r"a relative path starts at --data-dir, else \$TIERCEL_DATA_DIR"):
        load_dataset(Sequences("s.txt"), data_dir=tmp_path)


def test_the_last_two_of_each_user_are_test_and_validation(tmp_path: Path) -> None:
    dataset = load(tmp_path, "7 3 1 2 5\n8 1\n9 2 3\n")
    shuffled = dataset.interactions.sample(frac=1, random_state=3)
    split = split_dataset(dataclasses.replace(dataset, interactions=shuffled), by="leave_one_out")
    parts = {
        name: sorted(map(tuple, getattr(split, name)[["user_id", "item_id"]].to_numpy().tolist()))
        for name in ("train", "valid", "test")
    }
    # A user's only item stays in training, even if others are removed before.
    assert parts == {
        "train": [(7, 1), (7, 3), (8, 1), (9, 2)],
        "valid": [(7, 2)],
        "test": [(7, 5), (9, 3)],
    }
    for part in (split.train, split.valid, split.test):
        pd.testing.assert_frame_equal(part, shuffled[shuffled.index.isin(part.index)])
    whole = split_dataset(dataset, by="leave_one_out", validation=0.0)
    assert (len(whole.valid), len(whole.test)) == (0, 2)


def test_what_a_user_came_back_to_is_in_one_part(tmp_path: Path) -> None:
    dataset = load(tmp_path, "7 1 2 3 1\n8 4 4 4\n")
    split = split_dataset(dataset, by="leave_one_out", validation=0.0)
    assert split.test.place.tolist() == [0, 3]
    assert split.test.item_id.tolist() == [1, 1]
    again = split_dataset(dataset, by="leave_one_out", validation=0.0, given_again=True)
    assert np.array_equal(again.test[["item_id", "place"]], [[1, 3], [4, 2]])


def test_no_timestamp_is_a_mistake_of_the_recipe(tmp_path: Path) -> None:
    dataset = dataclasses.replace(load(tmp_path, "7 1 2 3\n8 4 1 2\n"), timestamp=None)
    dataset = dataclasses.replace(dataset, interactions=dataset.interactions.drop(columns="place"))
    with pytest.raises(RecipeError) as caught:
        check_recipe(load_recipe("sequences"), dataset)
    message = str(caught.value)
    assert "retrieval 'sasrec': a SASRec reads histories in their order" in message
    assert "split.by: a split by 'leave_one_out' needs the time of the interactions" in message
    assert [p.field for p in replace(SplitSettings(), by="place").problems()] == ["by"]
    with pytest.raises(DataError, match="needs the time of the interactions"):
        split_dataset(dataset, by="leave_one_out")
