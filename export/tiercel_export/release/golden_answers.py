"""Whole answers by the plain reference, one user at a time, with the models in torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from tiercel_serving.release.opened import Release
from tiercel_serving.runtime.chain import Chain
from tiercel_serving.settings import FALLBACK, KNOWN, UNKNOWN
from tiercel_serving.sources.table import Made
from tiercel_serving.spec import Array, Arrays
from tiercel_serving.stages.specs import RETRIEVAL
from tiercel_serving.verify.golden import ANSWER_USERS, Golden
from tiercel_serving.verify.reference import (
    Candidate,
    Retrieved,
    in_order,
    keep,
    order,
    plain_items,
    retrieve,
)

from .parts import Inputs, Programs
from .uncompiled import Uncompiled

#: An answer: catalogue rows and scores, best first.
Answer = list[tuple[int, float]]


def ask_for_answers(
    golden: Golden,
    release: Release,
    inputs: Inputs,
    programs: Programs,
    uncompiled: Uncompiled,
    made: Mapping[str, Made],
) -> None:
    """Answer for some users; those whose candidates depend on the last bit of a score are left out."""
    nobody, settings = uncompiled.nobody, uncompiled.settings
    rows = np.unique(np.linspace(0, max(nobody - 1, 0), ANSWER_USERS).astype(np.int64))[:nobody]
    ids = inputs.user_ids[rows]
    id_is_feature = any(column.name == inputs.columns.user_id for column in programs.user.inputs)
    if settings.unknown_users == FALLBACK or not id_is_feature:
        # The row of nobody has no id, which is another feature than an id that was never seen.
        rows, ids = np.append(rows, nobody), np.concatenate([ids, stranger(inputs.user_ids)])
    asked = {"user_id": ids[:, None], "k": np.full((len(ids), 1), settings.k_max, np.int32)}
    served: list[list[Candidate]] | None = None
    if len(rows) and not all(one.figures.get("exact", True) for one in made.values()):
        served = _served(release, asked)
    sources = [made[kind.name].arrays for kind in settings.sources]
    answers = [
        _answer(uncompiled, sources, int(row), None if served is None else served[number])
        for number, row in enumerate(rows)
    ]
    clear = np.array([number for number, answer in enumerate(answers) if answer is not None], np.int64)
    outputs = _outputs([answer for answer in answers if answer is not None], inputs.item_ids, settings.k_max)
    outputs["status"] = np.where(rows[clear] == nobody, UNKNOWN, KNOWN).astype(np.int32)[:, None]
    golden.add_tensors("answers", "all", {name: array[clear] for name, array in asked.items()}, outputs)


def _served(release: Release, asked: Arrays) -> list[list[Candidate]]:
    """Return the candidates that the release itself gives to each user."""
    stages = list(release.stages)
    found, _ = Chain.open(release, stages[: stages.index(RETRIEVAL) + 1]).run(asked)
    columns = (found[name].tolist() for name in ("retrieved_row", "retrieval_score", "source"))
    of_users = zip(*columns, strict=True)
    return [[Candidate(*one) for one in zip(*of_user, strict=True) if one[2]] for of_user in of_users]


def _answer(
    uncompiled: Uncompiled,
    sources: Sequence[Mapping[str, Array]],
    row: int,
    served: list[Candidate] | None,
) -> Answer | None:
    """Answer one user; None if a cut-off falls between scores so close that another engine may swap them.

    Parameters
    ----------
    uncompiled
        The recommender.
    sources
        The arrays of each source.
    row
        The user's row.
    served
        Candidates to start from, where some source is approximate.
    """
    settings = uncompiled.settings
    unknown = row == uncompiled.nobody
    bypass = unknown and settings.unknown_users == FALLBACK
    tensors = uncompiled.with_queries(uncompiled.users([row]))
    user = {name: tensor[0] for name, tensor in tensors.items()}
    if served is None or bypass:
        found = retrieve(settings, sources, user, uncompiled.allowed(row), unknown=unknown)
    else:
        found = Retrieved(in_order(settings, sources, user, served), True)
    raw = uncompiled.tables.raw_items
    item_of = plain_items({name: raw[name] for name in settings.raw_columns()})
    kept = keep(settings, item_of, found.candidates)
    # The fallback's scores are the same numbers in every engine.
    if not (bypass or (found.clear and kept.clear)):
        return None
    tasks = _rank(uncompiled, tensors, kept.candidates)
    return order(settings, item_of, kept.candidates, tasks, unknown=unknown)[: settings.k_max]


def _rank(uncompiled: Uncompiled, user: Arrays, kept: Sequence[Candidate]) -> list[list[float]] | None:
    """Return the ranker's scores of the kept, one number a task."""
    model, width = uncompiled.models.ranker, uncompiled.settings.kept
    if model is None:
        return None
    rows = np.full((1, width), uncompiled.items, np.int64)
    scores, sources = np.zeros((1, width), np.float32), np.zeros((1, width), np.int32)
    for slot, candidate in enumerate(kept):
        rows[0, slot], scores[0, slot] = candidate.row, candidate.score
        sources[0, slot] = candidate.source
    known = {**user, **uncompiled.candidates(rows, scores, sources)}
    tasks: list[list[float]] = model.run(known)[model.output.name][0, : len(kept)].tolist()
    return tasks


def _outputs(answers: Sequence[Answer], item_ids: Array, width: int) -> dict[str, Array]:
    empty = np.zeros(1, item_ids.dtype)
    empty[0] = b"" if item_ids.dtype == np.object_ else 0
    ids: Array = np.repeat(empty, len(answers) * width).reshape(len(answers), width)
    scores = np.zeros(ids.shape, np.float32)
    for number, answer in enumerate(answers):
        for place, (row, score) in enumerate(answer):
            ids[number, place], scores[number, place] = item_ids[row], score
    counts = np.array([len(answer) for answer in answers], np.int32)[:, None]
    return {"item_id": ids, "score": scores, "count": counts}


def stranger(user_ids: Array) -> npt.NDArray[np.generic]:
    """Return ``[1]`` an id that no user has."""
    if user_ids.dtype == np.object_:
        longest = max((len(value) for value in user_ids), default=0)
        unknown = np.empty(1, object)
        unknown[0] = b"?" * (longest + 1)
        return unknown
    taken = set(user_ids.tolist())
    return np.array([next(i for i in range(-1, -len(taken) - 2, -1) if i not in taken)], np.int64)
