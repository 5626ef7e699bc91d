"""Unit vectors of items: of a source, of a column of lists of numbers, or of which values an item has."""

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

#: So many different values make a vector of their own, at most.
MOST_VALUES = 512

#: What is left of a vector, squared, that makes no direction of its own: it would be rounding alone.
NEXT_TO_NOTHING = 1e-4

Floats = npt.NDArray[np.float32]


class OfVectors(Settings, frozen=True):
    """Base of steps that compare items by vectors: of a source of the release, or of a raw column.

    An item's vector is scaled to length 1. Of a column, it is the item's list of floating-point numbers, or
    else one dimension for each value of the column, 1 where the item has it. An item without a vector (null,
    zeros, a number that is not finite) is like no other.
    """

    wants: ClassVar[str] = "vectors"
    #: It places items one after another: a hair's breadth may change all that follows.
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
        """Return that neither or both of source and column are named."""
        if bool(self.columns()) != bool(self.sources()):
            return []
        return [Problem("column", "expected a source or a column, one of both", "name source= or column=")]

    def misfits(self, tasks: int) -> list[Problem]:
        """Return nothing: any ranker will do."""
        return []

    def unfit(self, columns: Mapping[str, Column]) -> list[Problem]:
        """Return a column that makes no vectors."""
        return [problem for name in self.columns() for problem in _unfit(columns[name], name)]

    def vectors(self, columns: Mapping[str, Column]) -> ItemVectors:
        """Open the vectors."""
        name = self.columns() or tuple(map(of_source, self.sources()))
        return ItemVectors(columns[name[0]])

    def plain_vectors(self, candidates: Sequence[Mapping[str, Any]]) -> list[dict[Any, float]]:
        """Return each candidate's unit vector, dimension → number, plainly; an item without one has none."""
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
    """Return a column of measures, or of too many different values."""
    if column.values.dtype.kind == "f":
        return [Problem("column", f"{name!r} holds numbers", "name a column of lists, text or integers")]
    values = len(distinct(column)[0])
    if values > MOST_VALUES:
        problem = f"{name!r} holds {values} different values, of {MOST_VALUES} at most"
        return [Problem("column", problem, "name a coarser column, or vectors")]
    return []


def distinct(column: Column) -> tuple[Array, Array]:
    """Return the different values of a column, and which one each element is; -1 is null."""
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
        ``[I + 1]``, as :class:`OfVectors` says; the last row is null.
    """

    def __init__(self, column: Column) -> None:
        self._matrix, self._place = _matrix(column)
        with np.errstate(over="ignore", invalid="ignore"):
            squares = np.einsum("id,id->i", self._matrix, self._matrix, dtype=np.float64)
        good = np.isfinite(squares) & (squares > 0)
        # What is no vector points at one that is, and weighs nothing.
        there = (self._place >= 0) & good[self._place]
        self._place = np.where(there, self._place, int(good.argmax()))
        inverse = np.divide(1, np.sqrt(squares), where=good, out=np.zeros(len(good)))
        self._scale = np.where(there, inverse[self._place], 0).astype(np.float32)
        if not good.any():
            self._matrix = np.zeros((1, 1), np.float32)
            self._place[:] = 0
        # Zeros behind, so that the native form takes eight numbers at a time.
        if over := -self._matrix.shape[1] % LANES:
            self._matrix = np.pad(self._matrix, ((0, 0), (0, over)))
        self._matrix = np.ascontiguousarray(self._matrix)

    def where(self, rows: Rows, factor: Floats | None = None) -> Vectors:
        """Say where unit vectors of rows ``[B, K]``, times ``factor [B, 1]``, are; zeros of items without."""
        scale: Floats = self._scale.take(rows)
        if factor is not None:
            scale *= factor
        return Vectors(self._matrix, self._place.take(rows), scale)

    def of(self, where: Vectors) -> Candidates:
        """Gather them."""
        vectors: Floats = where.matrix.take(where.row, axis=0)
        np.multiply(vectors, where.scale[:, :, None], vectors)
        return Candidates(vectors)


class Candidates:
    """The vectors ``[B, K, D]`` of each user's candidates, and their inner products with one of each user."""

    def __init__(self, vectors: Floats) -> None:
        self.users, _, self.dimension = vectors.shape
        self._vectors, self._flat = vectors, vectors.reshape(-1, vectors.shape[2])
        self._out = np.empty(vectors.shape[:2], np.float32)
        self._one, self._out_of_one = vectors[0], self._out[0]
        # Reshaped: BLAS takes no axis of stride 0, which an index of None would make.
        self._column = self._out.reshape(*self._out.shape, 1)

    def chosen(self, chosen: Rows) -> Floats:
        """Return ``[B, D]`` the vectors of flat indexes ``[B]``."""
        return self._flat.take(chosen, axis=0)

    def dots(self, of: Floats) -> Floats:
        """Return the inner products ``[B, K]`` with vectors ``[B, D]``; overwritten by the next call."""
        if len(of) == 1:
            np.dot(self._one, of[0], self._out_of_one)
        else:
            np.matmul(self._vectors, of.reshape(*of.shape, 1), self._column)
        return self._out


