"""``user_features``: raw ids and columns of the request → rows, packed user tensors, history, exclusions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ..columns import Column, flat_ranges
from ..errors import ArtefactCorrupt, InvalidRequest
from ..features import FeatureProgram
from ..release.opened import Release
from ..settings import KNOWN, UNKNOWN, UNKNOWN_WITH_FEATURES
from ..spec import DTYPES, Array, Arrays, StageSpec
from ..tables.column_store import StoredColumn
from ..tables.store import ItemTable, Rows, UserStore
from .ordering import check_k
from .specs import LENGTH, VALID

EXCLUDED, HISTORY = "exclude_item_ids", "history_item_ids"


class RequestColumn:
    """One raw column that a request may carry, and where the store keeps it.

    Parameters
    ----------
    entry
        Its entry in the manifest's ``request_columns``.
    stored
        The store's column; None for a context column, or if the store does not hold it.
    """

    def __init__(self, entry: Mapping[str, Any], stored: StoredColumn | None) -> None:
        self.name = str(entry["name"])
        self.dtype = DTYPES[str(entry["dtype"])]
        self.is_list = bool(entry["list"])
        self.of_user = entry["part"] == "user"
        self._stored = stored

    def sent(self, arrays: Arrays) -> npt.NDArray[np.bool_]:
        """Return ``[B]``: which rows carry a value that is not null."""
        if self.is_list:
            return np.asarray(arrays[self.name + LENGTH][:, 0] >= 0, np.bool_)
        if self.dtype.kind == "f":
            return np.asarray(~np.isnan(arrays[self.name][:, 0]), np.bool_)
        return np.asarray(arrays[self.name + VALID][:, 0], np.bool_)

    def column(self, arrays: Arrays, rows: Rows, sent: npt.NDArray[np.bool_]) -> Column:
        """Return the column of the batch: what was sent, else what the store holds, else null.

        Parameters
        ----------
        arrays
            The request's tensors.
        rows
            ``[B]`` user rows.
        sent
            What :meth:`sent` returned.
        """
        if self._stored is None or sent.all():
            return self._as_column(arrays, sent)
        if not sent.any():
            return self._stored.take(rows)
        merge = _merge_lists if self.is_list else _merge_scalars
        return merge(self._as_column(arrays, sent), self._stored.take(rows), sent)

    def _as_column(self, arrays: Arrays, sent: npt.NDArray[np.bool_]) -> Column:
        values = arrays[self.name]
        if not self.is_list:
            return Column(values[:, 0], None if self.dtype.kind == "f" or sent.all() else sent)
        lengths = np.maximum(arrays[self.name + LENGTH][:, 0], 0)
        offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        flat = values[np.arange(values.shape[1]) < lengths[:, None]]
        return Column(flat, None, offsets, None if sent.all() else sent)


def _merge_scalars(sent: Column, stored: Column, where: npt.NDArray[np.bool_]) -> Column:
    """Return the sent value where there is one, else the stored."""
    values = np.where(where, sent.values.astype(stored.values.dtype, copy=False), stored.values)
    return Column(values, None if stored.valid is None else stored.valid | where)


def _merge_lists(sent: Column, stored: Column, where: npt.NDArray[np.bool_]) -> Column:
    """Return the sent list where there is one, else the stored."""
    if sent.offsets is None or stored.offsets is None:
        raise TypeError("expected two list columns")
    behind = len(stored.values)
    starts = np.where(where, sent.offsets[:-1] + behind, stored.offsets[:-1])
    lengths = np.where(where, np.diff(sent.offsets), np.diff(stored.offsets))
    index = flat_ranges(starts, lengths)
    values = np.concatenate([stored.values, sent.values.astype(stored.values.dtype, copy=False)])[index]
    valid = None
    if stored.valid is not None:
        valid = np.concatenate([stored.valid, np.ones(len(sent.values), np.bool_)])[index]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    row_valid = None if stored.row_valid is None else stored.row_valid | where
    return Column(values, valid, offsets, row_valid)


class UserFeatures:
    """Turn raw requests into rows and model-ready tensors.

    A batch that sends no feature gathers what export made of the store's users; a batch that does runs
    the compiled feature program on all of its rows. Both give the same bits, since the program treats
    each row by itself.

    Parameters
    ----------
    release
        The release.
    """

    def __init__(self, release: Release) -> None:
        self.spec: StageSpec = release.stages["user_features"]
        manifest, settings = release.manifest, release.settings
        self._users, self._items = UserStore.open(release), ItemTable.open(release)
        self._users.lookup, self._items.lookup  # noqa: B018 - opened now, not in the first request
        self._program = FeatureProgram.open(release.artefact("user_features", "features"))
        self._columns = tuple(
            RequestColumn(entry, self._users.raw(entry["name"]) if entry["part"] == "user" else None)
            for entry in manifest["request_columns"]
        )
        self._id_column = self._find_id_column()
        names = [tensor.name for tensor in self.spec.outputs]
        self._packed = tuple(
            (name, self._users.packed(name))
            for name in names
            if name in ("user_cat", "user_num") or name.startswith("user_list_")
        )
        self._length = settings.history_length
        self._limit = settings.max_excluded
        self._k_max = settings.k_max
        self._pad = self._items.size
        self._history_cat = self._history_table(manifest) if "history_cat" in names else None

    def _find_id_column(self) -> str | None:
        """Return the name under which the program reads the user id, if the id is a feature."""
        columns = {column.name for column in self._columns}
        others = [column.name for column in self._program.inputs if column.name not in columns]
        if len(others) > 1:
            raise ArtefactCorrupt(
                f"stage user_features: the feature program reads {others}, but besides the request's columns "
                f"{sorted(columns)} only the user id can be a feature; export again"
            )
        return others[0] if others else None

    def _history_table(self, manifest: Mapping[str, Any]) -> Array:
        """Return the items' category ids that a history shows, ``[I + 1, H]``."""
        wanted, packed = manifest["packed"]["history_cat"], list(manifest["packed"]["item_cat"])
        missing = [name for name in wanted if name not in packed]
        if missing:
            raise ArtefactCorrupt(
                f"stage user_features: history columns {missing} are not among the items' categorical "
                f"columns {packed}; export again"
            )
        table = self._items.packed("item_cat")
        return table if wanted == packed else table[:, [packed.index(name) for name in wanted]]

    def check(self, arrays: Arrays) -> None:
        """Refuse a wrong ``k``, infinities, lengths that do not fit, and lists beyond the limit."""
        check_k(arrays, self._k_max)
        for name in (EXCLUDED, HISTORY):
            self._check_list(arrays, name, limit=self._limit)
        for column in self._columns:
            if column.is_list:
                self._check_list(arrays, column.name)
            elif column.dtype.kind != "f" and column.name not in arrays:
                valid = arrays.get(column.name + VALID)
                if valid is not None and valid.any():
                    raise InvalidRequest(
                        f"stage user_features: {column.name + VALID} says that {column.name} has values, but "
                        f"{column.name} was not sent; send it too"
                    )
            values = arrays.get(column.name)
            if values is not None and column.dtype.kind == "f" and np.isinf(values).any():
                raise InvalidRequest(
                    f"stage user_features: {column.name} must be finite (NaN means null), came an infinity"
                )

    def _check_list(self, arrays: Arrays, name: str, limit: int | None = None) -> None:
        values, lengths = arrays.get(name), arrays.get(name + LENGTH)
        width = 0 if values is None else values.shape[1]
        if limit is not None and width > limit:
            raise InvalidRequest(
                f"stage user_features: {name} may hold {limit} ids at most, came {width}; send fewer"
            )
        if lengths is not None and lengths.size and (lengths.min() < -1 or lengths.max() > width):
            wrong = lengths[(lengths < -1) | (lengths > width)].reshape(-1)[0]
            raise InvalidRequest(
                f"stage user_features: {name + LENGTH} must be -1 (null) to {width}, the width of {name}, "
                f"came {wrong}"
            )

    def run(self, arrays: Arrays) -> dict[str, Array]:
        """Look up users and items, take features from the request or the store.

        Returns
        -------
        ``user_row [B, 1]``, ``status [B, 1]``, the packed user tensors, ``history_row [B, L]``,
        ``history_length [B, 1]``, ``history_cat [B, L, H]`` and ``excluded_row [B, E]`` with E ≥ 1.
        """
        rows = self._users.rows(arrays["user_id"][:, 0])
        sent = [column.sent(arrays) for column in self._columns]
        history_lengths = arrays[HISTORY + LENGTH][:, 0]
        outputs: dict[str, Array] = {
            "user_row": rows[:, None],
            "status": self._status(rows, sent, history_lengths)[:, None],
        }
        # The dummy row stands for no id at all, which is not what an unknown id is to the program.
        new_ids = self._id_column is not None and int(rows.max()) == self._users.size
        if new_ids or any(flags.any() for flags in sent):
            outputs.update(self._computed(arrays, rows, sent))
        else:
            outputs.update((name, table.take(rows, axis=0)) for name, table in self._packed)
        sent_rows = self._sent_history(arrays[HISTORY], history_lengths)
        if self._length:
            outputs.update(self._history(rows, sent_rows, history_lengths))
        outputs["excluded_row"] = self._excluded(arrays, sent_rows)
        return outputs

    def _status(self, rows: Rows, sent: list[npt.NDArray[np.bool_]], history_lengths: Array) -> Array:
        known = rows < self._users.size
        if known.all():
            # KNOWN, and the quicker way to write it.
            return np.zeros(len(rows), np.int32)
        features = history_lengths >= 0
        for column, flags in zip(self._columns, sent, strict=True):
            if column.of_user:
                features |= flags
        status = np.where(features, np.int32(UNKNOWN_WITH_FEATURES), np.int32(UNKNOWN))
        status[known] = KNOWN
        return status

    def _computed(self, arrays: Arrays, rows: Rows, sent: list[npt.NDArray[np.bool_]]) -> dict[str, Array]:
        columns = {
            column.name: column.column(arrays, rows, flags)
            for column, flags in zip(self._columns, sent, strict=True)
        }
        if self._id_column is not None:
            columns[self._id_column] = Column(arrays["user_id"][:, 0])
        packed = self._program.packed(columns, len(rows))
        return {name: packed[name] for name, _ in self._packed}

    def _sent_history(self, ids: Array, lengths: Array) -> Rows:
        """Return the rows of the histories sent with the batch ``[B, W]``; I where there is no item."""
        if not ids.shape[1]:
            return np.empty((len(ids), 0), np.int64)
        return np.where(np.arange(ids.shape[1]) < lengths[:, None], self._items.rows(ids), self._pad)

    def _history(self, rows: Rows, sent_rows: Rows, lengths: Array) -> dict[str, Array]:
        history, count = self._users.history(rows, self._length, self._pad)
        overridden = lengths >= 0
        if overridden.any():
            real = sent_rows != self._pad
            sent_count = np.count_nonzero(real, axis=1)
            sent_history = _last(sent_rows, real, self._length, self._pad)
            history = np.where(overridden[:, None], sent_history, history)
            count = np.where(overridden, np.minimum(sent_count, self._length).astype(np.int32), count)
        outputs: dict[str, Array] = {"history_row": history, "history_length": count[:, None]}
        if self._history_cat is not None:
            outputs["history_cat"] = self._history_cat.take(history, axis=0)
        return outputs

    def _excluded(self, arrays: Arrays, sent_rows: Rows) -> Rows:
        ids = arrays[EXCLUDED]
        parts = [sent_rows] if sent_rows.shape[1] else []
        if ids.shape[1]:
            real = np.arange(ids.shape[1]) < arrays[EXCLUDED + LENGTH][:, :1]
            parts.append(np.where(real, self._items.rows(ids), self._pad))
        if not parts:
            # Triton has no use for a tensor without elements.
            return np.full((len(ids), 1), self._pad)
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)


def _last(rows: Rows, real: npt.NDArray[np.bool_], length: int, pad: int) -> Rows:
    """Return the last ``length`` real rows of each user, in order, left aligned.

    Parameters
    ----------
    rows, real
        ``[B, W]``.
    length, pad
        Width of the result, and what fills its end.
    """
    after = np.cumsum(real[:, ::-1], axis=1)[:, ::-1]
    kept = real & (after <= length)
    users, places = kept.nonzero()
    counts = np.count_nonzero(kept, axis=1)
    out = np.full((len(rows), length), pad, np.int64)
    out[users, np.arange(len(users)) - np.repeat(np.cumsum(counts) - counts, counts)] = rows[users, places]
    return out
