"""An opened release: its manifest, and its artefacts, opened on demand and checked."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from ..engines.table import ENGINES, Engine
from ..errors import ArtefactCorrupt, ArtefactMissing, BuildMismatch, ReleaseMissing
from ..features import FeatureProgram
from ..live_items.overlay import Overlays
from ..live_items.table import LiveItemTable
from ..live_items.watch import TOWER_ENGINE, LiveItems, item_tower
from ..settings import ServingSettings
from ..spec import StageSpec
from ..stages.specs import stage_specs
from ..stores.bloom import ItemProbes
from ..stores.live import LiveUsers
from ..stores.memory_mapped import UserTables
from ..stores.schema import Schema, user_columns
from ..stores.table import STORES, Records, Store, StoreKind, StorePlace
from ..tables.items import ItemTable
from .artefacts import Artefact, open_artefact
from .manifest import MANIFEST_NAME, File, Manifest, read_manifest


class Release:
    """An opened release. Each artefact is opened once, however many stages read it.

    Parameters
    ----------
    path
        The release's directory, with ``triton/``, ``artefacts/`` and ``manifest.json``.
    manifest
        Its manifest.
    store
        A store to use instead of the manifest's; None uses that.
    """

    def __init__(self, path: Path, manifest: Manifest, store: StoreKind | None = None) -> None:
        self.path, self.manifest, self.other_store = path, manifest, store
        #: Source → number of users for whom it failed, so that other sources filled its share.
        self.source_failures: Counter[str] = Counter({one.name: 0 for one in manifest.settings.sources})
        self._artefacts: dict[str, Artefact] = {}

    @property
    def build_id(self) -> str:
        """The build that every artefact must belong to."""
        return self.manifest.build_id

    @property
    def settings(self) -> ServingSettings:
        """The manifest's serving settings."""
        return self.manifest.settings

    @cached_property
    def stages(self) -> dict[str, StageSpec]:
        """Specs of all stages by name, in the order of the served graph; ``describe_items`` is last."""
        catalogue = self.manifest.catalogue
        wide = msgspec.structs.replace(catalogue, items=catalogue.items + self.room)
        return {
            spec.name: spec for spec in stage_specs(msgspec.structs.replace(self.manifest, catalogue=wide))
        }

    @property
    def is_live(self) -> bool:
        """Whether users and items may change while it serves, that is, it has a writable store."""
        return self.store_kind.history_most > 0

    @property
    def room(self) -> int:
        """How many items may be added while it serves; their rows come before the pad row."""
        return self.settings.added_items if self.is_live else 0

    @cached_property
    def items(self) -> ItemTable:
        """The items; with a writable store, new and changed ones included."""
        artefact, own = self.artefact("items", "items"), self.manifest.catalogue.items
        return LiveItemTable(artefact, own, self.room) if self.is_live else ItemTable(artefact, own)

    @cached_property
    def live_items(self) -> LiveItems | None:
        """The items that are put and withdrawn while it serves; None without a writable store."""
        table = self.items
        if self.records is None or not isinstance(table, LiveItemTable):
            return None
        sources = (source.name for source in self.settings.sources)
        towers = {name: partial(self.open_tower, name) for name in sources if self.has_tower(name)}
        dtype = self.manifest.catalogue.item_id_dtype
        return LiveItems(table, self.overlays, self.records, towers, dtype, self.manifest.build_id)

    @cached_property
    def overlays(self) -> Overlays:
        """Converts items that are put and withdrawn to this release's rows and tensors."""
        own = ItemTable(self.artefact("items", "items"), self.manifest.catalogue.items)
        return Overlays(self.manifest, own, self.open_item_features, self.settings.added_items)

    def open_item_features(self) -> FeatureProgram:
        """Open the program that computes packed item tensors from raw item columns."""
        return FeatureProgram.open(self.artefact("item_features", "features"))

    def has_tower(self, source: str) -> bool:
        """Return whether it contains the model that computes a source's item vectors."""
        return (self.path / "artefacts" / item_tower(source)).is_dir()

    def open_tower(self, source: str) -> Engine:
        """Open the model that computes a source's item vectors."""
        kind: Any = ENGINES.find(TOWER_ENGINE)
        file: Path = self.artefact(item_tower(source), "engine").file(kind.file)
        with ENGINES.using(TOWER_ENGINE):
            engine: Engine = kind.open(file, (item_tower(source),), threads=self.settings.engine_threads)
        return engine

    @cached_property
    def users(self) -> UserTables:
        """The release's own users."""
        artefact = self.artefact("users", "users")
        # One offset more than rows: the users, and the dummy row for unknown users.
        artefact.array("history_offsets", self.manifest.catalogue.users + 2)
        kept = self.settings.seen_filter
        return UserTables(artefact, lambda: self.item_probes, kept.of_release if kept else 0)

    @cached_property
    def item_probes(self) -> ItemProbes:
        """The ids of the release's items, hashed for lookups in Bloom filters."""
        return ItemProbes(ItemTable(self.artefact("items", "items"), self.manifest.catalogue.items).all_ids())

    def all_probes(self) -> list[ItemProbes]:
        """Return :attr:`item_probes`, and those of the items that were added since."""
        table = self.items
        new = table.keys if isinstance(table, LiveItemTable) else {}
        if not new:
            return [self.item_probes]
        ids = np.empty(len(new), np.object_ if self.manifest.catalogue.item_id_dtype == "bytes" else np.int64)
        ids[:] = [*new]
        return [self.item_probes, ItemProbes(ids, np.array([*new.values()], np.int64))]

    @cached_property
    def store(self) -> Store:
        """The users, with later writes to the store included."""
        if self.records is None:
            return self.users
        columns, schema = user_columns(self.manifest), Schema.of(self.manifest)
        return LiveUsers(
            self.users,
            self.items,
            self.records,
            schema,
            columns,
            session=self.session_columns,
            probes=self.all_probes,
        )

    @cached_property
    def records(self) -> Records | None:
        """The opened writable store; None if there is none."""
        return self.open_records(self.store_kind)

    @property
    def store_kind(self) -> StoreKind:
        """The store in use: the one that the caller chose, else the manifest's."""
        return self.settings.store if self.other_store is None else self.other_store

    def open_records(self, kind: StoreKind, *, patient: bool = False) -> Records | None:
        """Open a store for this release; see :class:`~tiercel_serving.stores.table.StorePlace`."""
        # Resolved, because a server reads the release through links.
        home = (self.path / MANIFEST_NAME).resolve().parent.parent
        with STORES.using(kind):
            return kind.open(StorePlace(home, self.manifest.name, patient))

    @property
    def session_columns(self) -> tuple[str, ...]:
        """The raw user columns that hold a session's events."""
        return FeatureProgram.open(self.artefact("user_features", "features")).events

    def artefact(self, name: str, kind: str) -> Artefact:
        """Open ``artefacts/<name>`` and check that it belongs to this build."""
        if name not in self._artefacts:
            artefact = open_artefact(self.path / "artefacts" / name, kind, self.build_id)
            self._artefacts[name] = replace(artefact, room=self.room)
        return self._artefacts[name]


