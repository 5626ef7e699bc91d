"""The manifest: the description of a release, as one typed object with one codec.

Nobody reads a manifest by string keys. :func:`read_manifest` words what is wrong with one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from ..engines.table import ENGINES
from ..errors import KindUnavailable, ManifestInvalid
from ..mistyped import builtin
from ..reorder.table import REORDER, ReorderKind
from ..rules.table import RULES, RuleKind
from ..settings import ServingSettings
from ..sources.table import SOURCES, SourceKind
from ..stores.table import STORES, StoreKind
from .artefacts import check_format

MANIFEST_FORMAT = 3
MANIFEST_NAME = "manifest.json"

IdDtype = Literal["int64", "bytes"]
ColumnDtype = Literal["bool", "int32", "int64", "float32", "float64", "bytes"]


class _Struct(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the manifest is made of."""


class Catalogue(_Struct, frozen=True):
    """What is served, and to whom: how many, and the dtypes and columns of the raw ids."""

    items: int
    users: int
    interactions: int
    item_id_dtype: IdDtype
    user_id_dtype: IdDtype
    item_id_column: str
    user_id_column: str


class PackedList(_Struct, frozen=True):
    """A list column that travels alone: its name, its length L, and its dtype (int64 are category ids)."""

    name: str
    length: int
    dtype: Literal["int64", "float32"] = "int64"


class Packed(_Struct, frozen=True):
    """Columns of the packed tensors, in their order."""

    user_cat: tuple[str, ...] = ()
    user_num: tuple[str, ...] = ()
    user_lists: tuple[PackedList, ...] = ()
    item_cat: tuple[str, ...] = ()
    item_num: tuple[str, ...] = ()
    item_lists: tuple[PackedList, ...] = ()


class RequestColumn(_Struct, frozen=True):
    """A raw column that a request may carry.

    Parameters
    ----------
    name, dtype, is_list
        Of the raw column.
    part
        ``user`` (the store may know it) or ``context``.
    tensor
        The request's tensor that carries its values.
    companion
        The tensor that says how long each row is (a list) or which values are real (a scalar that is no
        float); None for a float, whose null is NaN.
    unit
        Of a time, what its int64 values count since 1970-01-01 UTC.
    of_rules
        Whether rules alone read it, and no model.
    """

    name: str
    dtype: ColumnDtype
    is_list: bool
    part: Literal["user", "context"]
    tensor: str
    companion: str | None
    unit: Literal["s", "ms", "us", "ns"] | None = None
    of_rules: bool = False


class QueryModel(_Struct, frozen=True):
    """The dense model of a source: user tensors → ``query_<source> [B, D]``.

    ``engine`` is a row of :data:`~tiercel_serving.engines.table.ENGINES`, ``inputs`` are the tensors that it
    takes, ``dimension`` is D, and ``parameters`` is how many weights it has.
    """

    engine: str
    inputs: tuple[str, ...]
    dimension: int
    parameters: int


class RankingModel(_Struct, frozen=True):
    """The ranker: user and item tensors → ``rank_score [B, K, T]``; ``tasks`` is T.

    ``task_names`` are what the scores are called, if they have names.
    """

    engine: str
    inputs: tuple[str, ...]
    tasks: int
    parameters: int
    task_names: tuple[str, ...] = ()


class File(_Struct, frozen=True):
    """Size and checksum of a file."""

    bytes: int
    sha256: str


class Made(_Struct, frozen=True):
    """What made a release: the time in UTC (ISO 8601), Tiercel's version, and those of libraries."""

    created: str
    tiercel: str | None
    libraries: dict[str, str | None]


