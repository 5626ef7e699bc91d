"""Recall and latency of an index type under each mask, against an exact scan in this process."""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import numpy.typing as npt

from benchmarks.scale.made_up import RULES
from benchmarks.scale.parts import SOURCE
from benchmarks.scale.sizes import Size
from tiercel_export.release.sources import write_source
from tiercel_serving.errors import InvalidSettings
from tiercel_serving.ranked.masks import make_mask
from tiercel_serving.release.artefacts import open_artefact
from tiercel_serving.sources.index import Index, VectorIndex
from tiercel_serving.sources.scan import ExactSearch
from tiercel_serving.sources.table import Material
from tiercel_serving.spec import Array

#: Number of searches per query, since a median over twenty fast searches is too noisy.
PASSES = 3

#: The orders in which an index, a scan and an unmasked search run.
ORDERS = tuple(itertools.permutations(range(3)))

#: Numbers of queries, of light and of heavy users, with which an index is measured when it is built.
BUILD_QUERIES, BUILD_HEAVY = 100, 20


@dataclass(frozen=True)
class Users:
    """Users to search for.

    Parameters
    ----------
    queries
        ``[Q, D]`` query vectors.
    seen
        The item rows that each user has had.
    """

    queries: Array
    seen: list[Array]


@dataclass(frozen=True)
class Searched:
    """Measurements of one index type under one mask.

    Parameters
    ----------
    index, mask
        Their names.
    recall
        The share of the best allowed items that are found.
    us, scan_us, unmasked_us
        Median microseconds of one search, of an exact scan, and of an unmasked search of this index. They are
        interleaved, so that a slow phase of the machine affects all three.
    refused
        Why the index cannot be built; empty if it can.
    """

    index: str
    mask: str
    recall: float = 0.0
    us: float = 0.0
    scan_us: float = 0.0
    unmasked_us: float = 0.0
    refused: str = ""


def measure_searches(
    vectors: Array,
    lots: Array,
    light: Users,
    heavy: Users,
    size: Size,
    indexes: tuple[str, ...],
    progress: Callable[[str], None],
) -> Iterator[Searched]:
    """Yield the figures of each index type: unmasked, masked by user, and restricted by rules.

    Parameters
    ----------
    vectors, lots
        The items' vectors ``[I, D]``, and the column ``[I]`` that the rules compare.
    light, heavy
        Light and heavy users. The last of the heavy users are not searched for; they are used only to measure
        an index when it is built.
    size, indexes
        The size, and the index types.
    progress
        Called with a description of the next step.
    """
    count = size.candidates
    known = Users(
        np.concatenate([light.queries[:BUILD_QUERIES], heavy.queries[size.queries :][:BUILD_HEAVY]]),
        [*light.seen[:BUILD_QUERIES], *heavy.seen[size.queries :][:BUILD_HEAVY]],
    )
    heavy = Users(heavy.queries[: size.queries], heavy.seen[: size.queries])
    light = Users(light.queries[: size.queries], light.seen[: size.queries])
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        exact = _source(place / "exact", "Flat", vectors, None, known, count)
        best = _best(exact, light.queries, len(vectors), max(size.hidden))
        few, many = size.hidden
        masks = {
            "none": Users(light.queries, [np.zeros(0, np.int64)] * len(light.queries)),
            f"{max(map(len, heavy.seen)):,} seen": heavy,
            f"{few:,} best excluded": Users(light.queries, [rows[:few] for rows in best]),
            f"{many:,} best excluded": Users(light.queries, [rows[:many] for rows in best]),
        }
        plain = {"Flat": exact}
        for number, index in enumerate(indexes):
            progress(index)
            try:
                if index not in plain:
                    plain[index] = _source(place / f"{number}", index, vectors, None, known, count)
            except InvalidSettings as error:
                yield Searched(index, "none", refused=str(error))
                continue
            for name, users in masks.items():
                yield _searched(index, name, (plain[index], plain[index]), users, len(vectors), count)
        for share, most in RULES.items():
            allowed = lots < most
            cut = _source(place / f"exact {share}", "Flat", vectors, allowed, known, count)
            for number, index in enumerate(indexes):
                if index not in plain:
                    continue
                progress(f"{index}, a rule that {share} pass")
                folder_of = place / f"{number} {share}"
                try:
                    source = (
                        cut if index == "Flat" else _source(folder_of, index, vectors, allowed, known, count)
                    )
                except InvalidSettings as error:
                    yield Searched(index, f"rule of {share}", refused=str(error))
                    continue
                sources = (source, plain[index])
                yield _searched(index, f"rule of {share}", sources, masks["none"], len(vectors), count)


