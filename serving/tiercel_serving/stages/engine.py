"""``user_tower`` and ``ranking``: a dense model in ONNX Runtime on the CPU."""

from __future__ import annotations

import onnxruntime

from ..errors import ArtefactCorrupt
from ..release.opened import Release
from ..spec import Array, Arrays, StageSpec

#: The model's file in its artefact.
MODEL_FILE = "model.onnx"


class OnnxEngine:
    """Run one ONNX model whose inputs and outputs carry the names of the stage's tensors.

    Parameters
    ----------
    name
        The stage, and the artefact that holds its model.
    release
        The release.
    """

    def __init__(self, name: str, release: Release) -> None:
        self.spec: StageSpec = release.stages[name]
        file = release.artefact(name, "engine").file(MODEL_FILE)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = release.settings.engine_threads
        options.inter_op_num_threads = 1
        # Threads that spin while they wait would take the cores from the other stages.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(
                str(file), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise ArtefactCorrupt(f"{file}: not a model that ONNX Runtime reads ({error})") from error
        self._inputs = tuple(tensor.name for tensor in self.spec.inputs)
        self._outputs = [tensor.name for tensor in self.spec.outputs]
        _expect_names(str(file), "inputs", self._inputs, [put.name for put in self._session.get_inputs()])
        _expect_names(str(file), "outputs", self._outputs, [put.name for put in self._session.get_outputs()])

    def run(self, arrays: Arrays) -> dict[str, Array]:
        """Run the model on tensors ``[B, …]`` of the dtypes in the spec."""
        feed = {name: arrays[name] for name in self._inputs}
        return dict(zip(self._outputs, self._session.run(self._outputs, feed), strict=True))


def _expect_names(file: str, what: str, expected: tuple[str, ...] | list[str], found: list[str]) -> None:
    if set(expected) != set(found):
        raise ArtefactCorrupt(
            f"{file}: expected the {what} {sorted(expected)}, found {sorted(found)}; export again"
        )
