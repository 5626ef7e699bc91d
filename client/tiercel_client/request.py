"""From arguments to the tensors of one or several requests. All of them are checked before any is sent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from sys import byteorder
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .contract import ALLOW_SEEN, CANDIDATES, EXCLUDE, HISTORY, INCLUDE, LENGTHS, PACKED, RELATED_TO, Contract
from .errors import InvalidInput
from .results import Anonymous, RequestColumn
from .values import Array, Place, convert_column, convert_ids, flatten, pack_ids, sequence, shown
from .wire.moments import ticks

#: dtype of user ids → the reserved id of anonymous users, which tables and stores refuse.
ANONYMOUS_IDS: Mapping[str, int | bytes] = {"int64": -(2**63), "bytes": b"\x00anonymous"}

#: Lists with at least this many text ids are sent packed; unpacked, each id is a Python object on both sides.
PACK_FROM = 32


#: Argument → the tensor of its lists of item ids.
_ARGUMENTS = {"exclude": EXCLUDE, "history": HISTORY, "include": INCLUDE, "candidates": CANDIDATES}


class Question(NamedTuple):
    """The arguments of ``recommend_many``, each with one entry per user, in the same order.

    ``single`` says that the call was for one user, so that messages contain no positions.
    """

    users: Any
    k: Any = None
    exclude: Any = None
    history: Any = None
    features: Any = None
    allow_seen: Any = None
    include: Any = None
    candidates: Any = None
    single: bool = False

    @classmethod
    def of_one(
        cls,
        user: Any,
        k: Any,
        exclude: Any = None,
        history: Any = None,
        features: Any = None,
        allow_seen: Any = None,
        include: Any = None,
        candidates: Any = None,
    ) -> Question:
        """Return the question for one user."""
        if features is not None and isinstance(features, Mapping):
            features = {name: [value] for name, value in features.items()}
        return cls(
            [user],
            None if k is None else [k],
            None if exclude is None else [exclude],
            None if history is None else [history],
            features,
            None if allow_seen is None else [allow_seen],
            None if include is None else [include],
            None if candidates is None else [candidates],
            single=True,
        )


class Part(NamedTuple):
    """One request: its users, as the caller gave them, and its tensors (user axis first)."""

    users: Sequence[Any]
    inputs: dict[str, Array]


def build_requests(contract: Contract, question: Question) -> list[Part]:
    """Check a question and split it into requests of at most ``max_batch_size`` users, in their order.

    A tensor that is null for every user of a request is left out. Companion tensors, which hold the validity
    of values or the lengths of lists, are sent only if some row needs them.

    Raises
    ------
    InvalidInput
        An argument is invalid; the message names the argument and the position.
    """
    users = sequence(question.users, "user_ids")
    count = len(users)
    if not count:
        raise InvalidInput("user_ids: expected at least one user, got none; nothing to ask for")
    tensors: list[_Scalars | _Lists] = [_user_ids(contract, users, question.single)]
    if question.k is not None and (k := _k(contract, question, count)) is not None:
        tensors.append(k)
    for argument, name in _ARGUMENTS.items():
        given = getattr(question, argument)
        if given is not None:
            tensors.append(_item_ids(contract, argument, name, given, count, question.single))
    if question.allow_seen is not None and (allow := _allow_seen(contract, question, count)) is not None:
        tensors.append(allow)
    if question.features is not None:
        tensors += _features(contract, question.features, count, question.single)
    given_users = users.tolist() if isinstance(users, np.ndarray) else users
    if count <= contract.max_batch_size:
        return [Part(given_users, _inputs(tensors))]
    parts = []
    for start in range(0, count, contract.max_batch_size):
        rows = slice(start, min(start + contract.max_batch_size, count))
        parts.append(Part(given_users[rows], _inputs([tensor.rows(rows) for tensor in tensors])))
    return parts


def _inputs(tensors: Sequence[_Scalars | _Lists]) -> dict[str, Array]:
    inputs: dict[str, Array] = {}
    for tensor in tensors:
        tensor.put(inputs)
    return inputs


def build_k(contract: Contract, k: Any) -> int:
    """Return the number of items for one user; InvalidInput if ``k`` is invalid."""
    made = _k(contract, Question([None], [k], single=True), 1)
    return contract.k_default if made is None else int(made.values[0])


def related_inputs(contract: Contract, item_ids: Any, k: Any, exclude: Any) -> dict[str, Array]:
    """Return the tensors of a request for similar items; InvalidInput if an argument is invalid."""
    given = (
        [item_ids] if isinstance(item_ids, int | np.integer | str) else list(sequence(item_ids, "item_ids"))
    )
    if not 0 < len(given) <= contract.max_excluded:
        limit = f"1 to {contract.max_excluded} (max_excluded of {contract.model})"
        raise InvalidInput(f"item_ids: expected {limit} items, got {len(given)}")
    ids = convert_ids(given, contract.item_id_dtype, lambda position: f"item_ids[{position}]")
    inputs = {RELATED_TO: ids.reshape(1, -1), "k": np.array([[build_k(contract, k)]], np.int32)}
    if exclude is not None:
        _item_ids(contract, "exclude", EXCLUDE, [exclude], 1, True).put(inputs)
    return inputs


def canary(contract: Contract) -> dict[str, Array]:
    """Return the tensors of the smallest real request: one item for an anonymous user."""
    return build_requests(contract, Question.of_one(Anonymous.ANONYMOUS, 1))[0].inputs


def id_array(ids: Sequence[Any], dtype: str) -> Array:
    """Return raw ids from an answer as an array ``[n]``: int64, or objects that are ``bytes``."""
    if dtype == "bytes":
        out = np.empty(len(ids), np.object_)
        out[:] = [one.encode() for one in ids]
        return out
    return np.array(ids, np.int64)


class _Scalars(NamedTuple):
    """One value per user: ``values [n]``, and which are valid (None if all are)."""

    name: str
    values: Array
    valid: Array | None = None
    companion: str = ""

    def rows(self, rows: slice) -> _Scalars:
        valid = None if self.valid is None else self.valid[rows]
        return self._replace(values=self.values[rows], valid=valid)

    def put(self, inputs: dict[str, Array]) -> None:
        values, valid = self.values, self.valid
        if valid is not None and not valid.all():
            if not valid.any():
                return
            inputs[self.companion] = valid.reshape(-1, 1)
        elif values.dtype.kind == "f" and np.isnan(values).all():
            return
        inputs[self.name] = values.reshape(-1, 1)


class _Lists(NamedTuple):
    """One list per user: all values concatenated, and the length of each list (-1 is null)."""

    name: str
    companion: str
    flat: Array
    lengths: npt.NDArray[np.int32]

    def rows(self, rows: slice) -> _Lists:
        before, own = int(self.lengths[: rows.start].clip(0).sum()), self.lengths[rows]
        flat = self.flat[before : before + int(own.clip(0).sum())]
        return self._replace(flat=flat, lengths=own)

    def put(self, inputs: dict[str, Array]) -> None:
        lengths = self.lengths
        if (lengths < 0).all():
            return
        width = max(1, int(lengths.max()))  # an empty list is sent as one pad with length 0
        if (lengths == width).all():
            inputs[self.name] = self.flat.reshape(len(lengths), width)
            return
        real = np.arange(width) < lengths[:, None]
        values = np.full(real.shape, b"" if self.flat.dtype == object else 0, self.flat.dtype)
        values[real] = self.flat
        inputs[self.name] = values
        inputs[self.companion] = lengths.reshape(-1, 1)


def _place(argument: str, single: bool) -> Place:
    return (lambda position: argument) if single else (lambda position: f"{argument}[{position}]")


def _inner_place(argument: str, lengths: npt.NDArray[np.int32], single: bool) -> Place:
    def where(position: int) -> str:
        ends = np.cumsum(lengths.clip(0))
        row = int(np.searchsorted(ends, position, side="right"))
        column = position - (int(ends[row - 1]) if row else 0)
        return f"{argument}[{column}]" if single else f"{argument}[{row}][{column}]"

    return where


def _user_ids(contract: Contract, users: Sequence[Any] | Array, single: bool) -> _Scalars:
    dtype = contract.user_id_dtype
    stand_in = ANONYMOUS_IDS[dtype]
    if single and type(users[0]) is int and dtype == "int64" and users[0] != stand_in:
        try:  # the most common request, on a path that avoids most of NumPy
            return _Scalars("user_id", np.ndarray(1, np.int64, users[0].to_bytes(8, byteorder, signed=True)))
        except OverflowError:
            pass  # the general path raises the error
    place = _place("user_id" if single else "user_ids", single)
    meant = np.zeros(len(users), np.bool_)
    if not isinstance(users, np.ndarray):
        meant = np.array([isinstance(user, Anonymous) for user in users], np.bool_)
        users = [stand_in if isinstance(user, Anonymous) else user for user in users]
    ids = convert_ids(users, dtype, place)
    taken = (ids == stand_in) & ~meant
    if taken.any():
        raise InvalidInput(
            f"{place(int(np.argmax(taken)))}: {stand_in!r} stands for whoever has no id, and no user has it; "
            "send tiercel_client.ANONYMOUS if that is meant"
        )
    return _Scalars("user_id", ids)


def _k(contract: Contract, question: Question, count: int) -> _Scalars | None:
    values, place = _for_each(question.k, "k", count, question.single)
    if not isinstance(values, np.ndarray):
        if all(one is None for one in values):
            return None
        values = [contract.k_default if one is None else one for one in values]
    k = convert_ids(values, "int64", place)
    wrong = (k < 1) | (k > contract.k_max)
    if wrong.any():
        worst = int(np.argmax(wrong))
        raise InvalidInput(
            f"{place(worst)}: expected 1 to {contract.k_max} items (k_max of {contract.model}), "
            f"got {int(k[worst])}"
        )
    return _Scalars("k", k.astype(np.int32))


def _allow_seen(contract: Contract, question: Question, count: int) -> _Scalars | None:
    values, place = _for_each(question.allow_seen, ALLOW_SEEN, count, question.single)
    if not isinstance(values, np.ndarray) and all(one is None for one in values):
        return None
    if ALLOW_SEEN not in contract.inputs:
        raise InvalidInput(f"{ALLOW_SEEN}: model {contract.model} takes no {ALLOW_SEEN}; leave it out")
    allow, valid = convert_column(values, "bool", place, nullable=True)
    return _Scalars(ALLOW_SEEN, allow if valid is None else np.where(valid, allow, contract.allow_seen))


def _for_each(given: Any, argument: str, count: int, single: bool) -> tuple[Sequence[Any] | Array, Place]:
    """Return one value per user for an argument that may be one for all, and its place in messages."""
    several = isinstance(given, list | tuple | np.ndarray) or hasattr(given, "to_numpy")
    values: Any = _each(sequence(given, argument), argument, count) if several else [given] * count
    return values, _place(argument, single or not several)


def _item_ids(
    contract: Contract, argument: str, name: str, given: Any, count: int, single: bool
) -> _Lists | _Scalars:
    if name not in contract.inputs:
        raise InvalidInput(f"{argument}: model {contract.model} takes no {name}; leave it out")
    rows = _each(_rows(given, argument), argument, count)
    flat, lengths = flatten(rows, _place(argument, single), unordered=name in (EXCLUDE, INCLUDE))
    if lengths.max() > contract.max_excluded:
        worst = int(np.argmax(lengths))
        raise InvalidInput(
            f"{_place(argument, single)(worst)}: expected at most {contract.max_excluded} item ids "
            f"(max_excluded of {contract.model}), got {int(lengths[worst])}"
        )
    if name == EXCLUDE:
        lengths = np.where(lengths == 0, np.int32(-1), lengths)  # an empty list need not be sent
    place = _inner_place(argument, lengths, single)
    if contract.item_id_dtype == "bytes" and len(flat) >= PACK_FROM and PACKED[name] in contract.inputs:
        packed = pack_ids(flat, lengths, place)
        if packed is not None:
            return _Scalars(PACKED[name], packed)
    return _Lists(name, LENGTHS[name], convert_ids(flat, contract.item_id_dtype, place), lengths)


def _features(contract: Contract, features: Any, count: int, single: bool) -> list[_Scalars | _Lists]:
    if not isinstance(features, Mapping):
        raise InvalidInput(f"features: expected a mapping of column to value, got {shown(features)}")
    return [_feature(contract, name, values, count, single) for name, values in features.items()]


def _feature(contract: Contract, name: Any, given: Any, count: int, single: bool) -> _Scalars | _Lists:
    column = contract.columns.get(name) if isinstance(name, str) else None
    if column is None:
        raise _unknown_feature(contract, name)
    argument = f"features[{name!r}]"
    if column.is_list:
        return _list_feature(column, argument, _each(_rows(given, argument), argument, count), single)
    place = _place(argument, single)
    values = _each(sequence(given, argument), argument, count)
    if column.unit is not None:
        values = ticks(values, column.unit, place)
    real, valid = convert_column(values, column.dtype, place, nullable=True)
    return _Scalars(column.tensor, real, valid, column.companion or "")


def _list_feature(column: RequestColumn, argument: str, rows: Any, single: bool) -> _Lists:
    flat, lengths = flatten(rows, _place(argument, single))
    values, _ = convert_column(flat, column.dtype, _inner_place(argument, lengths, single), nullable=False)
    return _Lists(column.tensor, column.companion or "", values, lengths)


def _rows(given: Any, argument: str) -> Sequence[Any] | Array:
    """Return one list per user; a two-dimensional array has one row per user."""
    if isinstance(given, np.ndarray) and given.ndim == 2:
        return list(given)
    return sequence(given, argument)


def _each(values: Sequence[Any] | Array, argument: str, count: int) -> Sequence[Any] | Array:
    if len(values) != count:
        raise InvalidInput(f"{argument}: expected one entry for each of the {count} users, got {len(values)}")
    return values


def _unknown_feature(contract: Contract, name: Any) -> InvalidInput:
    known = list(contract.columns)
    near = get_close_matches(name, known, 1, 0.5) if isinstance(name, str) else []
    if near:
        hint = f"did you mean {near[0]!r}?"
    elif known:
        hint = f"it has {', '.join(map(repr, known))}"
    else:
        hint = "it has none"
    return InvalidInput(f"features: model {contract.model} has no request column {shown(name)}; {hint}")
