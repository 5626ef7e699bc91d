"""The dense models of an export: their inputs, their outputs, and their engines on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
import torch

from tiercel_serving.engines.table import ENGINES, Calibrated, query_engine, unlowered_of
from tiercel_serving.live_items.watch import TOWER_ENGINE, item_tower
from tiercel_serving.release.artefacts import write_artefact
from tiercel_serving.release.manifest import QueryModel, RankingModel
from tiercel_serving.spec import Array, Arrays, TensorSpec
from tiercel_serving.stages.specs import RANKING, Tensors, bucket_name, is_ranker, query_stage
from tiercel_serving.verify.compare import ENGINE, compare

from ..errors import ExportInputError
from ..forms import FormArrays, HasItems, ItemTensors, ServedForm
from .dense import check_output, run_module
from .onnx_model import OnnxModel
from .opened import open_model

if TYPE_CHECKING:
    from ..forms import DenseGiven


class Maker(Protocol):
    """The function that the row of an engine names as its ``maker``."""

    def __call__(
        self,
        module: torch.nn.Module | OnnxModel,
        folder: Path,
        *,
        inputs: Sequence[TensorSpec],
        output: str,
        max_batch: int,
        build_id: str,
    ) -> Sequence[str]:
        """Write a model as the engine's file, and return notes for the user.

        Parameters
        ----------
        module
            A module as :func:`~.dense.frozen` gives it; an ONNX model only where the engine's row
            says that it takes them (:class:`~tiercel_serving.engines.table.FromOnnx`).
        folder
            The artefact's directory; it exists.
        inputs
            The inputs, in the order of the graph's inputs.
        output
            The name of the one output.
        max_batch
            The largest batch that will be requested.
        build_id
            Stored in the file, if its format allows that.

        Raises
        ------
        ExportError
            The engine can't express the module.
        """
        ...


class Calibrator(Protocol):
    """The function that the row of an engine names as its ``calibrator``."""

    def __call__(self, folder: Path, requests: Sequence[Arrays], *, max_batch: int) -> None:
        """Finish the engine that the maker began, with sample requests.

        Parameters
        ----------
        folder
            The artefact's directory.
        requests
            Representative batches of the model's inputs.
        max_batch
            The largest batch that will be requested.

        Raises
        ------
        ExportError
            The engine can't express the model, or ``requests`` is empty.
        """
        ...


@dataclass(frozen=True)
class DenseModel:
    """A module or ONNX model that becomes the engine of a stage.

    Parameters
    ----------
    stage
        Name of the stage and of its artefact.
    module
        A copy of the module on the CPU, in evaluation mode; or an ONNX model.
    inputs
        Specs of its inputs.
    output
        Spec of its output, without the batch axis.
    """

    stage: str
    module: torch.nn.Module | OnnxModel
    inputs: tuple[TensorSpec, ...]
    output: TensorSpec

    @property
    def names(self) -> tuple[str, ...]:
        """The names of its inputs."""
        return tuple(spec.name for spec in self.inputs)

    @property
    def parameters(self) -> int:
        """The number of its weights."""
        if isinstance(self.module, OnnxModel):
            return self.module.weight_count
        return sum(parameter.numel() for parameter in self.module.parameters())

    def run(self, arrays: Arrays) -> dict[str, Array]:
        """Run the module on named arrays ``[B, …]``; arrays that are not inputs are ignored."""
        return {self.output.name: run_module(self.module, {name: arrays[name] for name in self.names})}


@dataclass(frozen=True)
class Models:
    """The models of a recommender, before they are compiled.

    Parameters
    ----------
    forms
        Source → the arrays of its served form.
    queries
        Source → its query model, for forms that have one.
    ranker
        The ranker; None if the order of retrieval is kept.
    buckets
        The ranker for fewer candidates, in the order of the settings.
    towers
        Source → its item tower, if items may be added between releases.
    """

    forms: Mapping[str, FormArrays]
    queries: Mapping[str, DenseModel]
    ranker: DenseModel | None
    buckets: tuple[DenseModel, ...] = ()
    towers: Mapping[str, DenseModel] = field(default_factory=dict)

    @property
    def dense(self) -> tuple[DenseModel, ...]:
        """Every model of the served graph that becomes an engine."""
        return (*self.queries.values(), *(() if self.ranker is None else (self.ranker,)), *self.buckets)

    def query_models(self, engine: str) -> dict[str, QueryModel]:
        """Return the manifest's entries for the query models, by source."""
        return {
            source: QueryModel(
                engine_for(engine, model.stage), model.names, model.output.dims[0], model.parameters
            )
            for source, model in self.queries.items()
        }

    @property
    def tasks(self) -> int:
        """The number of scores that the ranker gives each item; 0 without a ranker."""
        return 0 if self.ranker is None else self.ranker.output.dims[1]

    def ranking_model(self, engine: str, names: tuple[str, ...]) -> RankingModel | None:
        """Return the manifest's entry for the ranker; ``names`` are those of its tasks."""
        if self.ranker is None:
            return None
        return RankingModel(engine, self.ranker.names, self.tasks, self.ranker.parameters, names)


