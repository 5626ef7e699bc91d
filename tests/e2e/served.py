"""A served recommender with everything that it was made of, and how the models of its layouts are called."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import tritonclient.grpc as grpcclient

from reference import OfflineReference, Question
from tiercel_pipelines.data import Dataset
from tiercel_pipelines.recipe import Recipe
from tiercel_pipelines.training import TrainedRun
from tiercel_serving import backend
from tiercel_serving.release.opened import Release
from tiercel_serving.supervise import TritonServer

LAYOUTS = {"fused": "recommend", "staged": "recommend_staged"}
#: What runs the stages of each: every test of this folder is made on both. Tiercel's own where it was built.
RUNNERS = {"movielens": "python", "synthetic": "tiercel" if backend.library() else "python"}


@dataclass
class Served:
    """A served recommender and everything it was made of."""

    recipe: Recipe
    dataset: Dataset
    run: TrainedRun
    release: Release
    server: TritonServer

    @cached_property
    def reference(self) -> OfflineReference:
        ranker: Any = self.run.load_ranking()
        return OfflineReference(
            workflow=self.run.load_workflow(),
            towers={
                name: (model.user_tower, model.item_tower)
                for name, model in self.run.load_retrieval().items()
            },
            ranker=None if ranker is None else ranker.module,
            users=self.run.users,
            items=self.run.items,
            interactions=self.run.interactions,
            settings=self.release.settings,
            packed=self.release.manifest.packed,
            user_id=self.dataset.user_id,
            item_id=self.dataset.item_id,
            timestamp=self.dataset.timestamp,
        )

    @cached_property
    def client(self) -> grpcclient.InferenceServerClient:
        """A plain gRPC client, for requests that ours would refuse to send."""
        return grpcclient.InferenceServerClient(self.server.grpc_url)

    @property
    def known_user(self) -> Any:
        return self.run.users[self.dataset.user_id].iloc[7]

    @property
    def unknown_user(self) -> Any:
        return "nobody – 誰も" if isinstance(self.known_user, str) else 987_654_321

    def question(self, **changes: Any) -> Question:
        return Question(**{"user_id": self.known_user, **changes})
