"""The one adapter between Triton's Python backend and a :class:`~tiercel_serving.runtime.chain.Chain`.

These parameters of a model's config determine what it runs:

``stages``
    Names of the stages, a JSON list.
``release``
    The release's directory: absolute, or relative to the model's own directory.
``build_id``
    The build that the config was written for.
``store``
    A user store to use instead of the release's, if one was chosen (``stores/chosen.py``).

Triton's types are used only here; all other code sees NumPy arrays. Tiercel's own backend already has arrays,
so it calls :meth:`TritonPythonModel.answer`.
"""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Collection, Mapping, Sequence
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

#: After this time, a thread that runs Python lets one that waits for it run: 5 ms by default, which a request
#: would wait several times while a thread that it does not concern (live items, metrics) computes.
SWITCH_INTERVAL_S = 0.0002

#: A request: its tensors by name, and the names of the outputs that it asks for.
Request = tuple[dict[str, Array], Sequence[str]]
#: A request's outputs, or Triton's error.
Answer = Any


class Call(NamedTuple):
    """A checked request: its place in the Triton batch, its tensors, number of users and wanted outputs."""

    place: int
    arrays: dict[str, Array]
    users: int
    wanted: Sequence[str]


class Alike(NamedTuple):
    """Cached properties of requests of one form (names, dtypes, shapes and wanted outputs).

    Parameters
    ----------
    kind
        The form; the same object in all of these requests.
    users
        Number of users of each request.
    checked
        Whether stages must check each request: only if it sends optional tensors.
    lacking
        Number of requests in a batch → the tensors that the batch lacks (:meth:`~.chain.Chain.lacking`).
    """

    kind: Any
    users: int
    checked: bool
    lacking: dict[int, Arrays]


