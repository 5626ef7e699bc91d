"""Complete answers of the plain reference, one user at a time, with the original models."""

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

#: Share of the kept candidates that an approximate source may miss. As many candidates after the cut-off may
#: replace them.
SPARE = 0.25


@dataclass(frozen=True)
class Answer:
    """One user's answer, and the candidates that it may consist of.

    Parameters
    ----------
    best
        Catalogue rows and scores, best first.
    candidates
        Candidates that may be kept, each with whether it is kept however near ties are broken.
    kept
        The catalogue rows that the reference keeps.
    tasks
        The ranker's scores of ``candidates``, one number per task; None without a ranker.
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
    """Add golden answers for some users; a user with too many near ties is replaced by another.

    For every second user, seen items are allowed regardless of the settings.

    Returns
    -------
    ``[N]`` float32 and int32: retrieval's scores of all their candidates, and the source of each.
    """
    nobody, settings = uncompiled.nobody, uncompiled.settings
    rows = np.unique(np.linspace(0, max(nobody - 1, 0), 2 * ANSWER_USERS).astype(np.int64))[:nobody]
    # Try every second one first, so that the users are spread evenly; the others are spares.
    rows = np.concatenate([rows[::2], rows[1::2]])
    ids = inputs.user_ids[rows]
    id_is_feature = any(column.name == inputs.columns.user_id for column in programs.user.inputs)
    if settings.unknown_users == FALLBACK or not id_is_feature:
        # With the id as a feature, the row of unknown users (null id) differs from a request's unseen id.
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
    """Answer one user; ``seen`` allows seen items. None if too many candidates nearly tie."""
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
        # The fallback's scores are identical in every engine, so near ties can't fall differently.
        candidates = [(candidate, True) for candidate in kept]
    else:
        candidates = near_cut(settings, sources, user, item_of, found, spare=spare)
    tasks = rank(uncompiled, tensors, [candidate for candidate, _ in candidates])
    rows = {candidate.row for candidate in kept}
    own = None if tasks is None else [t for (c, _), t in zip(candidates, tasks, strict=True) if c.row in rows]
    best = order(settings, item_of, kept, own, unknown=unknown, user=user)[: settings.k_max]
    return Answer(best, candidates, rows, tasks)


def rank(uncompiled: Uncompiled, user: Arrays, candidates: Sequence[Candidate]) -> list[list[float]] | None:
    """Return the ranker's scores of candidates, given best first, one number per task; None without one.

    Candidates are scored independently, except that a ranker may compare each with the best, which is in the
    first slot. If there are more candidates than slots, the best one is put first in each part.
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
    """Return the candidates of each answer as tensors, padded to the longest list."""
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
    """Return an id ``[1]`` that no user has."""
    if user_ids.dtype == np.object_:
        longest = max((len(value) for value in user_ids), default=0)
        unknown = np.empty(1, object)
        unknown[0] = b"?" * (longest + 1)
        return unknown
    taken = set(user_ids.tolist())
    return np.array([next(i for i in range(-1, -len(taken) - 2, -1) if i not in taken)], np.int64)
