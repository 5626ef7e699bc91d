"""The table of stages, by name. A Triton model imports only what its own stages need."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, cast

from ..kinds import imported
from ..release.opened import Release
from ..spec import Stage
from .specs import (
    CANDIDATE_FEATURES,
    DESCRIBE_ITEMS,
    FILTERING,
    ORDERING,
    QUERY_PREFIX,
    RANKING,
    RELATED,
    RETRIEVAL,
    USER_FEATURES,
)


class Row(NamedTuple):
    """One stage: ``path``, its ``module:class``, and ``on_device``, ``module:attribute`` of its device form.

    ``path`` is called with the stage's name and the release; ``on_device`` also gets the
    :class:`~tiercel_serving.device.place_torch.Place`. The attribute ``tensors`` of a device form names the
    inputs that it takes on the device. A stage without a device form runs on the host.
    """

    path: str
    on_device: str | None = None


#: Every stage. All query stages share one row.
STAGES: Mapping[str, Row] = {
    USER_FEATURES: Row("tiercel_serving.stages.user_features:UserFeatures"),
    QUERY_PREFIX: Row(
        "tiercel_serving.stages.engine:EngineStage", "tiercel_serving.stages.engine_torch:open_stage"
    ),
    RETRIEVAL: Row(
        "tiercel_serving.stages.retrieval:Retrieval", "tiercel_serving.stages.retrieval_torch:TensorRetrieval"
    ),
    FILTERING: Row(
        "tiercel_serving.stages.filtering:Filtering", "tiercel_serving.stages.filtering_torch:TensorFiltering"
    ),
    CANDIDATE_FEATURES: Row(
        "tiercel_serving.stages.candidate_features:CandidateFeatures",
        "tiercel_serving.stages.candidate_features_torch:TensorCandidateFeatures",
    ),
    RANKING: Row(
        "tiercel_serving.stages.engine:EngineStage", "tiercel_serving.stages.engine_torch:open_stage"
    ),
    ORDERING: Row(
        "tiercel_serving.stages.ordering:Ordering", "tiercel_serving.stages.ordering_torch:open_stage"
    ),
    DESCRIBE_ITEMS: Row("tiercel_serving.stages.describe_items:DescribeItems"),
    RELATED: Row("tiercel_serving.stages.related:Related"),
}


def row_of(name: str) -> Row:
    """Return the row of a stage of that name."""
    return STAGES[QUERY_PREFIX if name.startswith(QUERY_PREFIX) else name]


def build_stage(name: str, release: Release, place: Any = None) -> Stage:
    """Open the artefacts of one stage and return it: its device form if there are a ``place`` and a form.

    Raises
    ------
    ReleaseError
        An artefact is missing, damaged, or of another build.
    ValueError
        The release has no such stage.
    """
    if name not in release.stages:
        raise ValueError(f"there is no stage {name!r}; the stages are {', '.join(release.stages)}")
    row = row_of(name)
    if place is None or row.on_device is None:
        return cast("Stage", imported(row.path)(name, release))
    return cast("Stage", imported(row.on_device)(name, release, place))
