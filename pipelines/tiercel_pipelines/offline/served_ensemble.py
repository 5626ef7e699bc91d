"""What an evaluation asks: a server, through our client."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..errors import EvaluationError
from .metrics import IntArray

if TYPE_CHECKING:
    from tiercel_client import ServerInfo

Id = int | str

EXPLAIN_MODEL = "recommend_explain"
#: Seconds that one batch of users may take.
TIMEOUT_S = 30.0


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
        is_text = self.info.user_id_dtype == "bytes"
        ids = np.empty((len(user_ids), 1), np.object_ if is_text else np.int64)
        ids[:, 0] = [user.encode() for user in map(str, user_ids)] if is_text else list(user_ids)
        tensor = self._grpc.InferInput("user_id", list(ids.shape), "BYTES" if is_text else "INT64")
        tensor.set_data_from_numpy(ids)
        wanted = [self._grpc.InferRequestedOutput("retrieved_row")]
        try:
            answer = self._triton.infer(EXPLAIN_MODEL, [tensor], outputs=wanted, client_timeout=TIMEOUT_S)
        except Exception as error:
            raise EvaluationError(f"{EXPLAIN_MODEL} failed for {len(user_ids)} users: {error}") from error
        rows: IntArray = answer.as_numpy("retrieved_row")
        return rows
