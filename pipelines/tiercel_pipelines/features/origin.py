"""Where feature programs come from: a release, a run, a saved NVTabular workflow, one program's artefact.

A release and an artefact hold programs already; the other two hold a fitted workflow, which is compiled.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tiercel_serving.features import FeatureProgram
from tiercel_serving.release.artefacts import HEADER_NAME, Artefact, open_artefact
from tiercel_serving.release.manifest import MANIFEST_NAME
from tiercel_serving.release.opened import check_files, open_release
from tiercel_serving.spec import Array

if TYPE_CHECKING:
    from tiercel_export.workflow.cut import WorkflowParts

PARTS = ("user", "item")
#: The file that identifies each kind of directory, in the order in which they are looked for.
MARKS: Mapping[str, str] = {
    "release": MANIFEST_NAME,
    "run": "run.json",
    "workflow": "workflow.pkl",
    "program": HEADER_NAME,
}


def kind_of(path: Path) -> str | None:
    """Return ``release``, ``run``, ``workflow`` or ``program``; None if the path is none of them."""
    return next((kind for kind, mark in MARKS.items() if (path / mark).is_file()), None)


@dataclass(frozen=True)
class FeatureOrigin:
    """A directory that feature programs come from.

    Parameters
    ----------
    kind
        A key of :data:`MARKS`.
    path
        Its directory.
    list_lengths, target_encoding, rows
        How a workflow is compiled, as for :func:`~tiercel_export.workflow.cut.compile_workflow`. Without
        ``rows``, a run's recipe says whether rows are kept.
    """

    kind: str
    path: Path
    list_lengths: Mapping[str, int] = field(default_factory=dict)
    target_encoding: str | None = None
    rows: str | None = None

    @cached_property
    def parts(self) -> tuple[str, ...]:
        """The parts among :data:`PARTS` that have features."""
        if self.has_workflow:
            return tuple(part for part in PARTS if self.workflow.output_names(part))
        return tuple(part for part in PARTS if part in self._artefacts)

    @property
    def has_workflow(self) -> bool:
        """Whether the fitted workflow is available."""
        return self.kind in ("run", "workflow")

    @cached_property
    def workflow(self) -> WorkflowParts:
        """The fitted workflow, cut into parts; a workflow without any tag is all ``user``."""
        with warnings.catch_warnings():
            # Merlin warns on import about TensorFlow and CUDA packages that nothing here uses.
            warnings.simplefilter("ignore")
            from tiercel_export.workflow.load import load_workflow

            folder, rows = self.path, self.rows
            if self.kind == "run":
                from ..training.record import RUN_NAME, read_record

                folder, rows = self.path / "workflow", rows or read_record(self.path / RUN_NAME).recipe.rows
            return cut_or_whole(load_workflow(folder), self.target_encoding, rows)

    @cached_property
    def _artefacts(self) -> Mapping[str, Artefact]:
        if self.kind == "program":
            artefact = open_artefact(self.path, "features")
            return {FeatureProgram.open(artefact).part: artefact}
        release = open_release(self.path)
        check_files(release)
        return {part: release.artefact(f"{part}_features", "features") for part in PARTS}

    @property
    def build_id(self) -> str | None:
        """The build id; None for a workflow or a run."""
        if self.has_workflow:
            return None
        return next(iter(self._artefacts.values())).build_id

    def input_names(self, part: str) -> list[str]:
        """Return the raw columns that a part reads, without compiling it."""
        if self.has_workflow:
            return self.workflow.input_names(part)
        return [column.name for column in self.program(part).inputs]

    def program(self, part: str) -> FeatureProgram:
        """Open or compile the program of a part, or refuse an operator that can't be compiled exactly."""
        if not self.has_workflow:
            return FeatureProgram.open(self._artefacts[part])
        document, arrays = self.compiled(part)
        return FeatureProgram(document, arrays)

    def compiled(self, part: str) -> tuple[Mapping[str, Any], Mapping[str, Array]]:
        """Return a part's program as JSON, and its tables."""
        if not self.has_workflow:
            artefact = self._artefacts[part]
            FeatureProgram.open(artefact)  # for its errors
            return artefact.meta["program"], artefact.arrays
        from tiercel_export.workflow.cut import compile_workflow

        compiled = compile_workflow(self.workflow, part, list_lengths=self.list_lengths)
        return compiled.document, compiled.arrays


def cut_or_whole(workflow: Any, target_encoding: str | None = None, rows: str | None = None) -> WorkflowParts:
    """Cut a workflow by its tags; if no column has any, all is the user part."""
    from tiercel_export.workflow.cut import LABEL_TAGS, PART_TAGS, cut_workflow
    from tiercel_export.workflow.lineage import tags_of

    schemas = (workflow.input_schema, workflow.output_schema)
    tags = {tag for schema in schemas for column in schema for tag in tags_of(column)}
    whole = None
    if not tags & (set(PART_TAGS) | LABEL_TAGS):
        whole = dict.fromkeys(workflow.output_schema.column_names, "user")
    return cut_workflow(workflow, parts=whole, target_encoding=target_encoding, rows=rows)
