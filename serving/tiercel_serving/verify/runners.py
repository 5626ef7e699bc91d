"""One interface over every form of the same dense model.

A runner has a name, the names of its inputs and outputs, and ``run(arrays) -> arrays``. What compares
two of them need not know which is which.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import onnxruntime

from ..errors import ArtefactCorrupt
from ..spec import Array, Arrays
from .compare import ENGINE, Difference, Tolerance, compare, merge


class Runner(Protocol):
    """One form of a dense model."""

    @property
    def name(self) -> str:
        """What the comparison's report calls it."""
        ...

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the tensors that :meth:`run` reads."""
        ...

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the tensors that :meth:`run` gives."""
        ...

    def run(self, arrays: Arrays) -> dict[str, Array]:
        """Compute the outputs. Tensors that are no input of this runner are ignored."""
        ...


class OnnxRunner:
    """An ONNX file in ONNX Runtime, on the CPU.

    Parameters
    ----------
    path
        The file.
    threads
        Threads within one operator.
    """

    name = "onnxruntime"

    def __init__(self, path: Path, threads: int = 1) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise ArtefactCorrupt(f"{path}: ONNX Runtime cannot load it: {error}") from error
        self.inputs = tuple(value.name for value in self._session.get_inputs())
        self.outputs = tuple(value.name for value in self._session.get_outputs())

    def run(self, arrays: Arrays) -> dict[str, Array]:
        """Run the session."""
        values = self._session.run(
            list(self.outputs), {name: np.ascontiguousarray(arrays[name]) for name in self.inputs}
        )
        return dict(zip(self.outputs, values, strict=True))


def compare_runners(
    candidate: Runner,
    oracle: Runner,
    batches: Sequence[Mapping[str, Array]],
    tolerance: Tolerance = ENGINE,
    progress: Callable[[int], None] | None = None,
) -> Difference:
    """Run both on the same batches and compare what they give.

    Parameters
    ----------
    candidate, oracle
        The runner under test, and the one that is right.
    batches
        Named arrays, one mapping a batch.
    tolerance
        See :class:`~tiercel_serving.verify.compare.Tolerance`.
    progress
        Called with the number of batches done.
    """
    differences = []
    for number, arrays in enumerate(batches):
        differences.append(compare(candidate.run(arrays), oracle.run(arrays), tolerance))
        if progress is not None:
            progress(number + 1)
    return merge(differences)
