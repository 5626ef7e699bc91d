"""Tables that serving gathers from: items, users, histories, popularity.

Their layout is written down in :mod:`tiercel_serving.tables.store`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from tiercel_serving.columns import Column, flat_ranges, with_null_row
from tiercel_serving.lookups.lookup import build_lookup
from tiercel_serving.spec import Array
from tiercel_serving.tables.column_store import store_column
from tiercel_serving.tables.store import ITEM_IDS, ITEM_LOOKUP, USER_LOOKUP, raw_prefix

Rows = npt.NDArray[np.int64]


def item_arrays(
    ids: Array, raw: Mapping[str, Column], packed: Mapping[str, Array], popularity: Array
) -> dict[str, Array]:
    """Lay out the artefact ``items``.

    Parameters
    ----------
    ids
        ``[I]`` raw ids, int64 or ``bytes`` objects, in catalogue order.
    raw
        Raw columns ``[I]`` that rules, titles or a later check read.
    packed
        Model-ready tensors ``[I, …]``; they get the pad row of zeros here.
    popularity
        ``[I]`` how many interactions each item has.
    """
    arrays: dict[str, Array] = dict(build_lookup(ids, ITEM_LOOKUP))
    arrays.update(store_column(Column(ids), ITEM_IDS))
    for name, column in raw.items():
        arrays.update(store_column(with_null_row(column), raw_prefix(name)))
    for name, table in packed.items():
        arrays[name] = np.concatenate([table, np.zeros((1, *table.shape[1:]), table.dtype)])
    arrays["popular_rows"], arrays["popular_scores"] = popular_list(popularity)
    return arrays


def popular_list(counts: Array) -> tuple[Rows, npt.NDArray[np.float32]]:
    """Return item rows by (count descending, row ascending), and count ÷ largest count for each."""
    order = np.argsort(-counts, kind="stable").astype(np.int64)
    highest = max(int(counts.max(initial=0)), 1)
    return order, (counts[order] / highest).astype(np.float32)


def user_arrays(
    ids: Array,
    raw: Mapping[str, Column],
    packed: Mapping[str, Array],
    users: Rows,
    items: Rows,
) -> dict[str, Array]:
    """Lay out the artefact ``users``.

    Parameters
    ----------
    ids
        ``[U]`` raw ids, int64 or ``bytes`` objects.
    raw
        Raw columns ``[U + 1]``, the last row null.
    packed
        Model-ready tensors ``[U + 1, …]``.
    users, items
        ``[n]`` rows of the interactions, in order of time; other users' are left out (-1).
    """
    arrays: dict[str, Array] = dict(build_lookup(ids, USER_LOOKUP))
    for name, column in raw.items():
        arrays.update(store_column(column, raw_prefix(name)))
    arrays.update(packed)
    history_offsets, history_rows = histories(users, items, len(ids))
    arrays["history_offsets"], arrays["history_rows"] = history_offsets, history_rows
    arrays["seen_offsets"], arrays["seen_rows"] = seen_sets(history_offsets, history_rows)
    return arrays


def histories(users: Rows, items: Rows, n_users: int) -> tuple[Rows, Rows]:
    """Group interactions by user, in order of time; of a repeated item only the latest stays.

    Parameters
    ----------
    users, items
        ``[n]`` rows, in order of time; users below 0 are left out.
    n_users
        U.

    Returns
    -------
    offsets : ``[U + 2]`` int64; row U is empty
    rows : item rows of all users, end to end
    """
    known = users >= 0
    users, items = users[known], items[known]
    order = np.argsort(users, kind="stable")
    users, items = users[order], items[order]
    # Seen from the end, the first of equal (user, item) pairs is the latest.
    width = int(items.max(initial=0)) + 1
    pairs = (users * width + items)[::-1]
    _, first = np.unique(pairs, return_index=True)
    kept = np.sort(len(pairs) - 1 - first)
    users, items = users[kept], items[kept]
    counts = np.bincount(users, minlength=n_users + 1) if len(users) else np.zeros(n_users + 1, np.int64)
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), items.astype(np.int64)


def seen_sets(offsets: Rows, rows: Rows) -> tuple[Rows, Rows]:
    """Return the same groups with each one's rows sorted; they are distinct already."""
    groups = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    return offsets.copy(), rows[np.lexsort((rows, groups))]


def latest(
    offsets: Rows, rows: Rows, users: Rows, length: int, pad: int
) -> tuple[Rows, npt.NDArray[np.int32]]:
    """Return the latest ``length`` items of users, oldest first, left aligned.

    Parameters
    ----------
    offsets, rows
        As :func:`histories` gives them.
    users
        ``[B]`` user rows.
    length, pad
        L, and what fills the end.

    Returns
    -------
    ``[B, L]`` int64 and ``[B, 1]`` int32 how many are real.
    """
    out = np.full((len(users), length), pad, np.int64)
    ends = offsets[users + 1]
    counts = np.minimum(ends - offsets[users], length)
    out[np.arange(length) < counts[:, None]] = rows[flat_ranges(ends - counts, counts)]
    return out, counts.astype(np.int32)[:, None]


def user_tensors(
    arrays: Mapping[str, Array],
    item_cat: Array | None,
    users: Rows,
    *,
    length: int,
    history_columns: Sequence[int],
    pad: int,
) -> dict[str, Array]:
    """Gather everything that a model may know of users: the packed tensors and the history.

    Parameters
    ----------
    arrays
        The artefact ``users``, as :func:`user_arrays` lays it out.
    item_cat
        ``[I + 1, Ci]``; None if the items have no categories.
    users
        ``[B]`` user rows.
    length
        L.
    history_columns
        Positions within ``item_cat`` that make ``history_cat``.
    pad
        The pad row I.
    """
    tensors = {
        name: array[users]
        for name, array in arrays.items()
        if name in ("user_cat", "user_num") or name.startswith("user_list_")
    }
    if length:
        history, counts = latest(arrays["history_offsets"], arrays["history_rows"], users, length, pad)
        tensors["history_row"], tensors["history_length"] = history, counts
        if item_cat is not None and len(history_columns):
            tensors["history_cat"] = item_cat[history][:, :, list(history_columns)]
    return tensors
