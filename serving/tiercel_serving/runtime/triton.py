"""The one adapter between Triton's Python backend and a :class:`~tiercel_serving.runtime.chain.Pipeline`.

A model's config says what it runs:

``stages``
    Names of stages, separated by commas.
``release``
    The release's directory: absolute, or relative to the model's own directory.
``build_id``
    The build that the config was written for.

Triton's types end here: everything below sees NumPy arrays.
"""

from __future__ import annotations

import json
import threading
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import triton_python_backend_utils as pb_utils

from ..errors import InvalidRequest, ReleaseError, RequestError, StageFailed, UnknownId
from ..release.opened import open_release
from ..settings import STATUS_NAMES
from ..spec import Array, Arrays
from ..stages.specs import TIME_PREFIX
from . import batching
from .chain import Pipeline

#: How often counts go to Triton, in seconds. One increment is a round trip to the server's process; off
#: the request's path it costs the caller nothing.
METRICS_PERIOD_S = 1.0


#: Custom metrics: name → (label, values it may have, what it says). The values of stage errors are the
#: model's own stages; answers and short lists are counted where ``ordering`` runs.
ANSWERS, SHORT_LISTS = "tiercel_answers_total", "tiercel_short_lists_total"
STAGE_ERRORS, REFUSED = "tiercel_stage_errors_total", "tiercel_refused_requests_total"
DESCRIPTIONS = {
    ANSWERS: "Users answered, by what was known of them",
    SHORT_LISTS: "Answers with fewer items than were asked for",
    STAGE_ERRORS: "Requests that broke a stage",
    REFUSED: "Requests refused for what they carried",
}

#: A stage error outside of every stage.
ADAPTER = "adapter"


class Call(NamedTuple):
    """One request that will be answered.

    Parameters
    ----------
    place
        Its place among the requests of the Triton batch.
    arrays
        What it carries.
    users
        How many users it has.
    wanted
        The outputs that it asks for.
    """

    place: int
    arrays: dict[str, Array]
    users: int
    wanted: tuple[str, ...]


class TritonPythonModel:
    """What Triton's Python backend loads: a list of stages behind Triton's calls."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Open the release and every stage; a fault of the release stops the model from loading.

        Parameters
        ----------
        args
            Triton's arguments: ``model_config`` (JSON), ``model_repository`` (the model's directory)
            and others.
        """
        config = json.loads(args["model_config"])
        parameters = {name: value["string_value"] for name, value in config["parameters"].items()}
        try:
            # An absolute path replaces the model's own directory in this expression.
            release = open_release(
                Path(args["model_repository"]) / parameters["release"], build_id=parameters["build_id"]
            )
            names = [name.strip() for name in parameters["stages"].split(",")]
            self._pipeline = Pipeline.open(release, names)
        except ReleaseError as error:
            raise pb_utils.TritonModelException(str(error)) from error
        self._k_default = release.settings.k_default
        self._time_outputs = frozenset(TIME_PREFIX + name for name in names)
        self._metrics = Metrics(names)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer the requests of one Triton batch together, and a bad one by itself.

        Parameters
        ----------
        requests
            Triton's inference requests.

        Returns
        -------
        One response for each, in the same order.
        """
        responses: list[Any] = [None] * len(requests)
        calls: list[Call] = []
        for place, request in enumerate(requests):
            try:
                calls.append(self._read(place, request))
            except RequestError as error:  # noqa: PERF203 - each request fails by itself
                self._metrics.count(REFUSED)
                responses[place] = _refusal(error)
        if calls:
            self._answer(calls, responses)
        return responses

    def finalize(self) -> None:
        """Send the last counts."""
        self._metrics.close()

    def _read(self, place: int, request: Any) -> Call:
        """Return the request's tensors, checked."""
        arrays = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
        users = batching.count_users(self._pipeline.external_inputs, arrays)
        self._pipeline.check(arrays)
        return Call(place, arrays, users, tuple(request.requested_output_names()))

    def _answer(self, calls: Sequence[Call], responses: list[Any]) -> None:
        """Run the calls as one batch; if that breaks, one by one, so that the culprit falls alone."""
        try:
            answers = self._run(calls)
        except Exception as error:
            if len(calls) > 1:
                for call in calls:
                    self._answer([call], responses)
                return
            responses[calls[0].place] = self._failure(error)
            return
        for call, answer in zip(calls, answers, strict=True):
            tensors = [pb_utils.Tensor(name, array) for name, array in answer.items()]
            responses[call.place] = pb_utils.InferenceResponse(output_tensors=tensors)

    def _run(self, calls: Sequence[Call]) -> list[dict[str, Array]]:
        users = [call.users for call in calls]
        arrays = batching.concatenate(self._pipeline.external_inputs, [call.arrays for call in calls], users)
        outputs, times = self._pipeline.run(arrays)
        self._note_answers(arrays, outputs)
        wanted = [call.wanted for call in calls]
        for name in self._time_outputs.intersection(chain.from_iterable(wanted)):
            time_us = times[name.removeprefix(TIME_PREFIX)]
            outputs[name] = np.full((sum(users), 1), time_us, np.float32)
        widths = [self._pipeline.widths(call.arrays) for call in calls] if len(calls) > 1 else [{}]
        return batching.split(outputs, users, wanted, widths)

    def _note_answers(self, arrays: Arrays, outputs: Arrays) -> None:
        """Note what was answered, where answers are made; it is counted later, off the caller's time."""
        count = outputs.get("count")
        if count is None:
            return
        k, status = arrays.get("k"), outputs.get("status")
        self._metrics.note(
            # Inputs lie in memory that is Triton's again once the request is answered.
            arrays["status"].copy() if status is None else status,
            count,
            self._k_default if k is None else k.copy(),
        )

    def _failure(self, error: Exception) -> Any:
        """Return the response to a request that broke a stage, or that a stage refused only in its run."""
        if isinstance(error, RequestError):
            self._metrics.count(REFUSED)
            return _refusal(error)
        stage = error.stage if isinstance(error, StageFailed) else ADAPTER
        self._metrics.count(STAGE_ERRORS, stage)
        pb_utils.Logger.log_error(f"{error!r}")
        message = str(error) if isinstance(error, StageFailed) else f"the model broke: {error!r}"
        return _error(message, pb_utils.TritonError.INTERNAL)


