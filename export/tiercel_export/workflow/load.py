"""Reading a fitted workflow, from memory or as ``Workflow.save`` wrote it."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

from ..errors import WorkflowError


def load_workflow(workflow: Any) -> Any:
    """Return a fitted workflow, from memory or from the folder that ``Workflow.save`` wrote.

    Raises
    ------
    WorkflowError
        The folder is missing, unreadable or not a saved workflow; another version of NVTabular, pandas or
        Python wrote it; or the workflow was never fitted.
    """
    place = ""
    if isinstance(workflow, (str, Path)):
        place = f"{workflow}: "
        workflow = _read_saved(Path(workflow))
    if not hasattr(workflow, "output_node"):
        raise WorkflowError(
            f"{place}expected an nvtabular.Workflow or the path of one, got {type(workflow).__name__}"
        )
    if workflow.output_schema is None:
        raise WorkflowError(f"{place}the workflow was never fitted: call fit() on the training data first")
    return workflow


def _read_saved(path: Path) -> Any:
    import nvtabular

    if not path.is_dir():
        what = "it is a file" if path.exists() else "there is no such folder"
        raise WorkflowError(f"{path}: expected a folder written by Workflow.save, but {what}")
    for name in ("workflow.pkl", "metadata.json"):
        if not (path / name).is_file():
            raise WorkflowError(f"{path}: expected a folder written by Workflow.save, but it has no {name}")
    _check_versions(path / "metadata.json")
    try:
        return nvtabular.Workflow.load(path)
    except Exception as error:
        raise WorkflowError(
            f"{path / 'workflow.pkl'}: not a readable workflow ({type(error).__name__}: {error}); fit and "
            "save it again here"
        ) from error


def _check_versions(file: Path) -> None:
    """Check the versions that wrote a saved workflow against those that run here, before unpickling it.

    Like NVTabular, it compares the first two numbers of each version. NVTabular warns about a mismatch, but
    this raises, because a pickle of another version may load and compute something else.
    """
    import nvtabular
    import pandas as pd

    try:
        versions = json.loads(file.read_text(encoding="utf-8"))["versions"]
        found = {str(name): str(version) for name, version in versions.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WorkflowError(
            f"{file}: expected the versions that Workflow.save wrote ({type(error).__name__}: {error}); save "
            "the workflow again"
        ) from error
    expected = {
        "nvtabular": nvtabular.__version__,
        "pandas": pd.__version__,
        "python": platform.python_version(),
    }
    if "cudf" in found:
        raise WorkflowError(
            f"{file}: the workflow was fitted on a GPU (cudf {found['cudf']}), expected pandas "
            f"{expected['pandas']}; fit and save it again on CPU, for the two do not compute alike"
        )
    for name, version in expected.items():
        came = found.get(name, "unknown").split(" ")[0]
        if came.split(".")[:2] != version.split(".")[:2]:
            raise WorkflowError(
                f"{file}: saved by {name} version {came}, expected {version}; fit and save it again with the "
                "versions that are here"
            )
