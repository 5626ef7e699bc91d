"""Unit vectors of items: from a source, from a column of number lists, or one-hot from a column's values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import isfinite, sqrt
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from ..columns import Column
from ..kinds import Settings
from ..native import placing as native
from ..native.placing import LANES, Vectors
from ..problems import Problem
from ..ranked.order import Rows, Scores
from ..spec import Array, Arrays
from .inputs import of_source
from .per_request import Amount, batch_amount
from .placing import Line, places_to_fill, scaled

#: The most distinct values of a column that become dimensions of a vector.
MOST_VALUES = 512

#: A residual vector whose squared length is at most this adds no direction: it would be mere rounding.
NEXT_TO_NOTHING = 1e-4

Floats = npt.NDArray[np.float32]


class OfVectors(Settings, frozen=True):
    """Base of steps that compare items by vectors, from a source of the release or from a raw column.

    An item's vector is scaled to length 1. From a column, it is the item's list of floating-point numbers, or
    else has one dimension for each value of the column, 1 where the item has that value. An item without a
    vector (null, all zeros, or a number that is not finite) is similar to no other.
    """

    wants: ClassVar[str] = "vectors"
    #: It places items one by one, so a rounding difference may change all later places.
    places: ClassVar[bool] = True

    def columns(self) -> tuple[str, ...]:
        """Return the raw column, unless a source gives the vectors."""
        column: str = self.column  # type: ignore[attr-defined]
        return (column,) if column else ()

    def sources(self) -> tuple[str, ...]:
        """Return the source, if one gives the vectors."""
        source: str = self.source  # type: ignore[attr-defined]
        return (source,) if source else ()

    def where_problems(self) -> list[Problem]:
        """Return a problem if neither or both of source and column are named."""
        if bool(self.columns()) != bool(self.sources()):
            return []
        return [Problem("column", "expected a source or a column, one of both", "name source= or column=")]

    def misfits(self, tasks: int) -> list[Problem]:
        """Return nothing: the step fits any ranker."""
        return []

    def unfit(self, columns: Mapping[str, Column]) -> list[Problem]:
        """Return a column that can't be turned into vectors."""
        return [problem for name in self.columns() for problem in _unfit(columns[name], name)]

    def vectors(self, columns: Mapping[str, Column]) -> ItemVectors:
        """Open the vectors."""
        name = self.columns() or tuple(map(of_source, self.sources()))
        return ItemVectors(columns[name[0]])

    def plain_vectors(self, candidates: Sequence[Mapping[str, Any]]) -> list[dict[Any, float]]:
        """Return each candidate's unit vector as dimension → number; empty for an item without one."""
        name = (self.columns() or tuple(map(of_source, self.sources())))[0]
        return [_plain(candidate[name]) for candidate in candidates]


def _holds_vectors(column: Column) -> bool:
    return column.is_list and column.values.dtype.kind == "f"


def _unfit(column: Column, name: str) -> list[Problem]:
    if _holds_vectors(column):
        assert column.offsets is not None
        lengths = np.unique(np.diff(column.offsets))
        if len(lengths[lengths > 0]) > 1:
            problem = f"the vectors of {name!r} have {lengths[lengths > 0].tolist()[:3]} numbers"
            return [Problem("column", problem, "name a column whose lists are equally long")]
        return []
    return unfit_values_of(column, name)


def unfit_values_of(column: Column, name: str) -> list[Problem]:
    """Return a column of floating-point numbers, or with more than :data:`MOST_VALUES` values."""
    if column.values.dtype.kind == "f":
        return [Problem("column", f"{name!r} holds numbers", "name a column of lists, text or integers")]
    values = len(distinct(column)[0])
    if values > MOST_VALUES:
        problem = f"{name!r} holds {values} different values, of {MOST_VALUES} at most"
        return [Problem("column", problem, "name a coarser column, or vectors")]
    return []


def distinct(column: Column) -> tuple[Array, Array]:
    """Return the distinct values of a column, and the index of each element's value; -1 is null."""
    valid = np.ones(len(column.values), np.bool_) if column.valid is None else column.valid
    values, codes = np.unique(column.values[valid], return_inverse=True)
    found = np.full(len(column.values), -1)
    found[valid] = codes
    return values, found


