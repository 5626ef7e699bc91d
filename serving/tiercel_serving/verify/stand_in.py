"""Stand-ins for engines and a device that this machine lacks, so that a release can be verified here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from ..engines.table import ENGINES, BuiltKind
from ..errors import DeviceUnavailable
from ..release.manifest import QueryModel, RankingModel
from ..release.opened import Release
from ..repository.targets import find_target
from ..stages.engine import engine_names
from ..stages.specs import is_ranker, query_stage

#: The key of the reason why the stages run on another device.
ANSWERS = "answers"


def with_stand_ins(release: Release) -> tuple[Release, dict[str, str]]:
    """Return the release with stand-ins for what this machine can't run, and the reason for each such stage.

    Nothing is written. A release that can run completely is returned unchanged. If the target's device is
    missing, the reason is under :data:`ANSWERS`.
    """
    manifest = release.manifest
    reasons: dict[str, str] = {}

    def judged(names: Sequence[str], engine: str) -> str:
        kind: Any = ENGINES.find(engine)
        if not isinstance(kind, BuiltKind):
            return engine
        found = (kind.absent(release.path / "artefacts" / name / kind.file) for name in names)
        reason = next((one for one in found if one is not None), None)
        if reason is None:
            return engine
        reasons.update(dict.fromkeys(names, f"{reason}. {kind.stand_in} ran the same graph instead"))
        return kind.stand_in

    queries: dict[str, QueryModel] = {
        name: msgspec.structs.replace(model, engine=judged([query_stage(name)], model.engine))
        for name, model in manifest.queries.items()
    }
    ranking: RankingModel | None = manifest.ranking
    if ranking is not None:
        rankers = [name for name in engine_names(release) if is_ranker(name)]
        ranking = msgspec.structs.replace(ranking, engine=judged(rankers, ranking.engine))
    target = manifest.target
    other = find_target(target).stand_in
    missing = None if other is None else _missing(target)
    if other is not None and missing is not None:
        reasons[ANSWERS] = f"{missing}. Target {other} ran the same stages instead"
        target = other
    if not reasons:
        return release, reasons
    changed = msgspec.structs.replace(manifest, target=target, queries=queries, ranking=ranking)
    return Release(release.path, changed), reasons


def _missing(target: str) -> str | None:
    """Return why a target's device is not available on this machine, or None."""
    from ..device.place_torch import Place

    device = find_target(target).device
    assert device is not None
    try:
        Place(device)
    except DeviceUnavailable as error:
        return str(error)
    return None
