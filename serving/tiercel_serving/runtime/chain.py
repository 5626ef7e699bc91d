"""A chain of stages: arrays pass from stage to stage unchanged."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import numpy as np

from ..device.crossing import Crossing
from ..errors import InvalidSettings, KindUnavailable, RequestError, StageFailed
from ..live_items.watch import LiveItems
from ..release.opened import Release, open_release
from ..repository.engine_models import batch_sizes
from ..repository.targets import find_target
from ..spec import Array, Arrays, Checks, Closes, Renews, Stage, TensorSpec, Widths, model_inputs
from ..stages.specs import BESIDE, ITEM_ROWS
from ..stages.table import build_stage, row_of
from .batching import absent, complete, count_rows


class Chain:
    """Stages in the order in which they run.

    Parameters
    ----------
    stages
        The stages.
    items
        Items that may change while the stages run; None if they can't.

    Attributes
    ----------
    stages : tuple of Stage
        The inputs of each come from the caller or from an earlier stage.
    place : Place or None
        The device (:mod:`tiercel_serving.device.place_torch`) of the stages that run on one, if any do.
    external_inputs : tuple of TensorSpec
        The inputs that the caller must give: those that no earlier stage makes.
    """

    def __init__(self, stages: Iterable[Stage], place: Any = None, items: LiveItems | None = None) -> None:
        self.place = place
        self.stages: tuple[Stage, ...] = tuple(stages)
        self._items, self._renewed = items, 0
        self.external_inputs: tuple[TensorSpec, ...] = model_inputs(stage.spec for stage in self.stages)
        needed = {tensor.name for tensor in self.external_inputs}
        self._companions = [tensor for tensor in self.external_inputs if tensor.of is not None]
        self._checked = [stage for stage in self.stages if isinstance(stage, Checks)]
        # For each stage: its inputs, and those of them that it takes on the device.
        self._there: list[tuple[Stage, list[str], frozenset[str]]] = [
            (stage, [one.name for one in stage.spec.inputs], getattr(stage, "tensors", frozenset()))
            for stage in self.stages
        ]
        # Item rows from another process may be of items that this process does not know of yet.
        self._told = [name for name in ITEM_ROWS if name in needed]
        self._wide = [stage for stage in self.stages if isinstance(stage, Widths)]
        # Batch size → values of absent inputs; there are few batch sizes.
        self._blanks: dict[int, dict[str, Array]] = {}

    @classmethod
    def open(
        cls, release: Release | str | Path, names: Sequence[str] | None = None, *, gpu: int = 0
    ) -> Chain:
        """Open stages of a release (or its directory) in order; None is the whole served graph.

        The stages of a release for a GPU run on GPU number ``gpu``.

        Raises
        ------
        ReleaseError
            The release or one of its artefacts can't be opened.
        DeviceUnavailable
            The release is for a GPU, and there is none that can be used.
        InvalidSettings
            The stages run on a device, and the release has ``added_items``.
        KindUnavailable
            torch or another library is not installed.
        """
        opened = release if isinstance(release, Release) else open_release(release)
        if names is None:
            names = [name for name in opened.stages if name not in BESIDE]
        place = open_place(opened, names, gpu)
        if place is not None and opened.room:
            raise InvalidSettings(
                f"settings.added_items: {opened.room}, but stages on a device (target "
                f"{opened.manifest.target!r}) take no new items; leave it 0, or export with --target cpu"
            )
        stages = [build_stage(name, opened, place) for name in names]
        renewed = any(isinstance(one, Renews) for one in stages)
        chain = cls(stages, place, opened.live_items if renewed else None)
        if place is not None and place.capture is not None:
            chain.warm(batch_sizes(opened.settings.max_batch_size))
        return chain

    def warm(self, batches: Iterable[int]) -> None:
        """Run one batch of each of these sizes, so that a device's kernels are chosen and graphs captured."""
        for users in batches:
            blank = {
                one.name: np.full((users, *(max(dim, 0) for dim in one.dims)), one.pad, one.numpy_dtype)
                for one in self.external_inputs
            }
            with suppress(RequestError):
                self.run(blank)

    def close(self) -> None:
        """Release the resources of each stage; the chain can't run after that."""
        for stage in self.stages:
            if isinstance(stage, Closes):
                stage.close()

    def check(self, arrays: Arrays) -> None:
        """Have each stage check the external inputs of one request.

        Raises
        ------
        InvalidRequest
            The request can never be answered.
        """
        for stage in self._checked:
            stage.check(arrays)

    def widths(self, arrays: Arrays) -> dict[str, int]:
        """Return output → width for one request, for outputs whose width depends on it (on its ``k``)."""
        widths: dict[str, int] = {}
        for stage in self._wide:
            widths.update(stage.widths(arrays))
        return widths

    def lacking(self, arrays: Arrays) -> dict[str, Array]:
        """Return null values for the optional inputs that a batch lacks; names and shapes determine them."""
        users = count_rows(arrays)
        blank = self._blanks.get(users)
        if blank is None:
            blank = self._blanks[users] = absent(self.external_inputs, users)
        full = complete(self._companions, arrays, blank)
        return {name: array for name, array in full.items() if name not in arrays}

    def run(
        self, arrays: Arrays, wanted: Collection[str] | None = None, lacking: Arrays | None = None
    ) -> tuple[dict[str, Array], dict[str, float]]:
        """Run all stages on one batch of the external inputs; absent optional ones are null.

        Parameters
        ----------
        arrays
            The inputs.
        wanted
            The outputs to copy from a device; None copies all.
        lacking
            The result of :meth:`lacking` for these inputs, if it is known.

        Returns
        -------
        Every tensor that some stage made, by name, except those on a device that are not wanted; and for
        each stage the microseconds it took. On a GPU, a stage's time is that of launching its work.

        Raises
        ------
        RequestError
            A stage rejected a request.
        StageFailed
            A stage failed in another way.
        """
        if self._items is not None:
            self._renew(self._items, arrays)
        tensors = {**(self.lacking(arrays) if lacking is None else lacking), **arrays}
        if self.place is not None:
            with self.place.here():
                return self._run_there(tensors, wanted)
        outputs: dict[str, Array] = {}
        times: dict[str, float] = {}
        before = perf_counter_ns()
        for stage in self.stages:
            try:
                made = stage.run(tensors)
            except RequestError:
                raise
            except Exception as error:
                raise StageFailed(stage.spec.name, error) from error
            tensors.update(made)
            outputs.update(made)
            after = perf_counter_ns()
            times[stage.spec.name] = (after - before) / 1000
            before = after
        return outputs, times

    def _renew(self, items: LiveItems, arrays: Arrays) -> None:
        """Apply changes of items since the last batch, so that this batch sees them."""
        newest = -1
        for name in self._told if items.table.room else ():
            rows = arrays[name]
            newest = max(newest, int(np.where(rows < items.table.size, rows, -1).max(initial=-1)))
        items.take_up(newest)
        if items.version != self._renewed:
            for stage in self.stages:
                if isinstance(stage, Renews):
                    stage.renew()
            self._renewed = items.version

    def _run_there(
        self, arrays: Arrays, wanted: Collection[str] | None
    ) -> tuple[dict[str, Array], dict[str, float]]:
        """Run all stages, each on host or device, with the copies between the two."""
        crossing, times, outputs = Crossing(self.place, arrays), dict[str, float](), dict[str, None]()
        before = perf_counter_ns()
        for stage, names, there in self._there:
            try:
                made = stage.run(crossing.give(names, there))
            except RequestError:
                raise
            except Exception as error:
                raise StageFailed(stage.spec.name, error) from error
            crossing.add(made)
            outputs.update(dict.fromkeys(made))
            after = perf_counter_ns()
            times[stage.spec.name] = (after - before) / 1000
            before = after
        names = [name for name in outputs if wanted is None or name in wanted or crossing.on_host(name)]
        return {name: crossing.host(name) for name in names}, times


def open_place(release: Release, names: Sequence[str], gpu: int = 0) -> Any:
    """Return the device that a release's stages run on; None if none of these stages runs on one.

    Raises
    ------
    DeviceUnavailable
        There is no such device that can be used.
    KindUnavailable
        torch is not installed.
    """
    device = find_target(release.manifest.target).device
    if device is None or not any(row_of(name).on_device for name in names):
        return None
    try:
        from ..device.place_torch import Place
    except ModuleNotFoundError as error:
        raise KindUnavailable(
            f"target {release.manifest.target!r} needs torch, which is not installed; run pip install "
            '"tiercel[aoti]", or export with --target cpu'
        ) from error
    return Place(f"cuda:{gpu}" if device == "cuda" else device)
