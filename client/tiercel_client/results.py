"""The typed results of a recommender."""

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


#: The user id of a user without one. The store never has it, so only the request's own features, history and
#: other arguments count.
ANONYMOUS: Final = Anonymous.ANONYMOUS


class Status(str, Enum):
    """What the server knows of a user."""

    KNOWN = "known"
    UNKNOWN_WITH_FEATURES = "unknown_with_features"
    UNKNOWN = "unknown"


#: The statuses by their code on the wire.
STATUSES = (Status.KNOWN, Status.UNKNOWN_WITH_FEATURES, Status.UNKNOWN)


class Item(NamedTuple):
    """One recommended item.

    Parameters
    ----------
    item_id
        Its raw id.
    score
        Its final score, which is comparable only within one answer.
    title
        Its title; None if titles were not requested or the server has none.
    rank
        Its position in the answer, from 1.
    propensity
        The probability of its position; 1 if nothing was sampled, None if the server never explores.
    """

    item_id: Id
    score: float
    title: str | None
    rank: int
    propensity: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return a JSON form, without the propensity if it is None."""
        document = self._asdict()
        return document if self.propensity is not None else {k: document[k] for k in self._fields[:-1]}


@dataclass(frozen=True, slots=True)
class Recommendation:
    """The answer for one user.

    Parameters
    ----------
    user_id
        As in the call; None for :data:`ANONYMOUS`.
    status
        What the server knows of the user.
    items
        Best first. There are fewer than k if no more are available, which is not an error.
    request_id
        Id of the request that returned it; ignored when answers are compared.
    """

    user_id: Id | None
    status: Status
    items: tuple[Item, ...]
    request_id: str = field(default="", compare=False)

    @property
    def count(self) -> int:
        """The number of items."""
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
    """One item of the history that the models received."""

    item_row: int
    item_id: Id | None
    title: str | None


@dataclass(frozen=True, slots=True)
class Candidate:
    """The outcome of one candidate.

    Parameters
    ----------
    position
        Its position after retrieval, from 1.
    item_row
        Its catalogue row.
    item_id, title
        Its raw id and title; None if the server has no model ``describe_items``.
    retrieval_score
        Its score on the scale of the first source that can score any item; for an unknown user, the score of
        the fallback.
    source
        Name of the retrieval source that found it.
    reason
        Why filtering kept or dropped it, in words.
    kept
        Whether it passed filtering, and reached the ranker if there is one.
    rank_scores
        One score per ranker task; empty if it was dropped, or there is no ranker.
    task_scores
        Task name → score; empty if the tasks have no names.
    score, rank
        Its final score and position (from 1) in the answer; None if it is not in it.
    reorder_reason
        Why a reorder step moved or dropped it, in words; None if no step did, or gives no reasons.
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
        The history that the models received, oldest first.
    candidates
        All candidates of retrieval, in its order, with their outcomes.
    stages
        Names of the served stages, in order.
    times_us
        Stage → microseconds that it took for this request's Triton batch. A stage that runs in one of
        Triton's own backends is missing.
    """

    recommendation: Recommendation
    history: tuple[HistoryItem, ...]
    candidates: tuple[Candidate, ...]
    stages: tuple[str, ...]
    times_us: Mapping[str, float] = field(default_factory=dict)

    @property
    def user_id(self) -> Id | None:
        """The user's raw id, or None."""
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
        """The candidates that passed filtering, in order of retrieval."""
        return tuple(candidate for candidate in self.candidates if candidate.kept)

    @property
    def dropped(self) -> tuple[Candidate, ...]:
        """The candidates that filtering dropped, in order of retrieval."""
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
    """The outcome of one item for one user, and what it would have needed to pass.

    Parameters
    ----------
    user_id, item_id, title
        The user and the item.
    stage
        The stage that dropped it, ``catalogue``, ``retrieval``, ``filtering`` or ``ordering``; ``answer`` if
        it is in the answer.
    reason
        The reason, in words.
    rank, score
        Its position (from 1) and score at this stage, or None. For ``answer`` and ``ordering`` they are the
        final ones, for ``filtering`` those of retrieval, and for ``retrieval`` those that it would have had.
    needed
        What it would have needed to pass this stage, in words; empty if it is in the answer.
    seen
        Column → value that was read by the rule which it failed.
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
    """The result of a canary inference.

    Parameters
    ----------
    build_id
        The release that answered.
    latency_s
        Seconds that the inference alone took, as the client measured.
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
        ``user`` (overrides the store) or ``context`` (only in requests).
    tensor, companion
        The request tensor with the values, and the one with the lengths of lists or the validity of scalars;
        None for float scalars, whose null is NaN. The release names them; a fake names them itself.
    unit
        For times, the unit in which the int64 values count since 1970-01-01 UTC: ``s``, ``ms``, ``us`` or
        ``ns``. Dates, times and ISO 8601 text are converted to it, rounded down.
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
    """Information about a server and its release.

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
        Maximum number of users in one request; ``recommend_many`` splits larger calls.
    k_default, k_max
        Default and maximum number of items in an answer.
    max_excluded
        Maximum length of ``exclude``, ``include``, ``candidates`` and ``history``.
    allow_seen
        Whether seen items may be recommended by default.
    user_id_dtype, item_id_dtype
        ``int64`` or ``bytes`` (text).
    sources, stages
        Names of the retrieval sources and of the served stages, in order.
    filter_reasons
        Code → why filtering kept or dropped a candidate.
    reorder_reasons
        Reasons for which reorder steps move or drop candidates, in the order of their codes (from 1).
    request_columns
        The columns that ``features`` may contain.
    task_names
        Names of the ranker's scores; empty if they have none.
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
