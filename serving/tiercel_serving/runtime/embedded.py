"""What the ``tiercel`` backend calls: the same adapter, in Triton's own process.

``backend/tiercel_backend.c`` embeds Python, and speaks plain tuples and lists with :func:`load` and what it
returns. To the adapter (``triton.py``) this module is ``triton_python_backend_utils``, which Triton's Python
backend has: as much of it as the adapter uses.
"""

from __future__ import annotations

import ctypes
import functools
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..spec import Array

#: Triton's number of a type → NumPy's, as one letter each in NumPy's own code; BYTES are objects.
NUMPY_TYPES: Mapping[int, np.dtype[Any]] = {
    number: np.dtype(letter) for number, letter in enumerate("?BHILbhilefdO", 1)
}
TRITON_TYPES: Mapping[np.dtype[Any], int] = {dtype: number for number, dtype in NUMPY_TYPES.items()}
BYTES = TRITON_TYPES[np.dtype(object)]
#: What configs call them, in the order of their numbers.
TYPE_NAMES = (
    *("BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64"),
    *("FP16", "FP32", "FP64", "STRING"),
)

#: What requests may have in common: name, Triton's type and shape of each tensor, and the names of wanted
#: outputs. Requests that have the same come with the same object, as long as no other is between them.
Kind = tuple[tuple[tuple[str, int, tuple[int, ...]], ...], list[str]]
#: A request: its kind, and each tensor, an array over Triton's memory (BYTES: a list of bytes).
RawRequest = tuple[Kind, list[Any]]
#: A tensor of an answer: name, Triton's type, shape, an array (BYTES: a list of bytes).
RawTensor = tuple[str, int, tuple[int, ...], Any]
#: An answer: Triton's error code, or :data:`GOOD`; its message; tensors.
RawAnswer = tuple[int, str, list[RawTensor]]
GOOD = -1

#: NumPy's functions for C, of which the backend makes arrays.
ARRAY_API: object = import_module(
    f"numpy.{'core' if np.__version__.startswith('1.') else '_core'}._multiarray_umath"
)._ARRAY_API


class TritonModelException(Exception):
    """The model cannot be loaded; its words are for whoever started the server."""


class TritonError(Exception):
    """The error of one request, with Triton's code."""

    INTERNAL, NOT_FOUND, INVALID_ARG = 1, 2, 3

    def __init__(self, message: str, code: int = INTERNAL) -> None:
        super().__init__(message)
        self.code = code


class Tensor:
    """A named array; strings are an array of bytes objects."""

    __slots__ = ("_array", "_name")

    def __init__(self, name: str, array: Array) -> None:
        self._name, self._array = name, array

    def name(self) -> str:
        """Return its name."""
        return self._name

    def as_numpy(self) -> Array:
        """Return the array."""
        return self._array


class InferenceRequest:
    """A request; its arrays lie in Triton's memory, and are read-only."""

    __slots__ = ("_arrays", "_wanted")

    def __init__(self, arrays: Mapping[str, Array], wanted: list[str]) -> None:
        self._arrays, self._wanted = arrays, wanted

    def inputs(self) -> list[Tensor]:
        """Return its tensors."""
        return [Tensor(name, array) for name, array in self._arrays.items()]

    def requested_output_names(self) -> list[str]:
        """Return the outputs that it wants."""
        return self._wanted


class InferenceResponse(NamedTuple):
    """The answer to a request: tensors or an error."""

    output_tensors: Sequence[Tensor] = ()
    error: TritonError | None = None


class Logger:
    """Triton's log, as far as the adapter writes to it."""

    @staticmethod
    def log_error(message: str) -> None:
        """Write an error."""
        _call("TRITONSERVER_LogMessage", ctypes.c_int(2), b"tiercel", ctypes.c_int(0), message.encode())


class MetricFamily:
    """A family of counts on Triton's metrics port.

    Models of one process share counts of one name and labels, and Triton keeps no book of that: the first
    model to delete one would take it from under the others. So each is made once, and stays while the server
    runs; there are as many as stages and reasons.
    """

    COUNTER = 0

    def __init__(self, name: str, description: str, kind: int) -> None:
        self._handle = _family(name, description, kind)

    def Metric(self, labels: Mapping[str, str]) -> Metric:
        """Return the count with these labels."""
        return Metric(_metric(self._handle.value, tuple(labels.items())))


class Metric:
    """One count."""

    def __init__(self, handle: ctypes.c_void_p) -> None:
        self._handle = handle

    def increment(self, by: float) -> None:
        """Add to it."""
        _call("TRITONSERVER_MetricIncrement", self._handle, ctypes.c_double(by))


@functools.cache
def _family(name: str, description: str, kind: int) -> ctypes.c_void_p:
    handle = ctypes.c_void_p()
    made = (ctypes.byref(handle), ctypes.c_int(kind), name.encode(), description.encode())
    _call("TRITONSERVER_MetricFamilyNew", *made)
    return handle


@functools.cache
def _metric(family: int | None, labels: tuple[tuple[str, str], ...]) -> ctypes.c_void_p:
    handle = ctypes.c_void_p()
    new, delete = _triton().TRITONSERVER_ParameterNew, _triton().TRITONSERVER_ParameterDelete
    new.restype, delete.restype = ctypes.c_void_p, None
    made = [ctypes.c_void_p(new(name.encode(), 0, value.encode())) for name, value in labels]
    array = (ctypes.c_void_p * len(made))(*(one.value for one in made))
    try:
        parts = (ctypes.c_void_p(family), array, ctypes.c_uint64(len(made)))
        _call("TRITONSERVER_MetricNew", ctypes.byref(handle), *parts)
    finally:
        for parameter in made:
            delete(parameter)
    return handle


