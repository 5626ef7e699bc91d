"""Fitting a recipe's NVTabular workflow.

One workflow is fitted on the joined training interactions: fitting the parts separately would change ids
and moments, and a user's history shares the vocabulary of the item ids.
"""

from __future__ import annotations

import copy
import shutil
import tempfile
import warnings
import weakref
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from tiercel_export.errors import WorkflowError

from ..data import Dataset
from .graph_columns import PART_TAGS, feature_columns, placed, root_columns
from .joined import joined_rows

with warnings.catch_warnings():
    # Merlin warns on import about TensorFlow and CUDA packages that nothing here uses.
    warnings.simplefilter("ignore")
    import nvtabular
    from merlin.dag import executors
    from merlin.dag.node import iter_nodes, postorder_iter_nodes

#: A graph that NVTabular can't fit is tried operator by operator on ``SAMPLE`` rows, and then on all rows if
#: there are at most ``MOST``.
SAMPLE, MOST = 1_000, 100_000


def fit_workflow(
    recipe: Any,
    dataset: Dataset,
    interactions: pd.DataFrame,
    directory: str | Path | None = None,
    *,
    client: Any = None,
) -> Any:
    """Fit a recipe's workflow on training interactions joined with their users and items.

    NVTabular computes the statistics with Dask, in this process or on the cluster of ``client`` (a
    ``distributed.Client``), whose workers must see this machine's files. The workflow is saved in
    ``directory`` and reads its vocabularies there; None is a temporary directory, which is removed with the
    workflow object.
    """
    with ExitStack() as stack, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Beside the run if there is one: workers of a cluster must see what is written here.
        place = None if client is None or directory is None else Path(directory).parent
        scratch = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="tiercel-workflow-", dir=place))
        )
        graph = recipe.features()
        operators = _keep_apart(graph, scratch / "fit")
        workflow = _fitted(graph, dataset, interactions, client, scratch)
        _tag(workflow, dataset)
        for op in operators:
            # Workflow.save copies everything below an operator's out_path, where each has its own folder.
            op.out_path = str(scratch / "fit")
        target = Path(directory) if directory is not None else scratch / "saved"
        workflow.save(str(target))
        fitted = nvtabular.Workflow.load(str(target))
        if directory is None:
            weakref.finalize(fitted, stack.pop_all().close)
    return fitted


def _tag(workflow: Any, dataset: Dataset) -> None:
    """Tag the columns without a tag in the schema, so that the part is known after loading the workflow."""
    schema = workflow.output_schema
    for column in feature_columns(workflow):
        if not column.parts:
            tags = [PART_TAGS[part] for part in placed(column, dataset).parts]
            schema[column.name] = schema[column.name].with_tags(tags)


def first_unfit(
    recipe: Any, dataset: Dataset, interactions: pd.DataFrame
) -> tuple[str, tuple[str, ...], Exception] | None:
    """Find the first operator that NVTabular can't fit: its name, raw columns, and error; None if none."""
    few = [interactions.head(SAMPLE)]
    for rows in few if len(interactions) <= SAMPLE or len(interactions) > MOST else [*few, interactions]:
        for place in range(len(list(postorder_iter_nodes(recipe.features())))):
            # A new graph each time, since a fit leaves its schemas in the nodes.
            node = list(postorder_iter_nodes(recipe.features()))[place]
            if not node.parents or not root_columns(node):
                continue
            with tempfile.TemporaryDirectory(prefix="tiercel-workflow-") as scratch:
                _keep_apart(node, Path(scratch))
                try:
                    _fitted(node, dataset, rows)
                except Exception as error:
                    return type(node.op).__name__, root_columns(node), error
    return None


def _fitted(
    graph: Any, dataset: Dataset, interactions: pd.DataFrame, client: Any = None, place: Path | None = None
) -> Any:
    """Fit a graph, on the cluster of ``client`` if given; the log is off, as exceptions say what it says."""
    workflow = nvtabular.Workflow(graph)
    # numba, which computes similarities, sets OpenMP's number of threads when it first runs, and so torch's.
    # Models would then be fitted with another number of threads than the caller has set.
    loud, threads = executors.LOG.disabled, torch.get_num_threads()
    executors.LOG.disabled = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            columns = root_columns(graph)
            with joined_rows(dataset, interactions, columns, place, in_files=client is not None) as rows:
                return workflow.fit(rows)
    finally:
        executors.LOG.disabled = loud
        torch.set_num_threads(threads)


def _keep_apart(graph: Any, folder: Path) -> list[Any]:
    """Give each node its own operator, and each operator its own folder.

    NVTabular names files by columns, so two operators on one column in one folder overwrite each other's.
    """
    operators: dict[int, Any] = {}
    given: dict[str, Any] = {}
    for number, node in enumerate(iter_nodes([graph], flatten_subgraphs=True)):
        if not hasattr(node.op, "out_path"):
            continue
        if id(node.op) in operators:
            node.op = copy.deepcopy(node.op)
        operators[id(node.op)] = node.op
        own = folder / str(number)
        vocabularies = getattr(node.op, "vocabs", {})
        for name, file in vocabularies.items():
            if Path(file).parent == Path(node.op.out_path) / "categories":
                _check_alone(given.setdefault(file, node.op), node.op, name, file)
            kept = own / "categories" / f"unique.{name}.parquet"
            kept.parent.mkdir(parents=True, exist_ok=True)
            (shutil.copytree if Path(file).is_dir() else shutil.copyfile)(file, kept)
            vocabularies[name] = str(kept)
        node.op.out_path = str(own)
    return list(operators.values())


def _check_alone(first: Any, op: Any, name: str, file: str) -> None:
    if first is not op:
        raise WorkflowError(
            f"Categorify on {name!r}: another one was given vocabs of {name!r} too, and NVTabular wrote both "
            f"to {file}, the later over the earlier; give each an out_path of its own"
        )
