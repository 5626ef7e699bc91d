"""MovieLens as GroupLens writes it, in each of its forms: ratings, items, and mostly users.

=====  ==========================  ============================================
form   of                          files
=====  ==========================  ============================================
100K   MovieLens-100K              ``u.data``, ``u.item``, ``u.genre``, ``u.user``
1M     MovieLens-1M, -10M          ``ratings.dat``, ``movies.dat``, ``users.dat``
CSV    -20M, -25M, -32M, -latest   ``ratings.csv``, ``movies.csv``
=====  ==========================  ============================================
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from tiercel_serving.machine import fault_of

from ..errors import DataCorrupt, DataMissing
from .dataset import Dataset
from .places import STARTS, find_data
from .specs import MovieLens

_RATINGS = ("user_id", "item_id", "rating", "timestamp")
_NO_GENRES = "(no genres listed)"


@dataclass(frozen=True)
class Form:
    """One way to write the three tables.

    Parameters
    ----------
    files
        Names of the files of ratings and items, and what else must be there.
    read_ratings, read_items
        From the file to the table.
    users, read_users
        The same of users; without such a file they are whoever rated, and have no features.
    """

    files: tuple[str, ...]
    read_ratings: Callable[[Path], pd.DataFrame]
    read_items: Callable[[Path], pd.DataFrame]
    users: str | None = None
    read_users: Callable[[Path], pd.DataFrame] | None = None


def load_movielens(spec: MovieLens, *, data_dir: str | Path | None = None) -> Dataset:
    """Read a folder in any of the forms; where a relative path starts, :func:`~.places.find_data` says.

    Raises
    ------
    DataMissing
        There is no such folder, or it holds no form whole.
    DataCorrupt
        A file is not what its form says; the message names the line where it can.
    """
    folder = find_data(spec.path, data_dir)
    if not folder.is_dir():
        raise DataMissing(
            f"{spec.name}: {folder.absolute()}: expected a folder, found none; correct `path` in the "
            f"recipe's data set ({STARTS})"
        )
    return read_movielens(folder, spec.name)


def read_movielens(folder: Path, name: str) -> Dataset:
    """Read the tables of a folder, in the form whose ratings it holds."""
    form = next((form for form in FORMS if (folder / form.files[0]).is_file()), None)
    if form is None:
        wanted = " or ".join(form.files[0] for form in FORMS)
        raise DataMissing(
            f"{name}: {folder}: expected {wanted}, found none of them; unpack the data set there"
        )
    for file in form.files:
        if not (folder / file).is_file():
            raise DataMissing(f"{name}: {folder / file}: missing beside {form.files[0]}; put it there")
    ratings = form.read_ratings(folder / form.files[0])
    items = form.read_items(folder / form.files[1])
    if form.users and form.read_users and (folder / form.users).is_file():
        users = form.read_users(folder / form.users)
    else:
        users = pd.DataFrame({"user_id": np.unique(ratings["user_id"])})
    return Dataset(name, users, items, ratings, source=str(folder)).check()


def _unread(error: OSError, path: Path) -> Exception:
    return fault_of(error, path, "reading ratings") or DataCorrupt(f"{path}: {error}")


def _text(path: Path) -> str:
    """Return a file's text: UTF-8 where it is that, else Latin-1, as the older sets are."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _unread(error, path) from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("latin-1")


def _table(path: Path, separator: str, names: Sequence[str], free: str | None = None) -> pd.DataFrame:
    """Return a file's fields as text; the column ``free`` may hold the separator itself."""
    rows = []
    before = 0 if free is None else list(names).index(free)
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        fields = line.rstrip("\r").split(separator)
        if free is not None and len(fields) > len(names):
            after = len(fields) - (len(names) - before - 1)
            fields = [*fields[:before], separator.join(fields[before:after]), *fields[after:]]
        if len(fields) != len(names):
            raise DataCorrupt(
                f"{path}, line {number}: expected {len(names)} fields between {separator!r}, found "
                f"{len(fields)}; correct the line"
            )
        rows.append(fields)
    return pd.DataFrame(rows, columns=list(names), dtype=object)


def _integers(path: Path, column: pd.Series) -> pd.Series:
    """Return a column of text as integers, as floats if some have none."""
    numbers = pd.to_numeric(column.str.strip().replace("", None), errors="coerce")
    strange = column[numbers.isna() & (column.str.strip() != "")]
    if len(strange):
        raise DataCorrupt(
            f"{path}: {column.name}: expected an integer, found {strange.iloc[0]!r}; correct it"
        )
    return numbers


