"""The comparators of verification: the outputs under test against those of an oracle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..columns import Column
from ..spec import Array


@dataclass(frozen=True)
class Tolerance:
    """The allowed difference of two floats, ``|a − b| ≤ absolute + relative · |b|``, b being the oracle's.

    ``same_top`` is the share of rankings whose first :data:`TOP` must also be equal, for an engine whose
    scores are so coarse that their difference says little about the ranking. None requires nothing.
    """

    absolute: float
    relative: float
    same_top: float | None = None

    def __str__(self) -> str:
        return "exact" if self == EXACT else f"{self.absolute:g} + {self.relative:g}·|x|"


#: How many of the best candidates :func:`same_top` compares.
TOP = 10


#: Elements that are compared at once, which bounds the size of the float64 copies.
_BLOCK = 1 << 20

#: No difference is allowed; 0.0 equals -0.0, and NaN equals NaN.
EXACT = Tolerance(0.0, 0.0)

#: For the same float32 graph in another engine, whose kernels sum in another order.
ENGINE = Tolerance(1e-5, 1e-4)


@dataclass(frozen=True)
class Difference:
    """The outcome of one comparison.

    Parameters
    ----------
    compared
        Number of elements compared.
    worst
        The largest absolute difference; infinite if only one side is NaN, or if values that are not floats
        differ.
    worst_relative
        The largest difference relative to the oracle's value, where that is not 0.
    ok
        Whether everything is within the tolerance.
    where
        The tensor and index of the worst element that is out of tolerance, or how shapes or dtypes differ;
        empty if ``ok``.
    """

    compared: int
    worst: float
    worst_relative: float
    ok: bool
    where: str = ""


def compare_arrays(
    candidate: Array, oracle: Array, tolerance: Tolerance = EXACT, name: str = ""
) -> Difference:
    """Compare two arrays, whose shape and dtype must be equal too; NaN equals NaN.

    Parameters
    ----------
    candidate, oracle
        The array under test, and the expected one.
    tolerance
        Applies to floats; everything else must be equal.
    name
        The tensor's name, for messages.
    """
    if candidate.shape != oracle.shape or candidate.dtype != oracle.dtype:
        text = (
            f"{name}: expected {oracle.dtype} {list(oracle.shape)}, "
            f"got {candidate.dtype} {list(candidate.shape)}"
        )
        return Difference(0, np.inf, np.inf, False, text)
    if oracle.size == 0:
        return Difference(0, 0.0, 0.0, True)
    if oracle.ndim == 0:
        candidate, oracle = candidate.reshape(1), oracle.reshape(1)
    rows = max(1, _BLOCK * len(oracle) // oracle.size)
    worst = worst_relative = 0.0
    wrong: tuple[float, tuple[int, ...]] | None = None
    for begin in range(0, len(oracle), rows):
        a, b = candidate[begin : begin + rows], oracle[begin : begin + rows]
        if _same_bits(a, b):
            continue
        distance, allowed, relative = _distance(a, b, tolerance)
        worst = max(worst, float(distance.max()))
        worst_relative = max(worst_relative, float(relative.max()))
        bad = distance > allowed
        if bad.any():
            place = np.unravel_index(int(np.argmax(np.where(bad, distance, -1.0))), b.shape)
            if wrong is None or distance[place] > wrong[0]:
                wrong = float(distance[place]), (begin + int(place[0]), *(int(i) for i in place[1:]))
    if wrong is None:
        return Difference(int(oracle.size), worst, worst_relative, True)
    index = wrong[1]
    where = f"{name}{list(index)}: expected {oracle[index]!r}, got {candidate[index]!r}"
    return Difference(int(oracle.size), worst, worst_relative, False, where)


def _same_bits(a: Array, b: Array) -> bool:
    """Return whether numbers are bitwise equal; False also for dtypes for which this is not tested."""
    if a.dtype.kind not in "iufb" or a.dtype.itemsize > 8:
        return False
    bits = f"u{a.dtype.itemsize}"
    return bool((a.view(bits) == b.view(bits)).all())


def _distance(candidate: Array, oracle: Array, tolerance: Tolerance) -> tuple[Array, Array, Array]:
    if oracle.dtype.kind == "f":
        return _float_distance(candidate, oracle, tolerance)
    distance = np.where(np.asarray(candidate != oracle), np.inf, 0.0)
    return distance, np.zeros(oracle.shape), distance


def _float_distance(candidate: Array, oracle: Array, tolerance: Tolerance) -> tuple[Array, Array, Array]:
    a, b = candidate.astype(np.float64), oracle.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        distance = np.abs(a - b)
        both_nan = np.isnan(a) & np.isnan(b)
        distance = np.where(both_nan | (a == b), 0.0, np.where(np.isnan(distance), np.inf, distance))
        allowed = tolerance.absolute + tolerance.relative * np.abs(b)
        allowed = np.where(np.isfinite(allowed), allowed, tolerance.absolute)
        relative = np.where(b != 0, distance / np.abs(b), 0.0)
        relative = np.where(np.isnan(relative), 0.0, relative)
    return distance, allowed, relative


def compare(
    candidate: Mapping[str, Array], oracle: Mapping[str, Array], tolerance: Tolerance = EXACT
) -> Difference:
    """Compare named arrays; a name that only one side has is a difference."""
    if set(candidate) != set(oracle):
        text = f"expected tensors {sorted(oracle)}, got {sorted(candidate)}"
        return Difference(0, np.inf, np.inf, False, text)
    return merge([compare_arrays(candidate[name], oracle[name], tolerance, name) for name in oracle])


def merge(differences: list[Difference]) -> Difference:
    """Combine several comparisons; ``where`` is that of the first failure."""
    return Difference(
        sum(item.compared for item in differences),
        max((item.worst for item in differences), default=0.0),
        max((item.worst_relative for item in differences), default=0.0),
        all(item.ok for item in differences),
        next((item.where for item in differences if not item.ok), ""),
    )


def compare_rankings(
    candidate_ids: Array,
    candidate_scores: Array,
    oracle_ids: Array,
    oracle_scores: Array,
    tolerance: Tolerance = ENGINE,
) -> Difference:
    """Compare ranked lists row by row, for equal scores, and equal ids except for ties.

    Two engines may swap items whose scores are within the tolerance of each other, also across the end of the
    list. Nothing else may differ.

    Parameters
    ----------
    candidate_ids, oracle_ids
        ``[B, k]``, integers or objects.
    candidate_scores, oracle_scores
        ``[B, k]`` float32, best first.
    tolerance
        The allowed difference of scores, which also defines a tie.
    """
    scores = compare_arrays(candidate_scores, oracle_scores, tolerance, "score")
    if candidate_ids.shape != oracle_ids.shape:
        text = f"item_id: expected {list(oracle_ids.shape)}, got {list(candidate_ids.shape)}"
        return merge([scores, Difference(0, np.inf, np.inf, False, text)])
    swapped = np.asarray(candidate_ids != oracle_ids)
    for row, column in zip(*np.nonzero(swapped), strict=True):
        score = float(oracle_scores[row, column])
        allowed = tolerance.absolute + tolerance.relative * abs(score)
        places = np.flatnonzero(oracle_ids[row] == candidate_ids[row, column])
        # An id that the oracle does not list must tie with the last one that it does.
        place = int(places[0]) if places.size else oracle_ids.shape[1] - 1
        if abs(float(oracle_scores[row, place]) - score) > 2 * allowed:
            text = (
                f"item_id[{row}, {column}]: expected {oracle_ids[row, column]!r} ({score:.6g}), "
                f"got {candidate_ids[row, column]!r} ({float(candidate_scores[row, column]):.6g})"
            )
            return merge([scores, Difference(int(swapped.size), np.inf, np.inf, False, text)])
    return merge([scores, Difference(int(swapped.size), 0.0, 0.0, True)])


def same_top(candidate: Array, oracle: Array, top: int = TOP) -> npt.NDArray[np.bool_]:
    """Return whether the best candidates of each ranking are the same in both, in any order.

    Parameters
    ----------
    candidate, oracle
        Scores ``[B, K, T]``, higher is better; NaN comes last.
    top
        How many candidates are the best ones.

    Returns
    -------
    ``[B, T]`` bool. Candidates whose scores are within :data:`ENGINE` of each other count as equal, because
    another float32 engine may swap them too.
    """
    top = min(top, oracle.shape[1])
    own = np.where(np.isnan(candidate), -np.inf, candidate)
    right = np.where(np.isnan(oracle), -np.inf, oracle)
    chosen = np.argpartition(-own, top - 1, axis=1)[:, :top]
    # Candidates with equal scores are equally good, so compare scores and not places.
    found = np.sort(np.take_along_axis(right, chosen, axis=1), axis=1)
    best = np.sort(right, axis=1)[:, -top:]
    distance, allowed, _ = _float_distance(found, best, ENGINE)
    same: npt.NDArray[np.bool_] = (distance <= allowed).all(axis=1)
    return same


def compare_columns(candidate: Mapping[str, Column], oracle: Mapping[str, Column]) -> Difference:
    """Compare feature columns exactly: values, nulls, and the offsets of lists."""
    return compare(_comparable(candidate), _comparable(oracle))


def _comparable(columns: Mapping[str, Column]) -> dict[str, Array]:
    arrays: dict[str, Array] = {}
    for name, column in columns.items():
        values = column.values
        valid = np.ones(len(values), np.bool_) if column.valid is None else np.asarray(column.valid)
        if values.dtype.kind == "f":
            valid = valid & ~np.isnan(values)
        # The value at a null is unspecified.
        blank = b"" if values.dtype == np.object_ else values.dtype.type(0)
        arrays[name] = np.where(valid, values, blank).astype(values.dtype)
        arrays[f"{name} (not null)"] = valid
        if column.offsets is not None:
            arrays[f"{name} (list ends)"] = np.asarray(column.offsets, np.int64)
    return arrays
