"""MovieLens-100K: the real one where available, and a tiny one in the same format for errors."""

import hashlib
import io
import shutil
import zipfile
from pathlib import Path

import httpx
import numpy as np
import pytest

from tiercel_pipelines.data import Dataset, MovieLens100K, load_dataset, movielens_100k
from tiercel_pipelines.errors import DataCorrupt, DataMissing

RATINGS = "".join(f"{user}\t{item}\t{item}\t{880000000 + item}\n" for user in (1, 2, 3) for item in (1, 2, 3))
USERS = "1|24|M|technician|85711\n2|53|F|other|V3N4P\n3|23|M|writer|32067\n"
ITEMS = (
    "1|Toy Story (1995)|01-Jan-1995||http://x|0|1|1\n"
    "2|Misérables, Les (1995)|01-Mar-1996||http://x|0|0|1\n"
    "3|unknown||||1|0|0\n"
    "4|8 1/2 (1963)|01-Jan-1963||http://x|0|0|0\n"
)
GENRES = "unknown|0\nAction|1\nComedy|2\n\n"


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with a tiny ml-100k, which passes the checks as the whole one."""
    folder = tmp_path / "found" / "ml-100k"
    folder.mkdir(parents=True)
    for name, text in (("u.data", RATINGS), ("u.user", USERS), ("u.item", ITEMS), ("u.genre", GENRES)):
        (folder / name).write_text(text, encoding="latin-1")
    (folder / "README").write_text("about")
    monkeypatch.setattr(movielens_100k, "RATINGS_MD5", hashlib.md5(RATINGS.encode()).hexdigest())
    monkeypatch.setattr(movielens_100k, "RATINGS_BYTES", len(RATINGS))
    monkeypatch.setattr(movielens_100k, "ROWS", {"u.user": 3, "u.item": 4, "u.data": 9})
    monkeypatch.delenv("TIERCEL_DATA_DIR", raising=False)
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    return folder


def archive_of(folder: Path) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in folder.iterdir():
            archive.write(file, f"ml-100k/{file.name}")
    return buffer.getvalue()


def answering(status: int, content: bytes) -> httpx.MockTransport:
    return httpx.MockTransport(lambda request: httpx.Response(status, content=content))


def no_network(request: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("no network", request=request)


def test_the_real_data_set(ml_100k: Dataset) -> None:
    assert len(ml_100k.users) == 943
    assert len(ml_100k.items) == 1682
    assert len(ml_100k.interactions) == 100_000
    items = ml_100k.items.set_index("item_id")
    assert items.title[1] == "Toy Story (1995)"
    assert items.genres[1] == ["Animation", "Children's", "Comedy"]
    assert items.year[1] == 1995
    assert items.title[543] == "Misérables, Les (1995)"
    assert items.index[items.year.isna()].tolist() == [267]
    assert items.title[267] == "unknown"
    assert items.released[1] == 788_918_400
    assert ml_100k.users.zip_code.map(len).min() == 5
    assert ml_100k.context_columns == ("rating",)


def test_reads_latin_1_years_genres_and_dates(tiny: Path) -> None:
    dataset = load_dataset(MovieLens100K(), data_dir=tiny.parent)
    items = dataset.items.set_index("item_id")
    assert items.title[2] == "Misérables, Les (1995)"
    # The title's year wins over that of the release.
    assert items.year[2] == 1995
    assert np.isnan(items.year[3])
    assert np.isnan(items.released[3])
    assert items.released[4] < 0
    assert items.genres.tolist() == [["Action", "Comedy"], ["Comedy"], ["unknown"], []]
    assert dataset.users.zip_prefix.tolist() == ["8", "V", "3"]
    assert dataset.source == str(tiny)


def test_is_found_by_the_variable_and_in_the_current_directory(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert movielens_100k.find_ml_100k() is None
    monkeypatch.setenv("TIERCEL_DATA_DIR", str(tiny.parent))
    assert movielens_100k.find_ml_100k() == tiny
    monkeypatch.delenv("TIERCEL_DATA_DIR")
    shutil.copytree(tiny, Path("data/ml-100k"))
    assert movielens_100k.find_ml_100k() == Path("data/ml-100k")
    assert len(load_dataset(MovieLens100K()).interactions) == 9


def test_is_downloaded_with_progress_and_appears_whole(tiny: Path, tmp_path: Path) -> None:
    content = archive_of(tiny)
    told: list[tuple[str, int, int | None]] = []
    target = tmp_path / "new"
    dataset = movielens_100k.load_ml_100k(
        data_dir=target, progress=lambda *args: told.append(args), transport=answering(200, content)
    )
    assert len(dataset.interactions) == 9
    assert told[-1] == ("downloading ml-100k.zip", len(content), len(content))
    assert [path.name for path in target.iterdir()] == ["ml-100k"]
    # The second time it is found without the network.
    again = movielens_100k.load_ml_100k(data_dir=target, transport=httpx.MockTransport(no_network))
    assert len(again.interactions) == 9


@pytest.mark.parametrize(
    "transport", [httpx.MockTransport(no_network), answering(404, b""), answering(500, b"oops")]
)
def test_no_download_says_where_it_looked_and_what_to_do(
    tiny: Path, tmp_path: Path, transport: httpx.MockTransport
) -> None:
    target = tmp_path / "new"
    with pytest.raises(DataMissing) as caught:
        movielens_100k.load_ml_100k(data_dir=target, transport=transport)
    message = str(caught.value)
    assert str(target / "ml-100k") in message
    assert "TIERCEL_DATA_DIR" in message
    assert "synthetic" in message
    assert list(target.iterdir()) == []


def test_a_folder_that_cannot_be_made(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataMissing, match="could not be downloaded"):
        movielens_100k.load_ml_100k(data_dir=tmp_path / "file", transport=answering(200, archive_of(tiny)))


@pytest.mark.parametrize("share", [0.0, 0.5, 0.95])
def test_a_download_cut_off_leaves_nothing(tiny: Path, tmp_path: Path, share: float) -> None:
    content = archive_of(tiny)
    target = tmp_path / "new"
    with pytest.raises(DataCorrupt, match="cut off"):
        movielens_100k.load_ml_100k(
            data_dir=target, transport=answering(200, content[: int(len(content) * share)])
        )
    assert list(target.iterdir()) == []


def test_a_download_with_other_ratings_leaves_nothing(tiny: Path, tmp_path: Path) -> None:
    changed = tmp_path / "changed"
    shutil.copytree(tiny, changed)
    (changed / "u.data").write_text(RATINGS.replace("880000001", "880000009"))
    with pytest.raises(DataCorrupt, match="MD5"):
        movielens_100k.load_ml_100k(data_dir=tmp_path / "new", transport=answering(200, archive_of(changed)))
    assert list((tmp_path / "new").iterdir()) == []


def test_an_interrupted_download_leaves_nothing(tiny: Path, tmp_path: Path) -> None:
    def interrupt(what: str, done: int, total: int | None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        movielens_100k.load_ml_100k(
            data_dir=tmp_path / "new", progress=interrupt, transport=answering(200, archive_of(tiny))
        )
    assert list((tmp_path / "new").iterdir()) == []


def test_truncated_ratings(tiny: Path) -> None:
    (tiny / "u.data").write_text(RATINGS[:-20])
    with pytest.raises(DataCorrupt, match=r"u\.data: truncated: expected \d+ bytes, found \d+; delete"):
        load_dataset(MovieLens100K(), data_dir=tiny.parent)


def test_one_changed_byte(tiny: Path) -> None:
    (tiny / "u.data").write_text(RATINGS.replace("880000001", "880000009", 1))
    with pytest.raises(DataCorrupt, match=r"expected the MD5 .*, found"):
        load_dataset(MovieLens100K(), data_dir=tiny.parent)


@pytest.mark.parametrize("name", ["u.user", "u.item"])
def test_truncated_tables(tiny: Path, name: str) -> None:
    text = (tiny / name).read_text(encoding="latin-1")
    (tiny / name).write_text(text[: text.rstrip().rindex("\n")], encoding="latin-1")
    with pytest.raises(DataCorrupt, match=rf"{name}: truncated: expected \d rows, found \d"):
        load_dataset(MovieLens100K(), data_dir=tiny.parent)


def test_a_missing_file(tiny: Path) -> None:
    (tiny / "u.item").unlink()
    with pytest.raises(DataMissing, match=r"u\.item: missing .* delete"):
        load_dataset(MovieLens100K(), data_dir=tiny.parent)


def test_a_garbled_table_is_no_stack_trace(tiny: Path) -> None:
    (tiny / "u.item").write_text(ITEMS.replace("01-Mar-1996", "96/3/1"), encoding="latin-1")
    with pytest.raises(DataCorrupt, match="cannot be read"):
        load_dataset(MovieLens100K(), data_dir=tiny.parent)
