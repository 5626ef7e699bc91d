"""A release whose engines can't all run here: others that run the same graphs stand in for them."""

from __future__ import annotations

from typing import Any

import msgspec

from ..engines.table import ENGINES, BuiltKind
from ..release.manifest import QueryModel, RankingModel
from ..release.opened import Release
from ..stages.specs import RANKING, query_stage


def with_stand_ins(release: Release) -> tuple[Release, dict[str, str]]:
    """Return the release with stand-ins for engines that this machine can't run, and why for each such stage.

    Nothing is written, and a release whose engines can all run is returned as it is.
    """
    manifest = release.manifest
    reasons: dict[str, str] = {}

    def judged(stage: str, engine: str) -> str:
        kind: Any = ENGINES.find(engine)
        if not isinstance(kind, BuiltKind):
            return engine
        reason = kind.absent(release.path / "artefacts" / stage / kind.file)
        if reason is None:
            return engine
        reasons[stage] = f"{reason}. {kind.stand_in} ran the same graph instead"
        return kind.stand_in

    queries: dict[str, QueryModel] = {
        name: msgspec.structs.replace(model, engine=judged(query_stage(name), model.engine))
        for name, model in manifest.queries.items()
    }
    ranking: RankingModel | None = manifest.ranking
    if ranking is not None:
        ranking = msgspec.structs.replace(ranking, engine=judged(RANKING, ranking.engine))
    if not reasons:
        return release, reasons
    return Release(release.path, msgspec.structs.replace(manifest, queries=queries, ranking=ranking)), reasons
