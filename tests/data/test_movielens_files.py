"""MovieLens in each of GroupLens' formats: equal tables from all, and clear errors for other files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from tiercel_pipelines.data import MovieLens, load_dataset
from tiercel_pipelines.errors import DataCorrupt, DataMissing

#: Ids with gaps, equal times, a user and an item without ratings; quotes, commas and separators in titles.
TITLES = {3: '"Q", the | film :: é (1995)', 8: "8 1/2 (1963)", 900: "unknown"}
RATINGS = ((5, 3, 4, 100), (5, 8, 2, 100), (70, 3, 5, 100))

HUNDRED = {
    "u.data": "".join("\t".join(map(str, row)) + "\n" for row in RATINGS),
    "u.user": "5|24|M|diver|85711\n70||F|other|V3N4P\n71|53|F|none|\n",
    "u.item": (
        f"3|{TITLES[3]}|01-Jan-1995||http://x|0|1|1\n8|{TITLES[8]}|01-Jan-1999|||0|0|1\n"
        f"900|{TITLES[900]}|01-Mar-1996|||0|0|0\n"
    ),
    "u.genre": "title|0\nNoir|1\nComedy|2\n\n",
}
MILLION = {
    "ratings.dat": "".join("::".join(map(str, row)) + "\n" for row in RATINGS),
    "users.dat": "5::M::24::diver::85711\n70::F::::other::V3N4P\n71::F::53::none::\n",
    "movies.dat": (
        f"3::{TITLES[3]}::Noir|Comedy\n8::{TITLES[8]}::Comedy\n900::{TITLES[900]}::(no genres listed)\n"
    ),
}
TABLES = {
    "ratings.csv": "userId,movieId,rating,timestamp\n"
    + "".join(",".join(map(str, r)) + "\n" for r in RATINGS),
    "movies.csv": (
        'movieId,title,genres\n3,"""Q"", the | film :: é (1995)",Noir|Comedy\n8,8 1/2 (1963),Comedy\n'
        "900,unknown,(no genres listed)\n"
    ),
}


def write(folder: Path, files: Mapping[str, str], encoding: str = "utf-8") -> Path:
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / name).write_bytes(text.encode(encoding))
    return folder


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
@pytest.mark.parametrize("files", [HUNDRED, MILLION, TABLES], ids=["100k", "1m", "csv"])
def test_every_form_gives_the_same_tables(tmp_path: Path, files: Mapping[str, str], encoding: str) -> None:
    write(tmp_path / "films", files, encoding)
    dataset = load_dataset(MovieLens("films", name="mine"), data_dir=tmp_path)
    assert (dataset.name, dataset.timestamp, dataset.context_columns) == ("mine", "timestamp", ("rating",))
    names = ["user_id", "item_id", "rating", "timestamp"]
    assert [tuple(row) for row in dataset.interactions[names].to_numpy().tolist()] == list(RATINGS)
    items = dataset.items.set_index("item_id")
    assert items.title.to_dict() == TITLES
    assert items.genres.tolist() == [["Noir", "Comedy"], ["Comedy"], []]
    # The year comes from the title, or else from the release date.
    assert items.year.fillna(0).tolist() == [1995, 1963, 1996 if "u.item" in files else 0]
    if files is TABLES:
        assert dataset.users.to_dict("list") == {"user_id": [5, 70]}
        return
    users = dataset.users.set_index("user_id")
    np.testing.assert_array_equal(users.age, [24, np.nan, 53])
    assert users.gender.tolist() == ["M", "F", "F"]
    assert users.occupation.tolist() == ["diver", "other", "none"]
    assert users.zip_prefix.tolist() == ["8", "V", ""]


@pytest.mark.parametrize(
    ("files", "name", "text", "message"),
    [
        (MILLION, "movies.dat", "3::No genres\n", "line 1: expected 3 fields between '::', found 2"),
        (MILLION, "users.dat", "5::M::old::1::2\n", "users.dat: age: expected an integer, found 'old'"),
        (MILLION, "ratings.dat", "5::3::4\n", "ratings.dat: expected user, item, rating and time"),
        (MILLION, "ratings.dat", "5::3::4::100::9\n", r"ratings.dat: expected user, .* \(5 fields\)"),
        (MILLION, "ratings.dat", "5::3::good::100\n", "ratings.dat: expected user, item, rating and time"),
        (MILLION, "ratings.dat", "5::3:4:4::100\n", "ratings.dat: expected .* with '::' between them"),
        (MILLION, "movies.dat", "3::A::Noir\n", "item_id that items does not have, such as 8"),
        (TABLES, "movies.csv", "movieId,title,genres\n3,A, B,Noir\n", "movies.csv: expected movieId, title"),
        (HUNDRED, "u.item", "3|A|96/3/1|||0|1|1\n", "u.item: release date: .*96/3/1"),
    ],
)  # fmt: skip
def test_what_is_not_of_the_form_is_told(
    tmp_path: Path, files: Mapping[str, str], name: str, text: str, message: str
) -> None:
    write(tmp_path / "films", {**files, name: text})
    with pytest.raises(DataCorrupt, match=message):
        load_dataset(MovieLens("films"), data_dir=tmp_path)


def test_a_folder_that_is_missing_or_holds_half_a_form(tmp_path: Path) -> None:
    with pytest.raises(DataMissing, match="films: expected a folder, found none; correct `path`"):
        load_dataset(MovieLens("films"), data_dir=tmp_path)
    write(tmp_path / "films", {"movies.dat": ""})
    with pytest.raises(DataMissing, match=r"expected u\.data or ratings\.dat or ratings\.csv, found none"):
        load_dataset(MovieLens("films"), data_dir=tmp_path)
    write(tmp_path / "films", {"u.data": "", "u.item": ""})
    with pytest.raises(DataMissing, match=r"u\.genre: missing beside u\.data"):
        load_dataset(MovieLens("films"), data_dir=tmp_path)
