"""The one adapter between Triton's Python backend and a :class:`~tiercel_serving.runtime.chain.Chain`.

A model's config says what it runs:

``stages``
    Names of stages, a JSON list.
``release``
    The release's directory: absolute, or relative to the model's own directory.
``build_id``
    The build that the config was written for.
``store``
    Another store of users than the release's, if that was chosen (``stores/chosen.py``).

Triton's types end here: everything below sees NumPy arrays.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import triton_python_backend_utils as pb_utils

from ..errors import RequestError, StageFailed, TiercelError, UnknownId
from ..release.opened import open_release
from ..spec import Array, Arrays
from ..stages.specs import RETRIEVAL, TIME_PREFIX, USER_FEATURES
from ..stores.chosen import read_store
from . import batching
from .chain import Chain
from .metrics import ADAPTER, REFUSED, STAGE_ERRORS, Metrics


class Call(NamedTuple):
    """A checked request: its place in the Triton batch, what it carries for whom, and what it wants."""

    place: int
    arrays: dict[str, Array]
    users: int
    wanted: tuple[str, ...]


class TritonPythonModel:
    """What Triton's Python backend loads: a list of stages behind Triton's calls."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Open the release and every stage; a fault of the release stops the model from loading.

        Of Triton's arguments it takes ``model_config`` (JSON), ``model_repository`` (the model's place) and
        ``model_instance_device_id`` (the GPU's number, for a release that runs on one).
        """
        config = json.loads(args["model_config"])
        parameters = {name: value["string_value"] for name, value in config["parameters"].items()}
        try:
            store = parameters.get("store")
            release = open_release(
                # An absolute path replaces the model's own directory in this expression.
                Path(args["model_repository"]) / parameters["release"],
                build_id=parameters["build_id"],
                store=None if store is None else read_store(store),
            )
            names = [str(name) for name in json.loads(parameters["stages"])]
            # On a CPU Triton gives a number too, or none.
            self._chain = Chain.open(release, names, gpu=int(args.get("model_instance_device_id", 0)))
        except TiercelError as error:
            raise pb_utils.TritonModelException(str(error)) from error
        self._k_default = release.settings.k_default
        self._time_outputs = frozenset(TIME_PREFIX + name for name in names)
        self._metrics = Metrics(
            names,
            release.store.fallbacks if USER_FEATURES in names else {},
            release.source_failures if RETRIEVAL in names else {},
        )

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer the requests of one Triton batch together, and a bad one by itself, in their order."""
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
        """Send the last counts, and let go of the stages."""
        self._metrics.close()
        self._chain.close()

    def _read(self, place: int, request: Any) -> Call:
        """Return the request's tensors, checked."""
        arrays = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
        users = batching.count_users(self._chain.external_inputs, arrays)
        self._chain.check(arrays)
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
        arrays = batching.concatenate(self._chain.external_inputs, [call.arrays for call in calls])
        wanted = [call.wanted for call in calls]
        outputs, times = self._chain.run(arrays, set(chain.from_iterable(wanted)))
        self._note_answers(arrays, outputs)
        for name in self._time_outputs.intersection(chain.from_iterable(wanted)):
            time_us = times[name.removeprefix(TIME_PREFIX)]
            outputs[name] = np.full((sum(users), 1), time_us, np.float32)
        widths = [self._chain.widths(call.arrays) for call in calls] if len(calls) > 1 else [{}]
        return batching.split(outputs, users, wanted, widths)

    def _note_answers(self, arrays: Arrays, outputs: Arrays) -> None:
        """Note what was answered, where answers are made; it is counted later, off the caller's time."""
        count, status = outputs.get("count"), outputs.get("status")
        if count is None or (status is None and "status" not in arrays):
            return  # no answer, or one that is to nobody
        k = arrays.get("k")
        self._metrics.note(
            # Inputs lie in memory that is Triton's again once the request is answered, and so does whatever
            # a stage hands on: where every slot is real, `count` is the request's own `k`.
            (arrays["status"] if status is None else status).copy(),
            count.copy(),
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


def _refusal(error: RequestError) -> Any:
    codes = pb_utils.TritonError
    return _error(str(error), codes.NOT_FOUND if isinstance(error, UnknownId) else codes.INVALID_ARG)


def _error(message: str, code: Any) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))
