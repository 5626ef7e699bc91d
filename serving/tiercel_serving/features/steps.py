"""The steps of a feature program.

A step reads registers (``registers.py``) or request columns, and writes a register.

Every float operation keeps NVTabular's order, because folding ``(x - m) / s`` into one multiplication and
addition would change the last bits of over half of all values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..spec import Array
from .arithmetic import Compare, Compute, Function, Logic, Not, ToTruth, ToWhole, Wave
from .calendar import DatePart, TimeDifference
from .conditions import Contained, ContainedText
from .encode import EncodeDirect, EncodeHash, EncodeText
from .joins import CombineKeys, Gather, GatherList, GatherText
from .lists import ListSlice
from .load import Load, LoadList
from .registers import Columns, Elementwise, Register, Registers, Step, nan_where_null
from .sessions import (
    CollectEvents,
    CountEvents,
    EdgeEvent,
    ExtremeEvent,
    KeepEvents,
    LoadEvents,
    OrderEvents,
    SumEvents,
    TakeEvents,
)
from .similarity import Similarity
from .texts import NumberToText, TextCase, TextLength, TextParts, TextSlice, TextStrip, TextToNumber

_FLOAT32 = np.dtype(np.float32)
#: An array and not a scalar, because NumPy 1 adds it twice as fast.
_ONE = np.ones((1, 1), np.float32)

# ----------------------------------------------------------------------------------- element by element


class Rows(Elementwise):
    """Some columns of a register."""

    def __init__(self, step: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
        super().__init__(step, arrays)
        rows: list[int] = step["rows"]
        contiguous = rows == list(range(rows[0], rows[0] + len(rows)))
        self._rows: Any = slice(rows[0], rows[0] + len(rows)) if contiguous else np.array(rows)

    def apply(self, x: Array, valid: Array | None) -> tuple[Array, Array | None]:
        """Select."""
        return x[self._rows], None if valid is None else valid[self._rows]


class Cast(Elementwise):
    """int64 to a float dtype, null to NaN; or between float dtypes."""

    def __init__(self, step: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
        super().__init__(step, arrays)
        self._dtype = np.dtype(step["dtype"])

    def apply(self, x: Array, valid: Array | None) -> tuple[Array, Array | None]:
        """Cast."""
        return nan_where_null(x.astype(self._dtype), valid), None


class Fill(Elementwise):
    """``fillna(value)``: ``x`` where it is not null, else its column's value."""

    def __init__(self, step: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
        super().__init__(step, arrays)
        self._value = arrays["value"]

    def apply(self, x: Array, valid: Array | None) -> tuple[Array, Array | None]:
        """Fill."""
        if x.dtype.kind == "f":
            null = np.isnan(x)
            return (np.where(null, self._value, x) if np.count_nonzero(null) else x), None
        return (x if valid is None else np.where(valid, x, self._value)), None


class FillText(Elementwise):
    """``fillna(text)``."""

    def __init__(self, step: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
        super().__init__(step, arrays)
        self._value = step["value"].encode("utf-8", "surrogatepass")

    def apply(self, x: Array, valid: Array | None) -> tuple[Array, Array | None]:
        """Fill."""
        return (x if valid is None else np.where(valid, x, self._value)), None


class FillRows:
    """``fillna`` of a list column: a null list becomes an empty one."""

    def __init__(self, step: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
        self._source: int = step["in"]

    def run(self, registers: Registers, columns: Columns, n: int) -> Register:
        """Fill."""
        return registers[self._source]._replace(row_valid=None)


class IsNull(Elementwise):
    """``isna()`` as 0 and 1."""

    def apply(self, x: Array, valid: Array | None) -> tuple[Array, Array | None]:
        """Compare."""
        if x.dtype.kind == "f":
            return np.isnan(x).astype(np.int64), None
        return (np.zeros(x.shape, np.int64) if valid is None else (~valid).astype(np.int64)), None


class RowIsNull:
    """``isna()`` of a list column's rows as 0 and 1."""

    def __init__(self, step: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
        self._source: int = step["in"]

    def run(self, registers: Registers, columns: Columns, n: int) -> Register:
        """Compare."""
        row_valid = registers[self._source].row_valid
        null = np.zeros(n, np.int64) if row_valid is None else (~row_valid).astype(np.int64)
        return Register(null.reshape(1, n))


class Clip(Elementwise):
    """``x`` below ``low`` becomes ``low``, then ``x`` above ``high`` becomes ``high``; NaN stays.

    ``numpy.clip`` is not used, because it may change the sign of -0.0 at a bound of 0.0.
    """

    def __init__(self, step: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
        super().__init__(step, arrays)
        self._low, self._high = arrays.get("low"), arrays.get("high")

    def apply(self, x: Array, valid: Array | None) -> tuple[Array, Array | None]:
        """Clip."""
        if self._low is not None:
            below = x < self._low
            x = np.where(below, self._low, x) if np.count_nonzero(below) else x
        if self._high is not None:
            above = x > self._high
            x = np.where(above, self._high, x) if np.count_nonzero(above) else x
        return x, valid


class Log(Elementwise):
    """``log(float32(x) + 1)``."""

    def apply(self, x: Array, valid: Array | None) -> tuple[Array, Array | None]:
        """Take the logarithm."""
        return nan_where_null(np.log(x.astype(_FLOAT32) + _ONE), valid), None


class Normalize(Elementwise):
    """``(x - mean) / std`` in float32 for float32 columns, else in float64; then the output dtype."""

    def __init__(self, step: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
        super().__init__(step, arrays)
        self._mean, self._std, self._dtype = arrays["mean"], arrays["std"], np.dtype(step["dtype"])

    def apply(self, x: Array, valid: Array | None) -> tuple[Array, Array | None]:
        """Subtract, then divide."""
        y = (x - self._mean) / self._std
        return nan_where_null(y if y.dtype == self._dtype else y.astype(self._dtype), valid), None


class MinMax(Elementwise):
    """``(x - low) / span`` without clipping, in float32 for float32 columns; then the output dtype.

    If ``wrap`` is ``int32``, the difference of integers wraps to that dtype, as in NVTabular.
    """

    def __init__(self, step: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
        super().__init__(step, arrays)
        self._low, self._span, self._dtype = arrays["low"], arrays["span"], np.dtype(step["dtype"])
        self._wrap = np.dtype(step["wrap"]) if step["wrap"] == "int32" else None

    def apply(self, x: Array, valid: Array | None) -> tuple[Array, Array | None]:
        """Subtract, then divide."""
        y = x - self._low
        if self._wrap is not None:
            y = y.astype(self._wrap)
        y = y / self._span
        return nan_where_null(y if y.dtype == self._dtype else y.astype(self._dtype), valid), None


class MinMaxConstant(Elementwise):
    """``x / (2 * x)``, for a column that had one value at fit; integers wrap as in :class:`MinMax`."""

    def __init__(self, step: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
        super().__init__(step, arrays)
        self._dtype = np.dtype(step["dtype"])
        self._wrap = np.dtype(step["wrap"]) if step["wrap"] == "int32" else None

    def apply(self, x: Array, valid: Array | None) -> tuple[Array, Array | None]:
        """Double, then divide."""
        double = 2 * x
        if self._wrap is not None:
            double = double.astype(self._wrap)
        y = x / double
        return nan_where_null(y if y.dtype == self._dtype else y.astype(self._dtype), valid), None


class Wrap(Elementwise):
    """``astype`` of a narrower integer dtype, which wraps; a null stays null."""

    def __init__(self, step: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
        super().__init__(step, arrays)
        self._dtype = np.dtype(step["dtype"])

    def apply(self, x: Array, valid: Array | None) -> tuple[Array, Array | None]:
        """Cast there and back."""
        return x.astype(self._dtype).astype(np.int64), valid


class Bucketize(Elementwise):
    """``numpy.digitize(x, boundaries)``; a null counts as NaN and gets the last bucket."""

    def __init__(self, step: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
        super().__init__(step, arrays)
        self._boundaries = [arrays[f"boundaries{i}"] for i in range(step["columns"])]

    def apply(self, x: Array, valid: Array | None) -> tuple[Array, Array | None]:
        """Search each column's boundaries."""
        y = np.empty(x.shape, np.int64)
        for row, boundaries in enumerate(self._boundaries):
            # For increasing boundaries this is digitize without its checks.
            y[row] = boundaries.searchsorted(x[row], "right")
            if valid is not None:
                y[row][~valid[row]] = len(boundaries)
        return y, None


class BucketizeDown(Bucketize):
    """:class:`Bucketize` with decreasing boundaries, for which a null gets bucket 0.

    The boundaries are stored in increasing order.
    """

    def apply(self, x: Array, valid: Array | None) -> tuple[Array, Array | None]:
        """Search each column's boundaries, counting from their end."""
        y = np.empty(x.shape, np.int64)
        for row, boundaries in enumerate(self._boundaries):
            y[row] = len(boundaries) - boundaries.searchsorted(x[row], "right")
            if valid is not None:
                y[row][~valid[row]] = 0
        return y, None


#: Name of a step in the artefact → its class.
STEPS: Mapping[str, type[Any]] = {
    "load": Load,
    "load_list": LoadList,
    "load_events": LoadEvents,
    "rows": Rows,
    "cast": Cast,
    "widen": Cast,
    "wrap": Wrap,
    "fill": Fill,
    "fill_text": FillText,
    "fill_rows": FillRows,
    "is_null": IsNull,
    "row_is_null": RowIsNull,
    "clip": Clip,
    "log": Log,
    "normalize": Normalize,
    "min_max": MinMax,
    "min_max_constant": MinMaxConstant,
    "bucketize": Bucketize,
    "bucketize_down": BucketizeDown,
    "list_slice": ListSlice,
    "similarity": Similarity,
    "date_part": DatePart,
    "time_difference": TimeDifference,
    "compute": Compute,
    "compare": Compare,
    "logic": Logic,
    "not": Not,
    "function": Function,
    "wave": Wave,
    "to_whole": ToWhole,
    "to_truth": ToTruth,
    "text_length": TextLength,
    "text_parts": TextParts,
    "text_slice": TextSlice,
    "text_case": TextCase,
    "text_strip": TextStrip,
    "text_to_number": TextToNumber,
    "number_to_text": NumberToText,
    "encode_direct": EncodeDirect,
    "encode_hash": EncodeHash,
    "encode_text": EncodeText,
    "combine_keys": CombineKeys,
    "gather": Gather,
    "gather_text": GatherText,
    "gather_list": GatherList,
    "contained": Contained,
    "contained_text": ContainedText,
    "keep_events": KeepEvents,
    "order_events": OrderEvents,
    "take_events": TakeEvents,
    "collect_events": CollectEvents,
    "edge_event": EdgeEvent,
    "count_events": CountEvents,
    "sum_events": SumEvents,
    "extreme_event": ExtremeEvent,
}


def open_steps(steps: Sequence[Mapping[str, Any]], arrays: Mapping[str, Array]) -> list[Step]:
    """Build the steps of a program; step ``i`` gets the arrays named ``s<i>.<part>``."""
    owned: list[dict[str, Array]] = [{} for _ in steps]
    for name, array in arrays.items():
        number, part = name[1:].split(".", 1)
        owned[int(number)][part] = array
    return [STEPS[step["op"]](step, own) for step, own in zip(steps, owned, strict=True)]