class Metrics:
    """Counts on Triton's own metrics port.

    A request only leaves a note; a thread counts the notes and sends the sums every
    :data:`METRICS_PERIOD_S`.

    Parameters
    ----------
    stages
        The model's stages.
    """

    def __init__(self, stages: Sequence[str]) -> None:
        labels: dict[str, tuple[str, Sequence[str]]] = {
            STAGE_ERRORS: ("stage", (*stages, ADAPTER)),
            REFUSED: ("", ("",)),
        }
        if "ordering" in stages:
            labels[ANSWERS] = ("status", STATUS_NAMES)
            labels[SHORT_LISTS] = ("", ("",))
        # The families must outlive their metrics, so both are kept.
        self._families = {
            name: pb_utils.MetricFamily(
                name=name, description=DESCRIPTIONS[name], kind=pb_utils.MetricFamily.COUNTER
            )
            for name in labels
        }
        self._metrics = {
            (name, value): self._families[name].Metric(labels={label: value} if label else {})
            for name, (label, values) in labels.items()
            for value in values
        }
        self._gathered: Counter[tuple[str, str]] = Counter()
        # (status, count, k) of each batch; a deque's append and popleft need no lock.
        self._notes: deque[tuple[Array, Array, Array | int]] = deque()
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._send_often, name="tiercel-metrics", daemon=True)
        self._thread.start()

    def count(self, name: str, value: str = "", by: int = 1) -> None:
        """Add to the metric ``name`` whose label has this value."""
        if by:
            with self._lock:
                self._gathered[name, value] += by

    def note(self, status: Array, count: Array, k: Array | int) -> None:
        """Note a batch of answers: ``status`` and ``count`` ``[B, 1]``, and how many were asked for."""
        self._notes.append((status, count, k))

    def close(self) -> None:
        """Send what is left and stop."""
        self._closed.set()
        self._thread.join()
        self._metrics.clear()
        self._families.clear()

    def _send_often(self) -> None:
        while not self._closed.wait(METRICS_PERIOD_S):
            self._send()
        self._send()

    def _send(self) -> None:
        while self._notes:
            status, count, k = self._notes.popleft()
            for number, users in enumerate(np.bincount(status[:, 0], minlength=len(STATUS_NAMES)).tolist()):
                self.count(ANSWERS, STATUS_NAMES[number], users)
            self.count(SHORT_LISTS, "", int(np.count_nonzero(count < k)))
        with self._lock:
            gathered, self._gathered = self._gathered, Counter()
        for key, by in gathered.items():
            self._metrics[key].increment(by)


def _refusal(error: RequestError) -> Any:
    codes = {InvalidRequest: pb_utils.TritonError.INVALID_ARG, UnknownId: pb_utils.TritonError.NOT_FOUND}
    return _error(str(error), codes.get(type(error), pb_utils.TritonError.INVALID_ARG))


def _error(message: str, code: Any) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))