class ItemVectors:
    """Unit vectors of items, gathered by row.

    Parameters
    ----------
    column
        ``[I + 1]``, of a form that :class:`OfVectors` describes; the last row is null.
    """

    def __init__(self, column: Column) -> None:
        self._matrix, self._place = _matrix(column)
        with np.errstate(over="ignore", invalid="ignore"):
            squares = np.einsum("id,id->i", self._matrix, self._matrix, dtype=np.float64)
        good = np.isfinite(squares) & (squares > 0)
        # An item without a usable vector points at a usable one, with a scale of 0.
        there = (self._place >= 0) & good[self._place]
        self._place = np.where(there, self._place, int(good.argmax()))
        inverse = np.divide(1, np.sqrt(squares), where=good, out=np.zeros(len(good)))
        self._scale = np.where(there, inverse[self._place], 0).astype(np.float32)
        if not good.any():
            self._matrix = np.zeros((1, 1), np.float32)
            self._place[:] = 0
        # Padded with zeros, so that the native form can process eight numbers at a time.
        if over := -self._matrix.shape[1] % LANES:
            self._matrix = np.pad(self._matrix, ((0, 0), (0, over)))
        self._matrix = np.ascontiguousarray(self._matrix)

    def where(self, rows: Rows, factor: Floats | None = None) -> Vectors:
        """Return references to unit vectors of rows ``[B, K]``, times ``factor [B, 1]``; zeros if none."""
        scale: Floats = self._scale.take(rows)
        if factor is not None:
            scale *= factor
        return Vectors(self._matrix, self._place.take(rows), scale)

    def of(self, where: Vectors) -> Candidates:
        """Gather the referenced vectors."""
        vectors: Floats = where.matrix.take(where.row, axis=0)
        np.multiply(vectors, where.scale[:, :, None], vectors)
        return Candidates(vectors)


class Candidates:
    """The vectors ``[B, K, D]`` of each user's candidates, and their products with one vector per user."""

    def __init__(self, vectors: Floats) -> None:
        self.users, _, self.dimension = vectors.shape
        self._vectors, self._flat = vectors, vectors.reshape(-1, vectors.shape[2])
        self._out = np.empty(vectors.shape[:2], np.float32)
        self._one, self._out_of_one = vectors[0], self._out[0]
        # Reshaped, since indexing with None would add an axis of stride 0, which BLAS does not accept.
        self._column = self._out.reshape(*self._out.shape, 1)

    def chosen(self, chosen: Rows) -> Floats:
        """Return the vectors ``[B, D]`` at flat indexes ``[B]``."""
        return self._flat.take(chosen, axis=0)

    def dots(self, of: Floats) -> Floats:
        """Return the inner products ``[B, K]`` with vectors ``[B, D]``; overwritten by the next call."""
        if len(of) == 1:
            np.dot(self._one, of[0], self._out_of_one)
        else:
            np.matmul(self._vectors, of.reshape(*of.shape, 1), self._column)
        return self._out


class Basis:
    """An orthonormal basis of the directions of the items placed last, for each user.

    Parameters
    ----------
    vectors
        The candidates.
    size
        Number of directions to keep; a new one replaces the oldest.
    """

    def __init__(self, vectors: Candidates, size: int) -> None:
        self.size = max(size, 1)
        self._vectors = vectors
        self._kept = np.zeros((vectors.users, self.size, vectors.dimension), np.float32)
        self._count = 0

    @property
    def last(self) -> int:
        """Slot of the latest direction, which was that of the oldest."""
        return (self._count - 1) % self.size

    def direction(self, chosen: Rows) -> Floats:
        """Add the directions ``[B, D]`` of the chosen to the basis, and return them; zeros if negligible."""
        at = self._count % self.size
        used = self._kept[:, : min(self._count, self.size)]
        if self._count >= self.size:
            self._kept[:, at] = 0
        self._count += 1
        direction = self._vectors.chosen(chosen)
        if len(direction) == 1:
            _take_out(direction[0], used[0])
        else:
            inside = np.matmul(used, direction.reshape(*direction.shape, 1))
            direction -= np.matmul(inside.transpose(0, 2, 1), used)[:, 0]
            squares = np.einsum("bd,bd->b", direction, direction)
            big = squares > NEXT_TO_NOTHING
            direction *= np.where(big, 1 / np.sqrt(np.where(big, squares, 1)), 0).astype(np.float32)[:, None]
        self._kept[:, at] = direction
        return direction


def _take_out(vector: Floats, used: Floats) -> None:
    """Orthogonalise one user's vector in place: plain numbers cost a third of arrays with one element."""
    vector -= np.dot(np.dot(used, vector), used)
    square = float(np.dot(vector, vector))
    vector *= 1 / sqrt(square) if square > NEXT_TO_NOTHING else 0


