"""The contract of an engine, held by every row of ``ENGINES``."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from kind_contracts import check_rows
from onnx import TensorProto, helper, numpy_helper

from tiercel_serving.engines.table import ENGINES, Engine, EngineKind
from tiercel_serving.errors import ArtefactCorrupt
from tiercel_serving.verify.compare import Tolerance, compare

WEIGHTS = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)


def write_onnx(file: Path) -> None:
    """``product`` is ``numbers [B, 3]`` times :data:`WEIGHTS`, ``shifted`` that and ``places [B, 1]``."""
    inputs = [("numbers", TensorProto.FLOAT, 3), ("places", TensorProto.INT64, 1)]
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["numbers", "w"], ["product"]),
            helper.make_node("Cast", ["places"], ["p"], to=TensorProto.FLOAT),
            helper.make_node("Add", ["product", "p"], ["shifted"]),
        ],
        "g",
        [helper.make_tensor_value_info(name, dtype, ["B", width]) for name, dtype, width in inputs],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["B", 4]) for n in ("product", "shifted")],
        [numpy_helper.from_array(WEIGHTS, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), str(file))


#: Kind → writes the model that :func:`write_onnx` describes.
EXAMPLES: dict[str, Callable[[Path], None]] = {"onnx": write_onnx}


def test_every_kind_is_here() -> None:
    check_rows(ENGINES, EXAMPLES)


@pytest.fixture(params=EXAMPLES)
def kind(request: pytest.FixtureRequest) -> type[EngineKind]:
    return ENGINES.find(request.param)


@pytest.fixture
def file(kind: type[EngineKind], tmp_path: Path) -> Path:
    EXAMPLES[next(name for name in ENGINES if ENGINES.find(name) is kind)](tmp_path / kind.file)
    return tmp_path / kind.file


@pytest.fixture
def engine(kind: type[EngineKind], file: Path) -> Engine:
    return kind.open(file, ("shifted", "product"), threads=1)


def test_a_row_says_what_an_engine_is(kind: type[EngineKind]) -> None:
    assert isinstance(kind, EngineKind)
    assert re.fullmatch(r"[a-z]+\.[a-z0-9]+", kind.file)
    assert isinstance(kind.tolerance, Tolerance)
    assert kind.device in ("cpu", "cuda")
    assert kind.backend is None or kind.backend.isidentifier()
    assert re.fullmatch(r"[\w.]+:\w+", kind.maker)


@pytest.mark.parametrize("users", [1, 2, 64])
def test_it_computes_the_model(kind: type[EngineKind], engine: Engine, users: int) -> None:
    rng = np.random.default_rng(users)
    numbers = rng.normal(size=(users, 3)).astype(np.float32)
    places = rng.integers(0, 9, (users, 1))
    arrays = {"numbers": numbers, "places": places, "something else": numbers}
    out = engine.run(arrays)
    assert sorted(engine.inputs) == ["numbers", "places"]
    assert engine.outputs == tuple(out) == ("shifted", "product")
    product = numbers @ WEIGHTS
    want = {"product": product, "shifted": (product + places).astype(np.float32)}
    difference = compare(out, want, kind.tolerance)
    assert difference.ok, difference.where
    for user in range(min(users, 3)):
        alone = engine.run({name: array[[user]] for name, array in arrays.items()})
        difference = compare(alone, {name: array[[user]] for name, array in out.items()}, kind.tolerance)
        assert difference.ok, difference.where


def test_only_the_outputs_asked_for(kind: type[EngineKind], file: Path) -> None:
    engine = kind.open(file, ("product",), threads=1)
    out = engine.run({"numbers": np.zeros((2, 3), np.float32), "places": np.zeros((2, 1), np.int64)})
    assert {name: array.shape for name, array in out.items()} == {"product": (2, 4)}


def test_a_model_without_an_output(kind: type[EngineKind], file: Path) -> None:
    with pytest.raises(ArtefactCorrupt, match=f"{kind.file}: expected the outputs .*quotient.*export again"):
        kind.open(file, ("quotient",), threads=1)


def test_a_file_that_is_no_model(kind: type[EngineKind], tmp_path: Path) -> None:
    (tmp_path / kind.file).write_bytes(b"no model")
    with pytest.raises(ArtefactCorrupt, match=kind.file):
        kind.open(tmp_path / kind.file, ("product",), threads=1)
