"""The sources of a recommender: each made of its served form, its columns and the interactions."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tiercel_serving.errors import InvalidSettings
from tiercel_serving.release.artefacts import write_artefact
from tiercel_serving.sources.table import SOURCES, Made, Material
from tiercel_serving.spec import Array

from ..errors import ExportInputError
from .parts import Inputs
from .uncompiled import Uncompiled

#: Users whose queries measure a source.
RECALL_QUERIES = 1000


def make_sources(inputs: Inputs, uncompiled: Uncompiled) -> dict[str, Made]:
    """Make what every source serves from.

    Raises
    ------
    InvalidSettings
        A source can't be made as its settings say.
    """
    made = {}
    for place, kind in enumerate(inputs.settings.sources):
        form = uncompiled.models.forms.get(kind.name)
        material = Material(
            items=uncompiled.items,
            users=inputs.events.users,
            rows=inputs.events.items,
            columns={name: uncompiled.tables.raw_items[name] for name in kind.columns()},
            form={} if form is None else form.arrays,
            queries=_queries(inputs, uncompiled, kind.name),
            candidates=inputs.settings.candidates,
            seed=inputs.seed,
        )
        try:
            with SOURCES.using(kind):
                made[kind.name] = kind.make(material)
        except InvalidSettings as error:
            raise InvalidSettings(f"settings.sources[{place}] ({kind.name}): {error}") from error
        inputs.notes.extend(made[kind.name].notes)
    return made


def _queries(inputs: Inputs, uncompiled: Uncompiled, source: str) -> Array | None:
    """Return queries like those to come: real users', or what stands in for them where nobody is known."""
    if source not in uncompiled.models.queries:
        return None
    random = np.random.default_rng(inputs.seed)
    users = uncompiled.nobody
    stand_ins = uncompiled.models.forms[source].stand_ins
    if users:
        chosen = np.sort(random.choice(users, min(RECALL_QUERIES, users), replace=False))
        queries = uncompiled.queries(source, chosen)
    elif stand_ins is None:
        return None
    else:
        count = min(RECALL_QUERIES, len(stand_ins))
        queries = stand_ins[np.sort(random.choice(len(stand_ins), count, replace=False))]
    finite = np.isfinite(queries).all(axis=1)
    if not finite.all():
        raise ExportInputError(
            f"retrieval[{source!r}].query: {int((~finite).sum())} of {len(finite)} users' vectors hold NaN "
            "or infinity; a null in a numeric column stays NaN unless the workflow fills it (FillMissing)"
        )
    return np.ascontiguousarray(queries, np.float32)


def write_source(folder: Path, made: Made, build_id: str) -> None:
    """Write the artefact of a source: its other files first, so that its header lists them."""
    folder.mkdir(parents=True)
    for name, write in made.files.items():
        write(str(folder / name))
    write_artefact(folder, "source", build_id, made.arrays, made.meta)
