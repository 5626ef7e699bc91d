"""The Python side of the ``tiercel`` backend: it runs the adapter in Triton's own process.

``backend/tiercel_backend.c`` embeds Python, and exchanges plain tuples and lists with :func:`load` and its
result. This module also stands in for ``triton_python_backend_utils`` of Triton's Python backend: it provides
the part of that module which the adapter (``triton.py``) uses.
"""

from __future__ import annotations

import ctypes
import functools
import json
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..spec import Array

#: Triton's number of a type → NumPy's dtype, given by NumPy's one-letter codes; BYTES are objects.
NUMPY_TYPES: Mapping[int, np.dtype[Any]] = {
    number: np.dtype(letter) for number, letter in enumerate("?BHILbhilefdO", 1)
}
TRITON_TYPES: Mapping[np.dtype[Any], int] = {dtype: number for number, dtype in NUMPY_TYPES.items()}
BYTES = TRITON_TYPES[np.dtype(object)]
#: The types' names in configs, in the order of their numbers.
TYPE_NAMES = (
    *("BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64"),
    *("FP16", "FP32", "FP64", "STRING"),
)

#: The form of a request: name, Triton's type and shape of each tensor, and the names of wanted outputs.
#: Consecutive requests of equal form share one object.
Kind = tuple[tuple[tuple[str, int, tuple[int, ...]], ...], list[str]]
#: A request: its form, and each tensor as an array over Triton's memory (BYTES: a list of bytes).
RawRequest = tuple[Kind, list[Any]]
#: A tensor of an answer: name, Triton's type, shape, an array (BYTES: a list of bytes).
RawTensor = tuple[str, int, tuple[int, ...], Any]
#: An answer: Triton's error code, or :data:`GOOD`; its message; tensors.
RawAnswer = tuple[int, str, list[RawTensor]]
GOOD = -1

#: NumPy's C API, with which the backend creates arrays.
ARRAY_API: object = import_module(
    f"numpy.{'core' if np.__version__.startswith('1.') else '_core'}._multiarray_umath"
)._ARRAY_API


class TritonModelException(Exception):
    """The model cannot be loaded; the message is for the operator of the server."""


class TritonError(Exception):
    """The error of one request, with Triton's error code."""

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
        """Return the tensor's name."""
        return self._name

    def as_numpy(self) -> Array:
        """Return the array."""
        return self._array


class InferenceRequest:
    """A request; its arrays are read-only views of Triton's memory."""

    __slots__ = ("_arrays", "_wanted")

    def __init__(self, arrays: Mapping[str, Array], wanted: list[str]) -> None:
        self._arrays, self._wanted = arrays, wanted

    def inputs(self) -> list[Tensor]:
        """Return the request's tensors."""
        return [Tensor(name, array) for name, array in self._arrays.items()]

    def requested_output_names(self) -> list[str]:
        """Return the names of the outputs that the request asks for."""
        return self._wanted


class InferenceResponse(NamedTuple):
    """The answer to a request: tensors or an error."""

    output_tensors: Sequence[Tensor] = ()
    error: TritonError | None = None


class Logger:
    """The part of Triton's log that the adapter uses."""

    @staticmethod
    def log_error(message: str) -> None:
        """Write an error."""
        _call("TRITONSERVER_LogMessage", ctypes.c_int(2), b"tiercel", ctypes.c_int(0), message.encode())


class MetricFamily:
    """A family of counters on Triton's metrics port.

    Models in one process share counters of equal name and labels. Triton does not count references to them:
    a model that deleted one would take it away from the others. So each is created once and kept while the
    server runs; their number is that of stages and reasons.
    """

    COUNTER = 0

    def __init__(self, name: str, description: str, kind: int) -> None:
        self._handle = _family(name, description, kind)

    def Metric(self, labels: Mapping[str, str]) -> Metric:
        """Return the counter with these labels."""
        return Metric(_metric(self._handle.value, tuple(labels.items())))


class Metric:
    """One counter."""

    def __init__(self, handle: ctypes.c_void_p) -> None:
        self._handle = handle

    def increment(self, by: float) -> None:
        """Add to the counter."""
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
    """A loaded model: the functions that the backend calls.

    ``execute`` answers a batch: one answer per request, or a single answer with the rows of all requests in
    order. ``settle`` is called when the answers have been sent, ``finalize`` when the model is unloaded.
    ``inner`` says whether it needs other models' outputs: all that callers send is optional.
    """

    execute: Callable[[list[RawRequest]], list[RawAnswer]]
    settle: Callable[[], None]
    finalize: Callable[[], None]
    inner: bool


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
        The model can't be loaded; see :meth:`.triton.TritonPythonModel.initialize`.
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

    # ``finalize`` is optional, as in Triton's own Python backend; only the adapter has ``settle``.
    settle, finalize = (getattr(model, name, lambda: None) for name in ("settle", "finalize"))
    inner = not all(tensor.get("optional", False) for tensor in json.loads(model_config).get("input", ()))
    return Loaded(execute, settle, finalize, inner)


def _answer_by_stock_calls(model: Any, requests: Sequence[tuple[dict[str, Array], list[str]]]) -> list[Any]:
    """Answer requests like the adapter's ``answer``, by the ``execute`` of a plain Triton Python model."""
    responses = model.execute([InferenceRequest(*one) for one in requests])
    return [
        response.error or {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors}
        for response in responses
    ]


def _model_class(own: Path) -> Any:
    """Return the adapter, or the class of the model's own ``model.py`` (models of the benchmark have one)."""
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
    """Return the NumPy type for a Triton type as named in configs, such as ``TYPE_INT64``."""
    return NUMPY_TYPES[TYPE_NAMES.index(name.removeprefix("TYPE_")) + 1].type


def _arrays(request: RawRequest) -> dict[str, Array]:
    """Return a request's tensors by name."""
    (tensors, _), bodies = request
    arrays: dict[str, Array] = {}
    for (name, number, shape), body in zip(tensors, bodies):  # noqa: B905 - the backend makes both
        arrays[name] = body if number != BYTES else _objects(shape, body)
    return arrays


def joined_if_alike(raw: Sequence[RawRequest]) -> dict[str, Array] | None:
    """Return the tensors of all requests end to end; None if their forms differ, or one has BYTES.

    Nearly all requests to an inner model share a form, and checking each one costs more than some stages.
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
    """Return a handle of this process, whose symbols include the server's functions."""
    return ctypes.CDLL(None)


def _call(name: str, *arguments: Any) -> None:
    """Call a function of Triton that returns an error or null; raise RuntimeError for an error."""
    function = getattr(_triton(), name)
    function.restype = ctypes.c_void_p
    failed = function(*arguments)
    if failed:
        handle, words = ctypes.c_void_p(failed), _triton().TRITONSERVER_ErrorMessage
        words.restype = ctypes.c_char_p
        message = words(handle).decode()
        _triton().TRITONSERVER_ErrorDelete(handle)
        raise RuntimeError(f"{name}: {message}")
