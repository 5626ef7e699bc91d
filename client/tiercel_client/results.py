"""What the recommender answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any, Final, NamedTuple

#: A raw id, as the application knows it.
Id = int | str


class Anonymous(Enum):
    """The type of :data:`ANONYMOUS`."""

    ANONYMOUS = "anonymous"

    def __repr__(self) -> str:
        return "ANONYMOUS"


#: A user id for somebody without one: never in the store, so that only the features, the history and
#: the exclusions of the request count.
ANONYMOUS: Final = Anonymous.ANONYMOUS


class Status(str, Enum):
    """What the server knows of a user."""

    KNOWN = "known"
    UNKNOWN_WITH_FEATURES = "unknown_with_features"
    UNKNOWN = "unknown"


#: Code on the wire → status.
STATUSES = (Status.KNOWN, Status.UNKNOWN_WITH_FEATURES, Status.UNKNOWN)


class Item(NamedTuple):
    """One recommended item.

    Parameters
    ----------
    item_id
        Its raw id.
    score
        Its final score; only the order within one answer means something.
    title
        What people call it, or None: not asked for, or the server has none.
    rank
        Its place in the answer, from 1.
    propensity
        With which chance it stands there; 1 where nothing was drawn, None if the server never explores.
    """

    item_id: Id
    score: float
    title: str | None
    rank: int
    propensity: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return a JSON form, without a propensity that nobody speaks of."""
        document = self._asdict()
        return document if self.propensity is not None else {k: document[k] for k in self._fields[:-1]}


@dataclass(frozen=True, slots=True)
class Recommendation:
    """The answer for one user.

    Parameters
    ----------
    user_id
        As it was asked; None if it was :data:`ANONYMOUS`.
    status
        What the server knows of the user.
    items
        Best first; fewer than k if no more are left, and that is an answer and not an error.
    request_id
        Id of the request that carried it; two answers are equal without it.
    """

    user_id: Id | None
    status: Status
    items: tuple[Item, ...]
    request_id: str = field(default="", compare=False)

    @property
    def count(self) -> int:
        """How many items there are."""
        return len(self.items)

    @property
    def item_ids(self) -> tuple[Id, ...]:
        """The raw ids, best first."""
        return tuple(item.item_id for item in self.items)

    def __iter__(self) -> Iterator[Item]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON form."""
        return {
            "user_id": self.user_id,
            "status": self.status.value,
            "count": self.count,
            "items": [item.to_json() for item in self.items],
            "request_id": self.request_id,
        }


@dataclass(frozen=True, slots=True)
class HistoryItem:
    """One item of the history that the models saw."""

    item_row: int
    item_id: Id | None
    title: str | None


@dataclass(frozen=True, slots=True)
class Candidate:
    """What became of one candidate.

    Parameters
    ----------
    position
        Its place after retrieval, from 1.
    item_row
        Its catalogue row.
    item_id, title
        What people call it; None if the server has no ``describe_items``.
    retrieval_score
        On the scale of the first source that scores any item; an unknown user's is the fallback's own.
    source
        Name of the retrieval source that found it.
    reason
        Why filtering kept or dropped it, in words.
    kept
        Whether it went on to the ranker.
    rank_scores
        One score a ranker task; empty if it was dropped, or there is no ranker.
    task_scores
        The same by the tasks' names; empty if they have none.
    score, rank
        Its final score and place (from 1) in the answer; None if it is not in it.
    reorder_reason
        Why a reorder step moved or dropped it, in words; None if no step did, or none gives reasons.
    """

    position: int
    item_row: int
    item_id: Id | None
    title: str | None
    retrieval_score: float
    source: str
    reason: str
    kept: bool
    rank_scores: tuple[float, ...] = ()
    score: float | None = None
    rank: int | None = None
    reorder_reason: str | None = None
    task_scores: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Explanation:
    """What each stage did for one user.

    Parameters
    ----------
    recommendation
        The answer.
    history
        What the models saw of the history, oldest first.
    candidates
        Everything that retrieval found, in its order, with what became of it.
    stages
        Names of the served stages, in order.
    times_us
        Stage → microseconds it took for the Triton batch that this request was in. A stage that
        Triton runs by itself (an engine in its own backend) is missing.
    """

    recommendation: Recommendation
    history: tuple[HistoryItem, ...]
    candidates: tuple[Candidate, ...]
    stages: tuple[str, ...]
    times_us: Mapping[str, float] = field(default_factory=dict)

    @property
    def user_id(self) -> Id | None:
        """The user that was asked for."""
        return self.recommendation.user_id

    @property
    def status(self) -> Status:
        """What the server knows of the user."""
        return self.recommendation.status

    @property
    def items(self) -> tuple[Item, ...]:
        """The answer, best first."""
        return self.recommendation.items

    @property
    def kept(self) -> tuple[Candidate, ...]:
        """The candidates that reached the ranker, in order of retrieval."""
        return tuple(candidate for candidate in self.candidates if candidate.kept)

    @property
    def dropped(self) -> tuple[Candidate, ...]:
        """The candidates that did not, in order of retrieval."""
        return tuple(candidate for candidate in self.candidates if not candidate.kept)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON form."""
        return {
            "recommendation": self.recommendation.to_json(),
            "history": [asdict(item) for item in self.history],
            "candidates": [asdict(candidate) for candidate in self.candidates],
            "stages": list(self.stages),
            "times_us": dict(self.times_us),
        }