class Manifest(_Struct, frozen=True):
    """A release, as it describes itself.

    Parameters
    ----------
    format
        :data:`MANIFEST_FORMAT`.
    build_id
        The build that every artefact must carry.
    name
        What clients call the recommender.
    made
        What made it, and when.
    target, layout
        What it was compiled for.
    runner
        What runs its stages inside Triton, a row of :data:`~tiercel_serving.repository.targets.RUNNERS`.
    settings
        How it is served.
    catalogue, packed, request_columns, raw_item_columns
        Items, users, and their columns.
    queries
        Source → its query model.
    ranking
        The ranker; None serves retrieval's own order.
    sources
        Source → what was measured of it (an index: factory, parameters, recall).
    tables
        Table → where it came from, as whoever built the release says.
    notes
        What was left out of the data, and why.
    files
        Every other file of the release by its path; listed when the manifest is written.
    seal
        SHA-256 of all other fields; none for one that was never written.
    """

    format: int
    build_id: str
    name: str
    made: Made
    target: str
    layout: str
    settings: ServingSettings
    catalogue: Catalogue
    packed: Packed
    request_columns: tuple[RequestColumn, ...]
    raw_item_columns: tuple[str, ...]
    queries: dict[str, QueryModel]
    ranking: RankingModel | None
    sources: dict[str, dict[str, Any]]
    tables: dict[str, dict[str, Any]]
    notes: tuple[str, ...]
    files: dict[str, File] = {}
    runner: str = "python"
    seal: str = ""

    def own_seal(self) -> str:
        """Return the SHA-256 of all fields but the seal, as they are written."""
        return hashlib.sha256(encode(msgspec.structs.replace(self, seal=""))).hexdigest()

    def sealed(self, place: str) -> Manifest:
        """Return the manifest as it reads back, with its seal; ``place`` is for messages."""
        written = read_manifest(encode(self), place)
        return msgspec.structs.replace(written, seal=written.own_seal())

    def problems(self) -> list[str]:
        """Return what no type can say: unknown engines, and what the settings say of themselves."""
        models: dict[str, QueryModel | RankingModel] = dict(self.queries)
        if self.ranking is not None:
            models["ranking"] = self.ranking
        wrong = [
            f"{name}: there is no engine {model.engine!r} (there are {', '.join(ENGINES)})"
            for name, model in models.items()
            if model.engine not in ENGINES.rows
        ]
        wrong += [f"settings.{problem}" for problem in self.settings.problems()]
        return wrong


_TABLES: Mapping[Any, Any] = {SourceKind: SOURCES, RuleKind: RULES, ReorderKind: REORDER, StoreKind: STORES}


def read_kind(kind: Any, data: Any) -> Any:
    """Make a kind's settings: the codec asks here for every field that one of the tables fills."""
    table = _TABLES.get(kind)
    if table is None:
        raise NotImplementedError(f"no codec for {kind}")
    return table.read(data)


def encode(value: Any) -> bytes:
    """Write a struct as JSON for people: one line an entry."""
    return msgspec.json.format(msgspec.json.encode(value, enc_hook=builtin), indent=1) + b"\n"


def read_manifest(text: bytes, place: str) -> Manifest:
    """Read a manifest from its file's content; ``place`` is the file's path, for messages.

    Raises
    ------
    NewerFormat, OlderFormat
        Another format than this Tiercel writes.
    ManifestInvalid
        It is no JSON, lacks a field, or a field is of another type, unknown, or of an unknown kind.
    KindUnavailable
        A kind that it speaks of can't be had on this machine.
    """
    try:
        version = msgspec.json.decode(text, type=_Format).format
    except ValueError as error:
        raise ManifestInvalid(f"{place}: not a readable manifest ({error}); export again") from error
    anew = "make the release anew with `tiercel export RUN --replace` (a run of that time: "
    check_format(place, "manifest", version, MANIFEST_FORMAT, anew + "`tiercel train` first)")
    try:
        manifest = msgspec.json.decode(text, type=Manifest, dec_hook=read_kind)
    except ValueError as error:
        raise ManifestInvalid(f"{place}: {error}; it was changed by hand or damaged: export again") from error
    except KindUnavailable as error:
        raise KindUnavailable(f"{place}: {error}") from error
    wrong = manifest.problems()
    if wrong:
        raise ManifestInvalid(f"{place}: {'; '.join(wrong)}; export again")
    return manifest


class _Format(msgspec.Struct):
    format: int