class Loaded(NamedTuple):
    """A model that is ready: what the backend calls for each batch, and at the end.

    ``execute`` gives an answer to each request, or one with the rows of all of them in their order.
    """

    execute: Callable[[list[RawRequest]], list[RawAnswer]]
    finalize: Callable[[], None]


def load(model_config: str, model_repository: str, device: int = 0) -> Loaded:
    """Open one instance of a model.

    Parameters
    ----------
    model_config
        Its config, as JSON.
    model_repository
        Its directory.
    device
        The number of the GPU on which Triton places the instance, if it places it on one.

    Raises
    ------
    TritonModelException
        The release is at fault.
    """
    sys.modules["triton_python_backend_utils"] = sys.modules[__name__]
    model = _model_class(Path(model_repository) / "1" / "model.py")()
    model.initialize(
        {
            "model_config": model_config,
            "model_repository": model_repository,
            "model_instance_device_id": str(device),
        }
    )

    answer = getattr(model, "answer", None) or functools.partial(_answer_by_stock_calls, model)
    answer_alike = getattr(model, "answer_alike", None)

    def execute(raw: list[RawRequest]) -> list[RawAnswer]:
        try:
            if answer_alike is not None:
                joined, kind = _arrays(raw[0]) if len(raw) == 1 else joined_if_alike(raw), raw[0][0]
                together = None if joined is None else answer_alike(joined, len(raw), kind)
                if together is not None:
                    return [_raw(together, kind[1])]
            answers = answer([(_arrays(one), one[0][1]) for one in raw])
            return [_raw_of_one(one) for one in answers]
        except Exception as error:
            Logger.log_error(traceback.format_exc())
            return [(TritonError.INTERNAL, f"the model broke: {error!r}", [])] * len(raw)

    # As to Triton's own Python backend, it is optional.
    return Loaded(execute, getattr(model, "finalize", lambda: None))


def _answer_by_stock_calls(model: Any, requests: Sequence[tuple[dict[str, Array], list[str]]]) -> list[Any]:
    """Have a model that knows Triton's calls alone do what the adapter's ``answer`` does."""
    responses = model.execute([InferenceRequest(*one) for one in requests])
    return [
        response.error or {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors}
        for response in responses
    ]


def _model_class(own: Path) -> Any:
    """Return the adapter, or the class of a ``model.py`` that the model has of its own, as the bench's do."""
    if not own.is_file():
        from .triton import TritonPythonModel

        return TritonPythonModel
    spec = spec_from_file_location(f"tiercel_model_{own.parents[1].name}", own)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.TritonPythonModel


def triton_string_to_numpy(name: str) -> type[Any]:
    """Return the NumPy type of one of Triton's, as configs name them: ``TYPE_INT64``."""
    return NUMPY_TYPES[TYPE_NAMES.index(name.removeprefix("TYPE_")) + 1].type


def _arrays(request: RawRequest) -> dict[str, Array]:
    """Return a request's tensors by their names."""
    (tensors, _), bodies = request
    arrays: dict[str, Array] = {}
    for (name, number, shape), body in zip(tensors, bodies):  # noqa: B905 - the backend makes both
        arrays[name] = body if number != BYTES else _objects(shape, body)
    return arrays


def joined_if_alike(raw: Sequence[RawRequest]) -> dict[str, Array] | None:
    """Return the tensors of requests of one kind, each of all of them end to end; None if they are not alike.

    Such are nearly all that an inner model gets, and to check each of them costs more than many a stage.
    """
    kind = raw[0][0]
    if any(one is not kind for one, _ in raw) or any(number == BYTES for _, number, _ in kind[0]):
        return None
    columns = zip(*(bodies for _, bodies in raw), strict=True)
    return {name: np.concatenate(column) for (name, _, _), column in zip(kind[0], columns, strict=True)}


def _objects(shape: tuple[int, ...], data: list[bytes]) -> Array:
    array = np.empty(len(data), object)
    array[:] = data
    return array.reshape(shape)


def _raw(outputs: Mapping[str, Array], wanted: Iterable[str]) -> RawAnswer:
    tensors: list[RawTensor] = []
    for name in wanted:
        array = np.ascontiguousarray(outputs[name])
        number = TRITON_TYPES[array.dtype]
        data = array if number != BYTES else [_bytes(value) for value in array.reshape(-1).tolist()]
        tensors.append((name, number, array.shape, data))
    return GOOD, "", tensors


def _raw_of_one(answer: TritonError | Mapping[str, Array]) -> RawAnswer:
    if isinstance(answer, TritonError):
        return answer.code, str(answer), []
    return _raw(answer, answer)


def _bytes(value: str | bytes) -> bytes:
    return value.encode() if isinstance(value, str) else value


@functools.cache
def _triton() -> ctypes.CDLL:
    """Return this process, whose symbols the server's functions are."""
    return ctypes.CDLL(None)


def _call(name: str, *arguments: Any) -> None:
    """Call a function of Triton's that returns an error or nothing."""
    function = getattr(_triton(), name)
    function.restype = ctypes.c_void_p
    failed = function(*arguments)
    if failed:
        handle, words = ctypes.c_void_p(failed), _triton().TRITONSERVER_ErrorMessage
        words.restype = ctypes.c_char_p
        message = words(handle).decode()
        _triton().TRITONSERVER_ErrorDelete(handle)
        raise RuntimeError(f"{name}: {message}")
