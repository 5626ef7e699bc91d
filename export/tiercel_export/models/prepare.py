"""The dense models of an export: what they take, what they give, and their engines on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch

from tiercel_serving.engines.table import ENGINES, Reduced
from tiercel_serving.release.artefacts import write_artefact
from tiercel_serving.release.manifest import QueryModel, RankingModel
from tiercel_serving.spec import Array, Arrays, TensorSpec
from tiercel_serving.stages.specs import RANKING, Tensors, query_stage

from ..forms import FormArrays, ItemTensors, ServedForm
from .dense import check_output, run_module
from .onnx_model import OnnxModel
from .opened import open_model

if TYPE_CHECKING:
    from ..forms import DenseGiven


class Maker(Protocol):
    """What the row of an engine names as its ``maker``."""

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
        """Write a model as the engine's file, and return what whoever exports should know.

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
            The largest batch that will be asked for.
        build_id
            Goes into the file, if there is a place for it.

        Raises
        ------
        ExportError
            The engine can't express the module.
        """
        ...


@dataclass(frozen=True)
class DenseModel:
    """A module or ONNX model that becomes the engine of a stage.

    Parameters
    ----------
    stage
        The stage, and its artefact.
    module
        A copy of the module on the CPU, in evaluation mode; or an ONNX model.
    inputs
        What it takes.
    output
        What it gives; its dims are those of one user.
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
        """How many weights it has."""
        if isinstance(self.module, OnnxModel):
            return self.module.weight_count
        return sum(parameter.numel() for parameter in self.module.parameters())

    def run(self, arrays: Arrays) -> dict[str, Array]:
        """Run the module on named arrays ``[B, …]``; those that are no input are ignored."""
        return {self.output.name: run_module(self.module, {name: arrays[name] for name in self.names})}


@dataclass(frozen=True)
class Models:
    """The models of a recommender, before any is compiled.

    Parameters
    ----------
    forms
        Source → the arrays of its served form.
    queries
        Source → its query model, where the form has one.
    ranker
        The ranker; None where retrieval's order is the order.
    """

    forms: Mapping[str, FormArrays]
    queries: Mapping[str, DenseModel]
    ranker: DenseModel | None

    @property
    def dense(self) -> tuple[DenseModel, ...]:
        """Every model that becomes an engine."""
        return (*self.queries.values(), *(() if self.ranker is None else (self.ranker,)))

    def query_models(self, engine: str) -> dict[str, QueryModel]:
        """Return what the manifest says of the query models."""
        return {
            source: QueryModel(
                engine_for(engine, model.stage), model.names, model.output.dims[0], model.parameters
            )
            for source, model in self.queries.items()
        }

    @property
    def tasks(self) -> int:
        """How many scores the ranker gives an item; 0 without one."""
        return 0 if self.ranker is None else self.ranker.output.dims[1]

    def ranking_model(self, engine: str, names: tuple[str, ...]) -> RankingModel | None:
        """Return what the manifest says of the ranker."""
        if self.ranker is None:
            return None
        return RankingModel(engine, self.ranker.names, self.tasks, self.ranker.parameters, names)


def prepare_models(
    retrieval: Mapping[str, ServedForm],
    ranker: DenseGiven | None,
    tensors: Tensors,
    packed: Mapping[str, Array],
) -> Models:
    """Make the served forms, find what each module takes, and check what it gives.

    Parameters
    ----------
    retrieval, ranker
        As the caller of ``build_release`` gave them.
    tensors
        What modules may name.
    packed
        The packed item tensors ``[I + 1, …]``.
    """
    items = tensors.catalogue.items
    # At serving the item axis comes second; a module of items alone sees rows.
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
    ranking = None
    if ranker is not None:
        known = {tensor.name: tensor for tensor in tensors.ranker}
        ranking = _dense(ranker, known, RANKING, (tensors.settings.kept, None), "ranker")
    return Models(forms, queries, ranking)


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


#: The output of a stage whose tensor is not called as the stage.
_OUTPUTS = {RANKING: "rank_score"}


def engine_for(engine: str, stage: str) -> str:
    """Return the row that takes a stage's model: what finds candidates is computed in full precision."""
    kind: Any = ENGINES.find(engine)
    return str(kind.full) if isinstance(kind, Reduced) and stage != RANKING else engine


def write_engines(
    artefacts: Path, models: Models, engine: str, *, max_batch: int, build_id: str
) -> list[str]:
    """Write the artefact of every model, by the maker that its engine's row names; return notes."""
    notes: list[str] = []
    for model in models.dense:
        module, _, name = ENGINES.find(engine_for(engine, model.stage)).maker.partition(":")
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
    return notes