def prepare_models(
    retrieval: Mapping[str, ServedForm],
    ranker: DenseGiven | None,
    tensors: Tensors,
    packed: Mapping[str, Array],
) -> Models:
    """Make the served forms, find the inputs of each module, and check its output.

    Parameters
    ----------
    retrieval, ranker
        As given to ``build_release``.
    tensors
        The tensors that modules may take.
    packed
        The packed item tensors ``[I + 1, …]``.

    Raises
    ------
    ExportInputError
        A form or a module does not fit the catalogue or the tensors of its stage.
    """
    items = tensors.catalogue.items
    # When served, items are the second axis; an item module sees one item per row.
    rows = {t.name: TensorSpec(t.name, t.dtype, t.dims[1:], doc=t.doc) for t in tensors.item}
    table = ItemTensors(items, rows, {name: array[:items] for name, array in packed.items()})
    forms, queries = {}, {}
    for source, form in retrieval.items():
        what = f"retrieval[{source!r}]"
        forms[source] = form.make(table, what)
        if form.query is not None:
            queries[source] = _dense(
                form.query,
                {tensor.name: tensor for tensor in tensors.user},
                query_stage(source),
                (forms[source].dimension,),
                f"{what}.query",
            )
    towers = _towers(retrieval, forms, rows) if tensors.settings.added_items else {}
    if ranker is None:
        return Models(forms, queries, None, towers=towers)
    known = {tensor.name: tensor for tensor in tensors.ranker}
    ranking = _dense(ranker, known, RANKING, (tensors.settings.kept, None), "ranker")
    return Models(forms, queries, ranking, tuple(_buckets(ranking, tensors)), towers)


def _towers(
    retrieval: Mapping[str, ServedForm],
    forms: Mapping[str, FormArrays],
    rows: Mapping[str, TensorSpec],
) -> dict[str, DenseModel]:
    """Return the item tower of each source whose form computes item vectors with a torch module."""
    modules = {source: form.items for source, form in retrieval.items() if isinstance(form, HasItems)}
    return {
        source: _dense(
            module, rows, item_tower(source), (forms[source].dimension,), f"retrieval[{source!r}].items"
        )
        for source, module in modules.items()
        if isinstance(module, torch.nn.Module)
    }


def _buckets(ranker: DenseModel, tensors: Tensors) -> Iterator[DenseModel]:
    """Yield the ranker for fewer candidates.

    Raises
    ------
    ExportInputError
        It does not run on fewer, or a candidate's score depends on the empty slots after it.
    """
    for k in tensors.settings.kept_buckets:
        inputs = tuple(
            replace(spec, dims=(k, *spec.dims[1:])) if spec.name in tensors.by_candidate else spec
            for spec in ranker.inputs
        )
        what = f"kept_buckets: the ranker for {k} candidates"
        shape = check_output(ranker.module, inputs, (k, ranker.output.dims[1]), what)
        smaller = DenseModel(bucket_name(k), ranker.module, inputs, replace(ranker.output, dims=shape))
        _refuse_other_scores(ranker, smaller, k, tensors, what)
        yield smaller


