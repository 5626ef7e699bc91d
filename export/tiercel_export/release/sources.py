"""Make the sources of a recommender, each from its served form, its columns and the interactions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from tiercel_serving.errors import InvalidSettings
from tiercel_serving.release.artefacts import write_artefact
from tiercel_serving.sources.table import SOURCES, Made, Material
from tiercel_serving.spec import Array

from ..errors import ExportInputError
from .parts import Inputs
from .uncompiled import Uncompiled

#: Number of random users whose queries measure a source, and of users with the longest histories to add.
RECALL_QUERIES, MOST_SEEN = 200, 50


def make_sources(inputs: Inputs, uncompiled: Uncompiled) -> dict[str, Made]:
    """Make the artefact of every source.

    Raises
    ------
    InvalidSettings
        A source can't be made with its settings.
    ExportInputError
        A query model returns NaN or infinity.
    """
    made = {}
    allowed = _allowed(inputs, uncompiled)
    for place, kind in enumerate(inputs.settings.sources):
        form = uncompiled.models.forms.get(kind.name)
        queries, seen = _queries(inputs, uncompiled, kind.name)
        material = Material(
            items=uncompiled.items,
            users=inputs.events.users,
            rows=inputs.events.items,
            columns={name: uncompiled.tables.raw_items[name] for name in kind.columns()},
            form={} if form is None else form.arrays,
            queries=queries,
            seen=seen,
            allowed=allowed,
            candidates=inputs.settings.candidates,
            seed=inputs.seed,
            times=inputs.events.times,
        )
        try:
            with SOURCES.using(kind):
                made[kind.name] = kind.make(material)
        except InvalidSettings as error:
            raise InvalidSettings(f"settings.sources[{place}] ({kind.name}): {error}") from error
        inputs.notes.extend(made[kind.name].notes)
    return made


def _allowed(inputs: Inputs, uncompiled: Uncompiled) -> npt.NDArray[np.bool_]:
    """Return which items ``[I]`` pass every rule, and note how many pass each rule."""
    rules, raw = inputs.settings.rules, uncompiled.tables.raw_items
    for rule in rules:
        count = int(np.count_nonzero(rule.passes(raw)))
        share = f"{count} of {uncompiled.items} items pass the rule {rule.name!r}"
        inputs.notes.append(f"rules: {share}" + ("" if count else "; nobody will be recommended anything"))
    allowed = uncompiled.passing
    count, kept = int(np.count_nonzero(allowed)), inputs.settings.kept
    if len(rules) > 1 or count < kept:
        inputs.notes.append(f"rules: {count} of {uncompiled.items} items pass all of them")
    return allowed


def _queries(inputs: Inputs, uncompiled: Uncompiled, source: str) -> tuple[Array | None, list[Array]]:
    """Return representative queries ``[Q, D]`` and the seen item rows of each query's user.

    They belong to real users, or are the form's stand-ins if there are no users. None for neither.
    """
    if source not in uncompiled.models.queries:
        return None, []
    random = np.random.default_rng(inputs.seed)
    users = uncompiled.nobody
    stand_ins = uncompiled.models.forms[source].stand_ins
    seen: list[Array] = []
    if users:
        chosen = random.choice(users, min(RECALL_QUERIES, users), replace=False)
        counts = np.diff(uncompiled.tables.user_arrays["history_offsets"][: users + 1])
        most = np.argpartition(-counts, min(MOST_SEEN, users) - 1)[:MOST_SEEN]
        chosen = np.append(chosen, np.setdiff1d(most, chosen))
        queries, seen = uncompiled.queries(source, chosen), [uncompiled.seen(int(row)) for row in chosen]
    elif stand_ins is None:
        return None, []
    else:
        count = min(RECALL_QUERIES, len(stand_ins))
        queries = stand_ins[np.sort(random.choice(len(stand_ins), count, replace=False))]
        seen = [np.zeros(0, np.int64)] * count
    finite = np.isfinite(queries).all(axis=1)
    if not finite.all():
        raise ExportInputError(
            f"retrieval[{source!r}].query: {int((~finite).sum())} of {len(finite)} users' vectors hold NaN "
            "or infinity; a null in a numeric column stays NaN unless the workflow fills it (FillMissing)"
        )
    return np.ascontiguousarray(queries, np.float32), seen


def write_source(folder: Path, made: Made, build_id: str) -> None:
    """Write the artefact of a source, other files first so that the header lists them."""
    folder.mkdir(parents=True)
    for name, write in made.files.items():
        write(str(folder / name))
    write_artefact(folder, "source", build_id, made.arrays, made.meta)
