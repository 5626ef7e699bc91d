"""Checks of the engines against torch, against their stand-ins, and by the top candidates of rankings."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..engines.table import ENGINES, BuiltKind, Engine
from ..release.opened import Release
from ..spec import Array, Arrays
from ..stages.engine import model_of, open_engine
from ..stages.specs import RANKING, is_ranker
from .compare import ENGINE, TOP, Difference, Tolerance, compare, merge, same_top
from .golden import StoredGolden
from .report import VerifyRow
from .stand_in import with_stand_ins

#: Runs a model on named arrays.
Run = Callable[[Arrays], dict[str, Array]]


@dataclass(frozen=True)
class ReducedModel:
    """A model in its engine's reduced precision, with the batches, tolerance and precision of its check."""

    run: Run
    batches: list[dict[str, Array]]
    tolerance: Tolerance
    precision: str


def check_engines(release: Release) -> Iterator[VerifyRow]:
    """Compare each engine with torch's golden outputs, and a built engine also with its graph."""
    golden, (opened, reasons) = StoredGolden(release), with_stand_ins(release)
    for name in golden.contents.engines:
        kind: Any = ENGINES.find(model_of(name, opened).engine)
        inputs, outputs = golden.tensors("engines", name)
        oracles = {"torch (golden)": outputs}
        if isinstance(kind, BuiltKind):
            oracles[kind.stand_in] = _of_stand_in(name, release, kind, inputs)
        with contextlib.closing(open_engine(name, opened)) as engine:
            for oracle, want in oracles.items():
                for batch in sorted({1, release.settings.max_batch_size}):
                    difference = _at_batch(engine, inputs, want, batch, kind.tolerance)
                    row = VerifyRow.of(
                        name, f"{oracle}, batch {batch}", difference, kind.tolerance, reasons.get(name, "")
                    )
                    yield replace(row, warning=name in reasons)


def _of_stand_in(name: str, release: Release, kind: BuiltKind, inputs: Arrays) -> dict[str, Array]:
    """Run the graph of a built engine in its stand-in, on the engine's inputs."""
    other = ENGINES.find(kind.stand_in)
    stage = release.stages[RANKING if is_ranker(name) else name]
    outputs = tuple(tensor.name for tensor in stage.outputs)
    file = release.artefact(name, "engine").file(other.file)
    with contextlib.closing(other.open(file, outputs, threads=release.settings.engine_threads)) as graph:
        return graph.run(inputs)


def _at_batch(
    engine: Engine, inputs: Arrays, outputs: Arrays, batch: int, tolerance: Tolerance
) -> Difference:
    """Compare the golden rows in batches of this size; the last is filled by repeating rows."""
    rows = len(next(iter(outputs.values())))
    differences = []
    for start in range(0, rows, batch):
        take = np.arange(start, start + batch) % rows
        got = engine.run({name: array[take] for name, array in inputs.items()})
        differences.append(compare(got, {name: array[take] for name, array in outputs.items()}, tolerance))
    return merge(differences)


def check_models(
    release: Release,
    models: Mapping[str, Run],
    batches: Mapping[str, list[dict[str, Array]]],
    reduced: Mapping[str, ReducedModel],
) -> Iterator[VerifyRow]:
    """Compare each engine with its torch module, during an export.

    Parameters
    ----------
    release
        The release.
    models
        Engine stage → a function that runs the torch module.
    batches
        Engine stage → batches to run both on.
    reduced
        Engine stage → the model in its engine's reduced precision.
    """
    opened, reasons = with_stand_ins(release)
    for name, model in models.items():
        tolerance = ENGINES.find(model_of(name, opened).engine).tolerance
        with contextlib.closing(open_engine(name, opened)) as engine:
            differences = [compare(engine.run(batch), model(batch), tolerance) for batch in batches[name]]
        check, reason = f"torch, {len(differences)} batches", reasons.get(name, "")
        yield replace(VerifyRow.of(name, check, merge(differences), tolerance, reason), warning=bool(reason))
    for name, one in reduced.items():
        yield _reduced_row(name, one, models[name])


def _reduced_row(name: str, reduced: ReducedModel, model: Run) -> VerifyRow:
    """Compare a ranker in reduced precision with torch: its scores, and the top candidates."""
    differences, same = [], []
    for batch in reduced.batches:
        got, want = reduced.run(batch), model(batch)
        differences.append(compare(got, want, reduced.tolerance))
        same += [same_top(got[tensor], want[tensor]) for tensor in want]
    share, least = float(np.concatenate(same).mean()), reduced.tolerance.same_top or 0.0
    text = f"the same {TOP} on top in {share:.2%} of {sum(map(len, same)):,} requests"
    difference = merge(differences)
    if share < least:
        text = f"{text}, expected {least:.0%}; export the ranker in another precision"
        difference = replace(difference, ok=False, where=text)
    return VerifyRow.of(name, f"torch, rounded to {reduced.precision}", difference, reduced.tolerance, text)


def ranker_tolerance(release: Release) -> Tolerance:
    """Return the tolerance for the scores of whole answers, which is the ranker's."""
    ranking = release.manifest.ranking
    return ENGINE if ranking is None else ENGINES.find(ranking.engine).tolerance
