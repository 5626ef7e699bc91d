"""What an evaluation asks: a server, or a release in this process, through our client."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from ..errors import EvaluationError
from .metrics import IntArray

if TYPE_CHECKING:
    from tiercel_client import ServerInfo
    from tiercel_serving.release.opened import Release

Id = int | str

EXPLAIN_MODEL = "recommend_explain"
#: Seconds that one batch of users may take: nobody waits for it, and a machine may be busy or asleep.
TIMEOUT_S = 300.0


class Ensemble(Protocol):
    """The served graph, wherever it runs."""

    @property
    def info(self) -> ServerInfo:
        """What is served."""
        ...

    def recommend(self, user_ids: Sequence[Id], k: int) -> list[Sequence[Id]]:
        """Return each user's answer, best first: raw item ids, at most k."""
        ...

    def retrieve(self, user_ids: Sequence[Id]) -> IntArray:
        """Return what retrieval gave each user, best first: catalogue rows ``[n, N]``, pad I."""
        ...


class LocalEnsemble:
    """The stages of a release in this process: the same answers, without a server."""

    def __init__(self, release: Release | str | Path) -> None:
        from tiercel_client import Recommender
        from tiercel_serving.runtime.local import LocalTransport

        self._transport = LocalTransport(release)
        self._recommender = Recommender(transport=self._transport)
        self.info: ServerInfo = self._recommender.server_info()

    def recommend(self, user_ids: Sequence[Id], k: int) -> list[Sequence[Id]]:
        """Return each user's answer, best first: raw item ids, at most k."""
        return [answer.item_ids for answer in self._recommender.recommend_many(user_ids, k=k, titles=False)]

    def retrieve(self, user_ids: Sequence[Id]) -> IntArray:
        """Return what retrieval gave each user, best first: catalogue rows ``[n, N]``, pad I."""
        from tiercel_client.wire.transport import InferRequest

        ids = id_column(user_ids, self.info.user_id_dtype)
        request = InferRequest(EXPLAIN_MODEL, {"user_id": ids}, ("retrieved_row",), TIMEOUT_S, "", {})
        rows: IntArray = self._transport.infer(request)["retrieved_row"]
        return rows


def id_column(user_ids: Sequence[Id], dtype: str) -> npt.NDArray[Any]:
    """Return raw ids as the tensor ``[n, 1]`` that a request takes."""
    is_text = dtype == "bytes"
    ids = np.empty((len(user_ids), 1), np.object_ if is_text else np.int64)
    ids[:, 0] = [user.encode() for user in map(str, user_ids)] if is_text else list(user_ids)
    return ids


class ServedEnsemble:
    """A server at ``host:port`` of gRPC that ``tiercel serve`` started, or any with the same ensembles."""

    def __init__(self, url: str) -> None:
        import tritonclient.grpc as triton_grpc

        from tiercel_client import Recommender

        self._recommender = Recommender(url)
        self._triton = triton_grpc.InferenceServerClient(url)
        self._grpc = triton_grpc
        self.info: ServerInfo = self._recommender.server_info()

    def __enter__(self) -> ServedEnsemble:
        return self

    def __exit__(self, *_: object) -> None:
        self._triton.close()
        self._recommender.close()

    def recommend(self, user_ids: Sequence[Id], k: int) -> list[Sequence[Id]]:
        """Return each user's answer, best first: raw item ids, at most k."""
        answers = self._recommender.recommend_many(user_ids, k=k, titles=False, timeout_s=TIMEOUT_S)
        return [answer.item_ids for answer in answers]

    def retrieve(self, user_ids: Sequence[Id]) -> IntArray:
        """Return what retrieval gave each user, best first: catalogue rows ``[n, N]``, pad I."""
        # One request, since the client explains one user at a time.
        ids = id_column(user_ids, self.info.user_id_dtype)
        datatype = "BYTES" if ids.dtype == np.object_ else "INT64"
        tensor = self._grpc.InferInput("user_id", list(ids.shape), datatype)
        tensor.set_data_from_numpy(ids)
        wanted = [self._grpc.InferRequestedOutput("retrieved_row")]
        try:
            answer = self._triton.infer(EXPLAIN_MODEL, [tensor], outputs=wanted, client_timeout=TIMEOUT_S)
        except Exception as error:
            raise EvaluationError(f"{EXPLAIN_MODEL} failed for {len(user_ids)} users: {error}") from error
        rows: IntArray = answer.as_numpy("retrieved_row")
        return rows
