"""What a recipe says about its data: one small struct for each kind of data set."""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

from tiercel_serving.mistyped import mistyped
from tiercel_serving.problems import COUNT, SEED, Problem, out_of_range


class _Spec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag=True):
    """What the specs have in common: written down, each says its kind."""

    def problems(self) -> list[Problem]:
        """Return fields of another type."""
        return list(mistyped(self))


class MovieLens100K(_Spec, frozen=True):
    """MovieLens-100K: 943 users, 1,682 films, 100,000 ratings from 1997 and 1998.

    Looked for in ``data_dir``, ``$TIERCEL_DATA_DIR`` and ``./data`` (a folder ``ml-100k`` in one of
    them), else downloaded from GroupLens. Users have ``age``, ``gender``, ``occupation``, ``zip_code``
    and ``zip_prefix``; items ``title``, ``year``, ``released`` and ``genres``; interactions ``rating``.
    """


class MovieLens(_Spec, frozen=True):
    """Another MovieLens, or data of your own in a form of GroupLens': 100K's, 1M's and 10M's, or CSV.

    Columns are called as those of :class:`MovieLens100K`. Only 100K's form has ``released``, and without a
    file of users (10M, CSV) they have no features.

    Parameters
    ----------
    path
        The folder. Where a relative path starts, :class:`Parquet` says.
    name
        What the data set is called.
    """

    path: str
    name: str = "movielens"


class Synthetic(_Spec, frozen=True):
    """Made-up data with real structure: tastes, genres, popularity, and every type of column.

    The same arguments give the same data on every machine.

    Parameters
    ----------
    users, items
        How many of each.
    interactions
        About how many interactions; nobody has one item twice.
    ids
        ``int`` (gaps between them, so that an id is never a row by chance) or ``str`` (with letters
        outside ASCII).
    seed
        Another seed, another data set.
    """

    users: int = 600
    items: int = 400
    interactions: int = 24_000
    ids: Literal["int", "str"] = "int"
    seed: int = 7

    def problems(self) -> list[Problem]:
        """Return fields of another type, and numbers of nothing."""
        ranges = {**dict.fromkeys(("users", "items", "interactions"), COUNT), "seed": SEED}
        return super().problems() or list(out_of_range(self, ranges))


class Parquet(_Spec, frozen=True):
    """Your own three tables.

    Parameters
    ----------
    users, items, interactions
        Paths of Parquet files (or folders of them). A relative path starts at ``data_dir``; without one,
        at the first of ``$TIERCEL_DATA_DIR``, ``./data`` and the current directory that has it.
    user_id, item_id
        The id columns: 64-bit integers or strings, the same type in both tables that have them.
    timestamp
        The column of ``interactions`` with the time, as dates or as seconds; None if there is none.
    user_columns, item_columns, context_columns
        The columns to read from ``users``, ``items`` and ``interactions`` besides ids and time, each
        with its type (``int``, ``float``, ``bool``, ``string``, ``time``, ``list[int]``,
        ``list[float]`` or ``list[string]``); None reads all as they are.
    name
        What the data set is called.
    """

    users: str
    items: str
    interactions: str
    user_id: str = "user_id"
    item_id: str = "item_id"
    timestamp: str | None = "timestamp"
    user_columns: tuple[tuple[str, str], ...] | None = None
    item_columns: tuple[tuple[str, str], ...] | None = None
    context_columns: tuple[tuple[str, str], ...] | None = None
    name: str = "parquet"


class Sequences(_Spec, frozen=True):
    """A text file with a line for each user: the user's id, then item ids in the order of time.

    Or with a line for each pair of user and item: if every line has two words, it is that. The order of a
    user's lines is that of time then, and users may alternate.

    There is no time but that order: interactions have a column ``place``, which is their timestamp.

    Parameters
    ----------
    path
        The file. Where a relative path starts, :class:`Parquet` says.
    name
        What the data set is called.
    """

    path: str
    name: str = "sequences"


#: What :func:`~tiercel_pipelines.data.load_dataset` takes.
DatasetSpec: TypeAlias = MovieLens100K | MovieLens | Synthetic | Parquet | Sequences