def _matrix(column: Column) -> tuple[Floats, Rows]:
    """Return vectors ``[V, D]``, and the index ``[I + 1]`` of each item's vector; -1 is none."""
    size = len(column)
    if _holds_vectors(column):
        assert column.offsets is not None
        lengths = np.diff(column.offsets)
        width = max(int(lengths.max(initial=0)), 1)
        there = lengths > 0 if column.row_valid is None else (lengths > 0) & column.row_valid
        values = column.values if column.valid is None else np.where(column.valid, column.values, np.nan)
        whole: Array = values[: len(values) // width * width].reshape(-1, width)
        matrix: Array = whole if len(whole) else np.zeros((1, width))
        place: Rows = np.where(there, column.offsets[:-1] // width, -1)
        return np.asarray(matrix, np.float32), place
    return hot_rows(column), np.arange(size)


def hot_rows(column: Column) -> Floats:
    """Return ``[n, V]``: 1 where an item has a value, in the order of the values."""
    values, codes = distinct(column)
    hot = np.zeros((len(column), max(len(values), 1)), np.float32)
    items = np.arange(len(column))
    if column.offsets is not None:
        items = np.repeat(items, np.diff(column.offsets))
    hot[items[codes >= 0], codes[codes >= 0]] = 1
    return hot


def codes_of(column: Column) -> tuple[Rows, int]:
    """Return the codes ``[I + 1, L]`` of each item's distinct values, padded with V, and their number V."""
    values, codes = distinct(column)
    many = len(values)
    codes = np.where(codes < 0, many, codes)
    if column.offsets is None:
        return codes[:, None], many
    items = np.repeat(np.arange(len(column)), np.diff(column.offsets))
    pairs = np.unique(items * (many + 1) + codes)
    items, codes = pairs // (many + 1), pairs % (many + 1)
    items, codes = items[codes < many], codes[codes < many]
    counts = np.bincount(items, minlength=len(column))
    out = np.full((len(column), max(int(counts.max(initial=0)), 1)), many)
    out[items, np.arange(len(items)) - np.repeat(np.cumsum(counts) - counts, counts)] = codes
    return out, many


def _plain(value: Any) -> dict[Any, float]:
    """Return one item's unit vector as dimension → number; empty if it has none."""
    numbers: dict[Any, float] = {}
    if isinstance(value, list) and any(isinstance(one, float) for one in value):
        numbers = {at: one if one is not None else float("nan") for at, one in enumerate(value)}
    elif value is not None:
        values = value if isinstance(value, list) else [value]
        numbers = {one: 1.0 for one in values if one is not None}
    length = sqrt(sum(number * number for number in numbers.values()))
    if not isfinite(length) or length == 0:
        return {}
    return {at: number / length for at, number in numbers.items()}


def place_by_vectors(
    kind: int,
    vectors: ItemVectors,
    strength: Amount,
    scores: Scores,
    arrays: Arrays,
    in_numpy: Callable[[Candidates, Scores, Floats, int], Rows],
    **limits: Any,
) -> Scores:
    """Return the scores after placing items by vectors, in C or else in NumPy.

    Parameters
    ----------
    kind
        A kind of :func:`..native.placing.place_by_vectors`, which also takes ``limits``.
    vectors, strength
        The items' vectors, and s.
    scores, arrays
        The arguments of the step's ``apply``.
    in_numpy
        Returns the picks ``[B, S]``, given the candidates' vectors, their relevance ``[B, K]`` times 1 - s,
        s as ``[B, 1]`` or ``[1, 1]``, and the number of places S.
    """
    line, places = Line.of(scores, arrays), places_to_fill(arrays, scores.shape[1])
    share = batch_amount(strength, arrays).astype(np.float32)
    relevant = scaled(line.relevance(), 1 - share)
    # Scaled by the root of the strength, MMR's inner products are strength times cosine.
    where = vectors.where(line.rows, np.sqrt(share) if kind == native.MMR else None)
    picks = native.place_by_vectors(kind, where, relevant, share, places, nothing=NEXT_TO_NOTHING, **limits)
    if picks is None:
        picks = in_numpy(vectors.of(where), relevant, share, places)
    return line.placed(picks)


def plain_dot(a: Mapping[Any, float], b: Mapping[Any, float]) -> float:
    """Return the inner product of two vectors given as dimension → number."""
    return sum(number * b[at] for at, number in a.items() if at in b)


def plain_rests(
    vectors: Sequence[dict[Any, float]], last: int | None = None
) -> Callable[[list[int]], Callable[[int], float]]:
    """Return a function: the chosen items → a function: an item → squared length of its residual vector.

    The residual is the unit vector after projecting out the directions of the ``last`` chosen items (None:
    all). Each direction is orthogonal to the ``last`` - 1 before it. An item without a vector has a residual
    of 1. Each call must pass one chosen item more than the call before it.
    """
    basis: list[dict[Any, float]] = []
    shares: list[list[float]] = [[] for _ in vectors]

    def add(vector: dict[Any, float]) -> None:
        left = dict(vector)
        for direction in basis if last is None else basis[max(len(basis) - last + 1, 0) :]:
            share = plain_dot(vector, direction)
            for at, number in direction.items():
                left[at] = left.get(at, 0.0) - share * number
        square = plain_dot(left, left)
        small = square <= NEXT_TO_NOTHING
        basis.append({} if small else {at: number / sqrt(square) for at, number in left.items()})
        for own, other in zip(shares, vectors, strict=True):
            own.append(plain_dot(other, basis[-1]) ** 2)

    def rest_after(chosen: list[int]) -> Callable[[int], float]:
        for latest in chosen[-1:]:
            add(vectors[latest])
        first = 0 if last is None else max(len(chosen) - last, 0)
        return lambda at: 1.0 - sum(shares[at][first:])

    return rest_after