class Basis:
    """The directions of the items that each user was given last: orthogonal, of length 1.

    Parameters
    ----------
    vectors
        The candidates.
    size
        How many are kept; the oldest makes room.
    """

    def __init__(self, vectors: Candidates, size: int) -> None:
        self.size = max(size, 1)
        self._vectors = vectors
        self._kept = np.zeros((vectors.users, self.size, vectors.dimension), np.float32)
        self._count = 0

    @property
    def last(self) -> int:
        """Where the latest direction is kept, which is where the oldest was."""
        return (self._count - 1) % self.size

    def direction(self, chosen: Rows) -> Floats:
        """Return ``[B, D]`` what the chosen add to the basis, and keep it; zeros if next to nothing."""
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
    """Do the same for one user, in place: plain numbers cost a third of arrays with one."""
    vector -= np.dot(np.dot(used, vector), used)
    square = float(np.dot(vector, vector))
    vector *= 1 / sqrt(square) if square > NEXT_TO_NOTHING else 0


def _matrix(column: Column) -> tuple[Floats, Rows]:
    """Return vectors ``[V, D]``, and ``[I + 1]`` which is each item's; -1 is none."""
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
    """Return the codes ``[I + 1, L]`` of each item's different values, V where there is none; and V."""
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
    """Return one item's unit vector."""
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
    """Return the scores of the places that a step gives by vectors, in C or else in NumPy.

    Parameters
    ----------
    kind
        A kind of :func:`..native.placing.place_by_vectors`, which takes ``limits``.
    vectors, strength
        The items' vectors, and how much they count.
    scores, arrays
        What the step gets.
    in_numpy
        Of the candidates' vectors, their relevance ``[B, K]`` times 1 - s, s ``[B or 1, 1]`` and the number
        of places: what stands at each place ``[B, S]``.
    """
    line, places = Line.of(scores, arrays), places_to_fill(arrays, scores.shape[1])
    share = batch_amount(strength, arrays).astype(np.float32)
    relevant = scaled(line.relevance(), 1 - share)
    # MMR's inner products are the strength times a cosine.
    where = vectors.where(line.rows, np.sqrt(share) if kind == native.MMR else None)
    picks = native.place_by_vectors(kind, where, relevant, share, places, nothing=NEXT_TO_NOTHING, **limits)
    if picks is None:
        picks = in_numpy(vectors.of(where), relevant, share, places)
    return line.placed(picks)


def plain_dot(a: Mapping[Any, float], b: Mapping[Any, float]) -> float:
    """Return the inner product of two such vectors."""
    return sum(number * b[at] for at, number in a.items() if at in b)


def plain_rests(
    vectors: Sequence[dict[Any, float]], last: int | None = None
) -> Callable[[list[int]], Callable[[int], float]]:
    """Return what tells, of those chosen, the square of what is left of each unit vector without them.

    Left out are the directions that the ``last`` of them add (None: all), each to those of the ``last``
    before it. An item without a vector has 1 left. Whoever asks, asks of one more item each time.
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