def _source(
    folder: Path, index: str, vectors: Array, allowed: npt.NDArray[np.bool_] | None, users: Users, count: int
) -> VectorIndex:
    """Build a source, write it, and open it, as an export and a stage do."""
    nothing = np.zeros(0, np.int64)
    kind = Index(SOURCE, factory=index)
    made = kind.make(
        Material(
            items=len(vectors),
            users=nothing,
            rows=nothing,
            form={"vectors": vectors},
            queries=users.queries,
            seen=users.seen,
            allowed=allowed,
            candidates=count,
        )
    )
    write_source(folder, made, "scale")
    return kind.open(open_artefact(folder, "source"), len(vectors), 1)


def _best(exact: VectorIndex, queries: Array, items: int, count: int) -> list[Array]:
    """Return the ``count`` best rows of all items for each query."""
    nothing = np.zeros(0, np.int64)
    found = []
    for query in queries:
        mask = make_mask(1, items, nothing, np.zeros(1, np.int64))
        found.append(exact.candidates({Index(SOURCE).query: query[None]}, mask, min(count, items))[1][0])
    return found


def _searched(
    index: str, mask: str, sources: tuple[VectorIndex, VectorIndex], users: Users, items: int, count: int
) -> Searched:
    """Search for each user alone by the index, by a scan of its vectors, and by the index without a mask."""
    source, plain = sources
    exact = VectorIndex(Index(SOURCE).query, source.space, ExactSearch(source.space))
    ways = (source, exact, plain)
    nothing = np.zeros(0, np.int64)
    spent: tuple[list[float], ...] = ([], [], [])
    shares = []
    asked = list(zip(users.queries, users.seen, strict=True))
    for turn, (query, seen) in enumerate(asked * PASSES):
        scores = [np.empty(0, np.float32)] * len(ways)
        # Masks are made before the clock starts, since every search needs one at equal cost. Each search has
        # its own, since a mask caches what is computed from it.
        masks = [make_mask(1, items, rows, np.array([len(rows)])) for rows in (seen, seen, nothing)]
        # A search right after another one finds the vectors in the CPU's caches, so all orders are used.
        for way in ORDERS[turn % len(ORDERS)]:
            tensors = {Index(SOURCE).query: query[None]}
            begun = time.perf_counter()
            found, _ = ways[way].candidates(tensors, masks[way], count)
            spent[way].append((time.perf_counter() - begun) * 1e6)
            scores[way] = found[0]
        shares.append(_share(scores[0], scores[1]))
    us, scan_us, unmasked_us = (median(times[len(times) // 5 :]) for times in spent)
    # Round, so that binary error in the mean does not push a recall of exactly 0.99 below its limit.
    return Searched(index, mask, round(float(np.mean(shares)), 9), us, scan_us, unmasked_us)


def _share(found: Array, exact: Array) -> float:
    """Return the share of found items that score at least as high as the worst exact one, ties included."""
    real = int(np.count_nonzero(exact > -np.inf))
    if not real:
        return 1.0
    cut = exact[real - 1]
    return float(np.mean(found[:real] >= cut - 1e-6 - 1e-5 * abs(cut)))
