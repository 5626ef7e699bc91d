"""Access to the served graph through the client, on a server or in this process, for evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from tiercel_serving.stages.specs import NOW

from ..errors import EvaluationError
from .metrics import IntArray

if TYPE_CHECKING:
    from tiercel_client import ServerInfo
    from tiercel_serving.release.opened import Release

Id = int | str
Floats = npt.NDArray[np.float64]

MODEL, EXPLAIN_MODEL = "recommend", "recommend_explain"
#: Timeout of one batch of users, in seconds. It is long, since nobody waits and a machine may be busy.
TIMEOUT_S = 300.0


class Ensemble(Protocol):
    """The served graph, on a server or in this process.

    ``now_s [n]`` is the request time of each user, in seconds since 1970; None uses the clock.
    """

    @property
    def info(self) -> ServerInfo:
        """The served recommender's description."""
        ...

    def recommend(self, user_ids: Sequence[Id], k: int, now_s: Floats | None = None) -> list[Sequence[Id]]:
        """Return at most k raw item ids for each user, best first."""
        ...

    def retrieve(self, user_ids: Sequence[Id], now_s: Floats | None = None) -> IntArray:
        """Return each user's retrieved catalogue rows ``[n, N]``, best first, padded with I."""
        ...


class LocalEnsemble:
    """The stages of a release run in this process, with the server's answers but without a server."""

    def __init__(self, release: Release | str | Path) -> None:
        from tiercel_client import Recommender
        from tiercel_serving.runtime.local import LocalTransport

        self._transport = LocalTransport(release)
        self._recommender = Recommender(transport=self._transport)
        self.info: ServerInfo = self._recommender.server_info()

    def recommend(self, user_ids: Sequence[Id], k: int, now_s: Floats | None = None) -> list[Sequence[Id]]:
        """Return at most k raw item ids for each user, best first."""
        return [
            answer.item_ids
            for answer in self._recommender.recommend_many(user_ids, k=k, titles=False, features=at(now_s))
        ]

    def retrieve(self, user_ids: Sequence[Id], now_s: Floats | None = None) -> IntArray:
        """Return each user's retrieved catalogue rows ``[n, N]``, best first, padded with I."""
        from tiercel_client.wire.transport import InferRequest

        tensors = request_tensors(user_ids, now_s, self.info.user_id_dtype)
        request = InferRequest(EXPLAIN_MODEL, tensors, ("retrieved_row",), TIMEOUT_S, "", {})
        rows: IntArray = self._transport.infer(request)["retrieved_row"]
        return rows


def id_column(user_ids: Sequence[Id], dtype: str) -> npt.NDArray[Any]:
    """Return raw ids as a request's tensor ``[n, 1]``: bytes objects if ``dtype`` is "bytes", else int64."""
    is_text = dtype == "bytes"
    ids = np.empty((len(user_ids), 1), np.object_ if is_text else np.int64)
    ids[:, 0] = [user.encode() for user in map(str, user_ids)] if is_text else list(user_ids)
    return ids


def request_tensors(user_ids: Sequence[Id], now_s: Floats | None, dtype: str) -> dict[str, npt.NDArray[Any]]:
    """Return a request's tensors: the users, and their times unless None."""
    said: dict[str, npt.NDArray[Any]] = {"user_id": id_column(user_ids, dtype)}
    return said if now_s is None else said | {NOW: now_s[:, None]}


def at(now_s: Floats | None) -> dict[str, list[float]] | None:
    """Return the users' times as the client's ``features``."""
    return None if now_s is None else {NOW: now_s.tolist()}


class ServedEnsemble:
    """A server at a gRPC ``host:port``, started by ``tiercel serve`` or serving the same ensembles."""

    def __init__(self, url: str) -> None:
        import tritonclient.grpc as triton_grpc
        from tritonclient.utils import np_to_triton_dtype

        from tiercel_client import ClientError, Recommender

        self._recommender = Recommender(url)
        self._triton = triton_grpc.InferenceServerClient(url)
        self._grpc, self._dtype_of = triton_grpc, np_to_triton_dtype
        self._client_error = ClientError
        self.info: ServerInfo = self._recommender.server_info()

    def __enter__(self) -> ServedEnsemble:
        return self

    def __exit__(self, *_: object) -> None:
        self._triton.close()
        self._recommender.close()

    def recommend(self, user_ids: Sequence[Id], k: int, now_s: Floats | None = None) -> list[Sequence[Id]]:
        """Return at most k raw item ids for each user, best first; raise EvaluationError on failure."""
        try:
            answers = self._recommender.recommend_many(
                user_ids, k=k, titles=False, features=at(now_s), timeout_s=TIMEOUT_S
            )
        except self._client_error as error:
            raise _failed(MODEL, user_ids, error) from error
        return [answer.item_ids for answer in answers]

    def retrieve(self, user_ids: Sequence[Id], now_s: Floats | None = None) -> IntArray:
        """Return each user's retrieved catalogue rows ``[n, N]``; raise EvaluationError on failure."""
        # The client explains one user per request; this asks for all users in one.
        inputs = []
        for name, array in request_tensors(user_ids, now_s, self.info.user_id_dtype).items():
            inputs.append(self._grpc.InferInput(name, list(array.shape), self._dtype_of(array.dtype)))
            inputs[-1].set_data_from_numpy(array)
        try:
            # Ask for all outputs. Asked for only some, Triton may also leave out steps that these need, where
            # a step's tensors are both outputs of the ensemble and inputs of other steps.
            answer = self._triton.infer(EXPLAIN_MODEL, inputs, client_timeout=TIMEOUT_S)
        except Exception as error:
            raise _failed(EXPLAIN_MODEL, user_ids, error) from error
        rows: IntArray = answer.as_numpy("retrieved_row")
        return rows


def _failed(model: str, user_ids: Sequence[Id], error: Exception) -> EvaluationError:
    return EvaluationError(f"{model} failed for {len(user_ids)} users: {error}")
