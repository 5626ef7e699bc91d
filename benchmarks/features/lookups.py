"""Costs of vocabularies: direct tables against plain gathers, hash lookups against pandas, and by size."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from nvtabular import ops

from benchmarks.features.cases import CRITEO_SIZES, UNSEEN, fit_graph, hexadecimal, scattered
from benchmarks.features.plan import Plan
from benchmarks.features.timing import Call, Timed, interleave, span
from tiercel_export.workflow.cut import CompiledProgram, compile_workflow
from tiercel_export.workflow.frames import columns_from_frame, oracle_frame
from tiercel_serving.columns import Column
from tiercel_serving.errors import BenchError
from tiercel_serving.features import FeatureProgram
from tiercel_serving.features.steps import open_steps
from tiercel_serving.lookups.build import build_lookup
from tiercel_serving.lookups.lookup import open_lookup
from tiercel_serving.lookups.strings import Strings
from tiercel_serving.release.artefacts import open_artefact
from tiercel_serving.spec import Array

#: Rows of a batch, and number of different batches that are cycled through.
BATCH, BATCHES = 10_000, 8
#: Most time that direct tables may take, as a multiple of a plain ``table[index]``.
GATHER_LIMIT = 1.5
#: How many times faster than ``Index.get_indexer`` a hash lookup must be.
HASH_LIMIT = 3.0
#: Most time that one row may take with the slowest vocabulary size, as a multiple of the fastest.
FLAT_LIMIT = 1.5


@dataclass(frozen=True)
class Gather:
    """Direct tables and plain gathers on the same columns, with :data:`BATCH` rows.

    Parameters
    ----------
    columns
        Number of columns.
    bare
        ``table[index]`` for each column, with an index that is ready.
    encode
        The program's encoding steps: offsets, bounds, unseen values, gather.
    program
        The whole program: loading the columns, encoding, outputs.
    limit
        Most time that ``encode`` may take, as a multiple of ``bare``; None is no limit.
    """

    columns: int
    bare: Timed
    encode: Timed
    program: Timed
    limit: float | None = GATHER_LIMIT

    @property
    def ratio(self) -> float:
        """The time of ``encode`` as a multiple of ``bare``."""
        return self.encode.us / self.bare.us

    @property
    def ok(self) -> bool:
        """Whether that is within the limit."""
        return self.limit is None or self.ratio <= self.limit

    def to_json(self) -> dict[str, Any]:
        """Return a JSON form."""
        lowest, highest = span(self.encode, self.bare)
        return {
            "columns": self.columns,
            "batch": BATCH,
            **{side: getattr(self, side).to_json() for side in ("bare", "encode", "program")},
            "ratio": round(self.ratio, 3),
            "lowest": round(lowest, 3),
            "highest": round(highest, 3),
            "limit": self.limit,
            "ok": self.ok,
        }


@dataclass(frozen=True)
class Hash:
    """Hash lookups of one kind of key against pandas, with :data:`BATCH` keys per call.

    Parameters
    ----------
    kind
        ``integers``, ``strings`` (Python objects) or ``packed strings`` (concatenated bytes).
    entries
        Number of keys in the table.
    lookup, pandas
        Times of Tiercel's lookup and of pandas.
    limit
        How many times faster than pandas the lookup must be; None is no limit.
    """

    kind: str
    entries: int
    lookup: Timed
    pandas: Timed
    limit: float | None = HASH_LIMIT

    @property
    def ratio(self) -> float:
        """How many times faster than pandas the lookup is."""
        return self.pandas.us / self.lookup.us

    @property
    def ok(self) -> bool:
        """Whether that is within the limit."""
        return self.limit is None or self.ratio >= self.limit

    def to_json(self) -> dict[str, Any]:
        """Return a JSON form, with times in nanoseconds per key too."""
        lowest, highest = span(self.pandas, self.lookup)
        return {
            "kind": self.kind,
            "entries": self.entries,
            "lookup_ns": round(ns_a_key(self.lookup), 1),
            "pandas_ns": round(ns_a_key(self.pandas), 1),
            "lookup": self.lookup.to_json(),
            "pandas": self.pandas.to_json(),
            "ratio": round(self.ratio, 2),
            "lowest": round(lowest, 2),
            "highest": round(highest, 2),
            "limit": self.limit,
            "ok": self.ok,
        }


@dataclass(frozen=True)
class Flat:
    """Times of one row of one column, by the size of its vocabulary.

    Parameters
    ----------
    kind
        ``dense integers``, ``sparse integers`` or ``strings``.
    sizes
        Vocabulary entries → the program's time.
    limit
        Most time that the slowest size may take, as a multiple of the fastest; None is no limit.
    """

    kind: str
    sizes: Mapping[int, Timed]
    limit: float | None = FLAT_LIMIT

    @property
    def ratio(self) -> float:
        """The slowest time divided by the fastest."""
        times = [timed.us for timed in self.sizes.values()]
        return max(times) / min(times)

    @property
    def ok(self) -> bool:
        """Whether that is within the limit."""
        return self.limit is None or self.ratio <= self.limit

    def to_json(self) -> dict[str, Any]:
        """Return a JSON form."""
        return {
            "kind": self.kind,
            "sizes": {str(size): timed.to_json() for size, timed in self.sizes.items()},
            "ratio": round(self.ratio, 3),
            "limit": self.limit,
            "ok": self.ok,
        }


def ns_a_key(timed: Timed) -> float:
    """Return the nanoseconds per key of a call on :data:`BATCH` keys."""
    return timed.us * 1000 / BATCH


# ---------------------------------------------------------------------------------------------- gathers


def measure_gather(plan: Plan, scratch: Path) -> Gather:
    """Time the direct tables of 26 columns of dense integers, sized as in the Criteo-like cases.

    Parameters
    ----------
    plan
        Sizes and repeats.
    scratch
        A directory for vocabularies and artefacts.

    Raises
    ------
    BenchError
        A direct table and a plain gather give different results.
    """
    rng = np.random.default_rng(0)
    sizes = [min(size, plan.largest) for size in CRITEO_SIZES]
    names = [f"C{i}" for i in range(len(sizes))]
    fit = pd.DataFrame(
        {name: rng.permutation(plan.largest) % size for name, size in zip(names, sizes, strict=True)}
    )
    compiled = _compile(names, fit, scratch / "gather")
    program = _opened(compiled, scratch / "gather-program")
    keys = [
        {name: rng.integers(0, size, BATCH) for name, size in zip(names, sizes, strict=True)}
        for _ in range(BATCHES)
    ]
    batches = [{name: Column(values) for name, values in own.items()} for own in keys]
    tables = _tables(program, sizes, names)
    answered = program.run(batches[0], BATCH)
    for name, answer in zip(names, _bare(tables, keys[0]), strict=True):
        if not np.array_equal(answered[name].values, answer):
            raise BenchError(f"direct table of {name}: not what a bare gather gives; this is a defect")
    encodes = [_encode_steps(compiled, scratch / "gather-program", batch) for batch in batches]
    timed = interleave(
        {
            "bare": [partial(_bare, tables, own) for own in keys],
            "encode": encodes,
            "program": [partial(program.run, batch, BATCH) for batch in batches],
        },
        rounds=plan.rounds,
        seconds=plan.seconds,
    )
    return Gather(len(names), **timed, limit=None if plan.quick else GATHER_LIMIT)


def _tables(program: FeatureProgram, sizes: list[int], names: list[str]) -> dict[str, Array]:
    """Return the whole table of each column, read out through the program."""
    tables = {}
    for name, size in zip(names, sizes, strict=True):
        every = {other: Column(np.zeros(size, np.int64)) for other in names}
        every[name] = Column(np.arange(size))
        tables[name] = program.run(every, size)[name].values
    return tables


def _bare(tables: Mapping[str, Array], keys: Mapping[str, Array]) -> list[Array]:
    return [tables[name][index] for name, index in keys.items()]


def _encode_steps(compiled: CompiledProgram, place: Path, batch: Mapping[str, Column]) -> Call:
    """Return a call that runs only a program's encoding steps, on registers that are ready."""
    described = compiled.document["steps"]
    steps = open_steps(described, open_artefact(place, "features").arrays)
    registers: list[Any] = []
    for step in steps:
        registers.append(step.run(registers, batch, BATCH))
    pairs = zip(steps, described, strict=True)
    encoding = [step for step, entry in pairs if entry["op"].startswith("encode")]

    def call() -> None:
        for step in encoding:
            step.run(registers, batch, BATCH)

    return call


