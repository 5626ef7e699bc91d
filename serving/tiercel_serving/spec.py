"""The contract of a stage: a spec (names, dtypes, dims) and a function from named arrays to named arrays."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]

#: The dtypes a tensor may have. ``bytes`` is an object array of ``bytes`` (Triton's BYTES).
DTYPES: Mapping[str, np.dtype[Any]] = {
    "bool": np.dtype(np.bool_),
    "int32": np.dtype(np.int32),
    "int64": np.dtype(np.int64),
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
    "bytes": np.dtype(np.object_),
}

#: Meaning of a companion tensor: the length of each row's list (-1 is a null list), or which values are real.
#: A ``packed`` companion replaces its tensor, with each row's list in a single element.
LENGTH_OF, VALID_OF, PACKED_OF = "length", "valid", "packed"

#: Characters that a parameter's name can't contain, and text that would look like their replacement.
_NO_PARAMETER = re.compile(r"[^0-9A-Za-z_]|_(?=_x)")


def list_tensor(part: str, column: str) -> str:
    """Return the name of the packed tensor of a list column; ``part`` is ``user`` or ``item``.

    Models name their tensors as parameters of ``forward``. Characters that a Python identifier can't contain
    are replaced by ``__x<code>_``, so that no two columns get the same name.
    """
    name = f"{part}_list_{column}"
    if name.isidentifier() and "__x" not in name and unicodedata.is_normalized("NFKC", name):
        return name
    return _NO_PARAMETER.sub(lambda found: f"__x{ord(found[0]):x}_", name)


@dataclass(frozen=True)
class TensorSpec:
    """One named tensor at a stage's edge.

    Parameters
    ----------
    name
        The tensor's name, equal in every stage that uses it.
    dtype
        A key of :data:`DTYPES`.
    dims
        The shape without the leading user axis; -1 is a length that differs between requests.
    optional
        Whether a request may leave it out, which means null in every row.
    pad
        The value that pads shorter rows when requests with different lengths are batched, and that fills
        the absent tensor (with length 0 on a -1 axis).
    doc
        One line of documentation in the served graph.
    of, says
        For a companion: the tensor it belongs to, and :data:`LENGTH_OF`, :data:`VALID_OF` or
        :data:`PACKED_OF`.
    """

    name: str
    dtype: str
    dims: tuple[int, ...]
    optional: bool = False
    pad: int | float | bool | bytes = 0
    doc: str = ""
    of: str | None = None
    says: str | None = None

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        """The NumPy dtype of the array that carries this tensor."""
        return DTYPES[self.dtype]


@dataclass(frozen=True)
class StageSpec:
    """The inputs and outputs of a stage, each with the user axis first."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def model_inputs(stages: Iterable[StageSpec]) -> tuple[TensorSpec, ...]:
    """Return the external inputs of a chain of stages, in the order in which they are needed."""
    made: set[str] = set()
    inputs: dict[str, TensorSpec] = {}
    for spec in stages:
        for tensor in spec.inputs:
            if tensor.name not in made:
                inputs.setdefault(tensor.name, tensor)
        made.update(tensor.name for tensor in spec.outputs)
    return tuple(inputs.values())


class Stage(Protocol):
    """A pure function from named arrays to named arrays, with its spec beside it.

    A stage whose inputs come from callers may also be a :class:`Checks` or a :class:`Widths`.
    """

    @property
    def spec(self) -> StageSpec:
        """The stage's tensors."""
        ...

    def run(self, arrays: Arrays) -> dict[str, Array]:
        """Compute the outputs for all rows at once.

        ``arrays`` holds every input of the spec; the adapter has filled in absent optional ones.
        """
        ...


@runtime_checkable
class Checks(Protocol):
    """A stage that can reject a request."""

    def check(self, arrays: Arrays) -> None:
        """Raise :class:`~tiercel_serving.errors.InvalidRequest` if a request's arrays can't be answered.

        Called before the stage runs, for one request or for several of equal form, with all tensors sent;
        the stage checks its own inputs, vectorised over rows. A request without optional tensors may be left
        unchecked, since the spec fully describes the required ones.
        """
        ...


@runtime_checkable
class Closes(Protocol):
    """A stage that holds resources to release, above all device memory."""

    def close(self) -> None:
        """Release the resources; the stage can't run after that."""
        ...


@runtime_checkable
class Renews(Protocol):
    """A stage that caches data derived from items, which may change between two batches."""

    def renew(self) -> None:
        """Derive the data again."""
        ...


@runtime_checkable
class Widths(Protocol):
    """A stage whose outputs' widths depend on the request: on its tensors' shapes, and on its ``k``."""

    def widths(self, arrays: Arrays) -> dict[str, int]:
        """Return output → width for one request's own arrays."""
        ...