def _refuse_other_scores(
    ranker: DenseModel, smaller: DenseModel, k: int, tensors: Tensors, what: str
) -> None:
    """Compare the scores of both sizes on inputs where all but the first k slots are empty."""
    random = np.random.default_rng(0)
    arrays = {}
    for spec in ranker.inputs:
        array = random.integers(0, 2, (4, *spec.dims)).astype(spec.numpy_dtype)
        if spec.name in tensors.by_candidate:
            array[:, k:] = 0
        arrays[spec.name] = array
    first = {n: array[:, :k] if n in tensors.by_candidate else array for n, array in arrays.items()}
    name = ranker.output.name
    wanted = {name: ranker.run(arrays)[name][:, :k]}
    difference = compare(smaller.run(first), wanted, ENGINE)
    if not difference.ok:
        raise ExportInputError(
            f"{what}: the scores of the first {k} candidates change with the empty slots behind them "
            f"({difference.where}); mask empty slots (kept_source is 0 there), or leave kept_buckets out"
        )


def _dense(
    given: object,
    available: Mapping[str, TensorSpec],
    stage: str,
    dims: Sequence[int | None],
    what: str,
) -> DenseModel:
    output = _OUTPUTS.get(stage, stage)
    model, inputs = open_model(given, available, output, what)
    shape = check_output(model, inputs, dims, what)
    if isinstance(model, OnnxModel):
        model.fix_output(shape)
    return DenseModel(stage, model, inputs, TensorSpec(output, "float32", shape))


#: Stage → its output tensor, if that is not named after the stage.
_OUTPUTS = {RANKING: "rank_score"}


def engine_for(engine: str, stage: str) -> str:
    """Return the row of ``ENGINES`` for a stage's model; the query models of some engines use another."""
    return engine if is_ranker(stage) else query_engine(engine)


def write_engines(
    artefacts: Path,
    models: Models,
    engine: str,
    *,
    max_batch: int,
    build_id: str,
    tell: Callable[[str], None],
) -> list[str]:
    """Write the artefact of every model with the maker that its engine's row names; return notes.

    ``tell`` is called with the stage of each model before it is written, and with the reason if a model has
    no loops beside its engine's file.
    """
    notes: list[str] = []
    rows = [(model, engine_for(engine, model.stage)) for model in models.dense]
    rows += [(model, TOWER_ENGINE) for model in models.towers.values()]
    for model, row in rows:
        tell(f"exporting {model.stage}")
        module, _, name = ENGINES.find(row).maker.partition(":")
        make = cast("Maker", getattr(import_module(module), name))
        folder = artefacts / model.stage
        folder.mkdir(parents=True)
        notes += make(
            model.module,
            folder,
            inputs=model.inputs,
            output=model.output.name,
            max_batch=max_batch,
            build_id=build_id,
        )
        write_artefact(folder, "engine", build_id, {})
        why = unlowered_of(row, folder)
        if why is not None:
            tell(f"model {model.stage}: {row}; {why}")
    return notes


def calibrate_engines(
    artefacts: Path,
    models: Models,
    engine: str,
    requests: Callable[[DenseModel], Sequence[Arrays]],
    *,
    max_batch: int,
    build_id: str,
) -> None:
    """Finish the rankers (also for fewer candidates) if their engine's row names a ``calibrator``.

    Parameters
    ----------
    artefacts, models, engine, max_batch, build_id
        As given to :func:`write_engines`.
    requests
        ``requests(model)`` returns representative batches of a model's inputs.
    """
    kind: Any = ENGINES.find(engine)
    if not isinstance(kind, Calibrated):
        return
    module, _, name = kind.calibrator.partition(":")
    calibrate = cast("Calibrator", getattr(import_module(module), name))
    for model in filter(lambda one: is_ranker(one.stage), models.dense):
        folder = artefacts / model.stage
        calibrate(folder, requests(model), max_batch=max_batch)
        write_artefact(folder, "engine", build_id, {})
