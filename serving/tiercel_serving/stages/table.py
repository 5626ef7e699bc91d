"""Every stage, found by its name; a Triton model imports only what its own stages need."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import cast

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

#: Stage → ``module:class``, made from the stage's name and the release. All query stages share one row.
STAGES: Mapping[str, str] = {
    USER_FEATURES: "tiercel_serving.stages.user_features:UserFeatures",
    QUERY_PREFIX: "tiercel_serving.stages.engine:EngineStage",
    RETRIEVAL: "tiercel_serving.stages.retrieval:Retrieval",
    FILTERING: "tiercel_serving.stages.filtering:Filtering",
    CANDIDATE_FEATURES: "tiercel_serving.stages.candidate_features:CandidateFeatures",
    RANKING: "tiercel_serving.stages.engine:EngineStage",
    ORDERING: "tiercel_serving.stages.ordering:Ordering",
    DESCRIBE_ITEMS: "tiercel_serving.stages.describe_items:DescribeItems",
    RELATED: "tiercel_serving.stages.related:Related",
}


def build_stage(name: str, release: Release) -> Stage:
    """Open the artefacts of one stage and return it.

    Raises
    ------
    ReleaseError
        An artefact is missing, damaged, or of another build.
    ValueError
        The release has no such stage.
    """
    if name not in release.stages:
        raise ValueError(f"there is no stage {name!r}; the stages are {', '.join(release.stages)}")
    path = STAGES[QUERY_PREFIX if name.startswith(QUERY_PREFIX) else name]
    module, _, attribute = path.partition(":")
    make = cast("Callable[[str, Release], Stage]", getattr(importlib.import_module(module), attribute))
    return make(name, release)
