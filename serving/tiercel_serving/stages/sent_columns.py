"""Raw columns that a request may carry: the sent value, else the stored one, else null."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ..columns import Column, merge_rows
from ..errors import InvalidRequest
from ..release.manifest import RequestColumn
from ..spec import DTYPES, Array, Arrays
from ..stores.table import Users
from .specs import USER_FEATURES


class SentColumn:
    """One raw column that a request may carry; ``stage`` is the stage's name in messages."""

    def __init__(self, column: RequestColumn, stage: str = USER_FEATURES) -> None:
        self._stage = stage
        self.name, self.tensor, self.companion = column.name, column.tensor, column.companion or ""
        self.dtype = DTYPES[column.dtype]
        self.is_list, self._is_float = column.is_list, self.dtype.kind == "f"
        self.of_user = column.part == "user"

    def tensor_names(self) -> tuple[str, ...]:
        """Return the names of the tensors that carry it."""
        return (self.tensor, self.companion) if self.companion else (self.tensor,)

    def sent(self, arrays: Arrays) -> npt.NDArray[np.bool_]:
        """Return ``[B]``: which rows carry a value that is not null."""
        sent: npt.NDArray[np.bool_]
        if self.is_list:
            sent = arrays[self.companion][:, 0] >= 0
        elif self._is_float:
            sent = ~np.isnan(arrays[self.tensor][:, 0])
        else:
            sent = arrays[self.companion][:, 0]
        return sent

    def column(
        self,
        arrays: Arrays,
        users: Users,
        sent: npt.NDArray[np.bool_],
        overridden: npt.NDArray[np.bool_] | None = None,
    ) -> Column:
        """Return the column of the batch: the value sent (where ``sent``), else the stored one, else null.

        In ``overridden`` rows (None: the sent ones) the store is ignored, whether or not a value was sent.
        """
        over = sent if overridden is None else overridden
        stored = users.raw(self.name) if self.of_user and not over.all() else None
        if stored is None:
            return self._as_column(arrays, sent)
        if not over.any():
            return stored
        return merge_rows(self._as_column(arrays, sent), stored, over)

    def lengths(self, arrays: Arrays) -> npt.NDArray[np.int64] | None:
        """Return ``[B]``, the list lengths of one request's rows, -1 for null; None if not sent."""
        values, lengths = arrays.get(self.tensor), arrays.get(self.companion)
        if lengths is not None:
            return lengths[:, 0].astype(np.int64)
        return None if values is None else np.full(len(values), values.shape[1], np.int64)

    def check(self, arrays: Arrays) -> None:
        """Reject infinities, lengths that do not fit, and a validity without values."""
        values = arrays.get(self.tensor)
        if self.is_list:
            check_list(arrays, self.tensor, self.companion, self._stage)
        elif self.dtype.kind != "f" and values is None:
            valid = arrays.get(self.companion)
            if valid is not None and valid.any():
                raise InvalidRequest(
                    f"stage {self._stage}: {self.companion} says that {self.tensor} has values, but "
                    f"{self.tensor} was not sent; send it too"
                )
        if values is not None and self.dtype.kind == "f" and np.isinf(values).any():
            raise InvalidRequest(
                f"stage {self._stage}: {self.tensor} must be finite (NaN means null), got an infinity"
            )

    def carried(self, arrays: Arrays) -> Column:
        """Return the column of the batch as sent in its tensors, null where they mark it so."""
        return self._as_column(arrays, self.sent(arrays))

    def tensors(self, column: Column) -> dict[str, Array]:
        """Return the tensors for a column of B rows."""
        if column.offsets is None:
            values = column.values.astype(self.dtype, copy=False)
            if self.dtype.kind == "f":
                if column.valid is not None:
                    values = np.where(column.valid, values, np.nan).astype(self.dtype, copy=False)
                return {self.tensor: values[:, None]}
            valid = np.ones(len(column), np.bool_) if column.valid is None else column.valid
            return {self.tensor: values[:, None], self.companion: valid[:, None]}
        lengths = np.diff(column.offsets)
        # At least one column: Triton can't pass on a tensor without elements.
        width = max(int(lengths.max(initial=0)), 1)
        rows = np.zeros((len(lengths), width), self.dtype)
        if self.dtype == np.object_:
            rows[:] = b""
        rows[np.arange(width) < lengths[:, None]] = column.values
        if column.row_valid is not None:
            lengths = np.where(column.row_valid, lengths, -1)
        return {self.tensor: rows, self.companion: lengths.astype(np.int32)[:, None]}

    def _as_column(self, arrays: Arrays, sent: npt.NDArray[np.bool_]) -> Column:
        values = arrays[self.tensor]
        if not self.is_list:
            return Column(values[:, 0], None if self.dtype.kind == "f" or sent.all() else sent)
        lengths = np.maximum(arrays[self.companion][:, 0], 0)
        offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        flat = values[np.arange(values.shape[1]) < lengths[:, None]]
        return Column(flat, None, offsets, None if sent.all() else sent)


def check_session(arrays: Arrays, columns: Sequence[SentColumn]) -> None:
    """Reject a request whose columns of a session's events differ in length; null fits any length."""
    first: tuple[SentColumn, npt.NDArray[np.int64]] | None = None
    for column in columns:
        lengths = column.lengths(arrays)
        if lengths is None:
            continue
        if first is not None:
            differ = (lengths != first[1]) & (lengths >= 0) & (first[1] >= 0)
            if differ.any():
                row = int(differ.argmax())
                raise InvalidRequest(
                    f"stage user_features: {first[0].tensor} and {column.tensor} are of the events of one "
                    f"session, but have {first[1][row]} and {lengths[row]} values; send one in each for "
                    "every event, or leave a column out for nulls"
                )
            lengths = np.maximum(lengths, first[1])
        first = (column if first is None else first[0], lengths)


def check_list(arrays: Arrays, name: str, companion: str, stage: str, limit: int | None = None) -> None:
    """Reject a list tensor that is too long, or whose lengths do not fit its width."""
    values, lengths = arrays.get(name), arrays.get(companion)
    width = 0 if values is None else values.shape[1]
    if limit is not None and width > limit:
        raise InvalidRequest(f"stage {stage}: {name} may hold {limit} ids at most, got {width}; send fewer")
    if lengths is not None and lengths.size and (lengths.min() < -1 or lengths.max() > width):
        wrong = lengths[(lengths < -1) | (lengths > width)].reshape(-1)[0]
        raise InvalidRequest(
            f"stage {stage}: {companion} must be -1 (null) to {width}, the width of {name}, got {wrong}"
        )