class TritonPythonModel:
    """The model class that Triton's Python backend loads: a chain of stages behind Triton's interface."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Open the release and every stage.

        Of Triton's arguments it reads ``model_config`` (JSON), ``model_repository`` (the model's directory)
        and ``model_instance_device_id`` (the GPU's number, for a release that runs on one).

        Raises
        ------
        TritonModelException
            The config was edited, or the release or its store can't be opened. Triton rejects the model.
        """
        config = json.loads(args["model_config"])
        parameters, names = _read_parameters(config)
        try:
            store = parameters.get("store")
            release = open_release(
                # An absolute path replaces the model's own directory in this expression.
                Path(args["model_repository"]) / parameters["release"],
                build_id=parameters["build_id"],
                store=None if store is None else read_store(store),
            )
            if unknown := [name for name in names if name not in release.stages]:
                raise _edited(config, f"stages: the release has none called {', '.join(unknown)}")
            # On a CPU, Triton may pass a number too; it is ignored there.
            self._chain = Chain.open(release, names, gpu=int(args.get("model_instance_device_id", 0)))
        except TiercelError as error:
            raise pb_utils.TritonModelException(str(error)) from error
        self._inputs = batching.Inputs(self._chain.external_inputs)
        self._alike = Alike(None, 0, checked=True, lacking={})
        # The inputs and outputs of batches whose answers may not have been sent yet.
        self._unsettled: list[tuple[Arrays, Arrays]] = []
        self._k_default = release.settings.k_default
        self._time_outputs = frozenset(TIME_PREFIX + name for name in names)
        self._metrics = Metrics(
            names,
            release.store.fallbacks if USER_FEATURES in names else {},
            release.source_failures if RETRIEVAL in names else {},
        )
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        # What a model consists of stays. Looking through it for garbage would take 10 ms now and then.
        gc.collect()
        gc.freeze()

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer the requests of one Triton batch; see :meth:`answer`."""
        read = [
            ({tensor.name(): tensor.as_numpy() for tensor in one.inputs()}, one.requested_output_names())
            for one in requests
        ]
        responses = [_response(answer) for answer in self.answer(read)]
        self.settle()
        return responses

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """Answer the requests of one Triton batch together; a bad request gets an error of its own.

        Returns
        -------
        For each request, in order, its wanted outputs as contiguous arrays by name, or Triton's error.
        """
        answers: list[Answer] = [None] * len(requests)
        calls: list[Call] = []
        for place, (arrays, wanted) in enumerate(requests):
            try:
                users = self._inputs.count_users(arrays)
                self._chain.check(arrays)
            except RequestError as error:  # noqa: PERF203 - each request fails by itself
                self._metrics.count(REFUSED)
                answers[place] = _refusal(error)
            else:
                calls.append(Call(place, arrays, users, wanted))
        if calls:
            self._answer(calls, answers)
        return answers

    def answer_alike(
        self, arrays: dict[str, Array], requests: int, kind: tuple[Any, Sequence[str]]
    ) -> dict[str, Array] | None:
        """Answer requests of one form, whose tensors are already concatenated.

        Parameters
        ----------
        arrays
            The requests' tensors, end to end; every request has the same number of users.
        requests
            Number of requests.
        kind
            The form: names, dtypes and shapes of each request's tensors, and the outputs that each wants. The
            form of a later batch is recognised by the identity of this object.

        Returns
        -------
        At least the wanted outputs, with the rows of all requests. None if a request can't be answered, or if
        answers differ in width; the caller must then use :meth:`answer`.
        """
        try:
            alike = self._alike if self._alike.kind is kind else self._look_at(arrays, requests, kind)
            if alike.checked:
                self._chain.check(arrays)
            k = arrays.get("k")
            if k is not None and requests > 1 and not (k == k[0]).all():
                return None
            lacking = alike.lacking.get(requests)
            if lacking is None:
                lacking = alike.lacking[requests] = self._chain.lacking(arrays)
            return self._run_batch(arrays, alike.users * requests, kind[1], lacking)
        except Exception:
            # answer() then finds the request at fault, and counts and logs the error.
            return None

    def _look_at(self, arrays: Arrays, requests: int, kind: Any) -> Alike:
        """Check names, dtypes and shapes, and cache what follows from them for requests of this form."""
        users = self._inputs.count_users(arrays) // requests
        self._alike = Alike(kind, users, not self._inputs.needed >= arrays.keys(), {})
        return self._alike

    def finalize(self) -> None:
        """Send the last counts, and close the stages."""
        self._metrics.close()
        self._chain.close()
        gc.unfreeze()

    def _answer(self, calls: Sequence[Call], answers: list[Answer]) -> None:
        """Run the calls as one batch; if that fails, one by one, so that only those at fault fail."""
        try:
            given = self._run(calls)
        except Exception as error:
            if len(calls) > 1:
                for call in calls:
                    self._answer([call], answers)
                return
            answers[calls[0].place] = self._failure(error)
            return
        for call, answer in zip(calls, given, strict=True):
            answers[call.place] = answer

    def _run(self, calls: Sequence[Call]) -> list[dict[str, Array]]:
        users, wanted = [call.users for call in calls], [call.wanted for call in calls]
        arrays = batching.concatenate(self._chain.external_inputs, [call.arrays for call in calls])
        widths = [self._chain.widths(call.arrays) for call in calls] if len(calls) > 1 else [{}]
        outputs = self._run_batch(arrays, sum(users), set().union(*wanted))
        return batching.split(outputs, users, wanted, widths)

    def _run_batch(
        self, arrays: Arrays, users: int, wanted: Collection[str], lacking: Arrays | None = None
    ) -> dict[str, Array]:
        outputs, times = self._chain.run(arrays, wanted, lacking)
        self._unsettled.append((arrays, outputs))
        for name in self._time_outputs.intersection(wanted):
            outputs[name] = np.full((users, 1), times[name.removeprefix(TIME_PREFIX)], np.float32)
        return outputs

    def settle(self) -> None:
        """Count the answers, and free their tensors; called when they have been sent."""
        for arrays, outputs in self._unsettled:
            if "count" in outputs:
                self._note_answers(arrays, outputs)
        self._unsettled.clear()

    def _note_answers(self, arrays: Arrays, outputs: Arrays) -> None:
        """Queue the answers for the metrics, which are counted later, off the request's path."""
        status = outputs.get("status", arrays.get("status"))
        if status is None:
            return  # titles and similar items are not counted as answers
        k = arrays.get("k")
        self._metrics.note(
            # Copies: inputs are views of memory that Triton reuses once the request is answered, and outputs
            # may be too. If every slot is real, `count` is the request's own `k`.
            status.copy(),
            outputs["count"].copy(),
            self._k_default if k is None else k.copy(),
        )

    def _failure(self, error: Exception) -> Any:
        """Return the error of a request that made a stage fail, or that a stage rejected while it ran."""
        if isinstance(error, RequestError):
            self._metrics.count(REFUSED)
            return _refusal(error)
        stage = error.stage if isinstance(error, StageFailed) else ADAPTER
        self._metrics.count(STAGE_ERRORS, stage)
        pb_utils.Logger.log_error(f"{error!r}")
        message = str(error) if isinstance(error, StageFailed) else f"the model broke: {error!r}"
        return pb_utils.TritonError(message, pb_utils.TritonError.INTERNAL)


def _read_parameters(config: Mapping[str, Any]) -> tuple[dict[str, str], list[str]]:
    """Return the parameters of a model's config, and the names of its stages."""
    given = {name: value.get("string_value", "") for name, value in config.get("parameters", {}).items()}
    if missing := [name for name in ("stages", "release", "build_id") if not given.get(name)]:
        raise _edited(config, f"no parameter {', '.join(missing)}")
    try:
        names = json.loads(given["stages"])
    except ValueError:
        names = None
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise _edited(config, f"stages: expected a JSON list of names, found {given['stages']!r}")
    return given, names


def _edited(config: Mapping[str, Any], problem: str) -> Exception:
    """Return the error for a config that no export can have written."""
    said = f"model {config.get('name', '')}: config.pbtxt: {problem}; it was edited by hand: export again"
    error: Exception = pb_utils.TritonModelException(said)
    return error


def _refusal(error: RequestError) -> Any:
    codes = pb_utils.TritonError
    return codes(str(error), codes.NOT_FOUND if isinstance(error, UnknownId) else codes.INVALID_ARG)


def _response(answer: Answer) -> Any:
    if isinstance(answer, dict):
        tensors = [pb_utils.Tensor(name, array) for name, array in answer.items()]
        return pb_utils.InferenceResponse(output_tensors=tensors)
    return pb_utils.InferenceResponse(error=answer)
