"""Whole answers by the plain reference, one user at a time, with the models in torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tiercel_serving.reorder.inputs import source_columns
from tiercel_serving.rules.table import asked
from tiercel_serving.settings import FALLBACK, KNOWN, UNKNOWN
from tiercel_serving.sources.table import Made
from tiercel_serving.spec import Array, Arrays
from tiercel_serving.stages.specs import ALLOW_SEEN, NOW
from tiercel_serving.verify.golden import ANSWER_USERS, Golden
from tiercel_serving.verify.reference import Candidate, keep, near_cut, order, plain_items, retrieve

from .parts import Inputs, Programs
from .uncompiled import Uncompiled

#: What an approximate source may miss of the kept: so many behind the cut-off take its place.
SPARE = 0.25


@dataclass(frozen=True)
class Answer:
    """One user's answer, and all that it may be made of.

    Parameters
    ----------
    best
        Catalogue rows and scores, best first.
    candidates
        What may be kept, and whether it is whichever way near ties fall.
    kept
        The rows that the reference keeps.
    tasks
        The ranker's scores of the candidates, one number a task.
    """

    best: list[tuple[int, float]]
    candidates: list[tuple[Candidate, bool]]
    kept: set[int]
    tasks: list[list[float]] | None


def ask_for_answers(
    golden: Golden,
    inputs: Inputs,
    programs: Programs,
    uncompiled: Uncompiled,
    made: Mapping[str, Made],
) -> tuple[Array, Array]:
    """Answer for some users; one of whom too many candidates nearly tie is passed over for another.

    Every second one may get what the user already had, whatever the settings say.

    Returns
    -------
    ``[N]`` float32 and int32: retrieval's scores of all their candidates, and where each came from.
    """
    nobody, settings = uncompiled.nobody, uncompiled.settings
    rows = np.unique(np.linspace(0, max(nobody - 1, 0), 2 * ANSWER_USERS).astype(np.int64))[:nobody]
    # Those spread over all users first, then those between them.
    rows = np.concatenate([rows[::2], rows[1::2]])
    ids = inputs.user_ids[rows]
    id_is_feature = any(column.name == inputs.columns.user_id for column in programs.user.inputs)
    if settings.unknown_users == FALLBACK or not id_is_feature:
        # The row of nobody has no id, which is another feature than an id that was never seen.
        rows, ids = np.insert(rows, 0, nobody), np.concatenate([stranger(inputs.user_ids), ids])
    sources = [made[kind.name].arrays for kind in settings.sources]
    exact = all(one.figures.get("exact", True) for one in made.values())
    spare = 0 if exact else int(settings.kept * SPARE)
    wanted = min(ANSWER_USERS + 1, len(rows))
    answers: dict[int, Answer] = {}
    for number, row in enumerate(rows.tolist()):
        answer = _answer(uncompiled, sources, row, spare, seen=number % 2 == 1)
        if answer is not None:
            answers[number] = answer
        if len(answers) == wanted:
            break
    chosen = np.array(list(answers), np.int64)
    request = {
        "user_id": ids[chosen][:, None],
        ALLOW_SEEN: (chosen % 2 == 1)[:, None],
        "k": np.full((len(chosen), 1), settings.k_max, np.int32),
    }
    if asked(settings.rules).now or settings.seen_again_days is not None:
        request[NOW] = np.full((len(chosen), 1), uncompiled.now)
    found = list(answers.values())
    outputs = _outputs([answer.best for answer in found], inputs.item_ids, settings.k_max)
    outputs["status"] = np.where(rows[chosen] == nobody, UNKNOWN, KNOWN).astype(np.int32)[:, None]
    outputs |= _candidates(found, uncompiled.items)
    outputs["wanted"] = np.array([wanted], np.int64)
    golden.add_tensors("answers", "all", request, outputs)
    real = outputs["candidate_row"] != uncompiled.items
    return outputs["candidate_score"][real], outputs["candidate_source"][real]


def _answer(
    uncompiled: Uncompiled, sources: Sequence[Mapping[str, Array]], row: int, spare: int, *, seen: bool
) -> Answer | None:
    """Answer one user, who may get what was ``seen`` or not; None if too many candidates nearly tie."""
    settings = uncompiled.settings
    unknown = row == uncompiled.nobody
    tensors = uncompiled.with_queries(uncompiled.users([row]))
    user = {name: tensor[0] for name, tensor in tensors.items()}
    allowed = uncompiled.allowed(row, seen=seen)
    found = retrieve(settings, sources, user, allowed, unknown=unknown, spare=spare)
    if found.band is None:
        return None
    raw = uncompiled.tables.raw_items
    of_sources = source_columns(
        settings.reorder,
        dict(zip((s.name for s in settings.sources), sources, strict=True)).__getitem__,
        uncompiled.items,
    )
    item_of = plain_items({name: raw[name] for name in settings.raw_columns()} | of_sources)
    kept = keep(settings, item_of, found.candidates).candidates
    if unknown and settings.unknown_users == FALLBACK:
        # The fallback's scores are the same numbers in every engine.
        candidates = [(candidate, True) for candidate in kept]
    else:
        candidates = near_cut(settings, sources, user, item_of, found, spare=spare)
    tasks = rank(uncompiled, tensors, [candidate for candidate, _ in candidates])
    rows = {candidate.row for candidate in kept}
    own = None if tasks is None else [t for (c, _), t in zip(candidates, tasks, strict=True) if c.row in rows]
    best = order(settings, item_of, kept, own, unknown=unknown, user=user)[: settings.k_max]
    return Answer(best, candidates, rows, tasks)


def rank(uncompiled: Uncompiled, user: Arrays, candidates: Sequence[Candidate]) -> list[list[float]] | None:
    """Return the ranker's scores of candidates, best first, one number a task.

    Each is scored by itself, but that rankers see how far it lies behind the best, which stands first: where
    there are more than the ranker takes, the best leads each part.
    """
    model, width = uncompiled.models.ranker, uncompiled.settings.kept
    if model is None:
        return None
    tasks: list[list[float]] = []
    while len(tasks) < len(candidates):
        lead = candidates[:1] if tasks and width > 1 else []
        part = [*lead, *candidates[len(tasks) : len(tasks) + width - len(lead)]]
        rows = np.full((1, width), uncompiled.items, np.int64)
        scores, sources = np.zeros((1, width), np.float32), np.zeros((1, width), np.int32)
        for slot, candidate in enumerate(part):
            rows[0, slot], scores[0, slot] = candidate.row, candidate.score
            sources[0, slot] = candidate.source
        known = {**user, **uncompiled.candidates(rows, scores, sources)}
        tasks += model.run(known)[model.output.name][0, len(lead) : len(part)].tolist()
    return tasks


def _candidates(answers: Sequence[Answer], pad: int) -> dict[str, Array]:
    """Return all candidates of each user, padded to the most that one has."""
    width = max((len(answer.candidates) for answer in answers), default=0)
    depth = max((len(tasks) for answer in answers for tasks in answer.tasks or ()), default=0)
    shape = (len(answers), width)
    out: dict[str, Array] = {
        "candidate_row": np.full(shape, pad, np.int64),
        "candidate_score": np.zeros(shape, np.float32),
        "candidate_source": np.zeros(shape, np.int32),
        "candidate_certain": np.zeros(shape, np.bool_),
        "candidate_kept": np.zeros(shape, np.bool_),
        "candidate_tasks": np.zeros((*shape, depth), np.float32),
    }
    for number, answer in enumerate(answers):
        for place, (candidate, certain) in enumerate(answer.candidates):
            out["candidate_row"][number, place] = candidate.row
            out["candidate_score"][number, place] = candidate.score
            out["candidate_source"][number, place] = candidate.source
            out["candidate_certain"][number, place] = certain
            out["candidate_kept"][number, place] = candidate.row in answer.kept
        if answer.tasks:
            out["candidate_tasks"][number, : len(answer.tasks)] = answer.tasks
    return out


def _outputs(answers: Sequence[list[tuple[int, float]]], item_ids: Array, width: int) -> dict[str, Array]:
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
