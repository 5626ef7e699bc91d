"""Arguments → tensors: what is sent, and what is refused before sending."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import re
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drawing import examples
from tiercel_client import ANONYMOUS, InvalidInput, ProtocolMismatch, RequestColumn
from tiercel_client.contract import LENGTHS, Contract, read_contract
from tiercel_client.request import Part, Question, build_requests, canary
from tiercel_client.testing import FakeTransport

COLUMNS = (
    RequestColumn("age", "int64", False, "user"),
    RequestColumn("rank", "int32", False, "user"),
    RequestColumn("income", "float32", False, "user"),
    RequestColumn("speed", "float64", False, "context"),
    RequestColumn("country", "bytes", False, "user"),
    RequestColumn("device", "bytes", False, "context"),
    RequestColumn("genres", "bytes", True, "user"),
    RequestColumn("codes", "int64", True, "user"),
    RequestColumn("weights", "float32", True, "user"),
    RequestColumn("member", "bool", False, "user"),
    # Column names that look like companions of others, but are not.
    RequestColumn("trip", "int64", True, "context", "a tensor", "trip__valid"),
    RequestColumn("trip__length", "float32", False, "context"),
    RequestColumn("k", "int64", False, "context", "column k", "k__length"),
)


def contract(**changes: Any) -> Contract:
    fake = FakeTransport(columns=COLUMNS, max_batch_size=4, k_default=5, k_max=20, max_excluded=6)
    made = read_contract(fake.model_config("recommend", timeout_s=1, headers={}))
    return dataclasses.replace(made, **changes)


INTS = contract()
TEXTS = contract(
    user_id_dtype="bytes",
    item_id_dtype="bytes",
    inputs=INTS.inputs | {"exclude_item_ids__packed", "history_item_ids__packed"},
)


def one(user: Any = 1, rules: Contract = INTS, **arguments: Any) -> dict[str, Any]:
    """Return the tensors of a request for one user."""
    filled = {"k": None, **arguments}
    [part] = build_requests(rules, Question.of_one(user, **filled))
    return part.inputs


def many(users: Any, rules: Contract = INTS, **arguments: Any) -> list[Part]:
    return build_requests(rules, Question(users, **arguments))


def refused(call: Any, *args: Any, **options: Any) -> str:
    with pytest.raises(InvalidInput) as error:
        call(*args, **options)
    assert isinstance(error.value, ValueError)
    return str(error.value)


# What is sent


def test_the_smallest_request_is_the_user_alone() -> None:
    inputs = one(42)
    assert list(inputs) == ["user_id"]
    assert inputs["user_id"].dtype == np.int64
    assert inputs["user_id"].tolist() == [[42]]
    assert one("é\x00", TEXTS)["user_id"].tolist() == [["é\x00".encode()]]


def test_limits_of_int64_travel() -> None:
    assert one(2**63 - 1)["user_id"].tolist() == [[2**63 - 1]]
    assert one(1 - 2**63)["user_id"].tolist() == [[1 - 2**63]]
    assert one(exclude=[-(2**63)])["exclude_item_ids"].tolist() == [[-(2**63)]]


def test_numpy_values_travel() -> None:
    assert one(np.int32(7))["user_id"].tolist() == [[7]]
    assert one(np.str_("x"), TEXTS)["user_id"].tolist() == [[b"x"]]
    parts = many(np.arange(6, dtype=np.uint16), k=np.array([1, 2, 3, 4, 5, 6], np.int8))
    assert [part.inputs["k"].tolist() for part in parts] == [[[1], [2], [3], [4]], [[5], [6]]]
    assert parts[1].users == [4, 5]
    assert type(parts[1].users[0]) is int


def test_lengths_are_sent_only_where_rows_differ() -> None:
    assert one(exclude=[1, 2])["exclude_item_ids"].tolist() == [[1, 2]]
    assert "exclude_item_ids__length" not in one(exclude=[1, 2])
    [part] = many([1, 2, 3], exclude=[[1, 2], [], None])
    assert part.inputs["exclude_item_ids"].tolist() == [[1, 2], [0, 0], [0, 0]]
    assert part.inputs["exclude_item_ids__length"].tolist() == [[2], [-1], [-1]]
    assert part.inputs["exclude_item_ids__length"].dtype == np.int32


def test_sets_and_candidates_travel_as_they_are() -> None:
    assert one(include={3, 4})["include_item_ids"].tolist() == [[3, 4]]
    [part] = many([1, 2, 3], include=[[7], None, []], candidates=[[5, 5, 1], [], None])
    assert part.inputs["include_item_ids__length"].tolist() == [[1], [-1], [0]]  # an empty set allows none
    assert part.inputs["candidate_item_ids"].tolist() == [[5, 5, 1], [0, 0, 0], [0, 0, 0]]
    assert part.inputs["candidate_item_ids__length"].tolist() == [[3], [0], [-1]]
    said = refused(one, candidates=list(range(7)))
    assert "candidates: expected at most 6 item ids (max_excluded of recommend), got 7" in said
    assert "candidates[1]: expected" in refused(one, candidates=[1, "x"])
    old = dataclasses.replace(INTS, inputs=INTS.inputs - {"include_item_ids"})
    assert "include: model recommend takes no include_item_ids" in refused(one, rules=old, include=[1])


def test_long_lists_of_text_travel_packed() -> None:
    roomy = dataclasses.replace(TEXTS, max_excluded=100)
    assert one("u", roomy, exclude=["é"] * 31)["exclude_item_ids"].tolist() == [["é".encode()] * 31]
    [part] = many(["u", "v", "w"], roomy, exclude=[["é", "", "b"] * 10, None, ["c", b"d"]])
    packed = part.inputs.pop("exclude_item_ids__packed")
    assert list(part.inputs) == ["user_id"]
    assert packed.tolist() == [
        [b"\x1e\0\0\0" + "é\0\0b\0".encode() * 10],
        [b""],  # nothing is excluded
        [b"\2\0\0\0c\0d\0"],
    ]
    [part] = many(["u", "v"], roomy, history=[["a"] * 40, []])
    assert part.inputs["history_item_ids__packed"][1].tolist() == [bytes(4)]
    # Packed ids end at a NUL, so ids with a NUL travel as a tensor.
    assert set(one("u", roomy, exclude=["a\0"] * 40)) == {"user_id", "exclude_item_ids"}


@pytest.mark.parametrize("wrong", [3, None, math.nan, "a\ud800", ["a"], True])
def test_what_cannot_be_packed_is_named(wrong: Any) -> None:
    roomy = dataclasses.replace(TEXTS, max_excluded=100)
    assert "exclude[40]: expected" in refused(one, "u", roomy, exclude=["a"] * 40 + [wrong])
    assert "history[1][2]: expected" in refused(
        many, ["u", "v"], roomy, history=[["a"] * 40, ["é", b"a", wrong, "a"]]
    )


def test_lists_are_packed_only_for_a_model_that_takes_them() -> None:
    older = dataclasses.replace(TEXTS, max_excluded=100, inputs=INTS.inputs)
    numbers = dataclasses.replace(INTS, max_excluded=100)
    assert set(one("u", older, exclude=["a"] * 50)) == {"user_id", "exclude_item_ids"}
    assert set(one(1, numbers, exclude=[1] * 50)) == {"user_id", "exclude_item_ids"}


def test_an_empty_history_is_not_no_history() -> None:
    assert "history_item_ids" not in one(history=None)
    inputs = one(history=[])
    assert inputs["history_item_ids"].shape == (1, 1)  # no tensor is empty
    assert inputs["history_item_ids__length"].tolist() == [[0]]
    assert "exclude_item_ids" not in one(exclude=[])


def test_nulls() -> None:
    assert list(one(features={"age": None, "income": None, "country": math.nan, "genres": None})) == [
        "user_id"
    ]
    [part] = many(
        [1, 2, 3],
        features={
            "age": [None, 31, math.nan],
            "income": [1, None, math.nan],
            "country": ["NL", None, ""],
            "genres": [["a", "b"], None, []],
        },
    )
    sent = part.inputs
    assert sent["age: valid"].tolist() == [[False], [True], [False]]
    assert sent["age"][1].tolist() == [31]
    assert np.isnan(sent["income"]).tolist() == [[False], [True], [True]]
    assert sent["country: valid"].tolist() == [[True], [False], [True]]
    assert sent["country"].tolist() == [[b"NL"], [b""], [b""]]
    assert sent["genres: length"].tolist() == [[2], [-1], [0]]


def test_arrow_arrays_and_the_nulls_of_pandas() -> None:
    """Arrow makes no NumPy array of text, nor of integers beside a null, yet its integers stay exact."""
    pd, pa = pytest.importorskip("pandas"), pytest.importorskip("pyarrow")
    assert one("x", TEXTS, exclude=pa.array(["a", "b"]))["exclude_item_ids"].tolist() == [[b"a", b"b"]]
    codes = one(features={"codes": pa.chunked_array([[2**60 + 1], [4]])})["codes"]
    assert codes.tolist() == [[2**60 + 1, 4]]
    with pytest.raises(InvalidInput, match=r"history\[1\]: expected a whole number, got NoneType"):
        one(history=pa.array([1, None]))
    for null in (pd.NA, pd.NaT):
        assert one(features=dict.fromkeys(("age", "income", "country", "member"), null)).keys() == {"user_id"}
    ages = pd.Series([2**60 + 1, None], dtype="Int64")
    [part] = many([1, 2], features={"age": ages})
    assert part.inputs["age"].tolist() == [[2**60 + 1], [0]]
    assert part.inputs["age: valid"].tolist() == [[True], [False]]


def test_durations_are_no_numbers() -> None:
    duration = np.timedelta64(3, "s")
    for name in ("age", "income"):
        with pytest.raises(InvalidInput, match=r"expected a .*number, got timedelta64"):
            one(features={name: duration})
    with pytest.raises(InvalidInput, match="user_id: expected a whole number, got timedelta64"):
        one(duration)


def test_whole_floats_are_whole_numbers_in_features() -> None:
    """Pandas turns integers into floats if one is missing."""
    [part] = many([1, 2], features={"age": np.array([31.0, np.nan])})
    assert part.inputs["age"].tolist() == [[31], [0]]
    assert part.inputs["age: valid"].tolist() == [[True], [False]]
    assert "whole number" in refused(one, features={"age": 31.5})


def test_tensors_have_the_names_that_the_release_gives_them() -> None:
    assert list(one(features={"trip": [1, 2]})) == ["user_id", "a tensor"]
    [part] = many([1, 2], features={"trip": [[1, 2], [3]], "k": [None, 4], "trip__length": [None, 2.5]}, k=3)
    assert {name: array.tolist() for name, array in part.inputs.items() if name != "trip__length"} == {
        "user_id": [[1], [2]],
        "k": [[3], [3]],
        "a tensor": [[1, 2], [3, 0]],
        "trip__valid": [[2], [1]],
        "column k": [[0], [4]],
        "k__length": [[False], [True]],
    }
    assert np.isnan(part.inputs["trip__length"]).tolist() == [[True], [False]]


def test_yes_and_no() -> None:
    [part] = many([1, 2, 3], features={"member": [True, None, np.False_]})
    assert part.inputs["member"].tolist() == [[True], [False], [False]]
    assert part.inputs["member: valid"].tolist() == [[True], [False], [True]]
    assert "True or False" in refused(one, features={"member": 1})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tensor": "elsewhere"}, "'trip': expected 'elsewhere' of int64, got no such input"),
        ({"dtype": "int32"}, "expected 'a tensor' of int32, got an input of int64"),
        ({"companion": None}, "expected None of int32, got no such input"),
        ({"companion": "a tensor"}, "expected 'a tensor' of int32, got an input of int64"),
        ({"is_list": False}, "expected 'trip__valid' of bool, got an input of int32"),
        ({"dtype": "datetime"}, "of datetime, got an input of int64"),
    ],
)
def test_a_release_that_names_what_it_does_not_have(changes: dict[str, Any], message: str) -> None:
    config = FakeTransport(columns=COLUMNS).model_config("recommend", timeout_s=1, headers={})
    columns = json.loads(config.parameters["request_columns"])
    next(column for column in columns if column["name"] == "trip").update(changes)
    parameters = {**config.parameters, "request_columns": json.dumps(columns)}
    with pytest.raises(ProtocolMismatch, match=re.escape(message)):
        read_contract(dataclasses.replace(config, parameters=parameters))


def test_a_release_of_an_older_form() -> None:
    config = FakeTransport().model_config("recommend", timeout_s=1, headers={})
    old = json.dumps([{"name": "age", "dtype": "int64", "list": False, "part": "user"}])
    parameters = {**config.parameters, "request_columns": old}
    with pytest.raises(
        ProtocolMismatch, match=r"expected name, dtype, is_list, .* install the tiercel version"
    ):
        read_contract(dataclasses.replace(config, parameters=parameters))


def test_dtypes_are_those_of_the_columns() -> None:
    sent = one(features={"rank": 3, "income": 2, "speed": 1, "codes": [4], "weights": (1, 2.5)})
    assert {name: str(sent[name].dtype) for name in sent} == {
        "user_id": "int64",
        "rank": "int32",
        "income": "float32",
        "speed": "float64",
        "codes": "int64",
        "weights": "float32",
    }


def test_k_for_each_user() -> None:
    [part] = many([1, 2], k=[None, 3])
    assert part.inputs["k"].tolist() == [[5], [3]]
    assert part.inputs["k"].dtype == np.int32
    assert "k" not in many([1, 2], k=[None, None])[0].inputs


def test_whether_what_was_had_may_come_is_said_for_all_or_for_each() -> None:
    assert "allow_seen" not in one()
    assert "allow_seen" not in many([1, 2], allow_seen=[None, None])[0].inputs
    assert one(allow_seen=False)["allow_seen"].tolist() == [[False]]
    for said in (True, [True, True], np.array([True, True])):
        [part] = many([1, 2], allow_seen=said)
        assert part.inputs["allow_seen"].tolist() == [[True], [True]]
        assert part.inputs["allow_seen"].dtype == np.bool_
    for default in (False, True):
        [part] = many([1, 2, 3], contract(allow_seen=default), allow_seen=[None, False, True])
        assert part.inputs["allow_seen"].tolist() == [[default], [False], [True]]


@pytest.mark.parametrize("wrong", [1, "yes", 0.5, [True], {}])
def test_whether_what_was_had_may_come_is_yes_or_no(wrong: Any) -> None:
    assert refused(one, allow_seen=wrong).startswith("allow_seen: expected True or False")


def test_a_server_of_an_older_release_takes_no_allow_seen() -> None:
    config = FakeTransport().model_config("recommend", timeout_s=1, headers={})
    parameters = {name: text for name, text in config.parameters.items() if name != "allow_seen"}
    inputs = tuple(tensor for tensor in config.inputs if tensor.name != "allow_seen")
    old = read_contract(dataclasses.replace(config, parameters=parameters, inputs=inputs))
    assert not old.allow_seen
    assert list(one(1, old)) == ["user_id"]
    assert "takes no allow_seen; leave it out" in refused(one, 1, old, allow_seen=True)


def test_sets_exclude_and_arrays_are_rows() -> None:
    assert sorted(one(exclude={3, 4})["exclude_item_ids"][0].tolist()) == [3, 4]
    [part] = many([1, 2], history=np.array([[1, 2], [3, 4]]))
    assert part.inputs["history_item_ids"].tolist() == [[1, 2], [3, 4]]
    assert "list" in refused(one, history={1, 2})


def test_a_part_that_needs_no_nulls_sends_none() -> None:
    first, second = many(range(6), features={"age": [1, 2, 3, 4, None, None]})
    assert "age: valid" not in first.inputs
    assert "age" in first.inputs
    assert list(second.inputs) == ["user_id"]


def test_somebody_without_an_id() -> None:
    assert one(ANONYMOUS)["user_id"].tolist() == [[-(2**63)]]
    assert one(ANONYMOUS, TEXTS)["user_id"].tolist() == [[b"\x00anonymous"]]
    assert canary(TEXTS)["k"].tolist() == [[1]]


@pytest.mark.parametrize(("of", "taken"), [(None, -(2**63)), (TEXTS, "\0anonymous"), (TEXTS, b"\0anonymous")])
def test_nobody_has_the_id_that_stands_for_anonymous(of: Any, taken: Any) -> None:
    more = () if of is None else (of,)
    assert "user_id: " in (message := refused(one, taken, *more))
    assert "send tiercel_client.ANONYMOUS" in message
    other: Any = 1 if of is None else "1"
    for users in ([other, taken], np.array([other, taken], dtype=object if of else np.int64)):
        assert refused(many, users, *more).startswith("user_ids[1]: ")
    assert [part.users for part in many([ANONYMOUS, other], *more)] == [[ANONYMOUS, other]]


# What is refused


@pytest.mark.parametrize(
    "user", ["42", b"42", 4.0, True, np.True_, None, math.nan, [1], {}, 2**63, -(2**63) - 1]
)
def test_a_number_is_expected(user: Any) -> None:
    message = refused(one, user)
    assert message.startswith("user_id: expected a")
    assert "user_ids[1]" in refused(many, [1, user])


@pytest.mark.parametrize("user", [42, 4.0, True, None, math.nan, ["a"], np.int64(4), "\ud800", "a\udfff"])
def test_text_is_expected(user: Any) -> None:
    assert refused(one, user, TEXTS).startswith("user_id: expected")


def test_messages_help() -> None:
    assert "send int(...)" in refused(one, "42")
    assert "the string '42'" in refused(one, 42, TEXTS)
    assert "ANONYMOUS" in refused(one, None)
    assert "surrogate at position 1" in refused(one, "a\ud800", TEXTS)
    assert "did you mean 'country'" in refused(one, features={"countri": "NL"})
    assert "it has 'age'" in refused(one, features={"zzz": 1})
    assert "it has none" in refused(one, 1, contract(columns={}), features={"age": 1})
    assert "features['income'][1]" in refused(many, [1, 2], features={"income": [1, math.inf]})
    assert "exclude[1][2]" in refused(many, [1, 2, 3], exclude=[[1], [2, 3, "x"], [4]])
    assert "exclude[2]:" in refused(one, exclude=[2, 3, "x"])


@pytest.mark.parametrize("k", [0, -1, 21, True, 2.0, "3", 2**40, [3]])
def test_k_is_refused(k: Any) -> None:
    assert refused(one, k=k).startswith("k:")
    assert "k" in refused(many, [1], k=[k])


def test_k_says_the_limit() -> None:
    assert "1 to 20" in refused(one, k=21)
    assert "k[1]" in refused(many, [1, 2], k=[1, 0])
    assert "k: " in refused(many, [1, 2], k=0)


@pytest.mark.parametrize(
    "arguments",
    [
        {"exclude": [[1]]},
        {"history": [[1]] * 3},
        {"k": [1, 2, 3]},
        {"features": {"age": [1]}},
        {"features": {"genres": [["a"]] * 3}},
    ],
)
def test_lengths_that_do_not_match(arguments: dict[str, Any]) -> None:
    assert "each of the 2 users" in refused(many, [1, 2], **arguments)


@pytest.mark.parametrize(
    "users", [[], (), np.zeros(0, np.int64), "abc", b"abc", 5, None, {1: 2}, {1, 2}, np.zeros((2, 2))]
)
def test_batches_that_are_none(users: Any) -> None:
    assert refused(many, users).startswith("user_ids: expected")


@pytest.mark.parametrize(
    "features",
    [
        {"income": math.inf},
        {"income": -math.inf},
        {"income": np.float32("inf")},
        {"income": 1e300},  # becomes infinite as a float32
        {"income": 10**400},
        {"income": "1"},
        {"income": True},
        {"income": Decimal(1)},
        {"age": "31"},
        {"age": 1e300},
        {"rank": 2**31},
        {"age": np.datetime64("2020-01-01")},
        {"country": 3},
        {"country": ["NL"]},
        {"genres": "abc"},
        {"genres": [None]},
        {"genres": [1]},
        {"codes": [True]},
        {"weights": [math.nan]},
        {"weights": [math.inf]},
        {1: 2},
        {"Age": 3},
        [("age", 3)],
        "age",
    ],
)
def test_features_are_refused(features: Any) -> None:
    assert refused(one, features=features).startswith("features")


def test_too_many_excluded() -> None:
    one(exclude=[1] * 6, history=[1] * 6)
    assert "at most 6" in refused(one, exclude=[1] * 7)
    assert "history[1]" in refused(many, [1, 2], history=[[1], [1] * 7])


def test_a_model_without_lists() -> None:
    assert "takes no" in refused(one, 1, contract(inputs=frozenset({"user_id", "k"})), history=[1])


# Properties

ids = st.integers(-(2**63), 2**63 - 1)
texts = st.text(st.characters(codec="utf-8"), max_size=8)
floats = st.one_of(st.none(), st.floats(width=32, allow_infinity=False), st.just(math.nan))


COMPANIONS = {**LENGTHS, **{column.name: column.companion for column in INTS.columns.values()}}


def rows_of(inputs: dict[str, Any], name: str, count: int) -> list[Any]:
    """Return the rows of a list tensor as the server reads it."""
    if name not in inputs:
        return [None] * count
    values = inputs[name].tolist()
    said = COMPANIONS[name]
    if said not in inputs:
        return values
    lengths = inputs[said][:, 0].tolist()
    return [None if n < 0 else row[:n] for row, n in zip(values, lengths, strict=True)]


def scalars_of(inputs: dict[str, Any], name: str, count: int) -> list[Any]:
    """Return the values of a scalar tensor as the server reads it."""
    if name not in inputs:
        return [None] * count
    values = inputs[name][:, 0].tolist()
    said = COMPANIONS[name]
    valid = inputs[said][:, 0].tolist() if said in inputs else [True] * count
    return [v if ok and v == v else None for v, ok in zip(values, valid, strict=True)]


@st.composite
def questions(draw: Any) -> tuple[int, dict[str, Any]]:
    count = draw(st.integers(1, 11))
    column = lambda values: st.one_of(st.none(), st.lists(values, min_size=count, max_size=count))  # noqa: E731
    optional = lambda values, most: st.one_of(st.none(), st.lists(values, max_size=most))  # noqa: E731
    return count, {
        "exclude": draw(column(optional(ids, 6))),
        "history": draw(column(optional(ids, 6))),
        "age": draw(column(st.one_of(st.none(), st.just(math.nan), ids))),
        "income": draw(column(floats)),
        "country": draw(column(st.one_of(st.none(), texts))),
        "genres": draw(column(optional(texts, 4))),
        "weights": draw(column(optional(st.floats(width=32, allow_infinity=False, allow_nan=False), 4))),
    }


@examples(50)
@given(questions())
def test_the_server_reads_what_was_asked(question: tuple[int, dict[str, Any]]) -> None:
    count, arguments = question
    names = ("age", "income", "country", "genres", "weights")
    features = {name: arguments[name] for name in names if arguments[name] is not None}
    parts = many(
        list(range(count)), exclude=arguments["exclude"], history=arguments["history"], features=features
    )
    assert [user for part in parts for user in part.users] == list(range(count))
    encode = lambda value: value.encode() if isinstance(value, str) else value  # noqa: E731
    read: dict[str, list[Any]] = {name: [] for name in arguments}
    for part in parts:
        rows = len(part.users)
        assert rows <= 4
        assert all(len(array) == rows and array.size for array in part.inputs.values())
        read["exclude"] += rows_of(part.inputs, "exclude_item_ids", rows)
        read["history"] += rows_of(part.inputs, "history_item_ids", rows)
        for name in ("age", "income", "country"):
            read[name] += scalars_of(part.inputs, name, rows)
        for name in ("genres", "weights"):
            read[name] += rows_of(part.inputs, name, rows)
    for name, values in arguments.items():
        asked = [None] * count if values is None else values
        if name == "exclude":
            asked = [row or None for row in asked]
        want = [
            [encode(one) for one in value]
            if isinstance(value, list)
            else (None if value is None or value != value else encode(value))
            for value in asked
        ]
        assert read[name] == want, name


anything = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(),
        st.binary(max_size=4),
        st.complex_numbers(),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=2), inner, max_size=2), st.tuples(inner)
    ),
    max_leaves=4,
)


@examples(65)
@given(anything, anything, st.sampled_from([INTS, TEXTS]))
def test_anything_is_sent_or_refused_and_never_an_accident(first: Any, second: Any, rules: Contract) -> None:
    user = 1 if rules is INTS else "u"
    for call in (
        lambda: one(first, rules),
        lambda: one(user, rules, exclude=first, history=second),
        lambda: one(user, rules, k=first),
        lambda: one(user, rules, features=first),
        lambda: one(user, rules, features={"age": first, "income": second}),
        lambda: one(user, rules, features={"country": first, "genres": second}),
        lambda: many(first, rules),
        lambda: many([user, user], rules, k=first, exclude=second),
        lambda: many([user, user], rules, allow_seen=first),
        lambda: many([user, user], rules, features={"weights": first, "codes": second}),
    ):
        with contextlib.suppress(InvalidInput):
            call()
