"""A release in this process behind the client's interface: stages and answers of a server, without one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tiercel_client import NotFound, RequestRefused
from tiercel_client.contract import ModelConfig, TensorInfo
from tiercel_client.wire.transport import Arrays, Headers, InferRequest

from ..errors import RequestError
from ..release.opened import Release, open_release
from ..repository.graph import (
    EXPLAIN,
    EXPLAIN_OUTPUTS,
    PROPENSITY,
    RECOMMEND,
    RECOMMEND_OUTPUTS,
    client_parameters,
)
from ..spec import TensorSpec
from ..stages.specs import BESIDE, TIME_PREFIX, time_spec
from .batching import count_users
from .chain import Chain


class LocalTransport:
    """A client transport to a local release: ``Recommender(transport=LocalTransport("releases/demo"))``.

    Parameters
    ----------
    release
        The release or its directory.

    Raises
    ------
    ReleaseError
        The release can't be opened.
    """

    def __init__(self, release: Release | str | Path) -> None:
        self._release = release if isinstance(release, Release) else open_release(release)
        graph = Chain.open(self._release)
        self._chains = {RECOMMEND: graph, EXPLAIN: graph}
        beside = [name for name in BESIDE if name in self._release.stages]
        self._chains |= {name: Chain.open(self._release, [name]) for name in beside}

    def infer(self, request: InferRequest) -> Arrays:
        """Run the stages in this thread.

        Raises
        ------
        RequestRefused
            A stage rejected the request.
        NotFound
            There is no such model.
        """
        chain = self._chain(request.model)
        arrays = dict(request.inputs)
        try:
            users = count_users(chain.external_inputs, arrays)
            chain.check(arrays)
            outputs, times = chain.run(arrays)
        except RequestError as error:
            raise RequestRefused(str(error), request_id=request.request_id) from error
        for stage, time_us in times.items():
            outputs[TIME_PREFIX + stage] = np.full((users, 1), time_us, np.float32)
        return {name: outputs[name] for name in request.outputs}

    def model_config(self, model: str, *, timeout_s: float, headers: Headers) -> ModelConfig:
        """Return the model's config as a server would report it."""
        chain, settings = self._chain(model), self._release.settings
        made = {tensor.name: tensor for stage in chain.stages for tensor in stage.spec.outputs}
        public = [*made] if model in BESIDE else [*RECOMMEND_OUTPUTS, PROPENSITY]
        if model == EXPLAIN:
            public += EXPLAIN_OUTPUTS
            made |= {one.name: one for one in (time_spec(stage.spec.name) for stage in chain.stages)}
            public += [name for name in made if name.startswith(TIME_PREFIX)]
        return ModelConfig(
            model,
            settings.max_batch_size,
            _tensors(chain.external_inputs),
            _tensors([made[name] for name in public if name in made]),
            client_parameters(self._release),
        )

    def server_metadata(self, *, timeout_s: float, headers: Headers) -> tuple[str, str]:
        """Return the name ``local`` and the release's build."""
        return "local", self._release.build_id

    def close(self) -> None:
        """Do nothing: there is no connection."""

    def _chain(self, model: str) -> Chain:
        if model not in self._chains:
            raise NotFound(f"model {model!r}: a release in this process has {', '.join(self._chains)}")
        return self._chains[model]


def _tensors(specs: Sequence[TensorSpec]) -> tuple[TensorInfo, ...]:
    return tuple(TensorInfo(one.name, one.dtype, one.dims, one.optional) for one in specs)
