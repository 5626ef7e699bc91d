"""The manifest of an empty release, for tests that are only about files."""

from __future__ import annotations

from tiercel_serving.release.manifest import MANIFEST_FORMAT, Catalogue, Made, Manifest, Packed
from tiercel_serving.settings import ServingSettings
from tiercel_serving.sources.popular import Popular


def bare_manifest(build_id: str) -> Manifest:
    return Manifest(
        format=MANIFEST_FORMAT,
        build_id=build_id,
        name="bare",
        made=Made("2026-01-01T00:00:00+00:00", None, {}),
        target="cpu",
        layout="fused",
        settings=ServingSettings(sources=(Popular(),)),
        catalogue=Catalogue(1, 0, 0, "int64", "int64", "item_id", "user_id"),
        packed=Packed(),
        request_columns=(),
        raw_item_columns=(),
        queries={},
        ranking=None,
        sources={},
        tables={},
        notes=(),
    )
