"""MovieLens in each of the forms that GroupLens publishes: ratings, items, and in most of them users.

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

from tiercel_serving.kinds import Settings
from tiercel_serving.machine_faults import fault_of

from ..errors import DataCorrupt, DataMissing
from .dataset import Dataset, Progress
from .places import STARTS, find_data

_RATINGS = ("user_id", "item_id", "rating", "timestamp")
_NO_GENRES = "(no genres listed)"


class MovieLens(Settings, frozen=True, tag="MovieLens"):
    """Another MovieLens, or your own data in a form of GroupLens: that of 100K, of 1M and 10M, or CSV.

    Columns have the names of :class:`MovieLens100K`. Only the form of 100K has ``released``, and without a
    file of users (10M, CSV) users have no features.

    Parameters
    ----------
    path
        The folder; :class:`Parquet` describes where a relative path starts.
    name
        Name of the data set.
    """

    path: str
    name: str = "movielens"

    def load(self, data_dir: str | Path | None, progress: Progress | None) -> Dataset:
        """Read the folder in the form of its file of ratings.

        Raises
        ------
        DataMissing
            There is no such folder, or no form is complete in it.
        DataCorrupt
            A file is not what its form says; the message names the line where it can.
        """
        folder = find_data(self.path, data_dir)
        if not folder.is_dir():
            raise DataMissing(
                f"{self.name}: {folder.absolute()}: expected a folder, found none; correct `path` in the "
                f"recipe's data set ({STARTS})"
            )
        return read_movielens(folder, self.name)


@dataclass(frozen=True)
class Table:
    """A file of a form, and the function that reads it."""

    file: str
    read: Callable[[Path], pd.DataFrame]


@dataclass(frozen=True)
class Form:
    """One way to write the three tables.

    Parameters
    ----------
    ratings, items
        Their files.
    users
        The file of users; without it, users are those who rated, and have no features.
    beside
        Other files that must exist.
    """

    ratings: Table
    items: Table
    users: Table | None = None
    beside: tuple[str, ...] = ()


def read_movielens(folder: Path, name: str) -> Dataset:
    """Read the tables of a folder, in the form of its file of ratings."""
    form = next((form for form in FORMS if (folder / form.ratings.file).is_file()), None)
    if form is None:
        wanted = " or ".join(form.ratings.file for form in FORMS)
        raise DataMissing(
            f"{name}: {folder}: expected {wanted}, found none of them; unpack the data set there"
        )
    for file in (form.items.file, *form.beside):
        if not (folder / file).is_file():
            raise DataMissing(f"{name}: {folder / file}: missing beside {form.ratings.file}; put it there")
    ratings, items = (table.read(folder / table.file) for table in (form.ratings, form.items))
    if form.users is not None and (folder / form.users.file).is_file():
        users = form.users.read(folder / form.users.file)
    else:
        users = pd.DataFrame({"user_id": np.unique(ratings["user_id"])})
    return Dataset(name, users, items, ratings, source=str(folder)).check()


def _unread(error: OSError, path: Path) -> Exception:
    return fault_of(error, path, "reading ratings") or DataCorrupt(f"{path}: {error}")


def _text(path: Path) -> str:
    """Return a file's text: UTF-8 if it is valid, else Latin-1, as in the older sets."""
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
    """Return a column of text as integers, or as floats if some values are empty."""
    numbers = pd.to_numeric(column.str.strip().replace("", None), errors="coerce")
    strange = column[numbers.isna() & (column.str.strip() != "")]
    if len(strange):
        raise DataCorrupt(
            f"{path}: {column.name}: expected an integer, found {strange.iloc[0]!r}; correct it"
        )
    return numbers


def _read_ratings(path: Path, separator: str, *, header: int | None = None) -> pd.DataFrame:
    """Return user, item, rating and time of each line, with pandas' fast reader, as the file is large."""
    # The reader takes separators of one character: between the two of ``::`` is an empty column.
    names = [str(place) for place in range(len(separator) * (len(_RATINGS) - 1) + 1)]
    wanted = dict(zip(names[:: len(separator)], _RATINGS, strict=True))
    whole = {name: np.int64 for name, column in wanted.items() if column != "rating"}
    try:
        frame = pd.read_csv(path, sep=separator[0], names=names, header=header, dtype=whole)
        # pandas takes surplus columns at the start of a line for an index.
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
    """Return items with the year at the end of the title as a column."""
    title = items["title"].str.strip()
    year = title.str.extract(r"\((\d{4})\)\s*$", expand=False).astype(np.float64)
    return items.assign(title=title, year=year)


def _people(path: Path, separator: str, names: Sequence[str]) -> pd.DataFrame:
    """Return the users of a file."""
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
    """Return the name of a genre's column, prefixed since a genre may be called ``title``."""
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


#: The first form whose file of ratings exists is read.
FORMS = (
    Form(
        ratings=Table("u.data", lambda path: _read_ratings(path, "\t")),
        items=Table("u.item", _items_100k),
        users=Table("u.user", _users_100k),
        beside=("u.genre",),
    ),
    Form(
        ratings=Table("ratings.dat", lambda path: _read_ratings(path, "::")),
        items=Table("movies.dat", _items_1m),
        users=Table("users.dat", _users_1m),
    ),
    Form(
        ratings=Table("ratings.csv", lambda path: _read_ratings(path, ",", header=0)),
        items=Table("movies.csv", _items_csv),
    ),
)
