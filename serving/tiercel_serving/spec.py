"""What a stage is: a spec (names, dtypes, dims) and a function from named arrays to named arrays."""

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

#: What a companion says of its tensor: how long each row of a list is (-1 is a null list), or which values
#: are real. One that says ``packed`` goes in place of its tensor: each row's list in a single element.
LENGTH_OF, VALID_OF, PACKED_OF = "length", "valid", "packed"

#: What can't stand in the name of a parameter, and what would be read as the stand-in of such a character.
_NO_PARAMETER = re.compile(r"[^0-9A-Za-z_]|_(?=_x)")


def list_tensor(part: str, column: str) -> str:
    """Return the name of the packed tensor of a part's list.

    Models name their tensors as parameters of ``forward``. Where Python could not write the column's name
    as it is, ``__x<code>_`` stands for each such character, and no two columns get one name.
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
        The tensor's name, the same in every stage that speaks of it.
    dtype
        A key of :data:`DTYPES`.
    dims
        The shape without the leading user axis; -1 is a length that differs between requests.
    optional
        A request may leave it out, which means null in every row.
    pad
        What fills the end of a shorter row when requests with different lengths run together, and
        what stands for the absent tensor (with length 0 on a -1 axis).
    doc
        One line for the reader of the served graph.
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
    """What a stage takes and gives: tensors, each with the user axis first."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def model_inputs(stages: Iterable[StageSpec]) -> tuple[TensorSpec, ...]:
    """Return what a chain of stages takes from outside, in the order in which it is needed."""
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

        ``arrays`` holds every input of the spec (absent optional ones already filled by the adapter).
        """
        ...


@runtime_checkable
class Checks(Protocol):
    """A stage that can refuse a request."""

    def check(self, arrays: Arrays) -> None:
        """Raise :class:`~tiercel_serving.errors.InvalidRequest` if one request's arrays can't be answered.

        Called before the stage runs, for one request or for several that are alike, with all that is
        carried, of which the stage's inputs are its business. Vectorised over rows. Who carries nothing
        optional is not checked: of what a stage always gets, the spec says everything.
        """
        ...


@runtime_checkable
class Closes(Protocol):
    """A stage that holds what must be given back, memory of a device above all."""

    def close(self) -> None:
        """Give it back; the stage runs no more."""
        ...


@runtime_checkable
class Renews(Protocol):
    """A stage that keeps what was derived from items, which may change between two batches."""

    def renew(self) -> None:
        """Derive it anew."""
        ...


@runtime_checkable
class Widths(Protocol):
    """A stage whose outputs are as wide as the request asks: by its tensors' shapes and its ``k``."""

    def widths(self, arrays: Arrays) -> dict[str, int]:
        """Return output → width for one request's own arrays."""
        ...
