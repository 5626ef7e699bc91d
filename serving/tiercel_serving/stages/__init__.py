"""The stages of the served graph: each a pure function from named arrays to named arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ..release.opened import Release
from ..spec import Stage

# A stage's module is imported when the stage is built: a Triton model loads FAISS or ONNX Runtime only
# if one of its own stages needs it.


def _user_features(release: Release) -> Stage:
    from .user_features import UserFeatures

    return UserFeatures(release)


def _user_tower(release: Release) -> Stage:
    from .engine import OnnxEngine

    return OnnxEngine("user_tower", release)


def _retrieval(release: Release) -> Stage:
    from .retrieval import Retrieval

    return Retrieval(release)


def _filtering(release: Release) -> Stage:
    from .filtering import Filtering

    return Filtering(release)


def _candidate_features(release: Release) -> Stage:
    from .candidate_features import CandidateFeatures

    return CandidateFeatures(release)


def _ranking(release: Release) -> Stage:
    from .engine import OnnxEngine

    return OnnxEngine("ranking", release)


def _ordering(release: Release) -> Stage:
    from .ordering import Ordering

    return Ordering(release)


def _describe_items(release: Release) -> Stage:
    from .describe_items import DescribeItems

    return DescribeItems(release)


BUILDERS: Mapping[str, Callable[[Release], Stage]] = {
    "user_features": _user_features,
    "user_tower": _user_tower,
    "retrieval": _retrieval,
    "filtering": _filtering,
    "candidate_features": _candidate_features,
    "ranking": _ranking,
    "ordering": _ordering,
    "describe_items": _describe_items,
}


def build_stage(name: str, release: Release) -> Stage:
    """Open the artefacts of one stage and return it.

    Raises
    ------
    ReleaseError
        An artefact is missing, damaged, or of another build.
    ValueError
        There is no such stage.
    """
    if name not in BUILDERS:
        raise ValueError(f"there is no stage {name!r}; the stages are {', '.join(BUILDERS)}")
    return BUILDERS[name](release)
