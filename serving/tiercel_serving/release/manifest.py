"""The manifest: the description of a release, as one typed object with one codec.

Code never reads a manifest by string keys. :func:`read_manifest` validates one.
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
    """Base of the manifest's parts; unknown fields are refused."""


class Catalogue(_Struct, frozen=True):
    """Numbers of items, users and interactions, and the dtypes and columns of the raw ids."""

    items: int
    users: int
    interactions: int
    item_id_dtype: IdDtype
    user_id_dtype: IdDtype
    item_id_column: str
    user_id_column: str


class PackedList(_Struct, frozen=True):
    """A list column with a tensor of its own: its name, length L and dtype (int64 for category ids)."""

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
        Those of the raw column.
    part
        ``user`` (the store may have it) or ``context``.
    tensor
        The request's tensor with its values.
    companion
        The tensor with the length of each row (for a list) or the validity of each value (for a scalar other
        than a float); None for a float, whose null is NaN.
    unit
        For a time, the unit of its int64 values since 1970-01-01 UTC.
    of_rules
        Whether only rules read it, and no model.
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
    reads, ``dimension`` is D, and ``parameters`` is its number of weights.
    """

    engine: str
    inputs: tuple[str, ...]
    dimension: int
    parameters: int


class RankingModel(_Struct, frozen=True):
    """The ranker: user and item tensors → ``rank_score [B, K, T]``; ``tasks`` is T.

    ``task_names`` are the names of the T scores; empty if they have none.
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
    """How a release was made: the time in UTC (ISO 8601), and the versions of Tiercel and libraries."""

    created: str
    tiercel: str | None
    libraries: dict[str, str | None]


class Manifest(_Struct, frozen=True):
    """The description of a release.

    Parameters
    ----------
    format
        :data:`MANIFEST_FORMAT`.
    build_id
        The build that every artefact must belong to.
    name
        The recommender's name for clients.
    made
        How and when it was made.
    target, layout
        The target and layout that it was compiled for.
    runner
        What runs its stages inside Triton, a row of :data:`~tiercel_serving.repository.targets.RUNNERS`.
    settings
        The serving settings: sources, rules, reorder steps, limits.
    catalogue, packed, request_columns, raw_item_columns
        Items, users, and their columns.
    queries
        Source → its query model.
    ranking
        The ranker; None serves the order of retrieval.
    sources
        Source → its measured figures (for an index: factory, parameters, recall).
    tables
        Table → where it came from, as given by the builder of the release.
    notes
        Which data was left out, and why.
    files
        Path → size and checksum of every other file of the release; filled in when the manifest is written.
    seal
        SHA-256 of all other fields; empty for a manifest that was never written.
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
        """Return the SHA-256 of all fields except the seal, as they are written."""
        return hashlib.sha256(encode(msgspec.structs.replace(self, seal=""))).hexdigest()

    def sealed(self, place: str) -> Manifest:
        """Return the manifest as it reads back, with its seal; ``place`` is for messages."""
        written = read_manifest(encode(self), place)
        return msgspec.structs.replace(written, seal=written.own_seal())

    def problems(self) -> list[str]:
        """Return the problems that types don't exclude: unknown engines, and those of the settings."""
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
    """Return a kind's settings from its data; the codec calls this for fields whose type is a table's."""
    table = _TABLES.get(kind)
    if table is None:
        raise NotImplementedError(f"no codec for {kind}")
    return table.read(data)


def encode(value: Any) -> bytes:
    """Return a struct as readable JSON, with a line for each entry."""
    return msgspec.json.format(msgspec.json.encode(value, enc_hook=builtin), indent=1) + b"\n"


def read_manifest(text: bytes, place: str) -> Manifest:
    """Read a manifest from its file's content; ``place`` is the file's path, for messages.

    Raises
    ------
    NewerFormat, OlderFormat
        The format is not the one that this Tiercel writes.
    ManifestInvalid
        It is not JSON, a field is missing, unknown or of another type, a kind is unknown, or the settings
        have problems.
    KindUnavailable
        A kind that it names is not installed on this machine.
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