# ----------------------------------------------------------------------------------------------- hashes


def measure_hashes(plan: Plan) -> list[Hash]:
    """Time hash lookups and ``pandas.Index.get_indexer`` over the same keys, some of them unseen.

    Both have their table ready. Strings are ``str`` for pandas. For the lookup they are ``bytes``, as in
    Triton's Python backend, or packed, as Arrow stores them. Objects are created anew for each call, as for
    each request; otherwise pandas would find the objects of its own table, with their hashes cached.

    Raises
    ------
    BenchError
        The two give different results.
    """
    rng = np.random.default_rng(1)
    integers = scattered(plan.keys, rng)
    asked = [rng.integers(0, plan.keys, BATCH) for _ in range(BATCHES)]
    unseen = [rng.random(BATCH) < UNSEEN for _ in range(BATCHES)]
    limit = None if plan.quick else HASH_LIMIT
    figures = []
    for keys, stranger, forms in (
        (integers, 1 << 40, {"integers": _as_is}),
        (hexadecimal(integers), "unseen", {"strings": _bytes_of, "packed strings": _packed}),
    ):
        index = pd.Index(keys)
        lookup = open_lookup(build_lookup(_bytes_of(keys)))
        batches = [np.where(new, stranger, keys[rows]) for rows, new in zip(asked, unseen, strict=True)]
        for values in batches:
            if not np.array_equal(lookup.find(_bytes_of(values)), index.get_indexer(values)):
                raise BenchError("hash lookups and pandas differ; run tests/features/test_lookup.py")
        for kind, form in forms.items():
            timed = interleave(
                {
                    "lookup": _Fresh(batches, lookup.find, form),
                    "pandas": _Fresh(batches, index.get_indexer, _index_of),
                },
                rounds=plan.rounds,
                seconds=plan.seconds,
            )
            figures.append(Hash(kind, len(keys), **timed, limit=limit))
    return figures


