"""Tables that serving gathers from: items, users, histories.

:mod:`tiercel_serving.tables.items` and :mod:`tiercel_serving.stores.memory_mapped` document their layout.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from tiercel_serving.columns import Column, null_column, with_null_row
from tiercel_serving.features import InputColumn
from tiercel_serving.features.blocks import transform
from tiercel_serving.lookups.build import build_lookup
from tiercel_serving.release.manifest import Catalogue, Packed, PackedList
from tiercel_serving.spec import Array, list_tensor
from tiercel_serving.stores.bloom import SeenFilter, build_filters, item_keys
from tiercel_serving.stores.memory_mapped import USER_LOOKUP
from tiercel_serving.tables.column_store import raw_prefix, store_column
from tiercel_serving.tables.items import ITEM_LOOKUP, store_ids

from ..errors import ExportInputError
from ..workflow.cut import CompiledProgram
from ..workflow.frames import column_from_series, columns_from_frame
from .fit import check_rules
from .given import id_dtype, infer_column
from .parts import Inputs, Programs, Tables
from .rule_columns import asked_columns

Rows = npt.NDArray[np.int64]

#: Number of interactions that are deduplicated at once, which bounds the size of temporary arrays.
_BLOCK = 1 << 20


def make_tables(inputs: Inputs, programs: Programs) -> Tables:
    """Transform items and users once, and lay out the tables of both with raw columns and histories."""
    raw_items = _raw_item_columns(inputs, programs)
    check_rules(inputs.settings, raw_items)
    items = transform(programs.item.program, raw_items, len(inputs.item_ids))
    item_packed = {
        name: np.concatenate([table, np.zeros((1, *table.shape[1:]), table.dtype)])
        for name, table in items.items()
    }
    asked = asked_columns(inputs, programs, raw_items)
    raw_users = _raw_user_columns(inputs, programs, asked)
    user_packed = transform(programs.user.program, raw_users, len(inputs.user_ids) + 1)
    stored = {column.name for column in (*programs.user.inputs, *asked) if column.part == "user"}
    user_raw = {name: column for name, column in raw_users.items() if name in stored}
    return Tables(
        user_arrays(
            inputs.user_ids,
            user_raw,
            user_packed,
            inputs.events.users,
            inputs.events.items,
            latest=inputs.settings.history_length,
            times=_times(inputs),
            seen_filter=inputs.settings.seen_filter,
            item_ids=inputs.item_ids,
        ),
        item_arrays(inputs.item_ids, raw_items, item_packed),
        user_packed,
        item_packed,
        raw_items,
        asked,
        Catalogue(
            items=len(inputs.item_ids),
            users=len(inputs.user_ids),
            interactions=len(inputs.events.items),
            item_id_dtype=id_dtype(inputs.item_ids),
            user_id_dtype=id_dtype(inputs.user_ids),
            item_id_column=inputs.columns.item_id,
            user_id_column=inputs.columns.user_id,
        ),
        Packed(
            user_cat=programs.packed("user", "cat"),
            user_num=programs.packed("user", "num"),
            user_lists=_lists(user_packed, programs.user),
            item_cat=programs.packed("item", "cat"),
            item_num=programs.packed("item", "num"),
            item_lists=_lists(item_packed, programs.item),
        ),
    )


def _raw_item_columns(inputs: Inputs, programs: Programs) -> dict[str, Column]:
    """Return the raw columns that the program, sources, rules, reorder steps and the title read."""
    columns = columns_from_frame(inputs.items, programs.item.inputs)
    for name in inputs.settings.raw_columns():
        if name not in columns:
            column = infer_column(inputs.items[name], name, "items")
            columns[name] = column_from_series(inputs.items[name], column)
    return columns


def _raw_user_columns(inputs: Inputs, programs: Programs, asked: Sequence[InputColumn]) -> dict[str, Column]:
    """Return the columns ``[U + 1]`` of the user program and rules, null where only requests have them."""
    rows = len(inputs.user_ids) + 1
    columns = {}
    if inputs.users is not None:
        read = {column.name: column for column in (*asked, *programs.user.inputs)}
        of_users = [column for column in read.values() if column.part == "user"]
        found = columns_from_frame(inputs.users, of_users)
        columns = {name: with_null_row(column) for name, column in found.items()}
    for column in programs.user.inputs:
        if column.name not in columns:
            columns[column.name] = null_column(column.dtype, column.is_list, rows)
    return columns


def _lists(packed: Mapping[str, Array], program: CompiledProgram) -> tuple[PackedList, ...]:
    found = ((output.name, packed.get(list_tensor(program.part, output.name))) for output in program.outputs)
    return tuple(
        PackedList(name, array.shape[1], "int64" if array.dtype == np.int64 else "float32")
        for name, array in found
        if array is not None
    )


def item_arrays(ids: Array, raw: Mapping[str, Column], packed: Mapping[str, Array]) -> dict[str, Array]:
    """Lay out the artefact ``items``.

    Parameters
    ----------
    ids
        ``[I]`` raw ids, int64 or ``bytes`` objects, in catalogue order.
    raw
        Raw columns ``[I]`` that sources, rules, reorder steps, titles or a later check read.
    packed
        Model-ready tensors ``[I + 1, …]``; the pad row is last.
    """
    arrays: dict[str, Array] = dict(build_lookup(ids, ITEM_LOOKUP))
    arrays.update(store_ids(ids))
    for name, column in raw.items():
        arrays.update(store_column(with_null_row(column), raw_prefix(name)))
    arrays.update(packed)
    return arrays


def user_arrays(
    ids: Array,
    raw: Mapping[str, Column],
    packed: Mapping[str, Array],
    users: Rows,
    items: Rows,
    *,
    latest: int,
    times: npt.NDArray[np.float64] | None = None,
    seen_filter: SeenFilter | None = None,
    item_ids: Array | None = None,
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
        ``[n]`` int64 rows of the interactions, in order of time; user row -1 (not in the store) is ignored.
    latest
        The number of a user's latest items that a history contains.
    times
        ``[n]`` float64 times of the interactions in seconds since 1970; None stores no times.
    seen_filter, item_ids
        Settings of the Bloom filters for the older part of histories, and the ``[I]`` raw item ids that they
        store; None makes no filters.
    """
    arrays: dict[str, Array] = dict(build_lookup(ids, USER_LOOKUP))
    for name, column in raw.items():
        arrays.update(store_column(column, raw_prefix(name)))
    arrays.update(packed)
    if seen_filter is None:
        offsets, places = histories(users, items, len(ids), latest)
    else:
        offsets, places = histories(users, items, len(ids), max(latest, seen_filter.beyond))
        offsets, places, filters = _filtered(offsets, places, items, item_ids, seen_filter)
        arrays |= filters
    arrays["history_offsets"] = offsets
    arrays["history_rows"] = items[places].astype(np.int32)
    if times is not None:
        arrays["history_times"] = times[places]
    return arrays


