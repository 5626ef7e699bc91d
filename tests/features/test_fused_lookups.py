"""Vocabularies of one operator chain become one lookup, and columns with one vocabulary share its table."""

from __future__ import annotations

import numpy as np
import pytest

from tiercel_export.lowering.expressions import Expression, apply, input_column
from tiercel_export.lowering.vocabulary import Vocabulary, encode
from tiercel_export.workflow.program import Output, schedule
from tiercel_serving.columns import Column
from tiercel_serving.features import FeatureProgram

KINDS = {
    "direct": ("encode_direct", "int64", lambda n: np.random.default_rng(n).permutation(n) - 5),
    "hash": ("encode_hash", "int64", lambda n: np.random.default_rng(n).choice(2**60, n, replace=False)),
    "text": ("encode_text", "bytes", lambda n: objects([b"%x" % (i * 7) for i in range(n)])),
}


def objects(items) -> np.ndarray:
    out = np.empty(len(items), np.object_)
    out[:] = items
    return out


def vocabulary_of(kind: str, size: int, source: str) -> Vocabulary:
    _, physical, keys = KINDS[kind]
    ids = np.random.default_rng(0).permutation(size) + 3
    return Vocabulary(source, "text" if physical == "bytes" else "int64", keys(size), ids, 3, None)


def encoded(kind: str, column: str, vocabulary: Vocabulary, unseen: int = 2) -> Expression:
    physical = KINDS[kind][1]
    source = input_column(column, physical, physical, False)
    return encode(source, vocabulary, 1, unseen, "int64", cast=True)


@pytest.mark.parametrize("n", [0, 1, 3, 500])
@pytest.mark.parametrize("kind", KINDS)
def test_columns_of_one_chain_are_one_lookup(kind, n):
    sizes = {"a": 50, "b": 900, "c": 2, "joint_1": 300, "joint_2": 300}
    vocabularies = {
        name: vocabulary_of(kind, size, "joint" if name.startswith("joint") else name)
        for name, size in sizes.items()
    }
    expressions = {name: encoded(kind, name, vocabulary) for name, vocabulary in vocabularies.items()}
    outputs = [Output(name, "cat", expression, None) for name, expression in expressions.items()]
    document, arrays = schedule("user", [], outputs)
    assert [step["op"] for step in document["steps"]] == ["load", KINDS[kind][0]]
    joint = next(array for name, array in arrays.items() if name.endswith(("s1.table", "s1.lookup.records")))
    alone = [schedule("user", [], [output])[1] for output in outputs[:4]]
    assert len(joint) == sum(len(one.get("s1.table", one.get("s1.lookup.records"))) for one in alone)

    rng = np.random.default_rng(n)
    columns, expected = {}, []
    for name, vocabulary in vocabularies.items():
        ids = dict(zip(vocabulary.values.tolist(), vocabulary.ids.tolist(), strict=True))
        every = np.concatenate([v.values for v in vocabularies.values()])
        asked, valid = every[rng.integers(0, len(every), n)], rng.random(n) < 0.8
        columns[name] = Column(asked, None if name == "b" else valid)
        known = [ids.get(key, 2) for key in asked.tolist()]
        expected.append(known if name == "b" else np.where(valid, known, 1).tolist())
    packed = FeatureProgram(document, arrays).packed(columns, n)["user_cat"]
    assert packed.T.tolist() == expected


@pytest.mark.parametrize("kind", KINDS)
def test_one_column_in_two_vocabularies(kind):
    first, second = vocabulary_of(kind, 40, "first"), vocabulary_of(kind, 70, "second")
    expressions = [encoded(kind, "a", first), encoded(kind, "a", second), encoded(kind, "a", first, 0)]
    outputs = [Output(f"o{i}", "cat", expression, None) for i, expression in enumerate(expressions)]
    program = FeatureProgram(*schedule("user", [], outputs))
    asked = second.values[::2]
    got = program.packed({"a": Column(asked)}, len(asked))["user_cat"].T
    for row, (vocabulary, unseen) in zip(got, [(first, 2), (second, 2), (first, 0)], strict=True):
        ids = dict(zip(vocabulary.values.tolist(), vocabulary.ids.tolist(), strict=True))
        assert row.tolist() == [ids.get(key, unseen) for key in asked.tolist()]


def test_text_of_other_widths_and_other_uses_stays_apart():
    short, long = vocabulary_of("text", 9, "short"), vocabulary_of("text", 9, "long")
    wide = Vocabulary("wide", "text", objects([b"x" * 20, b"y" * 9]), np.array([3, 4]), 3, None)
    plain = input_column("d", "bytes", "bytes", False)
    filled = apply("fill_text", input_column("e", "bytes", "bytes", False), shared={"value": "0"})
    outputs = [
        Output("a", "cat", encoded("text", "a", short), None),
        Output("b", "cat", encoded("text", "b", long), None),
        Output("c", "cat", encoded("text", "c", wide), None),
        Output("d", "cat", encode(plain, short, 1, 2, "int64", cast=True), None),
        Output("raw", "raw", plain, None),
        Output("e", "cat", encode(filled, short, 1, 2, "int64", cast=True), None),
    ]
    document, arrays = schedule("user", [], outputs)
    loads = [(step["columns"], step["packed"]) for step in document["steps"] if step["op"] == "load"]
    assert sorted(loads) == [(["a", "b"], True), (["c"], True), (["d"], False), (["e"], False)]
    values = objects([b"7", b"x" * 20, b"zz"])
    columns = {name: Column(values, np.array([True, True, name != "e"])) for name in "abcde"}
    out = FeatureProgram(document, arrays).run(columns, 3)
    ids = dict(zip(short.values.tolist(), short.ids.tolist(), strict=True))
    assert [out[name].values.tolist() for name in "abcde"] == [
        *([ids[b"7"], 2, 2] for _ in "ab"),
        [2, 3, 2],
        [ids[b"7"], 2, 2],
        [ids[b"7"], 2, ids[b"0"]],
    ]
    assert out["raw"].values.tolist() == values.tolist()