def open_release(path: str | Path, *, build_id: str | None = None, store: StoreKind | None = None) -> Release:
    """Open a release; artefacts are checked when they are opened, and checksums by :func:`check_files`.

    Parameters
    ----------
    path
        The release's directory.
    build_id
        The build that the caller (a Triton model's config) expects; None accepts any.
    store
        A store to use instead of the release's; None uses that.

    Raises
    ------
    ReleaseError
        There is no release, its manifest can't be read, or it is of another build.
    """
    root = Path(path)
    file = root / MANIFEST_NAME
    if not file.is_file():
        if (root / "run.json").is_file():
            raise ReleaseMissing(
                f"{root}: a run, not a release; make a release of it: `tiercel export {root}`"
            )
        raise ReleaseMissing(f"{file}: no release here; make one with `tiercel export`")
    release = Release(root, read_manifest(file.read_bytes(), str(file)), store)
    if build_id is not None and release.build_id != build_id:
        raise BuildMismatch(
            f"{file}: build {release.build_id}, but the model repository was made for build {build_id}; "
            "files of two builds were mixed: export again"
        )
    return release


def check_files(release: Release, progress: Callable[[str, int], None] | None = None) -> None:
    """Compare every file with the manifest's size and SHA-256, and the manifest with its seal.

    Parameters
    ----------
    release
        The release to check.
    progress
        Called after each file with its name and size in bytes.

    Raises
    ------
    ArtefactMissing, ArtefactCorrupt
        A file is missing or was changed.
    """
    manifest = release.manifest
    if manifest.seal and manifest.seal != manifest.own_seal():
        raise ArtefactCorrupt(
            f"{release.path / MANIFEST_NAME}: expected SHA-256 {manifest.seal[:16]}…, found "
            f"{manifest.own_seal()[:16]}…; it was changed after it was written: export again"
        )
    for name, entry in manifest.files.items():
        check_file(release.path / name, entry, MANIFEST_NAME, "export again")
        if progress is not None:
            progress(name, entry.bytes)


def check_file(file: Path, entry: File, listing: str, remedy: str) -> None:
    """Compare a file with its entry in a listing.

    Raises
    ------
    ArtefactMissing, ArtefactCorrupt
        It is missing, or has another size or checksum; the message ends with ``remedy``.
    """
    if not file.is_file():
        raise ArtefactMissing(f"{file}: listed in {listing}, but missing; {remedy}")
    size = file.stat().st_size
    if size != entry.bytes:
        raise ArtefactCorrupt(f"{file}: expected {entry.bytes} bytes, found {size}; {remedy}")
    digest = file_sha256(file)
    if digest != entry.sha256:
        raise ArtefactCorrupt(
            f"{file}: expected SHA-256 {entry.sha256[:16]}…, found {digest[:16]}…; "
            f"the file was changed after it was written: {remedy}"
        )


def file_sha256(file: Path) -> str:
    """Return the SHA-256 of a file as lower-case hex, read in bounded memory."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