def _filtered(
    offsets: Rows, places: Array, items: Rows, item_ids: Array | None, seen_filter: SeenFilter
) -> tuple[Rows, Array, dict[str, Array]]:
    """Move the older part of long histories into Bloom filters; return the rest, and the filters' arrays."""
    assert item_ids is not None
    counts = np.diff(offsets)
    owners = np.repeat(np.arange(len(counts)), counts)
    old = offsets[1:][owners] - np.arange(len(owners)) > seen_filter.beyond
    keys = item_keys(item_ids)[items[places[old]]]
    filters = build_filters(owners[old], keys, len(counts), seen_filter.of_release)
    left = np.append(0, np.cumsum(np.minimum(counts, seen_filter.beyond)))
    return left, places[~old], dict(zip(("filter_offsets", "filter_data"), filters, strict=True))


def _times(inputs: Inputs) -> npt.NDArray[np.float64] | None:
    """Return the times of the interactions, or None if the settings do not need them."""
    if inputs.settings.seen_again_days is None:
        return None
    if inputs.events.times is None and inputs.interactions is not None:
        raise ExportInputError(
            f"settings.seen_again_days: the interactions' {inputs.columns.timestamp!r} holds neither numbers "
            "(seconds) nor dates; convert it, or leave seen_again_days out"
        )
    return np.zeros(0) if inputs.events.times is None else inputs.events.times


def histories(users: Rows, items: Rows, n_users: int, latest: int) -> tuple[Rows, npt.NDArray[np.uint32]]:
    """Group interactions by user, keeping only the latest one with each item.

    Parameters
    ----------
    users, items
        ``[n]`` rows, in order of time; users below 0 are ignored.
    n_users
        U.
    latest
        The number of each user's latest items that come last, in order of time. Older items come before them,
        in order of row.

    Returns
    -------
    offsets : ``[U + 2]`` int64; row U is empty
    places : indices of the interactions that are kept, concatenated by user
    """
    owners, order = _by_user(users)
    ends = np.searchsorted(owners, np.arange(n_users + 1), side="right")
    counts = np.zeros(n_users + 1, np.int64)
    kept, begin, first = [], 0, 0
    while first < n_users:
        # As many whole users as fit into a block, but at least one.
        beyond = max(first + 1, int(np.searchsorted(ends, begin + _BLOCK, side="right")))
        beyond = min(beyond, n_users)
        end = int(ends[beyond - 1])
        own, of_block = owners[begin:end].astype(np.int64) - first, order[begin:end]
        places, counts[first:beyond] = _distinct(own, items[of_block], beyond - first, latest)
        kept.append(of_block[places])
        begin, first = end, beyond
    offsets = np.zeros(n_users + 2, np.int64)
    np.cumsum(counts, out=offsets[1:])
    return offsets, np.concatenate(kept) if kept else np.zeros(0, np.uint32)


def _by_user(users: Rows) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint32]]:
    """Return the user and the index of each known user's events, by user and then in order of time."""
    # Sorting integers that combine user and index is several times faster than a stable argsort.
    keys = users << 32 | np.arange(len(users))
    if (users < 0).any():
        keys = keys[users >= 0]
    keys.sort()
    return (keys >> 32).astype(np.int32), (keys & 0xFFFFFFFF).astype(np.uint32)


def _distinct(users: Rows, items: Rows, n_users: int, latest: int) -> tuple[Rows, Rows]:
    """Return the indices of each user's distinct items, ordered as in :func:`histories`, and their counts.

    Parameters
    ----------
    users, items
        Events of some users, by user and time; users are numbered from 0.
    n_users, latest
        The number of users; as for :func:`histories`.
    """
    width = int(items.max(initial=0)) + 1
    pairs = users * width + items
    order = np.argsort(pairs, kind="stable")
    ordered = pairs[order]
    # The last of equal pairs is the latest event.
    last = np.append(ordered[1:] != ordered[:-1], np.ones(min(1, len(ordered)), np.bool_))
    places = np.sort(order[last])
    users, items = users[places], items[places]
    counts = np.bincount(users, minlength=n_users)
    age = np.cumsum(counts)[users] - np.arange(len(users))
    # Older items by row, then the latest ones in order of time.
    keys = np.where(age > latest, items, width + latest - age) + users * (width + latest)
    return places[np.argsort(keys, kind="stable")], counts