def _read_ratings(path: Path, separator: str, *, header: int | None = None) -> pd.DataFrame:
    """Return user, item, rating and time of each line: the one large file, so by pandas' fast reader."""
    # That takes separators of one character: between the two of ``::`` lies an empty column.
    names = [str(place) for place in range(len(separator) * (len(_RATINGS) - 1) + 1)]
    wanted = dict(zip(names[:: len(separator)], _RATINGS, strict=True))
    whole = {name: np.int64 for name, column in wanted.items() if column != "rating"}
    try:
        frame = pd.read_csv(path, sep=separator[0], names=names, header=header, dtype=whole)
        # What stands before as many columns pandas takes for an index.
        if not isinstance(frame.index, pd.RangeIndex):
            raise ValueError(f"{len(_RATINGS) + frame.index.nlevels // len(separator)} fields")
    except OSError as error:
        raise _unread(error, path) from error
    except ValueError as error:
        raise DataCorrupt(
            f"{path}: expected user, item, rating and time in each line, all of them numbers ({error}); "
            "correct the file"
        ) from error
    ratings = frame[list(wanted)].rename(columns=wanted)
    if ratings["rating"].dtype == object or frame.drop(columns=list(wanted)).notna().any(axis=None):
        raise DataCorrupt(
            f"{path}: expected user, item, rating and time in each line, all of them numbers, with "
            f"{separator!r} between them; correct the file"
        )
    return ratings


def _with_years(items: pd.DataFrame) -> pd.DataFrame:
    """Return items with the year that stands behind the title."""
    title = items["title"].str.strip()
    year = title.str.extract(r"\((\d{4})\)\s*$", expand=False).astype(np.float64)
    return items.assign(title=title, year=year)


def _people(path: Path, separator: str, names: Sequence[str]) -> pd.DataFrame:
    """Return users."""
    frame = _table(path, separator, names)
    numbers = {name: _integers(path, frame[name]) for name in ("user_id", "age")}
    # The first digit of a US zip code is a group of states; Canadian codes begin with a letter.
    return frame.assign(**numbers, zip_prefix=frame["zip_code"].str[:1])


def _users_100k(path: Path) -> pd.DataFrame:
    return _people(path, "|", ["user_id", "age", "gender", "occupation", "zip_code"])


def _items_100k(path: Path) -> pd.DataFrame:
    kinds = _table(path.with_name("u.genre"), "|", ["genre", "code"])
    genres = kinds.assign(code=_integers(path, kinds["code"])).sort_values("code")["genre"].tolist()
    # The video release date is empty in every row as published, and the IMDb links are long dead.
    names = ["item_id", "title", "release_date", "video_date", "imdb_url", *map(_flag, genres)]
    frame = _table(path, "|", names, free="title")
    try:
        released = pd.to_datetime(frame["release_date"].replace("", None), format="%d-%b-%Y")
    except ValueError as error:
        raise DataCorrupt(f"{path}: release date: {error}; write it as 01-Jan-1995") from error
    has = (frame[[_flag(genre) for genre in genres]] == "1").to_numpy()
    named = np.array(genres, dtype=object)
    items = _with_years(frame[["item_id", "title"]].assign(item_id=_integers(path, frame["item_id"])))
    return items.assign(
        # The title's year is the film's; the release date may be that of a re-release.
        year=items["year"].fillna(released.dt.year.astype(np.float64)),
        released=released,
        genres=[named[row].tolist() for row in has],
    )


def _flag(genre: str) -> str:
    """Return the column that says whether a film is of a genre: one may be called ``title``."""
    return f"genre {genre}"


def _users_1m(path: Path) -> pd.DataFrame:
    return _people(path, "::", ["user_id", "gender", "age", "occupation", "zip_code"])


def _items_1m(path: Path) -> pd.DataFrame:
    return _with_genres(path, _table(path, "::", ["item_id", "title", "genres"], free="title"))


def _with_genres(path: Path, items: pd.DataFrame) -> pd.DataFrame:
    genres = items["genres"].map(lambda text: [g for g in text.split("|") if g and g != _NO_GENRES])
    return _with_years(items.assign(item_id=_integers(path, items["item_id"]), genres=genres))


def _items_csv(path: Path) -> pd.DataFrame:
    rows = list(csv.reader(io.StringIO(_text(path), newline="")))[1:]
    wrong = next((row for row in rows if len(row) != 3), None)
    if wrong is not None:
        raise DataCorrupt(f"{path}: expected movieId, title and genres, found {wrong}; correct the line")
    return _with_genres(path, pd.DataFrame(rows, columns=["item_id", "title", "genres"], dtype=object))


#: The first whose ratings are there is read.
FORMS = (
    Form(
        files=("u.data", "u.item", "u.genre"),
        read_ratings=lambda path: _read_ratings(path, "\t"),
        read_items=_items_100k,
        users="u.user",
        read_users=_users_100k,
    ),
    Form(
        files=("ratings.dat", "movies.dat"),
        read_ratings=lambda path: _read_ratings(path, "::"),
        read_items=_items_1m,
        users="users.dat",
        read_users=_users_1m,
    ),
    Form(
        files=("ratings.csv", "movies.csv"),
        read_ratings=lambda path: _read_ratings(path, ",", header=0),
        read_items=_items_csv,
    ),
)