class _Fresh(Sequence[Call]):
    """Calls whose input is created when the call is fetched, before the clock starts."""

    def __init__(
        self, inputs: Sequence[Array], call: Callable[[Any], object], form: Callable[[Array], Any]
    ) -> None:
        self._inputs, self._call, self._form = inputs, call, form

    def __len__(self) -> int:
        return len(self._inputs)

    def __getitem__(self, place: Any) -> Any:
        return partial(self._call, self._form(self._inputs[place]))


def _as_is(values: Array) -> Array:
    return values


def _bytes_of(values: Array) -> Array:
    """Return integers as they are, text as new ``bytes`` objects."""
    return values if values.dtype != np.object_ else _objects([text.encode() for text in values.tolist()])


def _packed(values: Array) -> Strings:
    """Return text as concatenated bytes, as Arrow and Parquet store it."""
    return Strings.of(_bytes_of(values))


def _index_of(values: Array) -> pd.Index:
    """Return keys in the form that pandas looks up fastest; text as new ``str`` objects."""
    if values.dtype != np.object_:
        return pd.Index(values)
    return pd.Index(_objects([text.encode().decode() for text in values.tolist()]))


def _objects(values: list[Any]) -> Array:
    out = np.empty(len(values), np.object_)
    out[:] = values
    return out


# --------------------------------------------------------------------------------------------- flatness


def measure_flatness(plan: Plan, scratch: Path) -> list[Flat]:
    """Time one row of one column for each vocabulary size of the plan.

    Each call looks up another key.

    Parameters
    ----------
    plan
        Sizes and repeats.
    scratch
        A directory for vocabularies and artefacts.
    """
    rng = np.random.default_rng(2)
    kinds: Mapping[str, Callable[[int], Array]] = {
        "dense integers": np.arange,
        "sparse integers": lambda size: scattered(size, rng),
        "strings": lambda size: hexadecimal(scattered(size, rng)),
    }
    figures = []
    for kind, keys_of in kinds.items():
        sides = {}
        for size in plan.flat:
            keys, place = keys_of(size), scratch / f"{kind.replace(' ', '-')}-{size}"
            program = _opened(_compile(["key"], pd.DataFrame({"key": keys}), place), place / "program")
            drawn = pd.DataFrame({"key": keys[rng.integers(0, size, plan.singles)]})
            rows = [oracle_frame(drawn.iloc[i : i + 1], program.inputs) for i in range(plan.singles)]
            sides[str(size)] = [
                partial(program.packed, columns_from_frame(row, program.inputs), 1) for row in rows
            ]
        timed = interleave(sides, rounds=plan.rounds, seconds=plan.seconds)
        limit = None if plan.quick else FLAT_LIMIT
        figures.append(Flat(kind, {int(size): one for size, one in timed.items()}, limit))
    return figures


def _compile(names: list[str], fit: pd.DataFrame, place: Path) -> CompiledProgram:
    return compile_workflow(fit_graph(names >> ops.Categorify(out_path=str(place)), fit), "user")


def _opened(compiled: CompiledProgram, place: Path) -> FeatureProgram:
    compiled.write(place, "bench")
    return FeatureProgram.open(open_artefact(place, "features"))
