"""New weights in a built plan, with the stand-ins for CUDA and TensorRT of ``test_plans``."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import onnx
import pytest
import test_plans
from onnx import numpy_helper
from test_engine_kinds import WEIGHTS, write_onnx
from test_plans import Cuda

from tiercel_serving.engines import tensorrt as kinds
from tiercel_serving.engines.bound import Bound
from tiercel_serving.engines.table import ENGINES
from tiercel_serving.engines.trt.build import Plan, network_sha256
from tiercel_serving.engines.trt.specification import BuildSpecification
from tiercel_serving.errors import ArtefactCorrupt, EngineBuildFailed

INPUTS, OUTPUTS = {"numbers": "float32", "places": "int64"}, ("product", "shifted")


class Deserialised(test_plans.Deserialised):
    """A plan of the stand-in: an ONNX file whose weights can be replaced."""

    def __init__(self, plan: bytes) -> None:
        super().__init__(plan)
        self.plan = plan

    def serialize(self) -> bytes:
        return self.plan


class TensorRT(test_plans.TensorRT):
    missing: tuple[str, ...] = ()

    class Runtime(test_plans.TensorRT.Runtime):
        def deserialize_cuda_engine(self, plan: bytes) -> Any:
            return Deserialised(plan)

    class Refitter:
        def __init__(self, engine: Deserialised, logger: Any) -> None:
            self.engine, self.given = engine, b""

        def get_missing_weights(self) -> tuple[str, ...]:
            return TensorRT.missing

        def refit_cuda_engine(self) -> bool:
            self.engine.plan = self.given
            return True

    class OnnxParserRefitter:
        num_errors = 0

        def __init__(self, refitter: TensorRT.Refitter, logger: Any) -> None:
            self.refitter = refitter

        def refit_from_file(self, file: str) -> bool:
            self.refitter.given = Path(file).read_bytes()
            return True


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Replace :func:`build_plan`; return a list that gets ``refittable`` of each call."""
    asked: list[bool] = []

    def build_plan(trt: Any, flavour: Any, folder: Path, *rest: Any, refittable: bool = False) -> Plan:
        asked.append(refittable)
        return Plan((folder / "model.onnx").read_bytes(), INPUTS, OUTPUTS, 3)

    monkeypatch.setattr(kinds, "build_plan", build_plan)
    monkeypatch.setattr(kinds, "load", lambda flavour: TensorRT)
    monkeypatch.setattr(kinds, "runtime", Cuda)
    return asked


def artefact(folder: Path, factor: float = 1.0, structure: str = "one") -> Path:
    """Write a graph as an export does, with its weights multiplied by a factor."""
    folder.mkdir()
    write_onnx(folder / "model.onnx")
    model = onnx.load(str(folder / "model.onnx"))
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(WEIGHTS * factor, "w"))
    onnx.save(model, str(folder / "model.onnx"))
    digest = network_sha256(folder / "model.onnx")
    BuildSpecification("model.onnx", digest, (1, 2, 4), structure_sha256=structure).write(folder)
    return folder


def build(folder: Path, **options: Any) -> str:
    kind: Any = ENGINES.find("tensorrt")
    return str(kind.build(folder, **options))


def test_new_weights_go_into_the_old_plan(tmp_path: Path, built: list[bool]) -> None:
    old, new = artefact(tmp_path / "old"), artefact(tmp_path / "new", 2.0)
    assert build(old, refittable=True) == "3 layers, 0.0 MB"
    assert build(new, old=old).startswith("refitted with new weights")
    assert built == [True]
    assert (new / "model.plan").read_bytes() == (new / "model.onnx").read_bytes()
    bound = Bound.read(new / "model.plan")
    assert (bound.network, bound.refittable) == (network_sha256(new / "model.onnx"), True)
    assert build(new, old=old) == "was built before"
    # And the result can be refitted again.
    assert build(artefact(tmp_path / "newer", 3.0), old=new).startswith("refitted")


def other_device(old: Path) -> None:
    bound = Bound.read(old / "model.plan")
    msgspec.structs.replace(bound, device="NVIDIA A10 (compute capability 8.6)").write(old / "model.plan")


#: What prevents a refit → how to provoke it, and words of the message.
UNFIT: dict[str, tuple[Callable[[Path], Any], str]] = {
    "built for good": (
        lambda old: msgspec.structs.replace(Bound.read(old / "model.plan"), refittable=False).write(
            old / "model.plan"
        ),
        "was built without --refittable",
    ),
    "another GPU": (other_device, r"for NVIDIA A10 .*, here is tensorrt 10\.14\.1, NVIDIA L4"),
    "another graph": (
        lambda old: msgspec.structs.replace(BuildSpecification.read(old), structure_sha256="two").write(old),
        "differs in more than its weights",
    ),
    "another batch": (
        lambda old: msgspec.structs.replace(BuildSpecification.read(old), batch=(1, 2, 8)).write(old),
        "differs in more than its weights",
    ),
    "no plan": (lambda old: (old / "model.plan").unlink(), "is not there"),
    "nothing": (lambda old: [file.unlink() for file in old.iterdir()], "bound to is not there"),
}


@pytest.mark.parametrize("what", UNFIT)
def test_a_plan_that_does_not_fit_is_built_anew(tmp_path: Path, built: list[bool], what: str) -> None:
    old, new = artefact(tmp_path / "old"), artefact(tmp_path / "new", 2.0)
    build(old, refittable=True)
    spoil, words = UNFIT[what]
    spoil(old)
    said = build(new, old=old)
    assert built == [True, True]
    assert re.search(rf"3 layers.*; built anew: .*{words}", said), said


def test_what_the_library_does_not_take(tmp_path: Path, built: list[bool], monkeypatch: Any) -> None:
    old, new = artefact(tmp_path / "old"), artefact(tmp_path / "new", 2.0)
    build(old, refittable=True)
    monkeypatch.setattr(TensorRT, "missing", ("w",))
    with pytest.raises(EngineBuildFailed, match=r"lacks the weights w\); build without --refit"):
        build(new, old=old)
    (new / "model.onnx").write_bytes(b"other")
    with pytest.raises(ArtefactCorrupt, match="the graph was changed after its export"):
        build(new, old=old)


def test_a_plan_for_good_is_not_taken_for_one_to_refit(tmp_path: Path, built: list[bool]) -> None:
    folder, cache = artefact(tmp_path / "one"), tmp_path / "cache"
    build(folder, cache=cache)
    build(folder, cache=cache, refittable=True)
    assert built == [False, True]
    assert build(folder, cache=cache) == "was built before"
