"""A release whose engines can't all run here: others that run the same graphs stand in for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from ..engines.table import ENGINES, BuiltKind
from ..release.manifest import QueryModel, RankingModel
from ..release.opened import Release
from ..stages.engine import engine_names
from ..stages.specs import is_ranker, query_stage


def with_stand_ins(release: Release) -> tuple[Release, dict[str, str]]:
    """Return the release with stand-ins for engines that this machine can't run, and why for each such stage.

    Nothing is written, and a release whose engines can all run is returned as it is.
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
    if not reasons:
        return release, reasons
    return Release(release.path, msgspec.structs.replace(manifest, queries=queries, ranking=ranking)), reasons