@dataclass(frozen=True, slots=True)
class Why:
    """What became of one item for one user, and what would have had to be otherwise.

    Parameters
    ----------
    user_id, item_id, title
        Who and what.
    stage
        Where it fell: ``catalogue``, ``retrieval``, ``filtering`` or ``ordering``; ``answer`` if it is in it.
    reason
        Why, in words.
    rank, score
        Its place (from 1) and score there, None where it has none: in ``answer`` and ``ordering`` the final
        ones, in ``filtering`` those of retrieval, in ``retrieval`` the ones it would have had.
    needed
        What would have had to be otherwise for it to go on, in words; nothing if it is in the answer.
    seen
        What the rule that it failed saw: column → value.
    """

    user_id: Id | None
    item_id: Id
    title: str | None
    stage: str
    reason: str
    rank: int | None = None
    score: float | None = None
    needed: str = ""
    seen: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON form."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Health:
    """A canary inference that was answered.

    Parameters
    ----------
    build_id
        The release that answered.
    latency_s
        Seconds from the call to the answer, of the inference alone.
    """

    build_id: str
    latency_s: float


@dataclass(frozen=True, slots=True)
class RequestColumn:
    """A raw column that a request may carry in ``features``.

    Parameters
    ----------
    name
        Its name.
    dtype
        ``bool``, ``int64``, ``int32``, ``float32``, ``float64`` or ``bytes`` (text).
    is_list
        Whether a user has a list of values.
    part
        ``user`` (overrides the store) or ``context`` (of this request alone).
    tensor, companion
        The request's tensor that carries the values, and the one that says how long each list is, or which
        values are real; None for a float, whose null is NaN. The release names them; a fake by itself.
    unit
        Of a time, what its int64 values count since 1970-01-01 UTC: ``s``, ``ms``, ``us`` or ``ns``. Dates,
        times and ISO 8601 text are converted to it, rounded down.
    """

    name: str
    dtype: str
    is_list: bool
    part: str
    tensor: str = ""
    companion: str | None = None
    unit: str | None = None


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """What answers at the address.

    Parameters
    ----------
    server, server_version
        Name and version of the inference server.
    model
        Name of the ensemble.
    name
        Name of the recommender.
    build_id
        Its release.
    max_batch_size
        Users in one request, at most; ``recommend_many`` splits by itself.
    k_default, k_max
        How many items an answer has if nothing is said, and at most.
    max_excluded
        Length of ``exclude``, ``include``, ``candidates`` and ``history``, at most.
    allow_seen
        Whether users get again what they already had, if nothing is said.
    user_id_dtype, item_id_dtype
        ``int64`` or ``bytes`` (text).
    sources, stages
        Names of the retrieval sources and of the served stages, in order.
    filter_reasons
        Code → why filtering kept or dropped a candidate.
    reorder_reasons
        Why reorder steps move or drop candidates.
    request_columns
        What ``features`` may hold.
    task_names
        What the ranker's scores are called; empty if they have no names.
    """

    server: str
    server_version: str
    model: str
    name: str
    build_id: str
    max_batch_size: int
    k_default: int
    k_max: int
    max_excluded: int
    allow_seen: bool
    user_id_dtype: str
    item_id_dtype: str
    sources: tuple[str, ...]
    stages: tuple[str, ...]
    filter_reasons: Mapping[int, str]
    reorder_reasons: tuple[str, ...]
    request_columns: tuple[RequestColumn, ...]
    task_names: tuple[str, ...] = field(default=(), kw_only=True)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON form."""
        return asdict(self)
