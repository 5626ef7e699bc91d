"""Own tables: what is read, and every mismatch of files and schema."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from msgspec.structs import replace

from tiercel_pipelines.data import Dataset, Parquet, load_dataset
from tiercel_pipelines.errors import DataCorrupt, DataError, DataMissing

SPEC = Parquet(users="users.parquet", items="items.parquet", interactions="log.parquet", timestamp="when")


@pytest.fixture
def tables() -> dict[str, pd.DataFrame]:
    users = pd.DataFrame(
        {
            "user_id": ["ann", "bo", "çelik"],
            "age": pd.array([31, None, 40], dtype="Int64"),
            "plan": pd.Categorical(["free", None, "paid"]),
            "active": [True, False, True],
        }
    )
    items = pd.DataFrame(
        {
            "item_id": np.array([7, 8, 9, 10], dtype=np.int32),
            "name": ["a", "b", None, "d"],
            "tags": [["x", "y"], [], None, ["z"]],
            "sizes": [[1, 2], [3], [], []],
            "added": pd.to_datetime(["2020-01-01", "2020-01-02", None, "2020-01-04"]),
        }
    )
    log = pd.DataFrame(
        {
            "user_id": ["ann", "ann", "bo", "çelik"],
            "item_id": np.array([7, 8, 7, 9], dtype=np.int32),
            "when": pd.to_datetime(["2021-01-01", "2021-01-02", "2021-01-03", "2021-01-04"], utc=True),
            "device": ["phone", None, "tv", "tv"],
        }
    )
    return {"users": users, "items": items, "log": log}


def write(tables: dict[str, pd.DataFrame], folder: Path) -> Path:
    for name, frame in tables.items():
        frame.to_parquet(folder / f"{name}.parquet")
    return folder


def test_rows_share_a_text_that_they_have_in_common(tables: dict[str, pd.DataFrame], tmp_path: Path) -> None:
    tables["log"] = pd.concat([tables["log"]] * 50, ignore_index=True)
    device = load_dataset(SPEC, data_dir=write(tables, tmp_path)).interactions.device
    assert device.tolist() == ["phone", None, "tv", "tv"] * 50
    assert len({id(text) for text in device}) == 3


def test_reads_plain_columns(tables: dict[str, pd.DataFrame], tmp_path: Path) -> None:
    dataset = load_dataset(SPEC, data_dir=write(tables, tmp_path))
    assert dataset.users.age.tolist()[::2] == [31.0, 40.0]
    assert np.isnan(dataset.users.age[1])
    assert dataset.users.plan.tolist() == ["free", None, "paid"]
    assert dataset.users.active.dtype == np.bool_
    assert dataset.items.item_id.dtype == np.int64
    assert dataset.items.name.tolist() == ["a", "b", None, "d"]
    assert dataset.items.tags.tolist() == [["x", "y"], [], [], ["z"]]
    assert dataset.items.sizes.tolist() == [[1, 2], [3], [], []]
    assert dataset.items.added[0] == 1_577_836_800
    assert np.isnan(dataset.items.added[2])
    assert dataset.interactions.when.dtype == np.int64
    assert dataset.interactions.when[0] == 1_609_459_200
    assert dataset.interactions.device.tolist() == ["phone", None, "tv", "tv"]
    assert dataset.context_columns == ("device",)


def test_reads_only_the_columns_of_the_schema(tables: dict[str, pd.DataFrame], tmp_path: Path) -> None:
    spec = replace(
        SPEC,
        user_columns=(("age", "int"),),
        item_columns=(("tags", "list[string]"), ("sizes", "list[int]"), ("added", "time")),
        context_columns=(),
    )
    dataset = load_dataset(spec, data_dir=write(tables, tmp_path))
    assert list(dataset.users.columns) == ["user_id", "age"]
    assert list(dataset.items.columns) == ["item_id", "tags", "sizes", "added"]
    assert dataset.context_columns == ()


def test_a_folder_of_files_is_one_table(tables: dict[str, pd.DataFrame], tmp_path: Path) -> None:
    write(tables, tmp_path)
    (tmp_path / "users.parquet").unlink()
    parts = tmp_path / "users.parquet"
    parts.mkdir()
    tables["users"].iloc[:1].to_parquet(parts / "1.parquet")
    tables["users"].iloc[1:].to_parquet(parts / "2.parquet")
    assert load_dataset(SPEC, data_dir=tmp_path).users.user_id.tolist() == ["ann", "bo", "çelik"]


def test_no_time_at_all(tables: dict[str, pd.DataFrame], tmp_path: Path) -> None:
    del tables["log"]["when"]
    dataset = load_dataset(replace(SPEC, timestamp=None), data_dir=write(tables, tmp_path))
    assert dataset.timestamp is None
    assert dataset.context_columns == ("device",)


def test_a_missing_file(tables: dict[str, pd.DataFrame], tmp_path: Path) -> None:
    write(tables, tmp_path)
    with pytest.raises(DataMissing, match=r"items: .*thing\.parquet does not exist"):
        load_dataset(replace(SPEC, items="thing.parquet"), data_dir=tmp_path)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"user_id": "uid"}, r"users has no column 'uid'; it has user_id, age"),
        ({"item_id": "iid"}, r"items has no column 'iid'"),
        ({"timestamp": "time"}, r"interactions has no column 'time'"),
        ({"item_columns": (("price", "float"),)}, r"items has no column 'price'"),
    ],
)
def test_a_missing_column(
    tables: dict[str, pd.DataFrame], tmp_path: Path, change: dict[str, object], match: str
) -> None:
    with pytest.raises(DataMissing, match=match):
        load_dataset(replace(SPEC, **change), data_dir=write(tables, tmp_path))  # type: ignore[arg-type]


def test_another_type_than_the_schema_says(tables: dict[str, pd.DataFrame], tmp_path: Path) -> None:
    spec = replace(SPEC, item_columns=(("name", "int"),))
    with pytest.raises(
        DataCorrupt, match=r"items\.name: the recipe says int, the file holds (large_)?string"
    ):
        load_dataset(spec, data_dir=write(tables, tmp_path))


def test_a_type_that_there_is_not(tables: dict[str, pd.DataFrame], tmp_path: Path) -> None:
    spec = replace(SPEC, item_columns=(("name", "text"),))
    with pytest.raises(DataError, match=r"'text' is not a column type; use one of int, float"):
        load_dataset(spec, data_dir=write(tables, tmp_path))


@pytest.mark.parametrize(
    ("content", "remedy"),
    [
        (b"", "write it as Parquet"),
        (b"PAR1 this is not Parquet", "write it again"),
        (b"item_id,name\n1,one\n", r"write it as Parquet, such as a CSV file by pandas\.read_csv"),
    ],
)
def test_no_parquet(tables: dict[str, pd.DataFrame], tmp_path: Path, content: bytes, remedy: str) -> None:
    write(tables, tmp_path)
    (tmp_path / "items.parquet").write_bytes(content)
    with pytest.raises(DataCorrupt, match=f"items is not a readable Parquet file .*; {remedy}"):
        load_dataset(SPEC, data_dir=tmp_path)


def test_a_truncated_file(tables: dict[str, pd.DataFrame], tmp_path: Path) -> None:
    file = write(tables, tmp_path) / "log.parquet"
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(DataCorrupt, match="interactions is not a readable Parquet file"):
        load_dataset(SPEC, data_dir=tmp_path)


def test_ids_that_do_not_join(tables: dict[str, pd.DataFrame], tmp_path: Path) -> None:
    tables["log"].loc[2, "user_id"] = "zoe"
    with pytest.raises(DataCorrupt, match=r"1 interactions have a user_id that users does not have.*'zoe'"):
        load_dataset(SPEC, data_dir=write(tables, tmp_path))


def test_ids_of_two_types(tables: dict[str, pd.DataFrame], tmp_path: Path) -> None:
    tables["log"]["item_id"] = tables["log"]["item_id"].astype(str)
    with pytest.raises(DataCorrupt, match="item_id is int64 in items but string in interactions"):
        load_dataset(SPEC, data_dir=write(tables, tmp_path))


def test_repeated_ids(tables: dict[str, pd.DataFrame], tmp_path: Path) -> None:
    tables["items"].loc[1, "item_id"] = 7
    with pytest.raises(DataCorrupt, match=r"items\.item_id must be unique, but 7 is there more than once"):
        load_dataset(SPEC, data_dir=write(tables, tmp_path))


@pytest.mark.parametrize("taken", [-(2**63), "\0anonymous"])
def test_nobodys_id(tables: dict[str, pd.DataFrame], tmp_path: Path, taken: int | str) -> None:
    ids = {"ann": taken, "bo": 2, "çelik": 3} if isinstance(taken, int) else {"ann": taken}
    for table in ("users", "log"):
        tables[table]["user_id"] = [ids.get(user, user) for user in tables[table]["user_id"]]
    with pytest.raises(DataCorrupt, match=r"users\.user_id holds .*, which stands for whoever has no id"):
        load_dataset(SPEC, data_dir=write(tables, tmp_path))


@pytest.mark.parametrize("table", ["items", "log"])
@pytest.mark.parametrize("unit", ["D", "ms"])
def test_ids_that_are_dates(tables: dict[str, pd.DataFrame], tmp_path: Path, table: str, unit: str) -> None:
    days = pd.Timestamp("2024-05-01") + pd.to_timedelta(tables[table]["item_id"], "D")
    tables[table]["item_id"] = days.dt.date if unit == "D" else days
    where = "items" if table == "items" else "interactions"
    words = rf"{where}\.item_id holds dates or times, and an id is .* write the ids as text"
    with pytest.raises(DataCorrupt, match=words):
        load_dataset(SPEC, data_dir=write(tables, tmp_path))
    with pytest.raises(DataCorrupt, match=words):
        Dataset("mine", tables["users"], tables["items"], tables["log"], timestamp="when").check()


def test_null_ids(tables: dict[str, pd.DataFrame], tmp_path: Path) -> None:
    tables["log"].loc[0, "user_id"] = None
    with pytest.raises(DataCorrupt, match=r"interactions\.user_id has 1 null ids"):
        load_dataset(SPEC, data_dir=write(tables, tmp_path))


def test_ids_that_are_numbers_with_a_point(tables: dict[str, pd.DataFrame], tmp_path: Path) -> None:
    tables["items"]["item_id"] = tables["items"]["item_id"].astype(float)
    with pytest.raises(DataCorrupt, match="must hold 64-bit integers or strings, found float64"):
        load_dataset(SPEC, data_dir=write(tables, tmp_path))


@pytest.mark.parametrize("table", ["users", "items", "log"])
def test_an_empty_table(tables: dict[str, pd.DataFrame], tmp_path: Path, table: str) -> None:
    tables[table] = tables[table].iloc[:0]
    with pytest.raises(DataCorrupt, match="is empty"):
        load_dataset(SPEC, data_dir=write(tables, tmp_path))


def test_two_tables_with_a_column_of_one_name(tables: dict[str, pd.DataFrame], tmp_path: Path) -> None:
    tables["items"]["age"] = 1
    with pytest.raises(DataCorrupt, match="'age' is in users and in items; rename one"):
        load_dataset(SPEC, data_dir=write(tables, tmp_path))


def test_time_with_nulls(tables: dict[str, pd.DataFrame], tmp_path: Path) -> None:
    tables["log"].loc[0, "when"] = None
    with pytest.raises(DataCorrupt, match=r"interactions\.when must be dates or numbers without nulls"):
        load_dataset(SPEC, data_dir=write(tables, tmp_path))


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ([{"a": 1}] * 4, "expected one of integers"),
        ([["x"], [1], [], []], "the lists must hold one of|not a readable"),
        ([b"x"] * 4, "expected one of integers"),
    ],
)
def test_columns_of_types_that_nothing_stands_for(
    tables: dict[str, pd.DataFrame], values: list[object], match: str
) -> None:
    from tiercel_pipelines.data.plain import plain_frame

    with pytest.raises(DataCorrupt, match=match):
        plain_frame(tables["items"].assign(odd=pd.Series(values, dtype=object)), "items")


def test_dates_without_a_time_of_day(tables: dict[str, pd.DataFrame], tmp_path: Path) -> None:
    tables["items"]["added"] = tables["items"]["added"].dt.date
    dataset = load_dataset(SPEC, data_dir=write(tables, tmp_path))
    assert dataset.items.added[0] == 1_577_836_800


def test_a_column_without_any_value_is_what_the_recipe_says(
    tables: dict[str, pd.DataFrame], tmp_path: Path
) -> None:
    kinds = {"int": float, "float": float, "bool": float, "time": float, "string": object}
    kinds |= {f"list[{kind}]": object for kind in ("int", "float", "string")}
    tables["items"] = pd.DataFrame({"item_id": tables["items"]["item_id"], **dict.fromkeys(kinds)})
    spec = replace(SPEC, item_columns=tuple((kind, kind) for kind in kinds))
    items = load_dataset(spec, data_dir=write(tables, tmp_path)).items
    for kind, dtype in kinds.items():
        assert items[kind].dtype == dtype
        assert items[kind].map(lambda value: value == [] or pd.isna(value)).all()


def test_a_time_that_is_not_finite(tables: dict[str, pd.DataFrame], tmp_path: Path) -> None:
    tables["log"]["when"] = [1.0, float("inf"), 3.0, 4.0]
    with pytest.raises(DataCorrupt, match=r"interactions\.when must be dates or finite numbers, found inf"):
        load_dataset(SPEC, data_dir=write(tables, tmp_path))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"users": Path("users.parquet")}, r"Parquet\.users: expected text, got PosixPath"),
        ({"user_id": None}, r"Parquet\.user_id: expected text, got None"),
        ({"item_columns": ("tags",)}, r"Parquet\.item_columns\[0\]: expected \(text, text\), got 'tags'"),
        (
            {"item_columns": {"tags": "list[string]"}},
            r"Parquet\.item_columns: expected a tuple of \(text, text\) or None, got \{",
        ),
    ],
)
def test_a_field_of_another_type(tmp_path: Path, change: dict[str, object], match: str) -> None:
    with pytest.raises(DataError, match=match):
        load_dataset(replace(SPEC, **change), data_dir=tmp_path)  # type: ignore[arg-type]


def test_loading_tells_how_far_it_is(tables: dict[str, pd.DataFrame], tmp_path: Path) -> None:
    told: list[tuple[str, int, int | None]] = []
    load_dataset(SPEC, data_dir=write(tables, tmp_path), progress=lambda *said: told.append(said))
    for table, rows in (("users", 3), ("items", 4), ("interactions", 4)):
        own = [done for what, done, total in told if (what, total) == (f"loading {table}", rows)]
        assert own == sorted(own)
        assert own[-1] == rows
